//! `error_pages`: what users see instead of the proxy's own words.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chassis::regular_file;
use chassis::settings::Section;

use crate::rejection::{Kind, Page, Pages, Rejection};

/// The longest page, in bytes. It is sent to whoever is refused, and so is held for many clients at a time.
const MAX_SIZE: usize = 64 << 10;

/// The pages that users see when the proxy itself answers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ErrorPages {
    files: Vec<(u16, PathBuf)>,
    pages: Arc<Pages>,
}

impl ErrorPages {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            files: section.pairs("error_pages", status, file),
            pages: Arc::default(),
        }
    }

    /// The pages themselves.
    pub fn pages(&self) -> Arc<Pages> {
        Arc::clone(&self.pages)
    }

    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with the first that can't be used.
    pub(super) fn load(&mut self) -> Result<(), String> {
        let page = |(status, path): &(u16, PathBuf)| {
            let page = page(*status, path);
            let named = |problem| format!("gopherproxy.error_pages.{status}: {}: {problem}", path.display());
            page.map(|page| (*status, page)).map_err(named)
        };
        let pages = self.files.iter().map(page).collect::<Result<_, _>>()?;
        self.pages = Arc::new(Pages::new(pages));
        Ok(())
    }
}

fn status(text: &str) -> Result<u16, String> {
    let statuses = statuses();
    let status = text.parse().ok().filter(|status| statuses.contains(status));
    status.ok_or_else(|| {
        let all: Vec<_> = statuses.iter().map(u16::to_string).collect();
        format!("a status that the proxy itself answers with ({})", all.join(", "))
    })
}

fn file(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let is_page = path.is_absolute() && kind(path).is_some();
    is_page
        .then(|| path.to_owned())
        .ok_or_else(|| "the absolute path of a file that ends in .html, .htm, .json or .txt".into())
}

/// The errors that the proxy itself answers with, and that somebody sees.
fn statuses() -> BTreeSet<u16> {
    let seen = Rejection::ALL
        .into_iter()
        .filter(|rejection| *rejection != Rejection::ClientGone);
    seen.map(Rejection::status).filter(|status| *status >= 400).collect()
}

fn kind(path: &Path) -> Option<Kind> {
    Kind::of_extension(path.extension()?.to_str()?)
}

fn page(status: u16, path: &Path) -> Result<Page, String> {
    let kind = kind(path).ok_or("its name ends in none of .html, .htm, .json and .txt")?;
    let (text, _) = regular_file::read(path, MAX_SIZE).map_err(|problem| problem.to_string())?;
    let text = String::from_utf8(text).map_err(|_| "it is not UTF-8 text")?;
    Ok(Page::new(kind, &text, status))
}

#[cfg(test)]
mod tests {
    use chassis::settings::Settings;

    use super::super::Config;
    use super::*;

    fn read(value: &str) -> Result<ErrorPages, String> {
        let text = format!("gopherproxy: {{error_pages: {value}}}");
        let config = Config::parse(&text, Settings::new([]));
        config
            .map(|config| config.error_pages)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn pages_are_named_by_the_statuses_that_the_proxy_answers_with() {
        let pages = read("{502: /a/b.html, 429: /c.json}").unwrap();
        assert_eq!(pages.files, [(429, "/c.json".into()), (502, "/a/b.html".into())]);
        assert_eq!(read("{}").unwrap(), ErrorPages::default());
        for (value, mistake) in [
            (
                "{418: /a.html}",
                "error_pages.418: expected a status that the proxy itself answers with (400, ",
            ),
            (
                "{499: /a.html}",
                "error_pages.499: expected a status that the proxy itself answers with (400, ",
            ),
            (
                "{200: /a.html}",
                "error_pages.200: expected a status that the proxy itself answers with (400, ",
            ),
            (
                "{bad: /a.html}",
                "error_pages.bad: expected a status that the proxy itself answers with (400, ",
            ),
            (
                "{502: a.html}",
                "expected the absolute path of a file that ends in .html",
            ),
            ("{502: /a.php}", "got \"/a.php\""),
            ("{502: [/a.html]}", "error_pages.502: expected one value"),
            ("/a.html", "error_pages: expected keys and values"),
        ] {
            let error = read(value).unwrap_err();
            assert!(error.contains(mistake), "{value}: {error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_a_page_is_a_mistake() {
        let directory = tempfile::tempdir().unwrap();
        let load = |name: &str, text: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            let mut pages = read(&format!("{{502: {}}}", path.display())).unwrap();
            pages.load().map(|()| pages.pages())
        };
        let pages = load("a.html", b"{status}").unwrap();
        assert_eq!(*pages, Pages::new(vec![(502, Page::new(Kind::Html, "502", 502))]));
        assert!(load("a.txt", &[b'x'; MAX_SIZE]).is_ok());
        assert!(
            load("a.txt", &[b'x'; MAX_SIZE + 1])
                .unwrap_err()
                .ends_with("larger than 64 KiB")
        );
        let error = load("a.txt", b"\xff").unwrap_err();
        assert!(error.starts_with("gopherproxy.error_pages.502: /") && error.ends_with("it is not UTF-8 text"));
        for (path, problem) in [
            ("/nowhere/a.html", "No such file"),
            ("/dev/null/a.html", "Not a directory"),
        ] {
            let error = read(&format!("{{502: {path}}}")).unwrap().load().unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
