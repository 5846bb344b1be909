//! Handovers under traffic in which either process is paused or killed at a random moment: in the end exactly one serves.
//!
//! `THOROUGH=1` does 500 of them, with pauses of 1 to 60 s; the seed is printed, and `HANDOVER_SEED` draws the same again.

#![allow(
    clippy::print_stdout,
    reason = "whoever runs it thoroughly wants to see what was tried"
)]

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{HANDED_OVER, SERVES_ON};
use crate::support::load::Seen;
use crate::support::{Load, Process, embedded, eventually, get, origin, thorough};
use crate::upgrade::{TOOK_OVER, WAITING, upgradable};

/// How long a successor that has been sent the sockets may take to come to a decision, and more.
const DECIDED: Duration = Duration::from_secs(60);

const REFUSED: &str = "SIGQUIT refused: there is no successor to hand over to; serving on";
const SHUTTING_DOWN: &str = "shutting down; requests in flight may finish";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Pause(Duration),
    Kill,
}

/// What is done to one of the two, and how long after the signal.
#[derive(Debug, Clone, Copy)]
struct Blow {
    running: bool,
    harm: Harm,
    after: Duration,
}

/// Who serves in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Running,
    Successor,
    /// It was killed, or stopped as asked, before there was a handover or after it.
    Nobody,
}

/// Mostly one blow; half of them near the end of a handover that takes `usual`.
fn blows(random: &mut fastrand::Rng, usual: Duration, longest_pause: f64) -> Vec<Blow> {
    let count = if random.u8(0..4) == 0 { 2 } else { 1 };
    (0..count)
        .map(|_| Blow {
            running: random.bool(),
            harm: match random.bool() {
                true => Harm::Kill,
                // Short ones as often as long ones, in proportion.
                false => Harm::Pause(Duration::from_secs_f64(longest_pause.powf(random.f64()))),
            },
            after: usual.mul_f64(match random.bool() {
                true => random.f64(),
                false => 0.9 + random.f64() * 0.12,
            }),
        })
        .collect()
}

async fn strike(process: &Process, blow: Blow) {
    sleep(blow.after).await;
    match blow.harm {
        Harm::Kill => process.signal("KILL"),
        Harm::Pause(length) => {
            process.signal("STOP");
            sleep(length).await;
            process.signal("CONT");
        }
    }
}

/// Waits until it is settled who serves, and checks that nobody else does. In `earlier` handovers the running one served on.
async fn settled(running: &Process, successor: &Process, blows: &[Blow], earlier: usize, what: &str) -> End {
    // A successor that is killed before the signal is heard is none.
    let serves_on = || running.lines(SERVES_ON).len() + running.lines(REFUSED).len() > earlier;
    let killed = |running| {
        blows
            .iter()
            .any(|blow| blow.running == running && blow.harm == Harm::Kill)
    };
    for (process, killed) in [(running, killed(true)), (successor, killed(false))] {
        if killed {
            process.ended().await;
        }
    }
    let begun = Instant::now();
    loop {
        let took_over = !successor.lines(TOOK_OVER).is_empty();
        let handed_over = !running.lines(HANDED_OVER).is_empty();
        let gone = successor.has_ended();
        if took_over && !gone {
            running.ended().await;
            if !killed(true) {
                running.said(HANDED_OVER, |_| true).await;
            }
            assert!(!serves_on(), "{what}: two meant to serve");
            assert_eq!(get(successor.admin(), "/readyz").await.status, 200, "{what}");
            return End::Successor;
        }
        if gone && handed_over {
            assert!(killed(false), "{what}: the successor took over and left");
            running.ended().await;
            return End::Nobody;
        }
        if gone && killed(true) {
            // With the sockets it would have had to serve.
            let had_sockets = !successor.lines("starting").is_empty();
            assert!(
                killed(false) || serves_on() || !had_sockets,
                "{what}: the successor left though the running one was dead"
            );
            return End::Nobody;
        }
        if gone && !running.lines(SHUTTING_DOWN).is_empty() {
            assert!(killed(false), "{what}: it was asked to hand over");
            running.ended().await;
            return End::Nobody;
        }
        if gone && serves_on() {
            assert_eq!(get(running.admin(), "/readyz").await.status, 200, "{what}");
            return End::Running;
        }
        // Killed before it sent anything: the successor waits for another.
        if killed(true) && successor.lines("starting").is_empty() && begun.elapsed() > Duration::from_secs(5) {
            return End::Nobody;
        }
        assert!(
            begun.elapsed() < DECIDED,
            "{what}: two serve, or none: {:#?} {:#?}",
            running.log(),
            successor.log()
        );
        sleep(Duration::from_millis(20)).await;
    }
}

/// Handovers one after the other, each with what the one before left.
async fn handovers(rounds: usize, lane: usize, seed: u64, longest_pause: f64, to: std::net::SocketAddr) -> Vec<End> {
    let mut random = fastrand::Rng::with_seed(seed.wrapping_add(lane as u64));
    let files = tempfile::tempdir().expect("a directory");
    let configuration = upgradable(&embedded(&[to]), files.path());
    let mut running = fresh(&configuration).await;
    // The first is undisturbed, and says how long one takes.
    let successor = Process::successor(&configuration);
    successor.said(WAITING, |_| true).await;
    let asked = Instant::now();
    running.signal("QUIT");
    successor.said(TOOK_OVER, |_| true).await;
    let usual = asked.elapsed();
    running.ended().await;
    running = successor;
    let mut ends = Vec::new();
    for round in 0..rounds {
        let successor = Process::successor(&configuration);
        successor.said(WAITING, |_| true).await;
        let load = Load::start(running.address(), "/delay/1", 40);
        let earlier = running.lines(SERVES_ON).len() + running.lines(REFUSED).len();
        let blows = blows(&mut random, usual, longest_pause);
        let what = format!("seed {seed}, lane {lane}, round {round}: {blows:?}");
        running.signal(if random.bool() { "QUIT" } else { "TERM" });
        let on = |blow: &Blow| if blow.running { &running } else { &successor };
        futures::future::join_all(blows.iter().map(|blow| strike(on(blow), *blow))).await;
        let end = settled(&running, &successor, &blows, earlier, &what).await;
        let seen = load.stop().await;
        check_losses(&seen, &blows, &successor, end, &what);
        match end {
            End::Running => {}
            End::Successor => running = successor,
            End::Nobody => running = fresh(&configuration).await,
        }
        eventually("it answers", async || get(running.address(), "/").await.status == 200).await;
        ends.push(end);
    }
    ends
}

/// What is lost is lost with a process that was killed while it served, or was held up by a pause of one that served.
fn check_losses(seen: &Seen, blows: &[Blow], successor: &Process, end: End, what: &str) {
    let served = end == End::Successor || !successor.lines("listening").is_empty();
    let harmed = blows.iter().any(|blow| blow.running || served);
    assert!(harmed || seen.lost.is_empty(), "{what}: lost {:?}", seen.lost);
}

async fn fresh(configuration: &str) -> Process {
    let proxy = Process::proxy(configuration).await;
    proxy.active_backends(1).await;
    proxy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_paused_or_killed_at_whatever_moment_exactly_one_serves() {
    let seed = std::env::var("HANDOVER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let (lanes, rounds, longest_pause) = thorough((4, 2, 2.0), (20, 25, 60.0));
    println!("HANDOVER_SEED={seed}");
    let origin = origin();
    let to = origin.address();
    let lanes = (0..lanes).map(|lane| handovers(rounds, lane, seed, longest_pause, to));
    let ends = futures::future::join_all(lanes).await.concat();
    let count = |end| ends.iter().filter(|ended| **ended == end).count();
    println!(
        "{} handovers: {} times the successor served in the end, {} times the running one, {} times it was killed before or after",
        ends.len(),
        count(End::Successor),
        count(End::Running),
        count(End::Nobody)
    );
}
