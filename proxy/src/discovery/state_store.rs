//! Reads the state file once and writes it from then on, in a thread of its own.
//!
//! A disk can hang (NFS), and then it must delay neither discovery nor the start or the end of the process. So only the first
//! read waits for the thread, and not for long. There is one write at a time; of the sets that arrive meanwhile only the last is
//! kept.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use chassis::replace::try_to_replace;
use log::{info, warn};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::discovery::members::Members;
use crate::discovery::state_file;
use crate::observe::pools::PoolMetrics;

/// How long a start waits for the file to be read.
const READ_PATIENCE: Duration = Duration::from_secs(1);
/// Writing that takes longer is reported as a failure while it goes on.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// The state file, and the thread that reads it once and then writes it whenever there is another set.
pub struct StateStore {
    shared: Arc<Shared>,
    saved: Mutex<Option<oneshot::Receiver<Members>>>,
}

struct Shared {
    path: PathBuf,
    metrics: Arc<PoolMetrics>,
    state: Mutex<State>,
    /// There is a set to write, or there will be none any more.
    wanted: Condvar,
}

#[derive(Default)]
struct State {
    /// The set to write next. A later one takes its place.
    next: Option<Arc<Members>>,
    /// The last set that was to be written, unless that failed.
    last: Option<Arc<Members>>,
    /// When the thread last turned to the disk; `None` while it waits.
    busy: Option<Instant>,
    /// The last failure was logged and nothing has succeeded since.
    failing: bool,
    /// Nobody has sets to write any more.
    closed: bool,
}

impl StateStore {
    /// Starts to read `path`, and to see whether it can be written.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn open(path: PathBuf, metrics: Arc<PoolMetrics>) -> io::Result<Self> {
        Self::open_with(path, metrics, state_file::write)
    }

    fn open_with(
        path: PathBuf,
        metrics: Arc<PoolMetrics>,
        write: impl Fn(&Path, &Members) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let state = State {
            busy: Some(Instant::now()),
            ..State::default()
        };
        let shared = Arc::new(Shared {
            path,
            metrics,
            state: Mutex::new(state),
            wanted: Condvar::new(),
        });
        let (sender, saved) = oneshot::channel();
        let of_thread = Arc::clone(&shared);
        thread::Builder::new()
            .name("state file".into())
            .spawn(move || of_thread.run(sender, write))?;
        Ok(Self {
            shared,
            saved: Mutex::new(Some(saved)),
        })
    }

    /// What an earlier process saved; `None` when that is nothing, is refused, or does not come from the disk in time.
    /// It can be had once.
    pub async fn saved(&self) -> Option<Members> {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        timeout(READ_PATIENCE, saved).await.ok()?.ok()
    }

    /// Has `members` written, unless they are what is there. Returns at once.
    pub fn save(&self, members: &Arc<Members>) {
        let mut state = self.shared.state();
        if state.busy.is_some_and(|since| since.elapsed() > WRITE_PATIENCE) {
            self.shared
                .failed(&mut state, &format!("the disk has not answered for {WRITE_PATIENCE:?}"));
            // Once for each of these times.
            state.busy = Some(Instant::now());
        }
        if state.last.as_ref() != Some(members) {
            state.last = Some(Arc::clone(members));
            state.next = Some(Arc::clone(members));
            self.shared.wanted.notify_one();
        }
    }
}

impl Drop for StateStore {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.wanted.notify_one();
    }
}

impl Shared {
    fn run(&self, saved: oneshot::Sender<Members>, write: impl Fn(&Path, &Members) -> io::Result<()>) {
        match state_file::read(&self.path) {
            Ok(None) => {}
            Ok(Some(members)) => {
                // Nobody waits for it where the registry was quicker.
                let _ = saved.send(members);
            }
            Err(problem) => {
                self.metrics.state_file_errors.inc();
                let (file, problem) = (self.path.display().to_string(), problem.to_string());
                warn!(file = file.as_str(), error = problem.as_str(); "can't use the saved set of backends");
            }
        }
        self.done(try_to_replace(&self.path));
        while let Some(members) = self.next() {
            self.done(write(&self.path, &members));
        }
    }

    /// Waits for a set to write; `None` when there will be no more.
    #[allow(clippy::disallowed_methods, reason = "this is a thread of its own")]
    fn next(&self) -> Option<Arc<Members>> {
        let mut state = self.state();
        loop {
            if let Some(members) = state.next.take() {
                state.busy = Some(Instant::now());
                return Some(members);
            }
            if state.closed {
                return None;
            }
            state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Logs and counts what came of writing.
    fn done(&self, result: io::Result<()>) {
        let mut state = self.state();
        state.busy = None;
        match result {
            Ok(()) => {
                if std::mem::take(&mut state.failing) {
                    info!("the set of backends is saved again");
                }
            }
            Err(problem) => {
                // So that the next read of the registry has it tried again.
                state.last = None;
                let user = rustix::process::geteuid().as_raw();
                let way_out = format!("let user {user} write to its directory, or set discovery.state_file to none");
                self.failed(&mut state, &format!("{problem}; {way_out}"));
            }
        }
    }

    fn failed(&self, state: &mut State, problem: &str) {
        self.metrics.state_file_errors.inc();
        if !std::mem::replace(&mut state.failing, true) {
            let file = self.path.display().to_string();
            warn!(file = file.as_str(), error = problem; "can't save the set of backends; a start without the registry will have none, or an old one");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use registry::PoolName;

    use super::*;
    use crate::observe::pools::PoolsMetrics;

    fn set(names: &[&str]) -> Arc<Members> {
        let mut members = Members::default();
        for (name, host) in names.iter().zip(1..) {
            members.insert(&(*name).into(), [([192, 0, 2, host], 80).into()]);
        }
        Arc::new(members)
    }

    fn metrics() -> Arc<PoolMetrics> {
        PoolsMetrics::new().unwrap().of(&PoolName::default()).unwrap()
    }

    fn until(condition: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < end, "never happened");
            thread::yield_now();
        }
    }

    fn has(path: &Path, members: &Members) -> bool {
        state_file::read(path).is_ok_and(|read| read.as_ref() == Some(members))
    }

    #[tokio::test]
    async fn a_disk_that_hangs_holds_nobody_up_and_gets_the_last_set() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backends");
        let metrics = metrics();
        let (begun, begins) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let store = StateStore::open_with(path.clone(), Arc::clone(&metrics), move |path, members| {
            begun.send(members.len()).unwrap();
            released.recv().unwrap();
            state_file::write(path, members)
        })
        .unwrap();
        assert_eq!(store.saved().await, None);

        store.save(&set(&["a:1"]));
        assert_eq!(begins.recv().unwrap(), 1);
        // All of these return, though the first write has not ended.
        store.save(&set(&["a:1", "b:1", "c:1"]));
        let last = set(&["a:1", "b:1"]);
        store.save(&last);
        assert_eq!(metrics.state_file_errors.get(), 0);
        store.shared.state().busy = Instant::now().checked_sub(WRITE_PATIENCE * 2);
        store.save(&last);
        store.save(&last);
        assert_eq!(metrics.state_file_errors.get(), 1, "it is counted once");

        release.send(()).unwrap();
        assert_eq!(begins.recv().unwrap(), 2, "the set between is never written");
        release.send(()).unwrap();
        until(|| has(&path, &last));
        until(|| store.shared.state().busy.is_none());
        assert!(!store.shared.state().failing);
        store.save(&last);
        assert!(store.shared.state().next.is_none(), "it is there already");
    }

    #[tokio::test]
    async fn a_failure_is_counted_and_the_same_set_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("later").join("backends");
        let metrics = metrics();
        let store = StateStore::open(path.clone(), Arc::clone(&metrics)).unwrap();
        until(|| metrics.state_file_errors.get() == 1);
        let members = set(&["a:1"]);
        store.save(&members);
        until(|| metrics.state_file_errors.get() == 2);
        fs::create_dir(directory.path().join("later")).unwrap();
        until(|| store.shared.state().last.is_none());
        store.save(&members);
        until(|| has(&path, &members));

        let again = StateStore::open(path, metrics).unwrap();
        assert_eq!(again.saved().await.as_ref(), Some(&*members));
        assert_eq!(again.saved().await, None, "it can be had once");
    }

    #[test]
    fn a_store_that_is_dropped_writes_what_it_has_and_ends_its_thread() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backends");
        let store = StateStore::open(path.clone(), metrics()).unwrap();
        let thread = Arc::downgrade(&store.shared);
        let members = set(&["a:1"]);
        store.save(&members);
        drop(store);
        until(|| thread.upgrade().is_none());
        assert!(has(&path, &members));
    }
}
