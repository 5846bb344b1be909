use std::sync::atomic::AtomicUsize;
use std::task::{Wake, Waker};

use super::*;

const KIB: usize = 1 << 10;

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn poll(hold: &mut Hold, kib: usize, moved: bool) -> Poll<()> {
    hold.poll(&mut Context::from_waker(Waker::noop()), kib * KIB, moved)
}

/// The limits for so many of `kib` in all, and so many of one client.
fn room_for(all: usize, each: usize, kib: usize) -> Limits {
    let one = kib * KIB + REQUEST;
    Limits {
        all: all * one,
        each: each * one,
    }
}

#[test]
fn what_is_small_is_not_in_the_books() {
    let budget = Arc::new(Budget::default());
    let mut hold = Hold::new(Arc::clone(&budget), Some(1), Limits { all: 0, each: 0 });
    assert_eq!(poll(&mut hold, 4, false), Poll::Pending);
    assert_eq!(budget.held(), 0);
}

#[test]
fn of_one_client_or_of_all_the_one_that_waits_longest_is_cut() {
    let limits = room_for(4, 2, 32);
    let budget = Arc::new(Budget::default());
    let mut holds: Vec<_> = [1, 2, 2, 3, 4, 2]
        .map(|number| Hold::new(Arc::clone(&budget), Some(number), limits))
        .into();
    for hold in &mut holds[..4] {
        assert_eq!(poll(hold, 32, false), Poll::Pending);
    }
    assert_eq!(poll(&mut holds[4], 32, false), Poll::Pending, "it is the newest");
    assert_eq!(poll(&mut holds[0], 32, false), Poll::Ready(()), "it was the oldest");
    assert_eq!(poll(&mut holds[5], 32, false), Poll::Pending);
    let cut: Vec<_> = (1..6)
        .filter(|index| poll(&mut holds[*index], 32, false).is_ready())
        .collect();
    assert_eq!(cut, [1], "the oldest of its client, and then there is room");
    assert_eq!(budget.held(), limits.all);
    holds.clear();
    assert_eq!(budget.held(), 0);
    assert!(budget.ledger.lock().unwrap().shares.is_empty());
}

#[test]
fn whoever_moves_has_not_waited() {
    let limits = room_for(2, 2, 32);
    let budget = Arc::new(Budget::default());
    let mut holds: Vec<_> = (0..3)
        .map(|number| Hold::new(Arc::clone(&budget), Some(number), limits))
        .collect();
    assert_eq!(poll(&mut holds[0], 32, false), Poll::Pending);
    assert_eq!(poll(&mut holds[1], 32, false), Poll::Pending);
    // Less or more is no progress by itself.
    assert_eq!(poll(&mut holds[1], 16, false), Poll::Pending);
    assert_eq!(poll(&mut holds[0], 32, true), Poll::Pending);
    assert_eq!(poll(&mut holds[2], 32, false), Poll::Pending);
    assert_eq!(poll(&mut holds[0], 32, false), Poll::Pending);
    assert_eq!(poll(&mut holds[1], 16, false), Poll::Ready(()));
}

#[test]
fn whoever_is_cut_is_woken_and_may_go_on_with_less() {
    let limits = room_for(1, 1, 64);
    let budget = Arc::new(Budget::default());
    let mut first = Hold::new(Arc::clone(&budget), Some(1), limits);
    let mut second = Hold::new(Arc::clone(&budget), Some(2), limits);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    assert!(
        first
            .poll(&mut Context::from_waker(&waker), 64 * KIB, false)
            .is_pending()
    );
    assert_eq!(poll(&mut second, 8, false), Poll::Pending);
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    assert_eq!(
        poll(&mut first, 64, true),
        Poll::Ready(()),
        "whatever it does meanwhile"
    );
    assert_eq!(poll(&mut first, 16, false), Poll::Pending);
    assert_eq!(poll(&mut first, 1, false), Poll::Pending);
    assert_eq!(
        budget.held(),
        9 * KIB + 2 * REQUEST,
        "it was cut, so however little it is counts"
    );
    first.begin(limits);
    assert_eq!(poll(&mut first, 1, false), Poll::Pending);
    assert_eq!(budget.held(), 8 * KIB + REQUEST);
    assert_eq!(poll(&mut first, 16, false), Poll::Pending);
    assert_eq!(budget.held(), 24 * KIB + 2 * REQUEST);
}

#[test]
fn requests_that_hold_little_take_room_too() {
    let limits = room_for(4, 4, 48);
    let budget = Arc::new(Budget::default());
    let in_all = limits.all / REQUEST;
    assert!(budget.has_room(in_all, limits));
    assert!(!budget.has_room(in_all + 1, limits));
    let mut holds: Vec<_> = (0..3)
        .map(|number| Hold::new(Arc::clone(&budget), Some(number), limits))
        .collect();
    for hold in &mut holds {
        assert_eq!(poll(hold, 48, false), Poll::Pending);
    }
    // Three of 64 KiB and four small ones fill it; nine small ones leave room for one large one.
    assert!(budget.has_room(3 + 4, limits));
    assert_eq!(budget.held(), limits.all / 4 * 3);
    assert!(budget.has_room(3 + 9, limits));
    let cut: Vec<_> = holds.iter_mut().map(|hold| poll(hold, 48, false).is_ready()).collect();
    assert_eq!(cut, [true, true, false]);
}

#[test]
fn where_room_is_short_small_requests_can_be_cut_too() {
    let limits = Limits {
        all: 10 * (REQUEST + KIB),
        each: usize::MAX,
    };
    let budget = Arc::new(Budget::default());
    let mut holds: Vec<_> = (0..20)
        .map(|number| Hold::new(Arc::clone(&budget), Some(number), limits))
        .collect();
    let (mut waiting, mut cut) = (Vec::new(), Vec::new());
    for number in 0..holds.len() {
        assert!(budget.has_room(waiting.len() + 1, limits), "{number}");
        assert_eq!(poll(&mut holds[number], 1, false), Poll::Pending);
        let given = |index: &usize| {
            let booked = holds[*index].booked.as_ref();
            booked.is_some_and(|booked| booked.end.given.load(Ordering::Relaxed))
        };
        waiting.push(number);
        let over: Vec<_> = waiting.extract_if(.., |index| given(index)).collect();
        cut.extend(over);
    }
    // Those that began to wait while there was much room are not in the books.
    assert_eq!(waiting[..5], [0, 1, 2, 3, 4]);
    assert!(cut.len() >= 9 && cut.is_sorted() && cut[0] == 5, "{cut:?}");
    assert!(budget.held() <= limits.all);
}

/// Against a plain list: no sum is ever exceeded, and each victim is the one that has waited longest.
#[test]
fn the_books_agree_with_a_plain_list() {
    let mut random = fastrand::Rng::with_seed(7);
    let limits = Limits {
        all: 600 * KIB,
        each: 250 * KIB,
    };
    let budget = Arc::new(Budget::default());
    let mut holds: Vec<_> = (0..40_u128)
        .map(|number| Hold::new(Arc::clone(&budget), (number >= 4).then_some(number % 5), limits))
        .collect();
    // Who waits, the longest first, with how much.
    let mut list: Vec<(usize, usize)> = Vec::new();
    for _ in 0..20_000 {
        let index = random.usize(..holds.len());
        let (kib, moved) = (random.usize(..80), random.bool());
        let before = list.iter().position(|(waits, _)| *waits == index);
        let mut place = list.len();
        if let Some(before) = before {
            list.remove(before);
            place = if moved { list.len() } else { before };
        }
        if kib * KIB > SMALL {
            list.insert(place, (index, kib * KIB + REQUEST));
        }
        let of = |index: usize| holds[index].client;
        let sum = |list: &[(usize, usize)], of_client: Option<u128>| -> usize {
            let mine = list
                .iter()
                .filter(|(waits, _)| of_client.is_none() || of(*waits) == of_client);
            mine.map(|(_, bytes)| bytes).sum()
        };
        let mut cut = Vec::new();
        while of(index).is_some() && sum(&list, of(index)) > limits.each {
            let longest = list.iter().position(|(waits, _)| of(*waits) == of(index)).unwrap();
            cut.push(list.remove(longest).0);
        }
        while sum(&list, None) > limits.all {
            cut.push(list.remove(0).0);
        }
        let total = sum(&list, None);
        holds[index].begin(limits);
        let result = poll(&mut holds[index], kib, moved);
        assert_eq!(result.is_ready(), cut.contains(&index));
        assert_eq!(budget.held(), total);
        assert!(total <= limits.all);
        for victim in cut.into_iter().filter(|victim| *victim != index) {
            let bytes = holds[victim].booked.as_ref().unwrap().bytes - REQUEST;
            assert_eq!(poll(&mut holds[victim], bytes / KIB, false), Poll::Ready(()));
        }
    }
}
