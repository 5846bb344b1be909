//! The last good set of backends, kept in a file, so that a proxy that starts while its registry is down has backends.
//!
//! The format: a line that says what the file is and in which version, then a line for each address: the member as written in
//! the registry, one of its addresses, and its weight and the like as in the companion hash, if it has any. The addresses are there
//! because DNS may be down too.
//!
//! The directory may be shared with others (/tmp), so nothing in it is taken on trust. A file is used only if it is a regular one
//! of this process's own user that nobody else can write to, and it is read without following a link. A new one replaces it as
//! a whole ([`chassis::replace`]). The directory itself is not judged, for whoever can write to it can remove the file, but not make one
//! that counts.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use chassis::replace::replace;
use registry::{Member, Meta};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::discovery::members::Members;

const FIRST_LINE: &str = "gopherproxy backends, version 1";
/// A longer file, in bytes, is not one of ours. A member with its address takes about fifty.
const LONGEST: u64 = 16 << 20;
/// How many characters of a line are quoted.
const MOST_QUOTED: usize = 80;

/// Writes `members` to `path`, in whole or not at all.
///
/// # Errors
/// When the directory is not there or can't be written to.
pub fn write(path: &Path, members: &Members) -> io::Result<()> {
    let mut text = format!("{FIRST_LINE}\n");
    for (name, addresses) in members.iter() {
        let scheme = if name.contains("://") { "" } else { "http://" };
        let meta = members.meta(name);
        let space = if meta == Meta::default() { "" } else { " " };
        for address in addresses {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{scheme}{name} {address}{space}{meta}");
        }
    }
    replace(path, text.as_bytes())
}

/// Reads what [`write()`] wrote; `None` when there is no file.
///
/// # Errors
/// When the file can't be read, others could have written it, or it is not one of this version.
pub fn read(path: &Path) -> io::Result<Option<Members>> {
    // Opening a FIFO or a terminal would block without NONBLOCK.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(invalid("it is a symbolic link, which is not followed")),
        Err(error) => return Err(error.into()),
    };
    let (there, user) = (rustix::fs::fstat(&file)?, rustix::process::geteuid().as_raw());
    if FileType::from_raw_mode(there.st_mode) != FileType::RegularFile {
        return Err(invalid("it is not a regular file"));
    }
    if there.st_uid != user {
        let what = format!(
            "it belongs to user {} and this process runs as {user}; remove it",
            there.st_uid
        );
        return Err(invalid(&what));
    }
    if Mode::from_raw_mode(there.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
        let mode = there.st_mode & 0o7777;
        return Err(invalid(&format!(
            "others can write to it (its mode is {mode:04o}); chmod 600 it or remove it"
        )));
    }
    let mut text = String::new();
    File::from(file).take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(invalid(&format!("it is longer than {LONGEST} bytes")));
    }
    let mut lines = text.lines().zip(1..);
    let first = lines.next().map_or("", |(first, _)| first);
    if first != FIRST_LINE {
        return Err(invalid(&format!(
            "it begins with {} and not with {FIRST_LINE:?}",
            quoted(first)
        )));
    }
    let mut members = Members::default();
    for (line, number) in lines {
        let (name, address, meta) =
            parse(line).ok_or_else(|| invalid(&format!("line {number} of it is {}", quoted(line))))?;
        members.insert(&name, [address]);
        if meta != Meta::default() {
            members.describe(&name, meta);
        }
    }
    Ok(Some(members).filter(|members| !members.is_empty()))
}

fn parse(line: &str) -> Option<(Arc<str>, SocketAddr, Meta)> {
    let (member, rest) = line.split_once(' ')?;
    let (address, meta) = rest.split_once(' ').unwrap_or((rest, ""));
    let member = Member::parse(member.as_bytes()).ok()?;
    Some((member.to_string().into(), address.parse().ok()?, meta.parse().ok()?))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The beginning of `text`, in quotes, with nothing in it that a terminal would obey.
fn quoted(text: &str) -> String {
    let beginning: String = text.chars().take(MOST_QUOTED).collect();
    let more = if beginning.len() < text.len() { "…" } else { "" };
    format!("{beginning:?}{more}")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use chassis::replace::try_to_replace;

    use super::*;

    fn members() -> Members {
        let mut members = Members::default();
        let addresses = ["192.0.2.1:80", "[2001:db8::1]:80"].map(|address| address.parse().unwrap());
        members.insert(&"origin:80".into(), addresses);
        members.insert(&"192.0.2.2:81".into(), ["192.0.2.2:81".parse().unwrap()]);
        members
    }

    /// A path in a directory of the test's own, which is removed with the second.
    fn place() -> (PathBuf, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        (directory.path().join("backends"), directory)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (path, directory) = place();
        assert_eq!(read(&path).unwrap(), None);
        for _ in 0..2 {
            write(&path, &members()).unwrap();
            assert_eq!(read(&path).unwrap(), Some(members()));
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        write(&path, &Members::default()).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        let there = fs::read_dir(directory.path()).unwrap();
        assert_eq!(there.count(), 1, "nothing is left beside it");
    }

    #[test]
    fn members_that_speak_tls_are_saved_as_such() {
        let (path, _directory) = place();
        let mut members = members();
        members.insert(&"https://origin:443".into(), ["192.0.2.7:443".parse().unwrap()]);
        write(&path, &members).unwrap();
        assert_eq!(read(&path).unwrap(), Some(members));
        assert!(
            fs::read_to_string(&path)
                .unwrap()
                .contains("\nhttps://origin:443 192.0.2.7:443\n")
        );
    }

    #[test]
    fn weights_and_the_like_are_saved_too() {
        let (path, _directory) = place();
        let (mut members, origin) = (members(), "origin:80".into());
        let meta = Meta {
            weight: 3,
            backup: true,
            drain: true,
        };
        members.describe(&origin, meta);
        write(&path, &members).unwrap();
        let read = read(&path).unwrap().unwrap();
        assert_eq!(read.meta("origin:80"), meta);
        assert_eq!(read, members);
    }

    #[test]
    fn a_file_of_the_first_release_is_read() {
        let (path, _directory) = place();
        let text = "gopherproxy backends, version 1\nhttp://192.0.2.2:81 192.0.2.2:81\nhttp://origin:80 192.0.2.1:80\n\
                    http://origin:80 [2001:db8::1]:80\n";
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read(&path).unwrap(), Some(members()));
    }

    #[test]
    fn anything_else_is_refused_in_few_words() {
        let (path, _directory) = place();
        write(&path, &members()).unwrap();
        let good = format!("{FIRST_LINE}\nhttp://a:80 192.0.2.1:80\n");
        for text in [
            String::new(),
            "gopherproxy backends, version 2\n".into(),
            good.replace("192.0.2.1:80", "192.0.2.1"),
            good.replace("http://", ""),
            good.replace(":80\n", ":80 weight=101\n"),
            good.replace(":80\n", ":80 drained\n"),
            good.clone() + "half a li",
            "\x1b[31m\u{202e}".repeat(1_000_000),
            good.clone() + &"x".repeat(6_000_000),
        ] {
            fs::write(&path, &text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("begins with") || error.contains("line"), "{error}");
            assert!(error.len() < 1_500 && !error.contains(['\x1b', '\u{202e}']), "{error}");
        }
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read(&path).is_err());
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("longer than"));
        assert!(write(&path.join("no").join("directory"), &members()).is_err());
    }

    #[test]
    fn what_others_may_have_planted_is_neither_believed_nor_written_through() {
        let (path, directory) = place();
        let theirs = directory.path().join("theirs");
        write(&theirs, &members()).unwrap();
        let refused = |why: &str| {
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            try_to_replace(&path).unwrap();
            write(&path, &members()).unwrap();
            assert_eq!(read(&path).unwrap(), Some(members()), "{why}");
            fs::remove_file(&path).unwrap();
        };

        symlink(&theirs, &path).unwrap();
        refused("symbolic link");
        let victim = directory.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &path).unwrap();
        refused("symbolic link");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");

        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        refused("regular file");
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        refused("No such device");
        drop(socket);
        for mode in [0o620, 0o602, 0o666] {
            fs::copy(&theirs, &path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            refused(&format!("its mode is {mode:04o}"));
        }
        // Only root can give a file away.
        fs::copy(&theirs, &path).unwrap();
        if std::os::unix::fs::chown(&path, Some(65534), None).is_ok() {
            refused("belongs to user 65534");
        }
    }

    #[test]
    fn whether_it_can_be_written_is_known_without_writing() {
        let (path, directory) = place();
        try_to_replace(&path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        write(&path, &members()).unwrap();
        try_to_replace(&path).unwrap();
        assert_eq!(read(&path).unwrap(), Some(members()));
        assert!(try_to_replace(directory.path()).is_err(), "a directory is there");
        assert!(try_to_replace(&directory.path().join("missing").join("backends")).is_err());
    }
}
