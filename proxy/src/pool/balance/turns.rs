//! The order of turns where weights differ.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A longer order is not made: weights that would take one are made smaller, in proportion.
const LONGEST: u64 = 1 << 17;

/// An order in which each index has as many turns as its weight says, and as evenly as can be: after any number of turns each has had
/// its exact share of them, to less than one turn. Empty where all weights are the same, so that the indices take turns.
///
/// That is the chairman assignment problem (Tijdeman, 1980): a turn may come no sooner than its index has earned most of it, and of those that
/// may, the one that must come soonest is next.
pub fn order(weights: &[u32]) -> Vec<u32> {
    let weights = reduced(weights);
    let all: u64 = weights.iter().sum();
    let others = weights.len().saturating_sub(1) as u64;
    if weights.iter().all(|weight| Some(weight) == weights.first()) {
        return Vec::new();
    }
    // Of the first turns, counted from 1, a fraction `turn * weight / all` is due to an index. Its turn `nth` may come when all
    // but `1 - slack` of it is due, and must come before `slack` of the next is, where `slack = 1 / (2 * others)`.
    let mut due: Vec<_> = (0..)
        .zip(&weights)
        .flat_map(|(index, weight)| {
            (0..*weight).map(move |nth| {
                let unit = 2 * others;
                let earliest = (all * (nth * unit + 1)).div_ceil(weight * unit);
                let latest = all * ((nth + 1) * unit - 1) / (weight * unit);
                (earliest, latest, index)
            })
        })
        .collect();
    due.sort_unstable();
    let mut due = due.into_iter().peekable();
    let mut ready = BinaryHeap::new();
    let mut turns = Vec::with_capacity(due.len());
    for turn in 1..=all {
        while let Some((_, latest, index)) = due.next_if(|(earliest, ..)| *earliest <= turn) {
            ready.push(Reverse((latest, index)));
        }
        if let Some(Reverse((_, index))) = ready.pop() {
            turns.push(index);
        }
    }
    turns
}

/// The smallest whole numbers in these proportions, none of them 0.
fn reduced(weights: &[u32]) -> Vec<u64> {
    let common = weights.iter().fold(0, |common, weight| divisor(common, *weight)).max(1);
    let weights: Vec<_> = weights.iter().map(|weight| u64::from(weight / common)).collect();
    let all: u64 = weights.iter().sum();
    if all <= LONGEST {
        return weights;
    }
    let smaller = |weight: u64| (weight * LONGEST / all).max(1);
    weights.into_iter().map(smaller).collect()
}

fn divisor(one: u32, other: u32) -> u32 {
    if other == 0 { one } else { divisor(other, one % other) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That each index has had its share after any number of turns, to less than one.
    fn check(weights: &[u32]) {
        let turns = order(weights);
        let common = weights.iter().fold(0, |common, weight| divisor(common, *weight));
        let all: u32 = weights.iter().sum();
        assert_eq!(turns.len(), (all / common) as usize, "{weights:?}");
        let mut had = vec![0_u32; weights.len()];
        for (turn, index) in (1_u32..).zip(&turns) {
            had[*index as usize] += 1;
            for (had, weight) in had.iter().zip(weights) {
                let share = f64::from(turn) * f64::from(*weight) / f64::from(all);
                assert!((f64::from(*had) - share).abs() < 1.0, "{weights:?} {turns:?}");
            }
        }
        for (had, weight) in had.iter().zip(weights) {
            assert_eq!(had * common, *weight, "{weights:?}");
        }
    }

    #[test]
    fn every_weight_has_its_exact_share_at_every_moment() {
        for weights in [
            &[5, 1, 1][..],
            &[1, 2],
            &[3, 2, 1],
            &[100, 1],
            &[100, 99, 98, 1],
            &[20, 20, 2],
            &[6, 4],
        ] {
            check(weights);
        }
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..300 {
            let count = random.usize(2..12);
            let weights: Vec<_> = (0..count).map(|_| random.u32(1..=30)).collect();
            if weights.iter().any(|weight| *weight != weights[0]) {
                check(&weights);
            }
        }
    }

    #[test]
    fn the_same_weights_need_no_order_and_too_large_ones_are_made_smaller() {
        for weights in [&[][..], &[7], &[3, 3, 3]] {
            assert!(order(weights).is_empty(), "{weights:?}");
        }
        let mut weights = vec![2000; 1000];
        weights[0] = 1;
        let turns = order(&weights);
        assert!(turns.len() as u64 <= LONGEST + 1000 && turns.contains(&0));
    }
}
