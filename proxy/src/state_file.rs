//! The last good set of backends, kept in a file, so that a proxy that starts while its registry is down has backends.
//!
//! A line that says what the file is and in which version, then a line for each address: the member as it stands in the
//! registry, and an address that it has. The addresses are there because DNS may be down too. The file is written
//! beside its place and then moved there, so that nobody ever reads half of one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use registry::Member;

/// Each address of a good set, with the name that its member has in the registry.
pub type Addresses = BTreeMap<SocketAddr, Arc<str>>;

const FIRST_LINE: &str = "gopherproxy backends, version 1";
/// A longer file is none of ours.
const LONGEST: u64 = 64 << 20;

/// Writes `addresses` to `path`, in whole or not at all.
///
/// # Errors
/// When the directory is not there or can't be written to.
pub fn write(path: &Path, addresses: &Addresses) -> io::Result<()> {
    let mut text = format!("{FIRST_LINE}\n");
    for (address, name) in addresses {
        // Writing to a string can't fail.
        let _ = writeln!(text, "http://{name} {address}");
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = Path::new(&beside);
    let written = fs::File::create(beside)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(beside, path));
    if written.is_err() {
        let _ = fs::remove_file(beside);
    }
    written
}

/// Reads what [`write()`] wrote; `None` when there is no file.
///
/// # Errors
/// When the file can't be read, or is not one of this version.
pub fn read(path: &Path) -> io::Result<Option<Addresses>> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let text = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(file) if file.len() > LONGEST => return Err(invalid(format!("it has {} bytes", file.len()))),
        Ok(_) => fs::read_to_string(path)?,
    };
    let mut lines = text.lines();
    match lines.next() {
        Some(FIRST_LINE) => {}
        first => return Err(invalid(format!("it begins with {first:?} and not with {FIRST_LINE:?}"))),
    }
    lines
        .map(|line| parse(line).ok_or_else(|| invalid(format!("it has the line {line:?}"))))
        .collect::<io::Result<Addresses>>()
        .map(Some)
}

fn parse(line: &str) -> Option<(SocketAddr, Arc<str>)> {
    let (member, address) = line.split_once(' ')?;
    let member = Member::parse(member.as_bytes()).ok()?;
    Some((address.parse().ok()?, member.to_string().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Addresses {
        [
            ("192.0.2.1:80", "origin:80"),
            ("[2001:db8::1]:80", "origin:80"),
            ("192.0.2.2:81", "192.0.2.2:81"),
        ]
        .map(|(address, name)| (address.parse().unwrap(), name.into()))
        .into()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backends");
        assert!(read(&path).unwrap().is_none());
        for set in [addresses(), Addresses::new()] {
            write(&path, &set).unwrap();
            assert_eq!(read(&path).unwrap(), Some(set));
        }
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn anything_else_is_refused_in_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backends");
        let good = format!("{FIRST_LINE}\nhttp://a:80 192.0.2.1:80\n");
        for text in [
            String::new(),
            "gopherproxy backends, version 2\n".into(),
            good.replace("192.0.2.1:80", "192.0.2.1"),
            good.replace("http://", ""),
            good.clone() + "half a li",
        ] {
            fs::write(&path, &text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.contains("begins with") || error.contains("has the line"),
                "{error}"
            );
        }
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read(&path).is_err());
        assert!(write(&directory.path().join("missing").join("backends"), &addresses()).is_err());
    }
}
