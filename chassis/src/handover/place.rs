//! The Unix socket at which the two processes meet, in a directory that belongs to this user alone.
//!
//! One successor waits there at a time. It holds a lock on a file beside the socket, which the kernel releases when the process
//! ends, however it ends. So whoever has the lock knows that a socket it finds is a dead one's, and may remove it. Nothing
//! but a socket is ever removed.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// The longest process id, with room to spare.
const LONGEST_PID: u64 = 20;

/// A socket at a path, and the right to be there.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket.
    identity: (u64, u64),
    /// Locked. Released after the socket has been removed.
    _lock: File,
}

impl Place {
    /// Listens at `path`. Makes its directory, for this user alone, if there is none.
    pub(super) fn take(path: &Path) -> io::Result<Self> {
        let directory = directory_of(path)?;
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                let what = format!(
                    "can't make {}; set upgrade_sock to a place that can be made",
                    directory.display()
                );
                return Err(context(&what, error));
            }
            _ => {}
        }
        let path = private(path)?;
        let lock = lock(&path)?;
        let socket = listen(&path).map_err(|error| context(&format!("can't wait at {}", path.display()), error))?;
        Ok(Self {
            identity: identity(&path)?,
            socket,
            path,
            _lock: lock,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Somebody may have put something else there, or the directory may be gone.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(entry) if entry.file_type().is_socket() => fs::remove_file(path)?,
        Ok(entry) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "{} is there and is left alone: remove it, or set upgrade_sock to another place",
                    kind(entry.file_type())
                ),
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// Locks the file beside the socket at `path`, and writes who has it.
fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let failed = |error| context(&format!("can't lock {}", name.display()), error);
    // Not through a link, and without waiting for whoever is at the other end of a FIFO.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(&name)
        .map_err(failed)?;
    let entry = file.metadata().map_err(failed)?.file_type();
    if !entry.is_file() {
        let problem = format!("{} is there; remove it", kind(entry));
        return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, problem)));
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = (&file).take(LONGEST_PID).read_to_string(&mut holder);
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!(
                    "another successor (pid {}) waits at {}: let it take over, or stop it",
                    holder.trim().parse().unwrap_or(0u32),
                    path.display()
                ),
            ));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(file)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|entry| (entry.dev(), entry.ino()))
}

fn kind(entry: fs::FileType) -> &'static str {
    match entry {
        entry if entry.is_dir() => "a directory",
        entry if entry.is_symlink() => "a symbolic link",
        entry if entry.is_fifo() => "a FIFO",
        entry if entry.is_file() => "a regular file",
        _ => "a device",
    }
}

fn context(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn directory_of(path: &Path) -> io::Result<&Path> {
    match path.parent() {
        Some(directory) if path.is_absolute() && path.file_name().is_some() => Ok(directory),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is not the absolute path of a file", path.display()),
        )),
    }
}

/// `path` with the real name of its directory, which only this user can enter.
pub(super) fn private(path: &Path) -> io::Result<PathBuf> {
    let directory = fs::canonicalize(directory_of(path)?)?;
    let entry = fs::metadata(&directory)?;
    let own = entry.uid() == rustix::process::geteuid().as_raw();
    if !entry.is_dir() || !own || entry.mode() & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{} must be a directory of this user that nobody else can enter (mode 0700), or others could take the ports",
                directory.display()
            ),
        ));
    }
    Ok(directory.join(path.file_name().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private_directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("private").join("upgrade.sock");
        (directory, path)
    }

    #[tokio::test]
    async fn one_waits_at_a_time_and_the_next_may_when_it_has_gone() {
        let (_directory, path) = private_directory();
        let first = Place::take(&path).unwrap();
        let error = Place::take(&path).unwrap_err().to_string();
        let (pid, at) = (std::process::id(), path.display());
        assert_eq!(
            error,
            format!("another successor (pid {pid}) waits at {at}: let it take over, or stop it")
        );
        assert!(path.exists(), "the first one's socket is still there");
        drop(first);
        assert!(!path.exists());
        drop(Place::take(&path).unwrap());
    }

    #[tokio::test]
    async fn a_socket_that_a_dead_one_left_is_replaced_and_one_that_came_later_is_left() {
        let (_directory, path) = private_directory();
        drop(Place::take(&path).unwrap());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let place = Place::take(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(place);
        assert!(path.exists(), "it is another's");
        drop(other);
    }

    #[tokio::test]
    async fn nothing_but_a_socket_is_removed() {
        type Make = fn(&Path);
        let kinds: [(&str, Make); 4] = [
            ("a regular file", |path| fs::write(path, "mine").unwrap()),
            ("a directory", |path| fs::create_dir(path).unwrap()),
            ("a symbolic link", |path| {
                std::os::unix::fs::symlink("elsewhere.sock", path).unwrap();
            }),
            ("a FIFO", |path| {
                rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
            }),
        ];
        for (named, make) in kinds {
            for name in ["upgrade.sock", "upgrade.sock.lock"] {
                let (_directory, path) = private_directory();
                drop(Place::take(&path).unwrap());
                let _ = fs::remove_file(path.with_file_name("upgrade.sock.lock"));
                if (named, name) == ("a regular file", "upgrade.sock.lock") {
                    continue;
                }
                let victim = path.with_file_name(name);
                make(&victim);
                let before = identity(&victim).unwrap();
                let error = Place::take(&path).unwrap_err().to_string();
                assert!(error.contains(&victim.display().to_string()), "{error}");
                let says_kind = error.contains(named) || name.ends_with(".lock");
                assert!(says_kind, "{error}");
                assert_eq!(identity(&victim).unwrap(), before, "it is left alone");
            }
        }
    }

    #[tokio::test]
    async fn only_a_directory_of_this_user_alone_is_a_place() {
        let (_directory, path) = private_directory();
        let place = Place::take(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        drop(place);
        fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
        let error = Place::take(&path).unwrap_err().to_string();
        assert!(error.contains("mode 0700"), "{error}");
        assert!(Place::take(Path::new("upgrade.sock")).is_err(), "not an absolute path");
    }
}
