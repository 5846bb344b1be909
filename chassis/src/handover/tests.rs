//! Both sides over real sockets, in one process.

use std::future::{pending, ready};
use std::io::Write as _;
use std::path::PathBuf;

use super::*;

const SOON: Duration = Duration::from_secs(20);

fn socket() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn somewhere() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("private").join("upgrade.sock");
    (directory, path)
}

async fn found(path: &Path) -> Successor {
    Successor::waiting_at(path).await.unwrap().expect("it waits")
}

async fn hand_over(successor: Successor) -> Result<(), String> {
    let notes = || vec![b"note".to_vec(), b"another".to_vec()];
    successor.hand_over(&[&socket()], SOON, notes, pending()).await
}

#[tokio::test]
async fn the_successor_gets_the_same_sockets_in_order_and_the_note() {
    let (_directory, path) = somewhere();
    let waiting = Waiting::at(&path).unwrap();
    let ours = [socket(), socket()];
    let addresses = ours.each_ref().map(|socket| socket.local_addr().unwrap());
    let successor = tokio::spawn(async move {
        let (sockets, predecessor) = waiting.receive(SOON).await.unwrap();
        let taken = predecessor.take_over(ready(Ok(()))).await.unwrap();
        assert_eq!((taken.note(0), taken.alone), (b"note".as_slice(), false));
        assert_eq!((taken.note(1), taken.note(2)), (b"another".as_slice(), b"".as_slice()));
        taken.serving();
        sockets
    });
    let running = found(&path).await;
    assert_eq!(running.pid(), i32::try_from(std::process::id()).ok());
    let notes = || vec![b"note".to_vec(), b"another".to_vec()];
    running
        .hand_over(&ours.each_ref(), SOON, notes, pending())
        .await
        .unwrap();
    let theirs = successor.await.unwrap();
    let received: Vec<_> = theirs.iter().map(|socket| socket.local_addr().unwrap()).collect();
    assert_eq!(received, addresses);
    assert!(
        Successor::waiting_at(&path).await.unwrap().is_none(),
        "nobody waits any more"
    );
}

#[tokio::test]
async fn a_successor_that_gives_up_has_taken_nothing() {
    for gets_go in [false, true] {
        let (_directory, path) = somewhere();
        let waiting = Waiting::at(&path).unwrap();
        let successor = tokio::spawn(async move {
            let (_, predecessor) = waiting.receive(SOON).await.unwrap();
            let prepared = if gets_go { Ok(()) } else { Err("nobody".to_owned()) };
            drop(predecessor.take_over(ready(prepared)).await);
        });
        assert_eq!(hand_over(found(&path).await).await.unwrap_err(), "it has ended");
        successor.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_successor_that_may_serve_is_waited_for_as_long_as_it_takes() {
    let (_directory, path) = somewhere();
    let waiting = Waiting::at(&path).unwrap();
    let successor = tokio::spawn(async move {
        let (_, predecessor) = waiting.receive(SOON).await.unwrap();
        let taken = predecessor.take_over(ready(Ok(()))).await.unwrap();
        sleep(Duration::from_secs(3600)).await;
        taken.serving();
    });
    let start = Instant::now();
    hand_over(found(&path).await).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(3600));
    successor.await.unwrap();
}

#[tokio::test]
async fn a_handover_that_is_called_off_sends_the_successor_away_unless_it_has_go() {
    let (_directory, path) = somewhere();
    let waiting = Waiting::at(&path).unwrap();
    let successor = tokio::spawn(async move {
        let (_, predecessor) = waiting.receive(SOON).await.unwrap();
        predecessor.take_over(pending()).await.unwrap_err()
    });
    let notes = || panic!("it is not told");
    let off = found(&path).await.hand_over(&[&socket()], SOON, notes, ready(())).await;
    assert_eq!(off.unwrap_err(), "the handover was called off");
    assert_eq!(successor.await.unwrap(), "the running process has called it off");

    let waiting = Waiting::at(&path).unwrap();
    let (go, has_go) = tokio::sync::oneshot::channel();
    let successor = tokio::spawn(async move {
        let (_, predecessor) = waiting.receive(SOON).await.unwrap();
        let taken = predecessor.take_over(ready(Ok(()))).await.unwrap();
        go.send(()).unwrap();
        taken
    });
    let called_off = async { has_go.await.unwrap() };
    let done = found(&path)
        .await
        .hand_over(&[&socket()], SOON, Vec::new, called_off)
        .await;
    assert_eq!(done, Ok(()), "the successor serves, or will");
    assert_eq!(successor.await.unwrap().note(0), b"");
}

#[tokio::test]
async fn silence_is_no_death_and_ends_the_wait_for_ready() {
    let (_directory, path) = somewhere();
    let waiting = Waiting::at(&path).unwrap();
    let patience = Duration::from_millis(1);
    let kept = found(&path)
        .await
        .hand_over(&[&socket()], patience, Vec::new, pending())
        .await;
    assert_eq!(kept.unwrap_err(), "it said nothing for 1ms");
    // It wakes up later.
    let (_, predecessor) = waiting.receive(SOON).await.unwrap();
    let error = predecessor.take_over(ready(Ok(()))).await.unwrap_err();
    assert_eq!(error, "the running process has called it off");
}

#[tokio::test(start_paused = true)]
async fn version_one_on_either_side_is_understood() {
    use std::os::unix::net::UnixStream as Plain;

    // As the running process: it has no note, and says no by closing while it lives.
    for gives_up in [false, true] {
        let (_directory, path) = somewhere();
        let waiting = Waiting::at(&path).unwrap();
        let old = Plain::connect(&path).unwrap();
        old.set_nonblocking(true).unwrap();
        let mut old = Peer::new(UnixStream::from_std(old).unwrap());
        old.say(SOCKETS, &[socket().as_fd()]).unwrap();
        let (_, predecessor) = waiting.receive(SOON).await.unwrap();
        if gives_up {
            old = Peer::new(UnixStream::pair().unwrap().0);
        }
        let new = tokio::spawn(predecessor.take_over(ready(Ok(()))));
        if gives_up {
            assert!(new.await.unwrap().is_err());
            continue;
        }
        assert_eq!(old.hear().await.unwrap().0, b'R');
        old.say(b'G', &[]).unwrap();
        let taken = new.await.unwrap().unwrap();
        assert_eq!((taken.note(0), taken.alone), (b"".as_slice(), false));
        taken.serving();
        assert_eq!(old.hear().await.unwrap().0, b'S');
    }

    // As the successor: it reads bytes alone, and closes when it has said that it serves.
    let (_directory, path) = somewhere();
    let waiting = Waiting::at(&path).unwrap();
    let successor = tokio::task::spawn_blocking(move || {
        let (_, predecessor) = futures::executor::block_on(waiting.receive(SOON)).unwrap();
        let mut stream = predecessor.0.stream;
        stream.set_nonblocking(false).unwrap();
        stream.write_all(b"R").unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"G");
        stream.write_all(b"S").unwrap();
    });
    hand_over(found(&path).await).await.unwrap();
    successor.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_full_and_a_wait_for_nobody_end() {
    let (_directory, path) = somewhere();
    let waiting = Waiting::at(&path).unwrap();
    let mut queue = Vec::new();
    let error = loop {
        match Successor::waiting_at(&path).await {
            Ok(successor) => queue.push(successor),
            Err(error) => break error.to_string(),
        }
        assert!(queue.len() < 100_000, "the kernel bounds it");
    };
    assert!(error.contains("its queue is full"), "{error}");
    drop(queue);
    let error = waiting.receive(SOON).await.unwrap_err().to_string();
    assert_eq!(error, "the running process ended before it had sent its sockets");
    let error = Waiting::at(&path).unwrap().receive(SOON).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no running process handed its sockets over within 20s"
    );
    assert!(!path.exists());
}

/// What the kernel says of a process that has ended.
fn dead() -> Option<OwnedFd> {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = Pid::from_child(&child);
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
    child.wait().unwrap();
    Some(process)
}

#[tokio::test]
async fn the_word_of_a_successor_that_is_dead_counts_for_nothing() {
    for (is_dead, expected) in [(false, Ok(())), (true, Err("it has ended".to_owned()))] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut successor = Peer::new(ours);
        if is_dead {
            successor.process = dead();
        }
        // While this process was stopped, the other one got ready, served and died.
        theirs.try_write(b"RS").unwrap();
        assert_eq!(hand_over(Successor(successor)).await, expected);
    }
}

#[tokio::test]
async fn a_running_process_that_died_without_a_word_is_replaced_with_backends_or_without() {
    for finds in [Ok(()), Err("no backends".to_owned())] {
        for asks_first in [false, true] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut running = Peer::new(ours).suspend().unwrap();
            running.process = dead();
            let prepared = async {
                if !asks_first {
                    // Longer than it takes to see the death.
                    sleep(Duration::from_millis(50)).await;
                }
                finds.clone()
            };
            if !asks_first || finds.is_err() {
                drop(theirs);
            } else {
                tokio::spawn(async move { Peer::new(theirs).hear().await.map(drop) });
            }
            let taken = Predecessor(running).take_over(prepared).await.unwrap();
            assert_eq!((taken.alone, taken.note(0)), (true, b"".as_slice()));
        }
    }
}
