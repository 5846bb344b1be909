use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Instant;

use registry::PoolName;

use super::*;
use crate::config::{Balance, HashBy};
use crate::observe::pools::PoolsMetrics;
use crate::pool::kept::Room;

/// A backend of this name and weight.
fn backend(number: u32, weight: u32) -> Candidate {
    let address = SocketAddr::from((Ipv4Addr::from_bits((10 << 24) + number), 80));
    let name = address.to_string();
    let metrics = PoolsMetrics::new().unwrap().of(&PoolName::default()).unwrap();
    Candidate {
        upstream: Arc::new(Upstream::new(
            name.into(),
            vec![address],
            Arc::new(Room::new(0)),
            metrics,
        )),
        weight,
        backup: false,
        drain: false,
    }
}

fn copy(one: &Candidate) -> Candidate {
    Candidate {
        upstream: Arc::clone(&one.upstream),
        ..*one
    }
}

fn rules(algorithm: Algorithm, max_inflight: Option<u32>) -> Arc<Rules> {
    let config = Balance {
        algorithm,
        max_inflight,
        ..Balance::default()
    };
    Arc::new(Rules::new(&config, "default"))
}

fn list(algorithm: Algorithm, weights: &[u32]) -> List {
    let backends = (0..).zip(weights).map(|(number, weight)| backend(number, *weight));
    List::new(rules(algorithm, None), backends.collect())
}

fn from(client: u32) -> Asked<'static> {
    Asked {
        bodiless: true,
        client: IpAddr::V4(Ipv4Addr::from_bits(client)),
        path: b"/",
        fields: &[],
    }
}

/// The number of the backend.
fn number(picked: &Picked) -> u32 {
    match picked.endpoint.address {
        SocketAddr::V4(address) => address.ip().to_bits() - (10 << 24),
        SocketAddr::V6(_) => unreachable!(),
    }
}

fn pick(list: &List, turn: &AtomicUsize, asked: Asked<'_>) -> Result<Picked, Unavailable> {
    list.pick(asked, turn).map(|(picked, _)| picked)
}

/// How often each is picked in `count` requests that end at once.
fn shares(list: &List, count: usize) -> Vec<usize> {
    let turn = AtomicUsize::new(0);
    let mut shares = vec![0; list.len()];
    for _ in 0..count {
        shares[number(&pick(list, &turn, from(1)).unwrap()) as usize] += 1;
    }
    shares
}

#[test]
fn round_robin_is_exact_with_weights() {
    assert_eq!(shares(&list(Algorithm::RoundRobin, &[1, 1, 1]), 300), [100; 3]);
    assert_eq!(shares(&list(Algorithm::RoundRobin, &[5, 2, 1]), 800), [500, 200, 100]);
    assert_eq!(shares(&list(Algorithm::RoundRobin, &[100, 99]), 199), [100, 99]);
    // So it is after an ejection, among the others.
    let list = list(Algorithm::RoundRobin, &[4, 2, 1]);
    let limits = crate::config::Ejection {
        failures: 1,
        time: Duration::from_secs(1),
        max_time: Duration::from_secs(1),
        max_share: 1.0,
    };
    list.backends[0]
        .upstream
        .ejection
        .eject(&limits, std::time::Instant::now());
    assert_eq!(shares(&list, 300), [0, 200, 100]);
    for backend in &list.backends[1..] {
        backend.upstream.ejection.eject(&limits, std::time::Instant::now());
    }
    assert!(pick(&list, &AtomicUsize::new(0), from(1)).is_ok(), "better than none");
}

#[test]
fn who_is_drained_or_has_no_weight_gets_nothing_and_backups_only_when_nobody_else_can() {
    let mut all: Vec<_> = [3, 0, 2, 1, 1]
        .into_iter()
        .zip(0..)
        .map(|(weight, number)| backend(number, weight))
        .collect();
    all[2].drain = true;
    all[3].backup = true;
    let list = |all: &[Candidate]| List::new(rules(Algorithm::RoundRobin, None), all.iter().map(copy).collect());
    let turn = AtomicUsize::new(0);
    let numbers = |all: &[Candidate]| {
        let list = list(all);
        (0..8)
            .map_while(|_| Some(number(&pick(&list, &turn, from(1)).ok()?)))
            .collect::<HashSet<_>>()
    };
    assert_eq!(numbers(&all), HashSet::from([0, 4]));
    all[0].drain = true;
    all[4].weight = 0;
    assert_eq!(numbers(&all), HashSet::from([3]));
    all[3].drain = true;
    assert_eq!(numbers(&all), HashSet::new());
    assert_eq!(pick(&list(&all), &turn, from(1)).err(), Some(Unavailable::NoneAlive));
}

#[test]
fn the_fewest_requests_for_the_weight_and_any_of_those_that_tie() {
    let turn = AtomicUsize::new(0);
    let list = list(Algorithm::LeastRequests, &[1, 2, 1, 1]);
    // One by one, and none of them ends.
    let places: Vec<_> = (0..20).map(|_| pick(&list, &turn, from(1)).unwrap()).collect();
    let count = |number_of| places.iter().filter(|one| number(one) == number_of).count();
    assert_eq!([0, 1, 2, 3].map(count), [4, 8, 4, 4]);
    let in_flight = || {
        list.backends
            .iter()
            .map(|one| one.upstream.in_flight.load(Ordering::Relaxed))
            .collect::<Vec<_>>()
    };
    assert_eq!(in_flight(), [4, 8, 4, 4]);
    // With one more for the heavy one all tie, and each is as likely as the others.
    let heavy = Place::take(&list.backends[1].upstream, None);
    let mut ties = [0; 4];
    for _ in 0..4000 {
        ties[number(&pick(&list, &turn, from(1)).unwrap()) as usize] += 1;
    }
    assert!(ties.iter().all(|count| (850..1150).contains(count)), "{ties:?}");
    drop((heavy, places));
    assert_eq!(in_flight(), [0; 4]);
}

#[test]
fn a_slow_backend_counts_as_busier_and_is_tried_again_some_time() {
    let turn = AtomicUsize::new(0);
    for count in [4, 40] {
        let list = list(Algorithm::LeastRequests, &vec![1; count]);
        for (number, backend) in list.backends.iter().enumerate() {
            let milliseconds = if number == 0 { 50 } else { 5 };
            backend.upstream.pace.answered(Duration::from_millis(milliseconds));
        }
        list.compare_paces();
        let slow = |places: usize| {
            let places: Vec<_> = (0..places).map(|_| pick(&list, &turn, from(1)).unwrap()).collect();
            places.iter().filter(|one| number(one) == 0).count()
        };
        assert_eq!(slow(3 * (count - 1)), 0, "the others have fewer than ten each");
        assert!(slow(30 * (count - 1)) > 0, "all are busy");
        (0..60).for_each(|_| list.backends[0].upstream.pace.rest());
        assert!(slow(3 * (count - 1)) > 0);
    }
}

#[test]
fn what_is_timed_is_the_answer_to_a_request_without_a_body() {
    let turn = AtomicUsize::new(0);
    for (algorithm, bodiless, timed) in [
        (Algorithm::LeastRequests, true, true),
        (Algorithm::LeastRequests, false, false),
        (Algorithm::Hash(HashBy::Client), true, false),
    ] {
        let list = list(algorithm, &[1]);
        let asked = Asked { bodiless, ..from(1) };
        let mut picked = pick(&list, &turn, asked).unwrap();
        let mean = || picked.endpoint.upstream.pace.mean();
        picked.place.answered();
        assert_eq!(mean(), 0, "it was not sent");
        picked.place.sent(Instant::now());
        picked.place.answered();
        assert_eq!(picked.endpoint.upstream.pace.mean() > 0, timed);
    }
}

#[test]
fn of_many_backends_a_slow_one_gets_no_more_either() {
    let turn = AtomicUsize::new(0);
    let list = list(Algorithm::LeastRequests, &[1; 40]);
    let _slow: Vec<_> = (0..50)
        .filter_map(|_| Place::take(&list.backends[7].upstream, None))
        .collect();
    let places: Vec<_> = (0..400).map(|_| pick(&list, &turn, from(1)).unwrap()).collect();
    assert!(places.iter().all(|one| number(one) != 7));
    for backend in &list.backends {
        let load = backend.load(0);
        assert!((6..20).contains(&load) || load == 51, "{load}");
    }
}

/// Whose each of so many keys is.
fn owners(list: &List, keys: u32) -> Vec<u32> {
    let turn = AtomicUsize::new(0);
    (0..keys)
        .map(|key| number(&pick(list, &turn, from(key)).unwrap()))
        .collect()
}

#[test]
fn when_a_backend_leaves_its_keys_alone_move() {
    const KEYS: u32 = 20_000;
    let by = || Algorithm::Hash(HashBy::Client);
    for weights in [&[1; 10][..], &[1, 2, 3, 4, 10], &[1; 3]] {
        let all: Vec<_> = (0..)
            .zip(weights)
            .map(|(number, weight)| backend(number, *weight))
            .collect();
        let list = |all: &[Candidate]| List::new(rules(by(), None), all.iter().map(copy).collect());
        let before = owners(&list(&all), KEYS);
        assert_eq!(before, owners(&list(&all), KEYS));
        let sum: u32 = weights.iter().sum();
        for gone in 0..all.len() {
            let left: Vec<_> = all
                .iter()
                .enumerate()
                .filter(|(index, _)| *index != gone)
                .map(|(_, one)| copy(one))
                .collect();
            let after = owners(&list(&left), KEYS);
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
            assert!(moved.clone().all(|(before, _)| *before as usize == gone));
            let share = f64::from(weights[gone]) / f64::from(sum);
            assert!(
                (moved.count() as f64) < 1.1 * share * f64::from(KEYS),
                "{weights:?} {gone}"
            );
        }
    }
}

#[test]
fn every_process_chooses_alike() {
    // A change of these sends keys to other backends while proxies of two versions run.
    let list = list(Algorithm::Hash(HashBy::Client), &[1, 1, 2, 1]);
    assert_eq!(owners(&list, 12), [1, 2, 1, 2, 2, 3, 1, 2, 2, 1, 2, 0]);
}

#[test]
fn a_request_without_the_key_takes_turns() {
    let field = |name, value| httparse::Header { name, value };
    for (by, fields) in [
        (HashBy::Header("x-user".into()), vec![field("X-User", &b"anna"[..])]),
        (HashBy::Cookie("user".into()), vec![field("Cookie", b"a=b; user=anna")]),
        (HashBy::Path, vec![]),
    ] {
        let (list, turn) = (list(Algorithm::Hash(by.clone()), &[1; 8]), AtomicUsize::new(0));
        let ask = |fields, path| Asked {
            bodiless: true,
            fields,
            path,
            ..from(1)
        };
        let some = |path: &'static [u8]| number(&pick(&list, &turn, ask(&fields, path)).unwrap());
        assert_eq!(some(b"/a?b"), some(b"/a?c"), "{by:?}");
        if by == HashBy::Path {
            continue;
        }
        let empty = [field("x-user", b""), field("cookie", b"user=")];
        for none in [&[][..], &empty] {
            let others: HashSet<_> = (0..8)
                .map(|_| number(&pick(&list, &turn, ask(none, b"/")).unwrap()))
                .collect();
            assert_eq!(others.len(), 8, "{by:?}");
        }
    }
    // A client with IPv6 is its network.
    let list = list(Algorithm::Hash(HashBy::Client), &[1; 64]);
    let of = |client: &str| {
        let asked = Asked {
            bodiless: true,
            client: client.parse().unwrap(),
            ..from(1)
        };
        number(&pick(&list, &AtomicUsize::new(0), asked).unwrap())
    };
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
}

#[test]
fn one_key_alone_can_not_overload_its_backend() {
    let (list, turn) = (list(Algorithm::Hash(HashBy::Client), &[1; 5]), AtomicUsize::new(0));
    let places: Vec<_> = (0..100).map(|_| pick(&list, &turn, from(1)).unwrap()).collect();
    let owner = number(&places[0]);
    let counts: Vec<_> = (0..5)
        .map(|one| places.iter().filter(|place| number(place) == one).count())
        .collect();
    assert!(counts.iter().all(|count| *count <= 25), "{counts:?}");
    assert_eq!(counts[owner as usize], 25, "as many as it may");
}

#[test]
fn a_full_backend_is_passed_over_and_when_all_are_the_request_is_refused() {
    for algorithm in [
        Algorithm::RoundRobin,
        Algorithm::LeastRequests,
        Algorithm::Hash(HashBy::Client),
    ] {
        let backends = (0..3).map(|number| backend(number, 1 + number));
        let list = List::new(rules(algorithm.clone(), Some(2)), backends.collect());
        let turn = AtomicUsize::new(0);
        let mut places: Vec<_> = (0..6).map(|_| pick(&list, &turn, from(1)).unwrap()).collect();
        for backend in &list.backends {
            assert_eq!(backend.upstream.in_flight.load(Ordering::Relaxed), 2, "{algorithm:?}");
        }
        assert_eq!(pick(&list, &turn, from(1)).err(), Some(Unavailable::AllBusy));
        assert!(list.choose(&Affinity::default(), &turn, |_| true).is_none());
        let left = number(&places.remove(3));
        assert_eq!(number(&pick(&list, &turn, from(1)).unwrap()), left, "{algorithm:?}");
    }
}

#[test]
fn many_threads_never_exceed_the_most_and_leave_nothing_behind() {
    for algorithm in [
        Algorithm::RoundRobin,
        Algorithm::LeastRequests,
        Algorithm::Hash(HashBy::Client),
    ] {
        let list = List::new(rules(algorithm, Some(3)), vec![backend(0, 1), backend(1, 1)]);
        let turn = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (list, turn) = (&list, &turn);
                scope.spawn(move || {
                    for key in 0..2000 {
                        let two = [0, 1].map(|one| pick(list, turn, from(thread * 4000 + 2 * key + one)));
                        for backend in &list.backends {
                            assert!(backend.upstream.in_flight.load(Ordering::Relaxed) <= 3);
                        }
                        drop(two);
                    }
                });
            }
        });
        assert!(
            list.backends
                .iter()
                .all(|one| one.upstream.in_flight.load(Ordering::Relaxed) == 0)
        );
    }
}

fn sticky_rules(max_inflight: Option<u32>) -> Arc<Rules> {
    let config = Balance {
        sticky: Some(config::Sticky {
            cookie: "at".into(),
            secret: Box::default(),
        }),
        max_inflight,
        ..Balance::default()
    };
    Arc::new(Rules::new(&config, "default"))
}

#[test]
fn a_client_stays_where_its_cookie_says_until_that_takes_no_more_of_it() {
    let mut all: Vec<_> = (0..4).map(|number| backend(number, 1)).collect();
    let turn = AtomicUsize::new(0);
    let list = |all: &[Candidate], most| List::new(sticky_rules(most), all.iter().map(copy).collect());
    // What a client with this cookie gets: whose answer, and whether a new cookie.
    let ask = |list: &List, cookie: &str| {
        let fields = [httparse::Header {
            name: "cookie",
            value: cookie.as_bytes(),
        }];
        let asked = Asked {
            bodiless: true,
            fields: &fields,
            ..from(1)
        };
        let (picked, affinity) = list.pick(asked, &turn).unwrap();
        let cookie = affinity.set_cookie(&picked.endpoint.upstream);
        (number(&picked), cookie, picked.place)
    };
    let first = list(&all, None);
    let (at, cookie, _) = ask(&first, "");
    let set = cookie.unwrap();
    let (cookie, attributes) = set.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
    assert!(!cookie.contains("10."), "{cookie}");
    let stays = |list: &List| (0..8).all(|_| matches!(ask(list, cookie), (one, None, _) if one == at));
    assert!(stays(&first));
    all[at as usize].drain = true;
    assert!(stays(&list(&all, None)), "drained");
    for _ in 0..8 {
        assert_ne!(ask(&list(&all, None), "").0, at, "a new client");
    }
    // It moves when its backend has no weight, is ejected or gone, and stays at the next one.
    all[at as usize].weight = 0;
    let (other, set, _) = ask(&list(&all, None), cookie);
    assert!(other != at && set.is_some_and(|set| !set.starts_with(cookie)));
    all[at as usize].weight = 1;
    let limits = crate::config::Ejection {
        failures: 1,
        time: Duration::from_secs(1),
        max_time: Duration::from_secs(1),
        max_share: 1.0,
    };
    let now = std::time::Instant::now();
    all[at as usize].upstream.ejection.eject(&limits, now);
    let (other, set, _) = ask(&list(&all, None), cookie);
    assert!(other != at && set.is_some());
    all[at as usize].upstream.ejection.readmit(now);
    // Where it is only full, it comes back.
    let full = list(&all, Some(1));
    let (one, none, place) = ask(&full, cookie);
    let (other, none_either, _) = ask(&full, cookie);
    assert!(one == at && other != at && none.is_none() && none_either.is_none());
    drop(place);
    assert_eq!(ask(&full, cookie).0, at);
    all.remove(at as usize);
    let (other, set, _) = ask(&list(&all, None), cookie);
    assert!(other != at && set.is_some());
}

#[test]
fn a_backup_keeps_no_clients_once_others_are_back() {
    let mut all = vec![backend(0, 1), backend(1, 1)];
    all[1].backup = true;
    all[0].drain = true;
    let list = |all: &[Candidate]| List::new(sticky_rules(None), all.iter().map(copy).collect());
    assert_eq!(list(&all).named.len(), 2, "the drained one keeps its clients");
    all[0].drain = false;
    let names: Vec<_> = list(&all)
        .named
        .into_values()
        .map(|upstream| upstream.name.clone())
        .collect();
    assert_eq!(names, [Arc::clone(&all[0].upstream.name)]);
}
