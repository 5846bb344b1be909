//! Verifies the passwords of basic authentication.
//!
//! bcrypt takes a quarter of a second on purpose, so it runs on threads of its own, two at a time, and a bounded number waits for
//! them. A good pair is remembered for a while, as a keyed hash.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use log::{error, info};
use ring::hmac;
use tokio::sync::Semaphore;

use crate::config::{UserFile, Users};

/// How long a good pair is remembered.
const REMEMBERED: Duration = Duration::from_secs(300);

/// How many pairs are remembered.
const MOST_KNOWN: usize = 10_000;

/// How many passwords are verified at a time.
const AT_A_TIME: usize = 2;

/// How many may wait for that.
const MOST_WAITING: usize = 64;

/// How many of them may be one client's, so that no client keeps all others out.
const MOST_OF_CLIENT: usize = 8;

/// bcrypt reads no more of a password.
const LONGEST_PASSWORD: usize = 72;

/// From one look at a file of users to the next.
const LOOKS: Duration = Duration::from_secs(2);

/// A pair that was good, as a keyed hash.
type Tag = [u8; 32];

/// Verifies passwords and remembers good ones.
pub struct Passwords {
    key: hmac::Key,
    known: Mutex<HashMap<Tag, Instant>>,
    files: Mutex<HashMap<PathBuf, Seen>>,
    waiting: Waiting,
    verifying: Arc<Semaphore>,
}

/// The clients whose passwords wait, those that are verified included.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<Vec<u128>>>);

/// A place among those that wait.
struct Place {
    waiting: Waiting,
    client: u128,
}

impl Waiting {
    /// A place for a password of `client`, if there is one.
    fn place(&self, client: u128) -> Option<Place> {
        let mut waiting = locked(&self.0);
        let own = waiting.iter().filter(|one| **one == client).count();
        if waiting.len() >= AT_A_TIME + MOST_WAITING || own >= MOST_OF_CLIENT {
            return None;
        }
        waiting.push(client);
        Some(Place {
            waiting: self.clone(),
            client,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = locked(&self.waiting.0);
        if let Some(own) = waiting.iter().position(|one| *one == self.client) {
            waiting.swap_remove(own);
        }
    }
}

/// What was seen of a file of users.
struct Seen {
    looked: Instant,
    users: Arc<Users>,
    /// It can't be read any more, which the log has.
    is_broken: bool,
}

/// What came of a user and a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They are right.
    Good,
    /// They are missing or wrong.
    Wrong,
    /// Too many others wait.
    Busy,
}

impl Passwords {
    /// Who remembers nobody yet.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new() -> Result<Self, ring::error::Unspecified> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())?;
        Ok(Self {
            key,
            known: Mutex::default(),
            files: Mutex::default(),
            waiting: Waiting::default(),
            verifying: Arc::new(Semaphore::new(AT_A_TIME)),
        })
    }

    /// The users in `file` now. One that can't be read any more stays as it was.
    pub async fn users(&self, file: &UserFile, now: Instant) -> Option<Arc<Users>> {
        let users = {
            let mut files = locked(&self.files);
            match files.get_mut(&file.path) {
                Some(seen) if now.saturating_duration_since(seen.looked) < LOOKS => {
                    return Some(Arc::clone(&seen.users));
                }
                Some(seen) => {
                    seen.looked = now;
                    Arc::clone(&seen.users)
                }
                None => {
                    let users = Arc::new(file.users.clone()?);
                    let seen = Seen {
                        looked: now,
                        users: Arc::clone(&users),
                        is_broken: false,
                    };
                    files.insert(file.path.clone(), seen);
                    users
                }
            }
        };
        let (path, old) = (file.path.clone(), Arc::clone(&users));
        let look = move || old.have_changed(&path).then(|| Users::load(&path));
        match tokio::task::spawn_blocking(look).await {
            Ok(Some(loaded)) => Some(self.changed(&file.path, loaded, users)),
            Ok(None) => {
                self.unchanged(&file.path);
                Some(users)
            }
            Err(_) => Some(users),
        }
    }

    /// Notes that a file is as it was when it was read. It may have been broken since.
    fn unchanged(&self, path: &PathBuf) {
        if let Some(seen) = locked(&self.files).get_mut(path)
            && std::mem::take(&mut seen.is_broken)
        {
            info!(file = path.display().to_string().as_str(); "users loaded again");
        }
    }

    /// Notes that a file has changed, which had these `users` before.
    fn changed(&self, path: &PathBuf, loaded: Result<Users, String>, users: Arc<Users>) -> Arc<Users> {
        let mut files = locked(&self.files);
        let Some(seen) = files.get_mut(path) else { return users };
        match loaded {
            Ok(loaded) => {
                seen.is_broken = false;
                seen.users = Arc::new(loaded);
                info!(file = path.display().to_string().as_str(); "users loaded again");
                Arc::clone(&seen.users)
            }
            Err(problem) => {
                if !std::mem::replace(&mut seen.is_broken, true) {
                    error!(file = path.display().to_string().as_str(), error = problem.as_str(); "users not loaded; the old ones stay");
                }
                users
            }
        }
    }

    /// Whether the value of `Authorization`, from the client with this key, names one of `users` with the right password. One who isn't
    /// among them takes as long.
    pub async fn check(&self, users: &Users, authorization: &[u8], client: u128, now: Instant) -> Verdict {
        let Some((user, password)) = credentials(authorization) else {
            return Verdict::Wrong;
        };
        let hash = users.hash(&user).map(str::to_owned);
        let tag = hash.as_deref().map(|hash| self.tag(&user, hash, &password));
        if tag.is_some_and(|tag| self.knows(&tag, now)) {
            return Verdict::Good;
        }
        let Some(place) = self.waiting.place(client) else {
            return Verdict::Busy;
        };
        let Ok(turn) = Arc::clone(&self.verifying).acquire_owned().await else {
            return Verdict::Busy;
        };
        let cost = users.cost();
        let verify = move || {
            // It goes on when nobody waits for it any more, and others must wait for it all the same.
            let _both = (place, turn);
            match hash {
                Some(hash) => bcrypt::verify(&password, &hash).unwrap_or(false),
                // As long as for a user who is there.
                None => {
                    let _ = bcrypt::hash_with_salt(&password, cost, [0; 16]);
                    false
                }
            }
        };
        let is_good = tokio::task::spawn_blocking(verify).await.unwrap_or(false);
        match tag.filter(|_| is_good) {
            Some(tag) => {
                self.remember(tag, now);
                Verdict::Good
            }
            None => Verdict::Wrong,
        }
    }

    /// What is remembered of a pair. A changed hash makes it another one.
    fn tag(&self, user: &str, hash: &str, password: &[u8]) -> Tag {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [user.as_bytes(), hash.as_bytes(), password] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        let mut tag = Tag::default();
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }

    fn knows(&self, tag: &Tag, now: Instant) -> bool {
        let known = locked(&self.known);
        known
            .get(tag)
            .is_some_and(|since| now.saturating_duration_since(*since) < REMEMBERED)
    }

    fn remember(&self, tag: Tag, now: Instant) {
        let mut known = locked(&self.known);
        if known.len() >= MOST_KNOWN {
            known.retain(|_, since| now.saturating_duration_since(*since) < REMEMBERED);
        }
        if known.len() < MOST_KNOWN {
            known.insert(tag, now);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The user and the password in a value of `Authorization` (RFC 7617, section 2).
fn credentials(authorization: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = authorization.split_at_checked("Basic ".len())?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let decoded = STANDARD.decode(encoded.trim_ascii()).ok()?;
    let colon = memchr::memchr(b':', &decoded)?;
    let user = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    let password = &decoded[colon + 1..];
    // What bcrypt would not read must not make another password right.
    let is_read = password.len() <= LONGEST_PASSWORD && !password.contains(&0);
    is_read.then(|| (user, password.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(pairs: &[(&str, &str)]) -> Users {
        let line = |(user, password): &(&str, &str)| format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pairs.iter().map(line).collect::<String>()).unwrap();
        Users::load(file.path()).unwrap()
    }

    fn basic(text: &str) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(text)).into_bytes()
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_user_who_is_there_passes() {
        let users = users(&[("alice", "a:b"), ("bob", "")]);
        let passwords = Passwords::new().unwrap();
        let now = Instant::now();
        let long = format!("alice:{}", "x".repeat(73));
        for (value, verdict) in [
            (basic("alice:a:b"), Verdict::Good),
            (basic("alice:a:b"), Verdict::Good),
            (basic("bob:"), Verdict::Good),
            (basic("alice:a"), Verdict::Wrong),
            (basic("alice:a:b\0"), Verdict::Wrong),
            (basic("alice"), Verdict::Wrong),
            (basic("eve:a:b"), Verdict::Wrong),
            (basic(&long), Verdict::Wrong),
            (b"Basic %%%".to_vec(), Verdict::Wrong),
            (b"Bearer YTpi".to_vec(), Verdict::Wrong),
            (b"".to_vec(), Verdict::Wrong),
        ] {
            let text = String::from_utf8_lossy(&value).into_owned();
            assert_eq!(passwords.check(&users, &value, 1, now).await, verdict, "{text}");
        }
    }

    #[tokio::test]
    async fn a_good_pair_is_remembered_until_it_is_old_or_the_hash_is_another() {
        let users = users(&[("alice", "a")]);
        let passwords = Passwords::new().unwrap();
        let now = Instant::now();
        let value = basic("alice:a");
        assert_eq!(passwords.check(&users, &value, 1, now).await, Verdict::Good);
        let tag = passwords.tag("alice", users.hash("alice").unwrap(), b"a");
        assert!(passwords.knows(&tag, now) && !passwords.knows(&tag, now + REMEMBERED));
        // With no place to verify one, only a pair that is known passes.
        let _all: Vec<_> = (2..68).map(|client| passwords.waiting.place(client).unwrap()).collect();
        assert_eq!(passwords.check(&users, &value, 1, now).await, Verdict::Good);
        assert_eq!(passwords.check(&users, &basic("alice:b"), 1, now).await, Verdict::Busy);
        let changed = self::users(&[("alice", "a")]);
        assert_eq!(passwords.check(&changed, &value, 1, now).await, Verdict::Busy);
    }

    #[tokio::test]
    async fn a_client_with_many_wrong_passwords_keeps_no_other_client_out() {
        let users = users(&[("alice", "a")]);
        let passwords = Passwords::new().unwrap();
        let now = Instant::now();
        let mut all: Vec<_> = (0..MOST_OF_CLIENT)
            .map(|_| passwords.waiting.place(1).unwrap())
            .collect();
        assert_eq!(passwords.check(&users, &basic("alice:b"), 1, now).await, Verdict::Busy);
        assert_eq!(passwords.check(&users, &basic("alice:a"), 2, now).await, Verdict::Good);
        all.pop();
        assert_eq!(passwords.check(&users, &basic("alice:b"), 1, now).await, Verdict::Wrong);
        drop(all);
        assert!(locked(&passwords.waiting.0).is_empty());
    }

    /// A client that goes away could otherwise have as many threads busy as it likes.
    #[tokio::test]
    async fn a_password_that_nobody_waits_for_any_more_has_its_turn_until_it_is_verified() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let hash = format!("$2b$12${}", ".".repeat(53));
        std::fs::write(file.path(), format!("alice:{hash}\n")).unwrap();
        let users = Arc::new(Users::load(file.path()).unwrap());
        let passwords = Arc::new(Passwords::new().unwrap());
        let (asks, known) = (Arc::clone(&passwords), Arc::clone(&users));
        let asked = tokio::spawn(async move { asks.check(&known, &basic("alice:a"), 1, Instant::now()).await });
        while passwords.verifying.available_permits() == AT_A_TIME {
            tokio::task::yield_now().await;
        }
        asked.abort();
        assert!(asked.await.unwrap_err().is_cancelled());
        assert_eq!(passwords.verifying.available_permits(), AT_A_TIME - 1);
        assert_eq!(*locked(&passwords.waiting.0), [1]);
        let _all = passwords.verifying.acquire_many(2).await.unwrap();
        assert!(locked(&passwords.waiting.0).is_empty());
    }

    #[tokio::test]
    async fn a_file_that_comes_back_as_it_was_is_whole_again() {
        let directory = tempfile::tempdir().unwrap();
        let [path, away] = ["users", "away"].map(|name| directory.path().join(name));
        std::fs::write(&path, format!("alice:{}\n", bcrypt::hash("a", 4).unwrap())).unwrap();
        let users = Users::load(&path).ok();
        let file = UserFile {
            path: path.clone(),
            users,
        };
        let (passwords, start) = (Passwords::new().unwrap(), Instant::now());
        let is_broken = async |looks: u32| {
            let users = passwords.users(&file, start + looks * LOOKS).await;
            assert_eq!(users.map(|users| users.count()), Some(1));
            locked(&passwords.files)[&path].is_broken
        };
        assert!(!is_broken(0).await);
        std::fs::rename(&path, &away).unwrap();
        assert!(is_broken(1).await);
        std::fs::rename(&away, &path).unwrap();
        assert!(!is_broken(2).await);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let passwords = Passwords::new().unwrap();
        let now = Instant::now();
        let tag = |number: usize| passwords.tag("a", "b", &number.to_be_bytes());
        (0..=MOST_KNOWN).for_each(|number| passwords.remember(tag(number), now));
        assert!(passwords.knows(&tag(0), now) && !passwords.knows(&tag(MOST_KNOWN), now));
        passwords.remember(tag(MOST_KNOWN), now + REMEMBERED);
        assert_eq!(passwords.known.lock().unwrap().len(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_more_are_verified_at_a_time_than_there_are_places() {
        let users = Arc::new(users(&[("alice", "a")]));
        let passwords = Arc::new(Passwords::new().unwrap());
        let ask = |number: usize| {
            let (users, passwords) = (Arc::clone(&users), Arc::clone(&passwords));
            let value = basic(&format!("eve:{number}"));
            let client = number as u128 % 20;
            tokio::spawn(async move { passwords.check(&users, &value, client, Instant::now()).await })
        };
        let _both = passwords.verifying.acquire_many(2).await.unwrap();
        let asked: Vec<_> = (0..100).map(ask).collect();
        let mut busy = 0;
        for one in asked {
            // Those that wait are waited for by nobody.
            if let Ok(Ok(Verdict::Busy)) = tokio::time::timeout(Duration::from_millis(20), one).await {
                busy += 1;
            }
        }
        assert_eq!(busy, 100 - AT_A_TIME - MOST_WAITING);
    }
}
