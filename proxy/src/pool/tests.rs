use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::mpsc;

use registry::{Meta, PoolName};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::Balance;
use crate::discovery::members::Members;
use crate::observe::pools::PoolsMetrics;
use crate::pool::stream::OriginStream;

const LIMITS: Ejection = Ejection {
    failures: 1,
    time: Duration::from_secs(5),
    max_time: Duration::from_secs(5),
    max_share: 0.5,
};

fn address(host: u8) -> SocketAddr {
    ([192, 0, 2, host], 80).into()
}

/// A pool over members with these addresses, all of which have passed a check.
fn pool(members: &[&[u8]]) -> Pool {
    let pool = unchecked(members);
    for host in members.concat() {
        pool.check.found().insert(address(host), true);
    }
    pool.publish(Instant::now());
    pool
}

fn set(members: &[&[u8]]) -> Members {
    let mut set = Members::default();
    for hosts in members {
        let name = format!("origin{}:80", hosts[0]).into();
        set.insert(&name, hosts.iter().copied().map(address));
    }
    set
}

fn unchecked(members: &[&[u8]]) -> Pool {
    let metrics = PoolsMetrics::new().unwrap().of(&PoolName::default()).unwrap();
    let discovery = PoolDiscovery::with(set(members), Arc::clone(&metrics));
    let mut settings = PoolSettings::default();
    settings.upstream.idle_timeout = Duration::from_secs(1);
    let room = Arc::new(Room::new(10));
    let pool = Pool::new(discovery, &settings, Duration::from_secs(1), room, metrics);
    pool.publish(Instant::now());
    pool
}

const ASKED: Asked<'static> = Asked {
    bodiless: true,
    client: IpAddr::V4(Ipv4Addr::LOCALHOST),
    path: b"/",
    fields: &[],
};

fn pick(pool: &Pool) -> Endpoint {
    pool.pick(ASKED).unwrap().0.endpoint
}

fn pick_again(pool: &Pool, tried: &[Endpoint], connected: bool) -> Option<Endpoint> {
    let picked = pool.pick_again(tried, connected, &Affinity::default(), |_| true);
    picked.map(|picked| picked.endpoint)
}

/// How many of `count` picks each address has.
fn shares<const N: usize>(pool: &Pool, hosts: [u8; N], count: usize) -> [usize; N] {
    let picks: Vec<_> = (0..count).map(|_| pick(pool).address).collect();
    hosts.map(|host| picks.iter().filter(|pick| **pick == address(host)).count())
}

#[test]
fn turns_are_exact_and_stay_exact_with_threads() {
    let pool = pool(&[&[1], &[2], &[3]]);
    assert_eq!(shares(&pool, [1, 2, 3], 300), [100; 3]);
    let picks: Vec<_> = std::thread::scope(|scope| {
        let address = |_| pick(&pool).address;
        let threads: Vec<_> = (0..3)
            .map(|_| scope.spawn(move || (0..100).map(address).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let count = |host| picks.iter().filter(|pick| **pick == address(host)).count();
    assert_eq!([1, 2, 3].map(count), [100; 3]);
}

#[test]
fn a_member_has_one_share_whatever_the_number_of_its_addresses() {
    let pool = pool(&[&[1], &[2, 3, 4]]);
    assert_eq!(pool.metrics.active_backends.get(), 2);
    assert_eq!(shares(&pool, [1, 2, 3, 4], 60), [30, 10, 10, 10]);

    pool.check.found().insert(address(3), false);
    pool.publish(Instant::now());
    assert_eq!(
        pool.metrics.active_backends.get(),
        2,
        "it is alive while one of them is"
    );
    assert_eq!(shares(&pool, [1, 2, 3, 4], 60), [30, 15, 0, 15]);

    for host in [2, 4] {
        pool.check.found().insert(address(host), false);
    }
    pool.publish(Instant::now());
    assert_eq!(pool.metrics.active_backends.get(), 1);
    assert_eq!(shares(&pool, [1], 10), [10]);
}

#[test]
fn without_a_connection_the_other_address_is_next_and_then_another_backend() {
    let pool = pool(&[&[1], &[2, 3]]);
    let first = pick(&pool);
    let two = pick(&pool);
    assert_eq!([&first, &two].map(|one| one.address), [address(1), address(2)]);
    let only_two = std::slice::from_ref(&two);
    let again = pick_again(&pool, only_two, false).unwrap();
    assert_eq!(again.address, address(3));
    assert_eq!(
        pick_again(&pool, &[two.clone(), again.clone()], false).unwrap().address,
        address(1)
    );
    // One that broke is likely to break again, whatever its address.
    assert_eq!(pick_again(&pool, only_two, true).unwrap().address, address(1));
    // But its other address is better than nothing.
    let tried = [first.clone(), two.clone()];
    assert_eq!(pick_again(&pool, &tried, true).unwrap().address, address(3));
    let tried = [first, two, again];
    assert!(pick_again(&pool, &tried, false).is_none() && pick_again(&pool, &tried, true).is_none());
}

#[test]
fn the_others_share_the_requests_of_those_that_fail() {
    for backends in 2..=7_u8 {
        for failing in 1..backends {
            let hosts: Vec<_> = (1..=backends).map(|host| [host]).collect();
            let pool = pool(&hosts.iter().map(<[_; 1]>::as_slice).collect::<Vec<_>>());
            // They are not side by side: 1, 3, 5, then 2, 4, 6.
            let order = (1..=backends).step_by(2).chain((2..=backends).step_by(2));
            let fails: Vec<_> = order.take(failing.into()).map(address).collect();
            let mut first = HashMap::new();
            let mut answered = HashMap::new();
            for _ in 0..10_000 {
                let endpoint = pick(&pool);
                *first.entry(endpoint.address).or_insert(0_usize) += 1;
                let mut tried = vec![endpoint];
                while fails.contains(&tried.last().unwrap().address) {
                    tried.push(pick_again(&pool, &tried, true).unwrap());
                }
                *answered.entry(tried.last().unwrap().address).or_insert(0_usize) += 1;
            }
            let spread = |counts: &HashMap<_, usize>| counts.values().max().unwrap() - counts.values().min().unwrap();
            assert_eq!(first.len(), usize::from(backends));
            assert!(spread(&first) <= 1, "{backends}, {failing}: first turns {first:?}");
            assert_eq!(answered.len(), usize::from(backends - failing));
            assert!(spread(&answered) <= 2, "{backends}, {failing}: answered {answered:?}");
        }
    }
}

#[test]
fn an_address_without_connection_is_set_aside_and_the_last_one_is_the_backends_failure() {
    let pool = pool(&[&[1], &[2, 3]]);
    let at = |host| {
        let picks = (0..6).map(|_| pick(&pool));
        picks.into_iter().find(|one| one.address == address(host)).unwrap()
    };
    pool.unreachable(&at(2), &LIMITS);
    assert_eq!(shares(&pool, [1, 2, 3], 60), [30, 0, 30]);
    pool.publish(Instant::now());
    assert_eq!(shares(&pool, [1, 2, 3], 60), [30, 0, 30], "until it passes a check");
    pool.unreachable(&at(3), &LIMITS);
    assert_eq!(shares(&pool, [1, 2, 3], 60), [60, 0, 0], "now the backend is ejected");
    assert_eq!(pool.metrics.ejections.get(), 1);

    pool.check.found().insert(address(2), true);
    pool.publish(Instant::now() + LIMITS.time);
    assert_eq!(shares(&pool, [1, 2, 3], 60), [30, 15, 15]);
}

#[test]
fn an_ejected_backend_gets_nothing_at_once_and_comes_back_when_its_time_is_over() {
    let pool = pool(&[&[1], &[2], &[3], &[4]]);
    let now = Instant::now();
    let upstreams = [(); 4].map(|()| pick(&pool).upstream);
    for upstream in &upstreams {
        pool.failed(upstream, &LIMITS);
    }
    assert_eq!(
        pool.metrics.ejections.get(),
        2,
        "there is no room for more than half of them"
    );
    assert_eq!(shares(&pool, [1, 2], 60), [0, 0]);
    let next_return = pool.publish(now).unwrap();
    assert!(next_return > now && pool.metrics.active_backends.get() == 2);
    pool.failed(&upstreams[2], &LIMITS);
    assert_eq!(pool.metrics.ejections.get(), 2, "a publication keeps the count");
    assert_eq!(pool.publish(now + 2 * LIMITS.time), None);
    assert_eq!(shares(&pool, [1, 2, 3, 4], 40), [10; 4]);
}

#[test]
fn ejected_backends_come_back_before_their_time_when_nobody_else_is_alive() {
    let pool = pool(&[&[1], &[2]]);
    let first = pick(&pool);
    pool.failed(&first.upstream, &LIMITS);
    pool.publish(Instant::now());
    assert_eq!(shares(&pool, [1, 2], 10), [0, 10]);
    pool.check.found().insert(address(2), false);
    pool.publish(Instant::now());
    assert_eq!(shares(&pool, [1, 2], 10), [10, 0]);
}

#[test]
fn a_failure_that_ejects_nobody_waits_for_nobody() {
    let pool = Arc::new(pool(&[&[1], &[2]]));
    let [one, two] = [(); 2].map(|()| pick(&pool).upstream);
    pool.failed(&one, &LIMITS);
    // What looks at all backends would have to wait for these.
    let _held = (pool.known.lock(), pool.ejected(), pool.check.found());
    let (done, is_done) = mpsc::channel();
    let failing = Arc::clone(&pool);
    std::thread::spawn(move || {
        failing.failed(&one, &LIMITS);
        failing.failed(&two, &LIMITS);
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(pool.metrics.ejections.get(), 1);
}

#[test]
fn backends_that_were_never_checked_get_traffic_when_there_are_no_others_and_are_not_alive() {
    let pool = unchecked(&[&[1], &[2]]);
    assert_eq!(shares(&pool, [1, 2], 10), [5, 5]);
    assert!(!pool.is_alive() && !pool.was_alive());
    pool.check.found().insert(address(1), false);
    pool.publish(Instant::now());
    assert_eq!(shares(&pool, [1, 2], 10), [0, 10]);
    assert!(!pool.is_alive() && !pool.was_alive());
    pool.check.found().insert(address(2), true);
    pool.publish(Instant::now());
    assert!(pool.is_alive() && pool.was_alive());
    pool.check.found().insert(address(2), false);
    pool.publish(Instant::now());
    assert_eq!(pool.pick(ASKED).err(), Some(Unavailable::NoneAlive));
    assert!(!pool.is_alive() && pool.was_alive());
}

#[tokio::test]
async fn connections_are_kept_until_they_are_old_or_their_backend_is_gone() {
    let mut pool = pool(&[&[1], &[2]]);
    let endpoints = [(); 2].map(|()| pick(&pool));
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let start = Instant::now();
    for second in 0..2 {
        for endpoint in &endpoints {
            let stream = TcpStream::connect(origin.local_addr().unwrap()).await.unwrap();
            let since = start + Duration::from_secs(second);
            endpoint
                .upstream
                .kept
                .keep(endpoint.address, OriginStream::Plain(stream), since);
        }
    }
    let take = |which: usize| {
        let Endpoint { upstream, address } = &endpoints[which];
        upstream.kept.take(*address, |_| true, None, Instant::now())
    };
    pool.sweep(start + Duration::from_secs(1));
    assert!(take(0).is_some() && take(0).is_none(), "one of the two was old");

    pool.discovery = PoolDiscovery::with(set(&[&[1]]), Arc::clone(&pool.metrics));
    pool.publish(start);
    assert!(take(1).is_none(), "although a request still has it");
}

#[test]
fn what_the_registry_says_of_a_member_acts_at_the_next_publication() {
    let mut pool = pool(&[&[1], &[2], &[3]]);
    let mut say = |metas: [Meta; 3]| {
        let mut members = set(&[&[1], &[2], &[3]]);
        for (name, meta) in ["origin1:80", "origin2:80", "origin3:80"].into_iter().zip(metas) {
            members.describe(&name.into(), meta);
        }
        pool.discovery = PoolDiscovery::with(members, Arc::clone(&pool.metrics));
        pool.publish(Instant::now());
        shares(&pool, [1, 2, 3], 60)
    };
    let usual = Meta::default();
    let weight = |weight| Meta { weight, ..usual };
    let drain = Meta { drain: true, ..usual };
    let backup = Meta { backup: true, ..usual };
    assert_eq!(say([weight(3), weight(2), usual]), [30, 20, 10]);
    assert_eq!(say([weight(0), usual, usual]), [0, 30, 30]);
    assert_eq!(say([drain, weight(5), usual]), [0, 50, 10]);
    assert_eq!(say([usual, usual, backup]), [30, 30, 0]);
    assert_eq!(say([drain, weight(0), backup]), [0, 0, 60]);
    assert_eq!(say([usual; 3]), [20; 3]);
}

#[test]
fn a_backend_that_comes_back_starts_slowly_and_one_that_was_there_does_not() {
    let pool = unchecked(&[&[1], &[2], &[3]]);
    let slow_start = Some(Duration::from_secs(36));
    pool.balance(Rules::new(
        &Balance {
            slow_start,
            ..Balance::default()
        },
        "",
    ));
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    pool.publish(start);
    // Some pass their first check a moment before others, and all of them were there from the start.
    for host in [1, 2, 3] {
        pool.check.found().insert(address(host), true);
        assert_eq!(pool.publish(start), None);
    }
    assert_eq!(shares(&pool, [1, 2, 3], 30), [10; 3]);

    pool.check.found().insert(address(3), false);
    pool.publish(at(10));
    pool.check.found().insert(address(3), true);
    assert_eq!(pool.publish(at(100)), Some(at(102)), "it gets more then");
    assert_eq!(shares(&pool, [1, 2, 3], 210), [100, 100, 10]);
    assert_eq!(pool.publish(at(116)), Some(at(118)));
    assert_eq!(shares(&pool, [1, 2, 3], 250), [100, 100, 50]);
    assert_eq!(pool.publish(at(136)), None);
    assert_eq!(shares(&pool, [1, 2, 3], 30), [10; 3]);
}

#[test]
fn a_retry_takes_a_place_or_is_none() {
    let pool = pool(&[&[1], &[2]]);
    let max_inflight = Some(1);
    pool.balance(Rules::new(
        &Balance {
            max_inflight,
            ..Balance::default()
        },
        "",
    ));
    pool.publish(Instant::now());
    let (first, affinity) = pool.pick(ASKED).unwrap();
    let (second, _) = pool.pick(ASKED).unwrap();
    assert_eq!(pool.pick(ASKED).err(), Some(Unavailable::AllBusy));
    let tried = [first.endpoint];
    drop(first.place);
    assert!(pool.pick_again(&tried, true, &affinity, |_| true).is_none());
    drop(second);
    let again = pool.pick_again(&tried, true, &affinity, |_| true).unwrap();
    assert_eq!(again.endpoint.address, address(2));
    // A new list knows who has places.
    pool.publish(Instant::now());
    assert_eq!(pool.pick(ASKED).unwrap().0.endpoint.address, address(1));
}
