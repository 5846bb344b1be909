//! Finds the most specific route of a request.
//!
//! The cost depends little on how many routes there are: the host is looked up as a whole and as each parent that some route has, and
//! the path is searched for in a sorted list.

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use ahash::RandomState;

use crate::config::routes::{Host, LONGEST_HOST, Matches, Path, any_or_each, plain_host};

/// Which route a request takes, by the number that the route had when the table was made.
#[derive(Debug)]
pub struct Table {
    exact: HashMap<Box<[u8]>, Paths, RandomState>,
    /// By the parent of their names.
    below: HashMap<Box<[u8]>, Paths, RandomState>,
    /// The lengths of those parents, a bit for each.
    lengths: [u64; LONGEST_HOST / 64 + 1],
    /// The routes for any host.
    any: Paths,
}

/// The routes for a host, by their paths, in order.
#[derive(Debug, Default)]
struct Paths(Box<[Node]>);

#[derive(Debug)]
struct Node {
    path: Box<[u8]>,
    /// The longest other path that this one begins with.
    shorter: Option<u32>,
    /// The routes of exactly this path.
    exact: Methods,
    /// The routes of this path and all below it.
    below: Methods,
}

/// The routes for a path, by their methods.
#[derive(Debug, Clone, Default)]
struct Methods {
    any: Option<u32>,
    named: Vec<(Box<str>, u32)>,
}

/// A table being made.
type Draft<'m> = BTreeMap<Option<&'m Host>, BTreeMap<&'m [u8], [Methods; 2]>>;

impl Table {
    /// The table of these routes, of which no two are equal.
    pub fn new<'m>(routes: impl IntoIterator<Item = &'m Matches>) -> Self {
        let mut draft = Draft::new();
        for (number, matches) in (0..).zip(routes) {
            for host in any_or_each(&matches.hosts) {
                for path in any_or_each(&matches.paths) {
                    let (path, is_exact) = match path {
                        None => (&[][..], false),
                        Some(Path::Below(path)) => (path.as_slice(), false),
                        Some(Path::Exact(path)) => (path.as_slice(), true),
                    };
                    let [below, exact] = draft.entry(host).or_default().entry(path).or_default();
                    let methods = if is_exact { exact } else { below };
                    if matches.methods.is_empty() {
                        methods.any = Some(number);
                    }
                    let named = matches.methods.iter().map(|method| (method.as_str().into(), number));
                    methods.named.extend(named);
                }
            }
        }
        let mut table = Self {
            exact: HashMap::default(),
            below: HashMap::default(),
            lengths: [0; LONGEST_HOST / 64 + 1],
            any: Paths::default(),
        };
        for (host, paths) in draft {
            let paths = Paths::new(paths);
            match host {
                None => table.any = paths,
                Some(Host::Exact(name)) => drop(table.exact.insert(name.as_bytes().into(), paths)),
                Some(Host::Below(parent)) => {
                    table.lengths[parent.len() / 64] |= 1 << (parent.len() % 64);
                    table.below.insert(parent.as_bytes().into(), paths);
                }
            }
        }
        table
    }

    /// The most specific route for a request with this authority, this plain path and this method.
    pub fn pick(&self, authority: Option<&[u8]>, path: &[u8], method: &str) -> Option<u32> {
        let mut room = [0; LONGEST_HOST];
        let host = authority.and_then(|authority| plain_host(authority, &mut room));
        let of_host = host.and_then(|host| {
            let exact = self.exact.get(host).and_then(|paths| paths.pick(path, method));
            exact.or_else(|| self.pick_below(host, path, method))
        });
        of_host.or_else(|| self.any.pick(path, method))
    }

    /// The same among the routes for all names below one: the longest first.
    fn pick_below(&self, host: &[u8], path: &[u8], method: &str) -> Option<u32> {
        if self.below.is_empty() {
            return None;
        }
        // A name has no label before its first dot if it begins with one.
        let dots = memchr::memchr_iter(b'.', host).filter(|dot| *dot > 0);
        let parents = dots.map(|dot| &host[dot + 1..]);
        let mut known = parents.filter(|parent| self.lengths[parent.len() / 64] >> (parent.len() % 64) & 1 == 1);
        known.find_map(|parent| self.below.get(parent)?.pick(path, method))
    }
}

impl Paths {
    fn new(paths: BTreeMap<&[u8], [Methods; 2]>) -> Self {
        let mut nodes: Vec<Node> = Vec::with_capacity(paths.len());
        for (path, [below, exact]) in paths {
            // In this order the longest path that this one begins with is the last one, or one that the last one begins with.
            let last = nodes.len().checked_sub(1);
            let shorter = chain(&nodes, last).find(|at| path.starts_with(&nodes[*at].path));
            nodes.push(Node {
                path: path.into(),
                shorter: shorter.and_then(|at| u32::try_from(at).ok()),
                exact,
                below,
            });
        }
        Self(nodes.into())
    }

    fn pick(&self, path: &[u8], method: &str) -> Option<u32> {
        let nodes = &self.0;
        let (from, exact) = match nodes.binary_search_by(|node| (*node.path).cmp(path)) {
            Ok(at) => (Some(at), nodes[at].exact.pick(method)),
            Err(at) => (at.checked_sub(1), None),
        };
        let is_below = |node: &&Node| {
            let rest = path.strip_prefix(&*node.path);
            rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
        };
        exact.or_else(|| {
            let nodes = chain(nodes, from).map(|at| &nodes[at]);
            nodes.filter(is_below).find_map(|node| node.below.pick(method))
        })
    }
}

/// The node at `from`, the longest that its path begins with, and so on.
fn chain(nodes: &[Node], from: Option<usize>) -> impl Iterator<Item = usize> {
    let shorter = |at: &usize| nodes[*at].shorter.and_then(|at| usize::try_from(at).ok());
    std::iter::successors(from, shorter)
}

impl Methods {
    fn pick(&self, method: &str) -> Option<u32> {
        let named = self.named.iter().find(|(named, _)| **named == *method);
        named.map(|(_, route)| *route).or(self.any)
    }
}
