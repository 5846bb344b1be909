//! A group of keys in the file.

mod lists;

use std::collections::BTreeMap;

pub use lists::List;

use super::{Expected, Place, Settings, Unknown, Variable, entries, given_node, join, truth};
use crate::yaml::{Mapping, Node, Value, shown_key};

/// Stands for any name that the user chose, in the paths of the keys that are known.
pub(super) const ANY_NAME: &str = "NAME";

/// A group of keys in the file. Each reading method takes its key out; what is left at [`Section::finish`] is unknown.
pub struct Section<'s> {
    settings: &'s Settings,
    path: String,
    /// The same with [`ANY_NAME`] in place of each name that the user chose. Keys are known by it.
    pattern: String,
    entries: Mapping,
    known: Vec<String>,
    /// Where each value that was read stands.
    places: BTreeMap<&'static str, Place>,
    /// The keys in the file whose values are not the defaults.
    changed: Vec<(&'static str, Place)>,
}

/// An entry of a list in the file.
pub enum Entry<'s> {
    /// One value, and where it stands.
    Text(Place, String),
    /// A group of keys.
    Section(Section<'s>),
}

/// A group of keys by a name that the user chose.
pub struct Named<'s, N> {
    /// Its name.
    pub name: N,
    /// Where it stands.
    pub place: Place,
    /// Its keys.
    pub section: Section<'s>,
}

/// What the environment and the file say of a key.
struct Found<'s> {
    variable: Option<Variable<'s>>,
    file: Option<(Place, Node)>,
}

impl<'s> Section<'s> {
    pub(super) fn new(settings: &'s Settings, path: String, pattern: String, node: Option<Node>) -> Self {
        Self {
            settings,
            entries: entries(settings, &path, node),
            path,
            pattern,
            known: Vec::new(),
            places: BTreeMap::new(),
            changed: Vec::new(),
        }
    }

    /// Where mistakes go.
    pub fn settings(&self) -> &'s Settings {
        self.settings
    }

    /// The section `key` inside this one. When it has no keys, all its values come from the environment and the defaults.
    pub fn section(&mut self, key: &'static str) -> Section<'s> {
        let node = self.entry(key).map(|(_, node)| node);
        self.inner(key, node)
    }

    /// What stands behind `key`, as a section.
    fn inner(&self, key: &str, node: Option<Node>) -> Section<'s> {
        Section::new(self.settings, join(&self.path, key), join(&self.pattern, key), node)
    }

    /// The section `key` inside this one and whether it is on: it is, unless `off` stands in its place in the file or in `variable`.
    pub fn switchable(&mut self, key: &'static str, variable: Option<&'static str>) -> (bool, Section<'s>) {
        let settings = self.settings;
        let file = self.entry(key);
        let (mut in_file, mut keys) = (true, None);
        if let Some((place, node)) = &file {
            match &node.value {
                Value::Scalar { text, .. } if !node.is_null() => match on_or_off(text) {
                    Ok(on) => in_file = on,
                    Err(_) => settings.wrong(place, "keys and values, or off", node),
                },
                _ => keys = Some(node.clone()),
            }
        }
        let section = self.inner(key, keys);
        let Some(variable) = variable.and_then(|name| settings.find(name)) else {
            return (in_file, section);
        };
        let on = settings.parse_variable(&variable, false, on_or_off).unwrap_or(in_file);
        if let Some((place, _)) = &file
            && on != in_file
        {
            settings.overridden(place, &variable);
        }
        (on, section)
    }

    /// One value: from `variable` if it is set, else from `key`, else `default`.
    pub fn value<T: PartialEq>(
        &mut self,
        key: &'static str,
        variable: Option<&'static str>,
        default: T,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> T {
        self.read(key, variable, false, default, parse)
    }

    /// The same for a value that can hold a secret: no message quotes it.
    pub fn secret<T: PartialEq>(
        &mut self,
        key: &'static str,
        variable: Option<&'static str>,
        default: T,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> T {
        self.read(key, variable, true, default, parse)
    }

    /// A text of the file as it is, with its spaces and line ends.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        let (place, node) = self.entry(key)?;
        self.places.insert(key, place.clone());
        let text = match &node.value {
            Value::Scalar { .. } if node.is_null() => Some(String::new()),
            Value::Scalar { text, .. } => Some(text.clone()),
            Value::List(_) | Value::Mapping(_) => {
                self.settings.wrong(&place, "one value", &node);
                None
            }
        };
        self.note_change(key, place, text.is_some());
        text
    }

    fn read<T: PartialEq>(
        &mut self,
        key: &'static str,
        variable: Option<&'static str>,
        secret: bool,
        default: T,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> T {
        let from_node = |node: &Node| from_node(node, &parse);
        let settings = self.settings;
        match self.find(key, variable) {
            Found {
                variable: Some(variable),
                file,
            } => {
                let value = settings.parse_variable(&variable, secret, &parse);
                if let Some((place, node)) = file
                    && value.is_some()
                    && from_node(&node).ok() != value
                {
                    settings.overridden(&place, &variable);
                }
                value.unwrap_or(default)
            }
            Found {
                variable: None,
                file: Some((place, node)),
            } => match from_node(&node) {
                Ok(value) => {
                    self.note_change(key, place, value != default);
                    value
                }
                Err(expected) => {
                    settings.expected(&place, &expected, &given_node(&node, secret));
                    default
                }
            },
            Found {
                variable: None,
                file: None,
            } => default,
        }
    }

    /// A list whose entries are groups of keys or single values. One value is a list of one, `none` and nothing are none.
    pub fn entries(&mut self, key: &'static str) -> Vec<Entry<'s>> {
        let Some((place, node)) = self.entry(key) else {
            return Vec::new();
        };
        let path = join(&self.path, key);
        let nodes = match node.value {
            Value::Scalar { ref text, .. } if node.is_null() || text.trim() == "none" => Vec::new(),
            Value::List(nodes) => nodes,
            Value::Scalar { .. } | Value::Mapping(_) => vec![node],
        };
        self.note_change(key, place, !nodes.is_empty());
        let entry = |node: Node| match &node.value {
            Value::Scalar { text, .. } if !node.is_null() => {
                let (path, line) = (path.clone(), node.line);
                Entry::Text(Place::Key { path, line }, text.trim().to_owned())
            }
            _ => Entry::Section(self.inner(key, Some(node))),
        };
        nodes.into_iter().map(entry).collect()
    }

    /// The groups of keys under `key`, each by a name that the user chose and `parse_name` takes, in the order of the names. Nothing
    /// behind a name is a group without keys.
    pub fn named<N>(
        &mut self,
        key: &'static str,
        parse_name: impl Fn(&str) -> Result<N, Expected>,
    ) -> Vec<Named<'s, N>> {
        let group = |group: &Section<'s>, text: &str, name: N, node: Node| {
            let place = group.place_of(text, &node);
            let (path, pattern) = (join(&group.path, text), join(&group.pattern, ANY_NAME));
            let section = Section::new(group.settings, path, pattern, Some(node));
            Some(Named { name, place, section })
        };
        self.chosen(key, parse_name, group)
    }

    /// The values under `key`, each by a name that the user chose and `parse_name` takes, in the order of the names.
    pub fn pairs<N, T>(
        &mut self,
        key: &'static str,
        parse_name: impl Fn(&str) -> Result<N, Expected>,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Vec<(N, T)> {
        self.read_pairs(key, false, parse_name, parse)
    }

    /// The same for values that can hold a secret: no message quotes one.
    pub fn secret_pairs<N, T>(
        &mut self,
        key: &'static str,
        parse_name: impl Fn(&str) -> Result<N, Expected>,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Vec<(N, T)> {
        self.read_pairs(key, true, parse_name, parse)
    }

    fn read_pairs<N, T>(
        &mut self,
        key: &'static str,
        secret: bool,
        parse_name: impl Fn(&str) -> Result<N, Expected>,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Vec<(N, T)> {
        let pair = |group: &Section<'s>, text: &str, name: N, node: Node| match from_node(&node, &parse) {
            Ok(value) => Some((name, value)),
            Err(expected) => {
                let place = group.place_of(text, &node);
                group.settings.expected(&place, &expected, &given_node(&node, secret));
                None
            }
        };
        self.chosen(key, parse_name, pair)
    }

    /// Reads the entries under `key`, whose names the user chose.
    fn chosen<N, T>(
        &mut self,
        key: &'static str,
        parse_name: impl Fn(&str) -> Result<N, Expected>,
        read: impl Fn(&Section<'s>, &str, N, Node) -> Option<T>,
    ) -> Vec<T> {
        let Some((place, node)) = self.entry(key) else {
            return Vec::new();
        };
        self.places.insert(key, place.clone());
        let mut group = self.inner(key, Some(node));
        self.note_change(key, place, !group.entries.is_empty());
        let mut all = Vec::with_capacity(group.entries.len());
        for (text, node) in std::mem::take(&mut group.entries) {
            match parse_name(&text) {
                Ok(name) => all.extend(read(&group, &text, name, node)),
                Err(expected) => {
                    let place = group.place_of(&text, &node);
                    let problem = format_args!("expected {expected}, got the name {}", shown_key(&text));
                    self.settings.mistake(&place, problem);
                }
            }
        }
        all
    }

    fn place_of(&self, name: &str, node: &Node) -> Place {
        let (path, line) = (join(&self.path, &shown_key(name)), node.line);
        Place::Key { path, line }
    }

    /// `value`, read from `key`, with the part of it that `variable` sets replaced by `apply`.
    pub fn part<T: PartialEq, U>(
        &mut self,
        key: &'static str,
        variable: &'static str,
        value: T,
        parse: impl Fn(&str) -> Result<U, Expected>,
        apply: impl Fn(&T, U) -> T,
    ) -> T {
        let Some(variable) = self.settings.find(variable) else {
            return value;
        };
        let Some(part) = self.settings.parse_variable(&variable, false, parse) else {
            return value;
        };
        let with_part = apply(&value, part);
        if let place @ Place::Key { .. } = self.place(key)
            && with_part != value
        {
            self.settings.overridden(&place, &variable);
        }
        self.places.insert(key, variable.place());
        with_part
    }

    /// Whether the file has this key, and nobody has asked for it yet.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// An entry that the caller reads itself.
    pub fn entry(&mut self, key: &str) -> Option<(Place, Node)> {
        let path = join(&self.path, key);
        self.known.push(key.to_owned());
        let pattern = join(&self.pattern, key);
        self.settings.notes.borrow_mut().known.insert(pattern);
        let node = self.entries.remove(key)?;
        Some((Place::Key { path, line: node.line }, node))
    }

    /// Drops the keys that begin with `x-`. They are for the user's own anchors, as in compose files.
    pub fn ignore_extensions(&mut self) {
        self.entries.retain(|key, _| !key.starts_with("x-"));
    }

    /// Where the value of a key stands that was read.
    pub fn place(&self, key: &'static str) -> Place {
        let unset = || Place::Unset(join(&self.path, key));
        self.places.get(key).cloned().unwrap_or_else(unset)
    }

    /// Notes that the keys in the file whose values are not the defaults have no effect, and why.
    pub fn has_no_effect(&self, why: &str) {
        for (_, place) in &self.changed {
            self.settings.no_effect(place, why);
        }
    }

    /// The same of one key.
    pub fn key_has_no_effect(&self, key: &str, why: &str) {
        for (_, place) in self.changed.iter().filter(|(changed, _)| *changed == key) {
            self.settings.no_effect(place, why);
        }
    }

    /// Notes every key of the file that nobody asked for.
    pub fn finish(self) {
        let choices = self.known.join(", ");
        self.finish_with(&choices);
    }

    /// The same, where `choices` says in words what keys there are.
    pub fn finish_with(self, choices: &str) {
        let mut notes = self.settings.notes.borrow_mut();
        for (key, node) in self.entries {
            notes.unknown.push(Unknown {
                section: self.path.clone(),
                pattern: self.pattern.clone(),
                key,
                line: node.line,
                choices: choices.to_owned(),
            });
        }
    }

    fn find(&mut self, key: &'static str, variable: Option<&'static str>) -> Found<'s> {
        let file = self.entry(key);
        let variable = variable.and_then(|name| self.settings.find(name));
        let place = match (&variable, &file) {
            (Some(variable), _) => variable.place(),
            (None, Some((place, _))) => place.clone(),
            (None, None) => Place::Unset(join(&self.path, key)),
        };
        self.places.insert(key, place);
        Found { variable, file }
    }

    fn note_change(&mut self, key: &'static str, place: Place, changed: bool) {
        if changed {
            self.changed.push((key, place));
        }
    }
}

/// One value of the file.
fn from_node<T>(node: &Node, parse: impl Fn(&str) -> Result<T, Expected>) -> Result<T, Expected> {
    match &node.value {
        Value::Scalar { .. } if node.is_null() => parse(""),
        Value::Scalar { text, .. } => parse(text.trim()),
        Value::List(_) | Value::Mapping(_) => Err("one value".into()),
    }
}

/// Whether something that can be left out is on.
fn on_or_off(text: &str) -> Result<bool, Expected> {
    match text.trim() {
        "none" => Ok(false),
        text => truth(text).map_err(|_| "on or off".into()),
    }
}
