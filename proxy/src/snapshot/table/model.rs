//! The table as one would describe it: look at each route and take the most specific. The fuzz target `routes` has this file too.

use super::Matches;

/// The number of the most specific of `routes` for a request with this plain host, this plain path and this method.
pub fn pick(routes: &[Matches], host: Option<&[u8]>, path: &[u8], method: &str) -> Option<u32> {
    let ranked = (0..).zip(routes);
    let ranked = ranked.filter_map(|(number, matches)| Some((matches.rank(host, path, method).ok()?, number)));
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort_unstable();
    // Of two that are equally specific neither would be right.
    if let [.., (one, first), (other, second)] = ranked[..] {
        assert_ne!(one, other, "{first} and {second} of {routes:?}");
    }
    ranked.last().map(|(_, number)| *number)
}
