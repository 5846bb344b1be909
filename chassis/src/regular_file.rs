//! Files of a limited size that somebody names in a configuration.

use std::fmt;
use std::fs::{File, FileType, Metadata, metadata};
use std::io::{self, Read};
use std::path::Path;

/// Why a file can't be read, as the end of "the file NAME: ".
#[derive(Debug)]
pub enum Problem {
    /// The system says so.
    Io(io::Error),
    /// It is of this type. A pipe would block, and a device might never end.
    NotRegular(FileType),
    /// It has more than so many bytes.
    TooLarge(usize),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: usize = 1 << 20;
        match self {
            Self::Io(error) => error.fmt(f),
            Self::NotRegular(_) => f.write_str("it is not a regular file"),
            Self::TooLarge(most) if most.is_multiple_of(MIB) => write!(f, "it is larger than {} MiB", most / MIB),
            Self::TooLarge(most) => write!(f, "it is larger than {} KiB", most / 1024),
        }
    }
}

/// Reads the file at `path`, which must be a regular one of at most `most` bytes. Returns what it was just before, too.
///
/// # Errors
/// When it is none, or can't be read.
pub fn read(path: &Path, most: usize) -> Result<(Vec<u8>, Metadata), Problem> {
    let about = metadata(path)?;
    if !about.is_file() {
        return Err(Problem::NotRegular(about.file_type()));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(Problem::TooLarge(most));
    }
    Ok((bytes, about))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_if_it_is_regular_and_not_too_large() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, [b'x'; 2048]).unwrap();
        let (bytes, about) = read(&path, 2048).unwrap();
        assert_eq!((bytes.len(), about.len()), (2048, 2048));
        let problem = |path: &Path, most| read(path, most).unwrap_err().to_string();
        assert_eq!(problem(&path, 1024), "it is larger than 1 KiB");
        std::fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert_eq!(problem(&path, 1 << 20), "it is larger than 1 MiB");
        assert_eq!(problem(directory.path(), 1), "it is not a regular file");
        assert_eq!(problem(Path::new("/dev/zero"), 1), "it is not a regular file");
        assert!(problem(&directory.path().join("b"), 1).starts_with("No such file"));
    }
}
