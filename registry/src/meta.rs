//! What the companion hash of a set says of a member: its weight, and whether it is a backup or drained.
//!
//! It stands beside the set so that the members stay as version 1 wrote them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::{Malformed, Member};

/// The greatest weight.
pub const MAX_WEIGHT: u8 = 100;

/// What is known of a member beside its address. `FromStr` and `Display` are the form in the hash: `weight=3 backup drain`, and
/// nothing for what is as usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Its share of the requests beside that of the others: 0 to [`MAX_WEIGHT`]. 0 is none.
    pub weight: u8,
    /// It gets requests only when no other member can take them.
    pub backup: bool,
    /// It gets no new requests; those that it has go on.
    pub drain: bool,
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            weight: 1,
            backup: false,
            drain: false,
        }
    }
}

/// One thing to change in a [`Meta`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaChange {
    /// The weight; one above [`MAX_WEIGHT`] counts as that.
    Weight(u8),
    /// Whether it is a backup.
    Backup(bool),
    /// Whether it is drained.
    Drain(bool),
}

impl Meta {
    /// The same with `change` made.
    #[must_use]
    pub fn with(self, change: MetaChange) -> Self {
        match change {
            MetaChange::Weight(weight) => Self {
                weight: weight.min(MAX_WEIGHT),
                ..self
            },
            MetaChange::Backup(backup) => Self { backup, ..self },
            MetaChange::Drain(drain) => Self { drain, ..self },
        }
    }
}

impl FromStr for Meta {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut weight, mut backup, mut drain) = (None, false, false);
        for word in text.split_ascii_whitespace() {
            let twice = match word.split_once('=') {
                Some(("weight", number)) => weight.replace(parse_weight(number)?).is_some(),
                None if word == "backup" => std::mem::replace(&mut backup, true),
                None if word == "drain" => std::mem::replace(&mut drain, true),
                _ => return Err("expected weight=N (0 to 100), backup and drain".into()),
            };
            if twice {
                return Err("a word is there twice".into());
            }
        }
        let weight = weight.unwrap_or(Self::default().weight);
        Ok(Self { weight, backup, drain })
    }
}

/// A weight as it stands in the hash.
fn parse_weight(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(weight) if weight <= MAX_WEIGHT && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(weight),
        _ => Err(format!("expected a weight from 0 to {MAX_WEIGHT}")),
    }
}

impl fmt::Display for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weight = (self.weight != Self::default().weight).then(|| format!("weight={}", self.weight));
        let words = [
            weight.as_deref(),
            self.backup.then_some("backup"),
            self.drain.then_some("drain"),
        ];
        f.write_str(&words.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }
}

/// Reads the fields of a companion hash: what differs from the default, and what is wrong with the fields that can't be read.
pub(crate) fn read<'h>(
    fields: impl IntoIterator<Item = (&'h [u8], &'h [u8])>,
) -> (BTreeMap<Member, Meta>, Vec<Malformed>) {
    let (mut all, mut malformed) = (BTreeMap::new(), Vec::new());
    for (field, text) in fields {
        let meta = Member::parse(field).and_then(|member| {
            let meta = std::str::from_utf8(text).map_err(|_| "not UTF-8".to_owned());
            match meta.and_then(str::parse) {
                Ok(meta) => Ok((member, meta)),
                Err(problem) => Err(Malformed::new(text, &format!("in the :meta of {member}: {problem}"))),
            }
        });
        match meta {
            // Whatever the order of the fields, the usual spelling of a member wins over `http://HOST:80/`.
            Ok((member, meta)) if member.encode().as_bytes() == field => {
                all.insert(member, meta);
            }
            Ok((member, meta)) => {
                all.entry(member).or_insert(meta);
            }
            Err(problem) => malformed.push(problem),
        }
    }
    all.retain(|_, meta| *meta != Meta::default());
    (all, malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(weight: u8, backup: bool, drain: bool) -> Meta {
        Meta { weight, backup, drain }
    }

    #[test]
    fn every_meta_survives_the_round_trip_and_the_usual_one_is_empty() {
        for (text, expected) in [
            ("", Meta::default()),
            ("weight=3 backup drain", meta(3, true, true)),
            ("weight=0", meta(0, false, false)),
            ("drain", meta(1, false, true)),
        ] {
            assert_eq!(text.parse(), Ok(expected));
            assert_eq!(expected.to_string(), text);
        }
        assert_eq!("  drain\tweight=100 ".parse(), Ok(meta(100, false, true)));
        assert_eq!("weight=1".parse::<Meta>().unwrap().to_string(), "");
    }

    #[test]
    fn what_makes_no_sense_is_refused_as_a_whole() {
        for (text, problem) in [
            ("weight=101", "a weight from 0 to 100"),
            ("weight=-1", "a weight from 0 to 100"),
            ("weight=+1", "a weight from 0 to 100"),
            ("weight=256", "a weight from 0 to 100"),
            ("weight=", "a weight from 0 to 100"),
            ("weight", "expected weight="),
            ("drain wieght=3", "expected weight="),
            ("Drain", "expected weight="),
            ("drain=1", "expected weight="),
            ("drain drain", "twice"),
            ("weight=1 weight=2", "twice"),
        ] {
            let error = text.parse::<Meta>().unwrap_err();
            assert!(error.contains(problem), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_change_leaves_the_rest_as_it_is() {
        let changed = [MetaChange::Weight(7), MetaChange::Backup(true), MetaChange::Drain(true)]
            .into_iter()
            .fold(Meta::default(), Meta::with);
        assert_eq!(changed, meta(7, true, true));
        assert_eq!(changed.with(MetaChange::Drain(false)), meta(7, true, false));
        assert_eq!(changed.with(MetaChange::Weight(255)).weight, MAX_WEIGHT);
    }

    #[test]
    fn a_bad_field_takes_no_other_with_it() {
        let member = |text: &str| text.parse::<Member>().unwrap();
        for reversed in [false, true] {
            let mut fields: Vec<(&[u8], &[u8])> = vec![
                (b"http://a:1", b"drain"),
                (b"http://A:1/", b"weight=9"),
                (b"http://b:1/", b"backup"),
                (b"http://c:1", b"wieght=3 \n\x1b"),
                (b"http://d:1", b"\xff"),
                (b"http://e:1", b"weight=1"),
                (b"nonsense", b"drain"),
            ];
            if reversed {
                fields.reverse();
            }
            let (all, malformed) = read(fields);
            let expected = [
                (member("a:1"), meta(1, false, true)),
                (member("b:1"), meta(1, true, false)),
            ];
            assert_eq!(all, expected.into());
            let mut malformed: Vec<String> = malformed.iter().map(ToString::to_string).collect();
            malformed.sort();
            assert_eq!(
                malformed,
                [
                    r#""\xff": in the :meta of d:1: not UTF-8"#,
                    r#""nonsense": expected http://host:port or https://host:port"#,
                    r#""wieght=3 \n\x1b": in the :meta of c:1: expected weight=N (0 to 100), backup and drain"#,
                ]
            );
        }
    }
}
