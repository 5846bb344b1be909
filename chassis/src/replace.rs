//! Files that are replaced as a whole.
//!
//! A new one is written beside the old one, under a name that nothing had, and then moved to its place: nobody ever reads half of one,
//! and what somebody planted there, a link for instance, is replaced and not written through. Nobody but its owner can read it.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// A file beside the one to replace. Dropping it removes it.
struct Beside {
    directory: File,
    name: String,
    file: File,
}

impl Beside {
    fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(Errno::INVAL)?.to_string_lossy();
        let directory = path.parent().unwrap_or(Path::new("/"));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = File::from(rustix::fs::openat(CWD, directory, flags, Mode::empty())?);
        let name = format!(".{name}.{:016x}", fastrand::u64(..));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, &name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Self {
            directory,
            name,
            file: file.into(),
        })
    }

    fn move_to(self, path: &Path) -> io::Result<()> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        Ok(rustix::fs::renameat(
            &self.directory,
            &self.name,
            &self.directory,
            name,
        )?)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Once it is moved there is nothing of that name.
        let _ = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty());
    }
}

/// Puts a file with this content in the place of `path`, in whole or not at all.
///
/// # Errors
/// When the directory is not there or can't be written to.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = Beside::create(path)?;
    beside.file.write_all(content)?;
    beside.file.sync_all()?;
    beside.move_to(path)
}

/// Whether [`replace()`] would succeed, as far as one can know without changing what is there.
///
/// # Errors
/// Those of [`replace()`].
pub fn try_to_replace(path: &Path) -> io::Result<()> {
    if std::fs::symlink_metadata(path).is_ok_and(|there| there.is_dir()) {
        return Err(Errno::ISDIR.into());
    }
    Beside::create(path).map(drop)
}
