//! Lists of values: one, or several of which each but one has a name.

use super::{Found, Section};
use crate::settings::{Expected, Place, Settings, given, given_node};
use crate::yaml::{Node, Value};

/// One of several lists.
pub struct List<N, T> {
    /// Its name, which the user chose; one may have none.
    pub name: Option<N>,
    /// Where it stands.
    pub place: Place,
    /// Its values.
    pub values: Vec<T>,
}

/// The entries of a list, each with the place that a mistake in it names, or with what is there in place of a text.
type Texts = Vec<(Place, Result<String, String>)>;

impl Section<'_> {
    /// A list: comma-separated in `variable`; in the file a YAML list or the same comma-separated text. Spaces around an
    /// entry are ignored; `none` and an empty text in the file are an empty list, an empty entry is a mistake.
    pub fn list<T: PartialEq>(
        &mut self,
        key: &'static str,
        variable: Option<&'static str>,
        default: Vec<T>,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Vec<T> {
        let settings = self.settings;
        let (texts, in_file) = match self.find(key, variable) {
            Found {
                variable: Some(variable),
                file,
            } => {
                let texts = from_text(&variable.place(), variable.text);
                if let Some((place, node)) = file
                    && values(&from_node(&place, &node), &parse) != values(&texts, &parse)
                {
                    settings.overridden(&place, &variable);
                }
                (texts, None)
            }
            Found {
                variable: None,
                file: Some((place, node)),
            } => (from_node(&place, &node), Some(place)),
            Found {
                variable: None,
                file: None,
            } => return default,
        };
        let Some(values) = read(settings, "", texts, parse) else {
            return default;
        };
        if let Some(place) = in_file {
            self.note_change(key, place, values != default);
        }
        values
    }

    /// Several lists. In the file the one without a name is behind `key` and the others, by their names, are in the group `named`; in
    /// `variable` they stand in one text, as in `a,b;name=c,d`. Each is read as by [`Section::list`]. `None` if there is none at all; one with
    /// a mistake is left out. `default` is that of the list without a name.
    pub fn lists<N: Ord, T: PartialEq>(
        &mut self,
        key: &'static str,
        named: &'static str,
        variable: &'static str,
        default: &[T],
        parse_name: impl Fn(&str) -> Result<N, Expected>,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Option<Vec<List<N, T>>> {
        let settings = self.settings;
        let Found { variable, file } = self.find(key, Some(variable));
        let unnamed = file.map(|(place, node)| (None, from_node(&place, &node), place));
        let mut in_file: Vec<_> = unnamed.into_iter().collect();
        in_file.extend(self.chosen(named, &parse_name, |group, text, name, node| {
            let place = group.place_of(text, &node);
            Some((Some(name), from_node(&place, &node), place))
        }));
        let Some(variable) = variable else {
            if in_file.is_empty() {
                return None;
            }
            let mut lists = Vec::with_capacity(in_file.len());
            for (name, texts, place) in in_file {
                let Some(values) = read(settings, "", texts, &parse) else {
                    continue;
                };
                if name.is_none() {
                    self.note_change(key, place.clone(), values != default);
                }
                lists.push(List { name, place, values });
            }
            return Some(lists);
        };

        self.changed.retain(|(key, _)| *key != named);
        let place = variable.place();
        let mut lists = Vec::new();
        for text in variable.text.split(';') {
            if text.trim().is_empty() {
                settings.expected(&place, "a list before and behind each ;", "nothing");
                continue;
            }
            // What is in front of the = of some password is no name, and must not be shown as one.
            let (label, text) = match text.split_once('=') {
                Some((name, text)) if !name.contains([':', '/', '@', ',']) => (Some(name.trim()), text),
                _ => (None, text),
            };
            let name = match label.map(&parse_name).transpose() {
                Ok(name) => name,
                Err(expected) => {
                    settings.expected(&place, &expected, &given(label.unwrap_or_default(), false));
                    continue;
                }
            };
            let texts = from_text(&place, text);
            lists.push((
                name,
                texts,
                label.map_or_else(String::new, |label| format!("{label}: ")),
            ));
        }
        let mut wins: Vec<_> = lists
            .iter()
            .map(|(name, texts, _)| (name, values(texts, &parse)))
            .collect();
        let mut loses: Vec<_> = in_file
            .iter()
            .map(|(name, texts, _)| (name, values(texts, &parse)))
            .collect();
        wins.sort_by_key(|(name, _)| *name);
        loses.sort_by_key(|(name, _)| *name);
        if wins != loses {
            let group = in_file
                .iter()
                .any(|(name, ..)| name.is_some())
                .then(|| self.place(named));
            let unnamed = in_file.iter().find(|(name, ..)| name.is_none());
            for place in unnamed.map(|(.., place)| place.clone()).into_iter().chain(group) {
                settings.overridden(&place, &variable);
            }
        }
        let lists = lists.into_iter().filter_map(|(name, texts, label)| {
            let values = read(settings, &label, texts, &parse)?;
            let place = place.clone();
            Some(List { name, place, values })
        });
        Some(lists.collect())
    }
}

/// The entries of a comma-separated text.
fn from_text(place: &Place, text: &str) -> Texts {
    match text.trim() {
        "" | "none" => Vec::new(),
        text => text
            .split(',')
            .map(|entry| (place.clone(), Ok(entry.trim().to_owned())))
            .collect(),
    }
}

/// The entries of a list in the file.
fn from_node(place: &Place, node: &Node) -> Texts {
    let at = |line| match place {
        Place::Key { path, .. } => Place::Key {
            path: path.clone(),
            line,
        },
        other => other.clone(),
    };
    match &node.value {
        Value::Scalar { .. } if node.is_null() => Vec::new(),
        Value::Scalar { text, .. } => from_text(place, text),
        Value::List(nodes) => nodes
            .iter()
            .map(|node| match &node.value {
                Value::Scalar { text, .. } if !node.is_null() => (at(node.line), Ok(text.trim().to_owned())),
                _ => (at(node.line), Err(given_node(node, false))),
            })
            .collect(),
        Value::Mapping(_) => vec![(place.clone(), Err(given_node(node, false)))],
    }
}

/// What `parse` makes of each entry, to compare two lists.
fn values<T>(texts: &Texts, parse: impl Fn(&str) -> Result<T, Expected>) -> Vec<Option<T>> {
    let value = |text: &Result<String, String>| parse(text.as_deref().unwrap_or_default()).ok();
    texts.iter().map(|(_, text)| value(text)).collect()
}

/// The values of the list that `label` names, or `None` when one is wrong. Each mistake is noted.
fn read<T>(
    settings: &Settings,
    label: &str,
    texts: Texts,
    parse: impl Fn(&str) -> Result<T, Expected>,
) -> Option<Vec<T>> {
    let mut values = Vec::with_capacity(texts.len());
    let mut wrong = false;
    for (number, (place, entry)) in (1..).zip(texts) {
        let parsed = match &entry {
            Ok(text) => parse(text).map_err(|expected| (expected, given(text, false))),
            Err(got) => Err(("one value".into(), got.clone())),
        };
        match parsed {
            Ok(value) => values.push(value),
            Err((expected, got)) => {
                settings.mistake(
                    &place,
                    format_args!("{label}entry {number}: expected {expected}, got {got}"),
                );
                wrong = true;
            }
        }
    }
    (!wrong).then_some(values)
}
