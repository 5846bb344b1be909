//! Settings: a YAML section and the environment read into values, with every mistake reported at once.
//!
//! The environment wins over the file and the file over the default. A parser is a plain function from text to a value
//! whose error says what it takes; this module adds the key and what it got. Reading never stops at a mistake: it notes
//! it, goes on with the default, and [`Settings::finish`] returns them all in one [`Mistakes`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use yaml_serde::{Mapping, Value};

/// What a parser takes, as the end of the sentence "… takes …".
pub type Expected = String;

/// Every mistake in a file and the environment, one a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "the configuration has a mistake: {one}"),
            many => {
                write!(f, "the configuration has {} mistakes:", many.len())?;
                many.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
            }
        }
    }
}

impl std::error::Error for Mistakes {}

/// The environment and the mistakes found so far.
pub struct Settings {
    environment: BTreeMap<String, String>,
    mistakes: RefCell<Vec<String>>,
}

impl Settings {
    /// Reads with these variables as the environment.
    pub fn new(environment: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            environment: environment.into_iter().collect(),
            mistakes: RefCell::default(),
        }
    }

    /// Reads with the environment of this process. A variable that is not Unicode is taken with the offending bytes replaced.
    pub fn from_process() -> Self {
        Self::new(std::env::vars_os().map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        }))
    }

    /// Notes a mistake that no parser could see, such as two values that exclude each other.
    pub fn mistake(&self, text: impl Into<String>) {
        self.mistakes.borrow_mut().push(text.into());
    }

    /// A value that only a variable can give; `None` when it is not set, or not what `parse` takes.
    pub fn variable<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, Expected>) -> Option<T> {
        let text = self.environment.get(name)?.trim();
        parse(text)
            .map_err(|expected| self.mistake(format!("{name}: got {}, takes {expected}", quoted(text))))
            .ok()
    }

    /// Like [`Settings::variable`], for a value that may hold a password: a mistake does not show it.
    pub fn secret_variable<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, Expected>) -> Option<T> {
        let text = self.environment.get(name)?.trim();
        parse(text)
            .map_err(|expected| self.mistake(hidden(name, &expected)))
            .ok()
    }

    /// The section at `path` of the file; `None` or an empty one leaves every key to the environment and the defaults.
    pub fn section(&self, path: &str, value: Option<Value>) -> Section<'_> {
        let entries = match value {
            None | Some(Value::Null) => Mapping::new(),
            Some(Value::Mapping(entries)) => entries,
            Some(other) => {
                self.mistake(format!("{path}: got {}, takes keys and values", shown(&other)));
                Mapping::new()
            }
        };
        Section {
            settings: self,
            path: path.to_owned(),
            entries,
            known: Vec::new(),
        }
    }

    /// Returns `value` when nothing was wrong.
    ///
    /// # Errors
    /// All mistakes noted so far.
    pub fn finish<T>(self, value: T) -> Result<T, Mistakes> {
        let mistakes = self.mistakes.into_inner();
        if mistakes.is_empty() {
            Ok(value)
        } else {
            Err(Mistakes(mistakes))
        }
    }
}

/// A group of keys in the file. Each reading method takes its key out; what is left at [`Section::finish`] is unknown.
pub struct Section<'s> {
    settings: &'s Settings,
    path: String,
    entries: Mapping,
    known: Vec<&'static str>,
}

impl<'s> Section<'s> {
    /// The section `key` inside this one.
    pub fn section(&mut self, key: &'static str) -> Section<'s> {
        let value = self.take(key);
        self.settings.section(&self.path_of(key), value)
    }

    /// One value: from `variable` if it is set, else from `key`, else `default`.
    pub fn value<T>(
        &mut self,
        key: &'static str,
        variable: Option<&str>,
        default: T,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> T {
        self.read(key, variable, default, parse, |place, got, expected| {
            format!("{place}: got {got}, takes {expected}")
        })
    }

    /// Like [`Section::value`], for a value that may hold a password: a mistake does not show it.
    pub fn secret<T>(
        &mut self,
        key: &'static str,
        variable: Option<&str>,
        default: T,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> T {
        self.read(key, variable, default, parse, |place, _got, expected| {
            hidden(place, expected)
        })
    }

    /// [`Section::value`], where `mistake` words a mistake from the place, what is there, and what it takes.
    fn read<T>(
        &mut self,
        key: &'static str,
        variable: Option<&str>,
        default: T,
        parse: impl Fn(&str) -> Result<T, Expected>,
        mistake: impl Fn(&str, &str, &str) -> String,
    ) -> T {
        let from_file = self.take(key).map(|value| (self.path_of(key), value));
        let (place, text) = match (self.variable(variable), from_file) {
            (Some(variable), _) => variable,
            (None, None) => return default,
            (None, Some((place, value))) => match scalar(&value) {
                Some(text) => (place, text),
                None => {
                    self.settings.mistake(mistake(&place, &shown(&value), "one value"));
                    return default;
                }
            },
        };
        parse(&text).unwrap_or_else(|expected| {
            self.settings.mistake(mistake(&place, &quoted(&text), &expected));
            default
        })
    }

    /// A list: comma-separated in `variable`; in the file a YAML list or the same comma-separated text. Spaces around an
    /// entry are ignored; an empty text is an empty list, an empty entry a mistake.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        variable: Option<&str>,
        default: Vec<T>,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Vec<T> {
        let from_file = self.take(key).map(|value| (self.path_of(key), value));
        let split = |text: &str| -> Vec<String> {
            if text.trim().is_empty() {
                return Vec::new();
            }
            text.split(',').map(|entry| entry.trim().to_owned()).collect()
        };
        let (place, entries) = match (self.variable(variable), from_file) {
            (Some((place, text)), _) => (place, split(&text)),
            (None, None) => return default,
            (None, Some((place, Value::Sequence(values)))) => {
                let entries = values.iter().map(|value| {
                    scalar(value).unwrap_or_else(|| {
                        self.settings
                            .mistake(format!("{place}: got {}, takes plain entries", shown(value)));
                        String::new()
                    })
                });
                (place.clone(), entries.collect())
            }
            (None, Some((place, value))) => match scalar(&value) {
                Some(text) => (place, split(&text)),
                None => {
                    self.settings
                        .mistake(format!("{place}: got {}, takes a list", shown(&value)));
                    return default;
                }
            },
        };
        entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| match parse(entry) {
                Ok(value) => Some(value),
                Err(expected) => {
                    self.settings.mistake(format!(
                        "{place}: entry {} is {}, takes {expected}",
                        index + 1,
                        quoted(entry)
                    ));
                    None
                }
            })
            .collect()
    }

    /// Notes every key of the file that nobody asked for.
    pub fn finish(self) {
        for key in self.entries.keys() {
            let key = scalar(key).unwrap_or_else(|| shown(key));
            self.settings.mistake(format!(
                "{}: unknown key, takes {}",
                join(&self.path, &key),
                self.known.join(", ")
            ));
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.entries.remove(key)
    }

    fn variable(&self, name: Option<&str>) -> Option<(String, String)> {
        let name = name?;
        let value = self.settings.environment.get(name)?;
        Some((name.to_owned(), value.trim().to_owned()))
    }

    fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The text of a single value as its parser gets it. A key without a value is the empty text.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        Value::String(value) => Some(value.trim().to_owned()),
        Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Sequence(_) => "a list".into(),
        Value::Mapping(_) => "a group of keys".into(),
        other => scalar(other).map_or("a tagged value".into(), |text| quoted(&text)),
    }
}

/// A mistake in a value that may hold a password.
fn hidden(place: &str, expected: &str) -> String {
    format!("{place}: takes {expected} (the value is not shown, because it may hold a password)")
}

/// A value as a mistake quotes it: without what stands before an `@`, because that is where URLs have passwords, and mistakes
/// go into the log.
fn quoted(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_credentials, place)) => format!("\"…@{}\"", place.escape_debug()),
        None => format!("{text:?}"),
    }
}

/// A duration above zero with a unit, such as `5s`, `500ms` or `1m 30s`.
///
/// # Errors
/// A bare number, zero, or more than a year (so that adding it to a clock can't overflow).
pub fn duration(text: &str) -> Result<Duration, Expected> {
    const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() && duration <= YEAR => Ok(duration),
        _ => Err("a duration above zero with its unit, such as 5s or 500ms".into()),
    }
}

/// Like [`duration`], but zero (`0s`) is allowed too.
///
/// # Errors
/// As [`duration`].
pub fn duration_or_zero(text: &str) -> Result<Duration, Expected> {
    if text == "0s" {
        return Ok(Duration::ZERO);
    }
    duration(text).map_err(|_| "a duration with its unit, such as 5s, or 0s for none".into())
}

/// A number of bytes with a unit: `B`, `KiB`, `MiB` or `GiB`.
///
/// # Errors
/// A bare number, zero, or another unit.
pub fn size(text: &str) -> Result<u64, Expected> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    match (number.parse::<u64>(), scale) {
        (Ok(number), Some(scale)) if number > 0 => number.checked_mul(scale),
        _ => None,
    }
    .ok_or_else(|| "a size above zero with its unit: B, KiB, MiB or GiB, such as 64KiB".into())
}

/// A whole number within `range`.
pub fn whole<T>(range: std::ops::RangeInclusive<T>) -> impl Fn(&str) -> Result<T, Expected>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("a whole number from {} to {}", range.start(), range.end())),
    }
}

/// A number above zero and at most `max`, with or without a fraction.
pub fn positive(max: f64) -> impl Fn(&str) -> Result<f64, Expected> {
    move |text| match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= max => Ok(number),
        _ => Err(format!("a number above 0 and at most {max}")),
    }
}

/// `true` or `false`.
///
/// # Errors
/// Anything else.
pub fn truth(text: &str) -> Result<bool, Expected> {
    text.parse().map_err(|_| "true or false".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        Settings::new(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }

    fn yaml(text: &str) -> Option<Value> {
        Some(yaml_serde::from_str(text).expect("test YAML"))
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
        let settings = settings(&[("WAIT", "1s")]);
        let mut section = settings.section("a", yaml("wait: 2s\nother: 3s"));
        assert_eq!(
            section.value("wait", Some("WAIT"), Duration::ZERO, duration),
            Duration::from_secs(1)
        );
        assert_eq!(
            section.value("other", Some("OTHER"), Duration::ZERO, duration),
            Duration::from_secs(3)
        );
        assert_eq!(
            section.value("third", None, Duration::from_secs(4), duration),
            Duration::from_secs(4)
        );
        section.finish();
        assert_eq!(settings.finish(()), Ok(()));
    }

    #[test]
    fn every_mistake_is_told_with_its_key_what_it_got_and_what_it_takes() {
        let settings = settings(&[("SIZE", "64"), ("LIST", "1, ,x")]);
        let mut section = settings.section("top", yaml("wait: 5\ncount: [1]\nsub: 3\nspelt: 1"));
        section.value("wait", None, Duration::ZERO, duration);
        section.value("count", None, 1u8, whole(1..=9));
        section.value("size", Some("SIZE"), 1, size);
        section.list("list", Some("LIST"), vec![], whole(1..=9u8));
        section.section("sub").finish();
        section.finish();
        let Err(mistakes) = settings.finish(()) else {
            unreachable!("the settings are wrong")
        };
        assert_eq!(
            mistakes.0,
            [
                r#"top.wait: got "5", takes a duration above zero with its unit, such as 5s or 500ms"#,
                "top.count: got a list, takes one value",
                r#"SIZE: got "64", takes a size above zero with its unit: B, KiB, MiB or GiB, such as 64KiB"#,
                r#"LIST: entry 2 is "", takes a whole number from 1 to 9"#,
                r#"LIST: entry 3 is "x", takes a whole number from 1 to 9"#,
                r#"top.sub: got "3", takes keys and values"#,
                "top.spelt: unknown key, takes wait, count, size, list, sub",
            ]
        );
        assert!(
            mistakes
                .to_string()
                .starts_with("the configuration has 7 mistakes:\n  top.wait")
        );
    }

    #[test]
    fn a_mistake_in_a_secret_shows_nothing_of_it() {
        let settings = settings(&[("URL", "se://cret"), ("ONLY", "secret")]);
        let mut section = settings.section("", yaml("file: se?cret\nlist: [secret]"));
        let refuse = |_: &str| Err::<u8, _>("something else".to_owned());
        section.secret("url", Some("URL"), 0, refuse);
        section.secret("file", None, 0, refuse);
        section.secret("list", None, 0, refuse);
        settings.secret_variable("ONLY", refuse);
        section.finish();
        let mistakes = settings.finish(()).expect_err("all are wrong").0;
        assert_eq!(mistakes.len(), 4, "{mistakes:?}");
        for (mistake, place) in mistakes.iter().zip(["URL", "file", "list", "ONLY"]) {
            assert!(mistake.starts_with(&format!("{place}: takes ")), "{mistake}");
            assert!(!mistake.contains("cret\""), "{mistake}");
        }
    }

    #[test]
    fn a_mistake_does_not_repeat_a_password() {
        let url = "redis://user:secret@host/x";
        let settings = settings(&[("URL", url), ("LIST", url), ("ONLY", url)]);
        let mut section = settings.section("", yaml(&format!("file: {url}\nsub: {url}")));
        section.value("url", Some("URL"), 0, whole(1..=9));
        section.value("file", None, 0, whole(1..=9));
        section.list("list", Some("LIST"), vec![], whole(1..=9));
        section.section("sub").finish();
        section.finish();
        assert_eq!(settings.variable("ONLY", whole(1..=9)), None);
        let Err(mistakes) = settings.finish(()) else {
            unreachable!("the settings are wrong")
        };
        assert_eq!(mistakes.0.len(), 5);
        for mistake in mistakes.0 {
            assert!(mistake.contains(r#""…@host/x""#), "{mistake}");
        }
    }

    #[test]
    fn a_list_is_the_same_from_a_file_and_from_a_variable() {
        let settings = settings(&[("LIST", " 1 ,2")]);
        let parse = whole(1..=9u8);
        let mut section = settings.section("", yaml("b: [1, 2]\nc: 1,2\nd: ''"));
        assert_eq!(section.list("a", Some("LIST"), vec![], &parse), [1, 2]);
        assert_eq!(section.list("b", None, vec![], &parse), [1, 2]);
        assert_eq!(section.list("c", None, vec![], &parse), [1, 2]);
        assert_eq!(section.list("d", None, vec![7], &parse), [0u8; 0]);
        section.finish();
        assert_eq!(settings.finish(()), Ok(()));
    }

    #[test]
    fn units_are_required_and_nonsense_is_refused() {
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration_or_zero("0s"), Ok(Duration::ZERO));
        for bad in ["", "5", "-1s", "0s", "s", "5 fortnights", "9999y"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("1 GiB"), Ok(1 << 30));
        for bad in ["", "64", "0B", "64KB", "KiB", "-1B", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        for bad in ["0", "-1", "NaN", "inf", "x", ""] {
            assert!(positive(10.0)(bad).is_err(), "{bad}");
        }
        assert!(truth("yes").is_err());
    }
}
