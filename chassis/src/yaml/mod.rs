//! YAML as a tree whose nodes know their lines, so that a mistake can say where it is.
//!
//! The tree is built from the parser's events, with a bound on everything that a file could make large: its size, the depth of
//! nesting, and what aliases multiply. Scalars stay the text that the user wrote; their reader interprets them.
//! Aliases and merge keys (`<<`) are resolved here. No error quotes a value, because a value can be a secret.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use crate::regular_file::{self, Problem};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Tag};

/// The longest file, in bytes.
const MAX_SIZE: usize = 1 << 20;
/// The deepest nesting. Dropping and cloning a tree recurses, and this is what bounds that.
const MAX_DEPTH: usize = 32;
const TOO_DEEP: &str = "nested more than 32 levels deep";
/// The most that a tree may hold, in bytes of text and [`NODE`] for each node. What an anchor names counts again for the anchor, and
/// for each of its aliases, because each is a copy.
const MAX_WEIGHT: usize = 2 << 20;
/// What a node weighs beside its text.
const NODE: usize = 16;

/// Keys and their values.
pub type Mapping = BTreeMap<String, Node>;

/// A value and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Counted from 1. A value in a mapping has the line of its key.
    pub line: usize,
    /// The value.
    pub value: Value,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A single value, as the user wrote it.
    Scalar {
        /// Without quotes.
        text: String,
        /// Whether it was in quotes.
        quoted: bool,
    },
    /// A list.
    List(Vec<Node>),
    /// Keys and values.
    Mapping(Mapping),
}

impl Node {
    /// Whether there is no value: nothing behind the key, `~` or `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, quoted: false } if ["", "~", "null", "Null", "NULL"].contains(&text.as_str()))
    }

    /// The weight and the depth of this tree.
    fn extent(&self) -> (usize, usize) {
        let (own, children): (usize, Vec<&Self>) = match &self.value {
            Value::Scalar { text, .. } => (text.len(), Vec::new()),
            Value::List(nodes) => (0, nodes.iter().collect()),
            Value::Mapping(entries) => (entries.keys().map(String::len).sum(), entries.values().collect()),
        };
        let extents = children.into_iter().map(Self::extent);
        let (weight, depth) = extents.fold((own, 0), |(sum, deepest), (weight, depth)| {
            (sum + weight, deepest.max(depth))
        });
        (weight + NODE, depth + 1)
    }
}

/// Why a file is not YAML that we take.
#[derive(Debug, PartialEq, Eq)]
pub struct Error {
    line: usize,
    problem: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

impl std::error::Error for Error {}

/// Reads the text of a file, which must be a regular one of at most 1 MiB.
///
/// # Errors
/// What is wrong with the file.
pub fn read_file(path: &Path) -> Result<String, String> {
    let (bytes, _) = regular_file::read(path, MAX_SIZE).map_err(|problem| match problem {
        Problem::NotRegular(kind) => {
            let what = if kind.is_dir() {
                "a directory"
            } else {
                "a device, a pipe or a socket"
            };
            format!("it is {what}, not a regular file")
        }
        problem => problem.to_string(),
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line}: it is not UTF-8 text")
    })
}

/// Reads one document; `None` when there is nothing in it.
///
/// # Errors
/// The first thing that is not YAML, or that is and is not taken here: a tag, a key that is no text, a key given twice, a second
/// document, or more nesting and nodes than a configuration has any use for.
pub fn parse(text: &str) -> Result<Option<Node>, Error> {
    // What Windows puts in front of UTF-8.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut tree = Tree::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| explain(text, &error))?;
        let line = span.start.line().max(1);
        tree.take(event, line).map_err(|problem| Error { line, problem })?;
    }
    Ok(tree.root.filter(|root| !root.is_null()))
}

/// Turns the parser's error into one that says what people mostly did. The parser's own words quote nothing but single characters.
fn explain(text: &str, error: &ScanError) -> Error {
    let line = error.marker().line().max(1);
    let written = text.lines().nth(line - 1).unwrap_or_default();
    let indentation = written.len() - written.trim_start().len();
    let problem = match (error.info(), misread(written)) {
        ("recursion limit exceeded", _) => TOO_DEEP.to_owned(),
        _ if written[..indentation].contains('\t') => "YAML is indented with spaces, and there is a tab".into(),
        (_, Some(first)) => {
            format!("not YAML: a value that begins with {first} needs quotes if it is meant as text")
        }
        ("mapping values are not allowed in this context", None) => {
            "not YAML: the line is indented more than the one before it, or a value with a colon needs quotes".into()
        }
        (info, None) => format!("not YAML: {info}"),
    };
    Error { line, problem }
}

/// The character at the beginning of a value in this line that means something else to YAML than it did to whoever wrote it.
fn misread(line: &str) -> Option<char> {
    let value = line.split_once(": ").map_or("", |(_, value)| value.trim());
    let first = value.chars().next();
    // A list or a mapping in brackets. One that ends as it began is meant, so only its entries can be misread.
    let is_flow = matches!(
        (first, value.chars().last()),
        (Some('['), Some(']')) | (Some('{'), Some('}'))
    );
    let block = first.filter(|first| !is_flow && "*&![{@`%|>".contains(*first));
    block.or_else(|| {
        let mut starts = true;
        line.trim_start().chars().find(|character| {
            let is_special = starts && "*&!@`%".contains(*character);
            starts = matches!(character, '[' | '{' | ',' | ':' | '-') || (starts && *character == ' ');
            is_special
        })
    })
}

/// A list or a mapping that is not at its end.
struct Open {
    line: usize,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Mapping {
        entries: Mapping,
        /// The key whose value comes next, and its line.
        key: Option<(String, usize)>,
        /// What `<<` has.
        merged: Option<Node>,
    },
}

/// The tree as far as it is built.
#[derive(Default)]
struct Tree {
    root: Option<Node>,
    open: Vec<Open>,
    /// What each anchor stands for, by the parser's number.
    anchors: HashMap<usize, Node>,
    weight: usize,
    documents: usize,
}

impl Tree {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), String> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err("a second document begins; a file has one".into());
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                check(tag.as_deref())?;
                let value = Value::Scalar {
                    text: text.into_owned(),
                    quoted: style != ScalarStyle::Plain,
                };
                self.close(Node { line, value }, anchor)
            }
            Event::SequenceStart(anchor, tag) => self.open(line, anchor, tag.as_deref(), Content::List(Vec::new())),
            Event::MappingStart(anchor, tag) => {
                let content = Content::Mapping {
                    entries: Mapping::new(),
                    key: None,
                    merged: None,
                };
                self.open(line, anchor, tag.as_deref(), content)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { line, anchor, content }) = self.open.pop() else {
                    return Ok(());
                };
                let value = match content {
                    Content::List(nodes) => Value::List(nodes),
                    Content::Mapping { entries, merged, .. } => Value::Mapping(merge(entries, merged)?),
                };
                self.close(Node { line, value }, anchor)
            }
            Event::Alias(anchor) => {
                let node = self
                    .anchors
                    .get(&anchor)
                    .ok_or("an alias inside of what it stands for")?;
                let (weight, depth) = node.extent();
                let node = Node { line, ..node.clone() };
                self.count(weight, depth)?;
                self.place(node)
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn open(&mut self, line: usize, anchor: usize, tag: Option<&Tag>, content: Content) -> Result<(), String> {
        check(tag)?;
        self.count(0, 1)?;
        self.open.push(Open { line, anchor, content });
        Ok(())
    }

    fn count(&mut self, weight: usize, depth: usize) -> Result<(), String> {
        self.weight += weight;
        if self.open.len() + depth > MAX_DEPTH {
            return Err(TOO_DEEP.into());
        }
        if self.weight > MAX_WEIGHT {
            return Err("too many values, counting those that aliases repeat".into());
        }
        Ok(())
    }

    /// Takes a node that is complete.
    fn close(&mut self, node: Node, anchor: usize) -> Result<(), String> {
        self.count(NODE, 0)?;
        if anchor != 0 {
            self.count(node.extent().0, 0)?;
            self.anchors.insert(anchor, node.clone());
        }
        self.place(node)
    }

    /// Puts a node where it belongs.
    fn place(&mut self, node: Node) -> Result<(), String> {
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(Content::List(nodes)) => nodes.push(node),
            Some(Content::Mapping { entries, key, merged }) => match key.take() {
                None => match node.value {
                    Value::Scalar { text, .. } => *key = Some((text, node.line)),
                    Value::List(_) | Value::Mapping(_) => return Err("a key must be a word".into()),
                },
                Some((key, _)) if key == "<<" && merged.is_none() => *merged = Some(node),
                Some((key, line)) => {
                    if let Some(first) = entries.get(&key) {
                        return Err(format!(
                            "{} is there twice, first in line {}",
                            shown_key(&key),
                            first.line
                        ));
                    }
                    entries.insert(key, Node { line, ..node });
                }
            },
        }
        Ok(())
    }
}

/// A key as a message names it. What does not look like a key may be something else, such as a secret behind a forgotten colon.
pub fn shown_key(key: &str) -> String {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.len() <= 64 && key.bytes().all(is_word) {
        key.to_owned()
    } else {
        format!(
            "{:?}",
            key.chars()
                .take_while(|c| c.is_ascii_alphanumeric())
                .take(16)
                .collect::<String>()
                + "…"
        )
    }
}

/// The entries with those of `<<`, a mapping or a list of them, that are not among them. The first in a list wins.
fn merge(mut entries: Mapping, merged: Option<Node>) -> Result<Mapping, String> {
    let sources = match merged {
        None => return Ok(entries),
        Some(Node {
            value: Value::List(nodes),
            ..
        }) => nodes,
        Some(node) => vec![node],
    };
    for source in sources {
        let Value::Mapping(source) = source.value else {
            return Err("<< takes an alias of keys and values, or a list of such aliases".into());
        };
        for (key, node) in source {
            entries.entry(key).or_insert(node);
        }
    }
    Ok(entries)
}

/// Tags of YAML's own types (`!!str`) say what we know anyway; others would mean something to another program.
fn check(tag: Option<&Tag>) -> Result<(), String> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => {
            Err("a tag (!) has no meaning here; quote a value that begins with !".into())
        }
        _ => Ok(()),
    }
}
