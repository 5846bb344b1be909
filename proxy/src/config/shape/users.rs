//! `basic_auth`: a file of users and the hashes of their passwords, as `htpasswd -B` writes it.

use std::collections::HashMap;
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bcrypt::HashParts;
use chassis::regular_file;

/// The longest file, in bytes.
const MAX_SIZE: usize = 1 << 20;

/// Each step doubles what a password costs to verify. At 15 that is some seconds.
const MOST_COST: u32 = 14;

/// Users and the hashes of their passwords, none of which is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Users {
    hashes: HashMap<String, String>,
    /// The greatest cost of a hash among them: that of a user who isn't there.
    cost: u32,
    stamp: Stamp,
}

/// Tells a file from one that it was before.
type Stamp = (u64, i64, i64, u64);

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users")
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

impl Users {
    /// Those in the file at `path`.
    ///
    /// # Errors
    /// What is wrong with it, and in which line; nothing of the line.
    pub fn load(path: &Path) -> Result<Self, String> {
        let (text, about) = regular_file::read(path, MAX_SIZE).map_err(|problem| problem.to_string())?;
        let text = String::from_utf8(text).map_err(|_| "it is not UTF-8 text")?;
        Self::read(&text, stamp(&about))
    }

    fn read(text: &str, stamp: Stamp) -> Result<Self, String> {
        let (mut hashes, mut cost) = (HashMap::new(), 0);
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: &str| format!("line {number}: {what}");
            let Some((user, hash)) = line.split_once(':').filter(|(user, _)| !user.is_empty()) else {
                return Err(wrong("expected USER:HASH"));
            };
            let parts: HashParts = hash
                .parse()
                .map_err(|_| wrong("the password is not hashed with bcrypt; write it with htpasswd -B"))?;
            if parts.get_cost() > MOST_COST {
                return Err(wrong(
                    "its cost is greater than 14, which takes seconds for each log-in; write it with htpasswd -B -C 12",
                ));
            }
            cost = cost.max(parts.get_cost());
            if hashes.insert(user.to_owned(), hash.to_owned()).is_some() {
                return Err(wrong("a user who is there already"));
            }
        }
        if hashes.is_empty() {
            return Err("there is no user in it".into());
        }
        Ok(Self { hashes, cost, stamp })
    }

    /// Whether the file at `path` has changed since.
    pub fn have_changed(&self, path: &Path) -> bool {
        std::fs::metadata(path).map(|about| stamp(&about)).ok() != Some(self.stamp)
    }

    /// The hash of the password of `user`.
    pub fn hash(&self, user: &str) -> Option<&str> {
        self.hashes.get(user).map(String::as_str)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.hashes.len()
    }

    /// What verifying a password costs at most, as bcrypt counts it.
    pub fn cost(&self) -> u32 {
        self.cost
    }
}

fn stamp(about: &Metadata) -> Stamp {
    (about.ino(), about.mtime(), about.mtime_nsec(), about.len())
}

/// The file of users that a route has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserFile {
    /// Where it is.
    pub path: PathBuf,
    /// Who was in it when the configuration was read.
    pub users: Option<Users>,
}

impl UserFile {
    pub(super) fn parse(text: &str) -> Result<Option<Self>, String> {
        let path = super::super::absolute_or_none(
            text,
            "the absolute path of a file that htpasswd -B has written, or none",
        )?;
        Ok(path.map(|path| Self { path, users: None }))
    }

    pub(super) fn load(&mut self) -> Result<(), String> {
        let users =
            Users::load(&self.path).map_err(|problem| format!("basic_auth: {}: {problem}", self.path.display()))?;
        self.users = Some(users);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of "open sesame".
    const HASH: &str = "$2y$04$abcdefghijklmnopqrstuuJmnkCz8tPlrnYP4z6fz0Kpr7MhzqCbe";

    #[test]
    fn a_file_has_users_with_hashes_of_bcrypt_and_no_mistake_shows_one() {
        let read = |text: &str| Users::read(text, (0, 0, 0, 0));
        let users = read(&format!("# who\nalice:{HASH}\n\nbob:{HASH}\r\n")).unwrap();
        assert_eq!(
            (users.hash("alice"), users.hash("bob"), users.hash("eve")),
            (Some(HASH), Some(HASH), None)
        );
        assert_eq!(users.cost(), 4);
        assert!(!format!("{users:?}").contains("$2y"));
        for (text, problem) in [
            (String::new(), "there is no user in it"),
            ("alice".to_owned(), "line 1: expected USER:HASH"),
            (format!(":{HASH}"), "line 1: expected USER:HASH"),
            (
                "alice:secret".to_owned(),
                "line 1: the password is not hashed with bcrypt",
            ),
            ("a:$apr1$secret$secret".to_owned(), "not hashed with bcrypt"),
            (
                format!("a:{}", HASH.replace("$04$", "$15$")),
                "its cost is greater than 14",
            ),
            (format!("a:{HASH}\na:{HASH}"), "line 2: a user who is there already"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(problem) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
