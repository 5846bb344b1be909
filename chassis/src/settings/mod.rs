//! Reads settings from a YAML file and the environment into values, and reports every mistake at once.
//!
//! The environment wins over the file and the file over the default. A parser is a plain function from text to a value
//! whose error says what it expected; this module adds the value and where it is. Reading never stops at a mistake: it notes the
//! mistake and continues with the default, and [`Settings::finish`] returns them all in one [`Mistakes`]. What is not a mistake but
//! may surprise the user, such as a key that a variable overrides, is a [`Remark`].

mod quote;
mod section;
#[cfg(test)]
mod tests;
mod units;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use log::{info, warn};

use crate::yaml::{Mapping, Node, Value, shown_key};
pub use quote::quoted;
pub use section::{Entry, List, Named, Section};
pub use units::{duration, duration_or_zero, positive, size, truth, whole};

/// Variables with this prefix win over those without. Kubernetes sets variables for every service of a namespace, and one of
/// them can have the name of ours.
const PREFIX: &str = "GOPHERPROXY_";

/// More mistakes than this are counted and not shown.
const MOST_MISTAKES: usize = 30;

/// What a parser expected, as the end of the sentence "expected …".
pub type Expected = String;

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the file.
    Key {
        /// Such as `gopherproxy.limit.burst`.
        path: String,
        /// Counted from 1.
        line: usize,
    },
    /// In this variable.
    Variable(String),
    /// Nowhere: the key at this path has its default.
    Unset(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { path, line } => write!(f, "line {line}: {path}"),
            Self::Variable(name) | Self::Unset(name) => f.write_str(name),
        }
    }
}

impl Place {
    /// The line in the file.
    fn line(&self) -> Option<usize> {
        match self {
            Self::Key { line, .. } => Some(*line),
            Self::Variable(_) | Self::Unset(_) => None,
        }
    }
}

/// The mistakes in a file and the environment: those of the file in its order, one a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistakes {
    /// How many there are. A file that is not a configuration at all has thousands.
    count: usize,
    /// The first [`MOST_MISTAKES`].
    texts: Vec<String>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = self.texts.as_slice() {
            return write!(f, "the configuration has a mistake: {one}");
        }
        write!(f, "the configuration has {} mistakes:", self.count)?;
        self.texts.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))?;
        match self.count - self.texts.len() {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

impl std::error::Error for Mistakes {}

/// What a user should know about a key in the file that is not wrong. Keys are paths such as `gopherproxy.limit.burst`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// A variable has another value, and wins: that is how the environment is meant to be used.
    Overridden {
        /// The key.
        key: String,
        /// Its line.
        line: usize,
        /// The name of the variable.
        variable: String,
    },
    /// The key has no effect as the other settings are.
    NoEffect {
        /// The key.
        key: String,
        /// Its line.
        line: usize,
        /// Why not.
        why: String,
    },
}

impl Remark {
    /// Logs it.
    pub fn log(&self) {
        match self {
            Self::Overridden { key, line, variable } => {
                info!(key = key.as_str(), line = *line, variable = variable.as_str(); "a variable overrides a key in the configuration");
            }
            Self::NoEffect { key, line, why } => {
                warn!(key = key.as_str(), line = *line, why = why.as_str(); "a key in the configuration has no effect");
            }
        }
    }
}

/// The environment, and what was found so far.
pub struct Settings {
    environment: BTreeMap<String, String>,
    notes: RefCell<Notes>,
}

#[derive(Default)]
struct Notes {
    /// Each with its line in the file, if it is there.
    mistakes: Vec<(Option<usize>, String)>,
    remarks: Vec<Remark>,
    /// The path of every key that was asked for.
    known: BTreeSet<String>,
    unknown: Vec<Unknown>,
}

/// A key that nobody asked for.
struct Unknown {
    section: String,
    /// The section with a placeholder for each name that the user chose, as in the paths of the keys that are known.
    pattern: String,
    key: String,
    line: usize,
    /// What could stand there, in words.
    choices: String,
}

/// A variable that is set.
struct Variable<'s> {
    name: String,
    text: &'s str,
}

impl Variable<'_> {
    fn place(&self) -> Place {
        Place::Variable(self.name.clone())
    }
}

impl Settings {
    /// Reads with these variables as the environment.
    pub fn new(environment: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            environment: environment.into_iter().collect(),
            notes: RefCell::default(),
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
    pub fn mistake(&self, place: &Place, text: impl fmt::Display) {
        self.note(place.line(), format!("{place}: {text}"));
    }

    /// How many mistakes are noted so far.
    pub fn mistakes(&self) -> usize {
        self.notes.borrow().mistakes.len()
    }

    fn note(&self, line: Option<usize>, text: String) {
        self.notes.borrow_mut().mistakes.push((line, text));
    }

    /// Notes that `variable` overrides a key in the file.
    fn overridden(&self, place: &Place, variable: &Variable<'_>) {
        if let Place::Key { path, line } = place {
            self.notes.borrow_mut().remarks.push(Remark::Overridden {
                key: path.clone(),
                line: *line,
                variable: variable.name.clone(),
            });
        }
    }

    /// Notes that a key in the file has no effect, and why.
    pub fn no_effect(&self, place: &Place, why: &str) {
        if let Place::Key { path, line } = place {
            self.notes.borrow_mut().remarks.push(Remark::NoEffect {
                key: path.clone(),
                line: *line,
                why: why.to_owned(),
            });
        }
    }

    /// The variable of this name, with the prefix or without. An empty one counts as unset.
    fn find(&self, name: &str) -> Option<Variable<'_>> {
        let names = [format!("{PREFIX}{name}"), name.to_owned()];
        names.into_iter().find_map(|name| {
            let text = self.environment.get(&name)?.trim();
            (!text.is_empty()).then_some(Variable { name, text })
        })
    }

    /// A value that only a variable can give; `None` when it is not set, or not what `parse` takes.
    pub fn variable<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, Expected>) -> Option<T> {
        self.parse_variable(&self.find(name)?, false, parse)
    }

    /// The same for a variable that can hold a secret: no message quotes it.
    pub fn secret_variable<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, Expected>) -> Option<T> {
        self.parse_variable(&self.find(name)?, true, parse)
    }

    fn parse_variable<T>(
        &self,
        variable: &Variable<'_>,
        secret: bool,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Option<T> {
        match parse(variable.text) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.wrong_variable(variable, secret, &expected);
                None
            }
        }
    }

    fn wrong_variable(&self, variable: &Variable<'_>, secret: bool, expected: &str) {
        let Variable { name, text } = variable;
        let is_link = name.ends_with("_PORT")
            && ["tcp://", "udp://", "sctp://"]
                .iter()
                .any(|scheme| text.starts_with(scheme));
        if is_link {
            let service = name.trim_end_matches("_PORT").to_ascii_lowercase().replace('_', "-");
            let or = if name.starts_with(PREFIX) {
                String::new()
            } else {
                format!(", or set {PREFIX}{name}, which wins")
            };
            let text = quoted(text);
            self.note(
                None,
                format!(
                    "{name}: {text} looks like a service link, which Kubernetes sets for a Service named \"{service}\"; \
                     set enableServiceLinks: false in the pod's spec{or}"
                ),
            );
            return;
        }
        self.expected(&variable.place(), expected, &given(text, secret));
    }

    /// Notes a value in the file that its reader did not take.
    pub fn wrong(&self, place: &Place, expected: &str, node: &Node) {
        self.expected(place, expected, &given_node(node, false));
    }

    fn expected(&self, place: &Place, expected: &str, got: &str) {
        self.mistake(place, format_args!("expected {expected}, got {got}"));
    }

    /// The file's top level.
    pub fn top(&self, file: Option<Node>) -> Section<'_> {
        Section::new(self, String::new(), String::new(), file)
    }

    /// Adds keys that nobody asked for and that there are, so that a misplaced one is told where it belongs.
    pub fn knows(&self, keys: BTreeSet<String>) {
        self.notes.borrow_mut().known.extend(keys);
    }

    /// The paths of all keys that were asked for, with `NAME` in place of each name that the user chose.
    pub fn known(&self) -> BTreeSet<String> {
        self.notes.borrow().known.clone()
    }

    /// Returns `value` and the remarks on it when nothing was wrong.
    ///
    /// # Errors
    /// All mistakes noted so far.
    pub fn finish<T>(self, value: T) -> Result<(T, Vec<Remark>), Mistakes> {
        let Notes {
            mut mistakes,
            remarks,
            known,
            mut unknown,
        } = self.notes.into_inner();
        if mistakes.is_empty() && unknown.is_empty() {
            return Ok((value, remarks));
        }
        let count = mistakes.len() + unknown.len();
        unknown.sort_by_key(|key| key.line);
        let unknown = unknown.iter().take(MOST_MISTAKES);
        mistakes.extend(unknown.map(|key| (Some(key.line), key.explain(&known))));
        // A stable sort: what is not in the file comes last, in the order of reading.
        mistakes.sort_by_key(|(line, _)| line.unwrap_or(usize::MAX));
        let texts = mistakes.into_iter().map(|(_, text)| text);
        Err(Mistakes {
            count,
            texts: texts.take(MOST_MISTAKES).collect(),
        })
    }
}

impl Unknown {
    /// The mistake in words, with what the user may have meant.
    fn explain(&self, known: &BTreeSet<String>) -> String {
        let Self {
            section,
            pattern,
            key,
            line,
            choices,
        } = self;
        let siblings = known.iter().filter_map(|path| key_in(pattern, path));
        let near = Some(key).filter(|key| key.len() <= 64);
        let near = near.and_then(|key| nearest(&normal(key), siblings));
        let elsewhere = known
            .iter()
            .filter(|path| path.rsplit('.').next() == Some(&normal(key)));
        let (named, plain): (Vec<_>, Vec<_>) = elsewhere
            .map(String::as_str)
            .partition(|path| path.split('.').any(|part| part == section::ANY_NAME));
        // A key of the user's own groups is less likely to be meant.
        let elsewhere = if plain.is_empty() { named } else { plain };
        let advice = match near {
            Some(sibling) => format!("did you mean {sibling}?"),
            None if elsewhere.is_empty() => format!("the keys here are {choices}"),
            None => format!("did you mean {}?", elsewhere.join(" or ")),
        };
        let path = join(section, &shown_key(key));
        format!("line {line}: {path}: unknown key; {advice}")
    }
}

/// The word that was probably meant, if `text` is a misspelling of one of these.
pub fn nearest<'w>(text: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let distances = words
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(text, word), word));
    let near = distances.filter(|(distance, word)| *distance <= 2.min(word.len() / 2));
    near.min().map(|(_, word)| word)
}

/// The spelling that keys have.
fn normal(key: &str) -> String {
    key.replace('-', "_").to_ascii_lowercase()
}

/// The key at `path` when it stands right in `section`.
fn key_in<'p>(section: &str, path: &'p str) -> Option<&'p str> {
    let key = if section.is_empty() {
        path
    } else {
        path.strip_prefix(section)?.strip_prefix('.')?
    };
    (!key.contains('.')).then_some(key)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// A value as a message shows it.
fn given(text: &str, secret: bool) -> String {
    match text {
        "" => "nothing".into(),
        _ if secret => "a value that is not shown because it may hold a password".into(),
        _ => quoted(text),
    }
}

/// A value of the file as a message shows it.
fn given_node(node: &Node, secret: bool) -> String {
    match &node.value {
        _ if node.is_null() => "nothing".into(),
        Value::Scalar { text, .. } => given(text, secret),
        Value::List(_) => "a list".into(),
        Value::Mapping(_) => "a group of keys".into(),
    }
}

/// The entries of a section: none when nothing stands behind its key.
fn entries(settings: &Settings, path: &str, node: Option<Node>) -> Mapping {
    let Some(node) = node.filter(|node| !node.is_null()) else {
        return Mapping::new();
    };
    let got = given_node(&node, false);
    match node.value {
        Value::Mapping(entries) => entries,
        Value::Scalar { .. } | Value::List(_) => {
            let place = if path.is_empty() { "the file" } else { path };
            let hint = "each in a line of its own, with a space after the colon";
            settings.note(
                Some(node.line),
                format!(
                    "line {}: {place}: expected keys and values ({hint}), got {got}",
                    node.line
                ),
            );
            Mapping::new()
        }
    }
}
