//! What is kept in `acme.storage`, a directory that replicas may share.
//!
//! - `HOST.pem`: the certificate of a host and its key, in one file, so that both are replaced in one step.
//! - `HOST.order`: an order that is not finished, with the key that its certificate will be for.
//! - `account.json`: the account at the authority, with its key.
//! - `state.json`: what has failed, and when it is tried again.
//! - `challenges/`: what proves to the authority that a host is this proxy's, while it asks. Whichever process it asks can answer.
//! - `lock`: held by the process that orders.
//!
//! Only the owner can read any of it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use chassis::replace::{replace, try_to_replace};
use log::warn;
use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// No file in it is longer, in bytes.
const LONGEST: u64 = 1 << 20;

const CHALLENGES: &str = "challenges";

/// What is remembered of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// Where its certificate comes from.
    #[serde(default)]
    pub directory: String,
    /// How many orders have failed since the last that did not.
    #[serde(default)]
    pub failures: u32,
    /// Nothing is ordered before, in seconds since 1970.
    #[serde(default)]
    pub next_attempt: u64,
    /// Why the last one failed.
    #[serde(default)]
    pub error: Option<String>,
    /// When the authority says that the certificate is to be renewed, in seconds since 1970.
    #[serde(default)]
    pub suggested: Option<u64>,
    /// When it is asked for that again.
    #[serde(default)]
    pub ask_again: u64,
}

/// What is remembered of all hosts.
pub type State = BTreeMap<String, HostState>;

/// An order that is not finished.
#[derive(Serialize, Deserialize)]
pub struct Pending {
    /// Where its directory is.
    pub directory: String,
    /// Where it is.
    pub url: String,
    /// The key that the certificate is for, PEM.
    pub key: String,
}

/// An account at an authority.
#[derive(Serialize, Deserialize)]
pub struct SavedAccount {
    /// Where its directory is.
    pub directory: String,
    /// Whom it may write to.
    pub emails: Vec<String>,
    /// The name and the key of the account.
    pub credentials: serde_json::Value,
}

/// The right to order, until it is dropped.
pub struct Lock(#[allow(dead_code, reason = "the lock lasts as long as the file is open")] File);

/// The directory.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// The directory at `path`, to read what is there.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Prepares it to be written to. It is made where it is missing.
    ///
    /// # Errors
    /// When it can't be written to, or everybody could put keys of theirs there.
    pub fn open(&self) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(self.path.join(CHALLENGES))?;
        self.check()
    }

    /// Whether [`Store::open`] would succeed, without changing anything.
    ///
    /// # Errors
    /// Those of [`Store::open`].
    pub fn try_to_open(&self) -> io::Result<()> {
        if self.path.exists() {
            return self.check();
        }
        let there = self.path.ancestors().find(|directory| directory.exists());
        try_to_replace(&there.unwrap_or(Path::new("/")).join("acme"))
    }

    fn check(&self) -> io::Result<()> {
        let metadata = fs::metadata(&self.path)?;
        if !metadata.is_dir() {
            return Err(io::Error::other("it is not a directory"));
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o002 != 0 {
            return Err(io::Error::other(format!(
                "everybody can write to it (its mode is {mode:04o}); chmod 700 it"
            )));
        }
        try_to_replace(&self.state())
    }

    fn state(&self) -> PathBuf {
        self.path.join("state.json")
    }

    fn account(&self) -> PathBuf {
        self.path.join("account.json")
    }

    fn order(&self, host: &str) -> PathBuf {
        self.path.join(format!("{host}.order"))
    }

    /// The right to order; `None` while another process has it.
    ///
    /// # Errors
    /// When the file of the lock can't be opened.
    pub fn lock(&self) -> io::Result<Option<Lock>> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600);
        let file = file.open(self.path.join("lock"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                self.forget_answers();
                Ok(Some(Lock(file)))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What is remembered of the hosts. What can't be read is forgotten.
    pub fn read_state(&self) -> State {
        self.read(&self.state()).unwrap_or_default()
    }

    /// Remembers it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_state(&self, state: &State) -> io::Result<()> {
        self.write(&self.state(), state)
    }

    /// The account.
    pub fn read_account(&self) -> Option<SavedAccount> {
        self.read(&self.account())
    }

    /// Keeps the account.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_account(&self, account: &SavedAccount) -> io::Result<()> {
        self.write(&self.account(), account)
    }

    /// Forgets the account, which the authority does not know.
    pub fn forget_account(&self) {
        self.remove(&self.account());
    }

    /// The order for `host` that is not finished.
    pub fn read_order(&self, host: &str) -> Option<Pending> {
        self.read(&self.order(host))
    }

    /// Keeps an order for `host`, so that another process can finish it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_order(&self, host: &str, order: &Pending) -> io::Result<()> {
        self.write(&self.order(host), order)
    }

    /// Forgets it.
    pub fn forget_order(&self, host: &str) {
        self.remove(&self.order(host));
    }

    /// Keeps what answers a challenge, until the result is dropped.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn answer(&self, name: &str, content: &[u8]) -> io::Result<Answer> {
        let path = self.path.join(CHALLENGES).join(name);
        replace(&path, content)?;
        Ok(Answer(path))
    }

    /// Removes the answers of a process that ended in the middle of an order.
    fn forget_answers(&self) {
        let entries = fs::read_dir(self.path.join(CHALLENGES)).into_iter().flatten().flatten();
        entries.for_each(|entry| self.remove(&entry.path()));
    }

    fn read<T: DeserializeOwned>(&self, path: &Path) -> Option<T> {
        let parsed = match read(path) {
            Ok(content) => serde_json::from_slice(&content).map_err(|_| "it is not what the proxy wrote".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        parsed
            .inspect_err(|why| {
                let path = path.display().to_string();
                warn!(path = path.as_str(), error = why.as_str(); "a file in acme.storage can't be read; going on without it");
            })
            .ok()
    }

    fn write(&self, path: &Path, content: &impl Serialize) -> io::Result<()> {
        replace(path, &serde_json::to_vec(content)?)
    }

    fn remove(&self, path: &Path) {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            let path = path.display().to_string();
            warn!(path = path.as_str(), error = error.to_string().as_str(); "a file in acme.storage can't be removed");
        }
    }
}

/// What answers a challenge.
pub struct Answer(PathBuf);

impl Drop for Answer {
    fn drop(&mut self) {
        // One that is left there proves nothing but what was true.
        let _ = fs::remove_file(&self.0);
    }
}

/// The content of what answers the challenge `name` at this moment.
pub fn answer_to(storage: &Path, name: &str) -> Option<Vec<u8>> {
    read(&storage.join(CHALLENGES).join(name)).ok()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut content = Vec::new();
    file.take(LONGEST).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_kept_is_the_owners_alone_and_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a").join("acme");
        let store = Store::at(&path);
        store.try_to_open().unwrap();
        assert!(!path.parent().unwrap().exists(), "a look changes nothing");
        store.open().unwrap();
        assert_eq!(mode(&path), 0o700);
        store.try_to_open().unwrap();
        assert!(store.read_state().is_empty() && store.read_order("a.example").is_none());
        let state = State::from([(
            "a.example".to_owned(),
            HostState {
                failures: 3,
                error: Some("why".into()),
                ..HostState::default()
            },
        )]);
        store.write_state(&state).unwrap();
        assert_eq!(store.read_state(), state);
        let [directory, url, key] = ["directory", "url", "key"].map(str::to_owned);
        let order = Pending { directory, url, key };
        store.write_order("a.example", &order).unwrap();
        assert_eq!(store.read_order("a.example").unwrap().url, "url");
        for file in ["state.json", "a.example.order"] {
            assert_eq!(mode(&path.join(file)), 0o600, "{file}");
        }
        store.forget_order("a.example");
        store.forget_order("a.example");
        assert!(store.read_order("a.example").is_none());
        fs::write(path.join("state.json"), "{").unwrap();
        assert!(store.read_state().is_empty());
    }

    #[test]
    fn an_answer_is_there_while_it_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path());
        store.open().unwrap();
        let answer = store.answer("token", b"proof").unwrap();
        assert_eq!(answer_to(directory.path(), "token").as_deref(), Some(&b"proof"[..]));
        drop(answer);
        assert_eq!(answer_to(directory.path(), "token"), None);
    }

    #[test]
    fn one_process_has_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path());
        store.open().unwrap();
        let lock = store.lock().unwrap().unwrap();
        assert!(store.lock().unwrap().is_none());
        drop(lock);
        assert!(store.lock().unwrap().is_some());
    }

    #[test]
    fn a_storage_that_can_not_be_used_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        for path in [&file, &file.join("below"), &open] {
            assert!(Store::at(path).try_to_open().is_err(), "{}", path.display());
            assert!(Store::at(path).open().is_err(), "{}", path.display());
        }
    }
}
