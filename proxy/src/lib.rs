//! The proxy: accepts requests on one port and balances them over the backends in the registry.
//!
//! The path of a request, from the top floor down. A module uses only those below it.
//!
//! - [`process`]: start, signals, reload and handover of the process, and what its admin port reports.
//! - [`listen`]: client connections: reads each request, decides whether to admit it, and answers it or forwards it.
//! - [`forward`]: sends an admitted request to a backend and its response to the client.
//! - [`headers`]: the heads that backends and clients get; the only place where fields change.
//! - [`exchange`]: one request and its response: its client, its admission, its retries, its record.
//! - [`snapshot`]: the rules that a request is served under.
//! - [`limit`]: whether a client is within its limit.
//! - [`pool`]: the backends, and which one is next.
//! - [`discovery`]: finds the pool's backends in the registry and in DNS.
//! - [`observe`]: metrics and the access log; called from everywhere.
//! - [`lifecycle`]: whether the process serves, drains or leaves, and what it still has to finish.
//! - [`config`]: the file and the environment, validated.
//! - [`http2`]: reads and writes HTTP/2.
//! - [`compression`]: compresses the bodies of responses.
//! - [`http1`]: reads and writes HTTP/1.1.
//! - [`tls`]: TLS with clients: certificates, session tickets and the encrypted connection.
//! - [`rejection`]: every response that the proxy makes itself.

pub mod compression;
pub mod config;
pub mod discovery;
pub mod exchange;
pub mod forward;
pub mod headers;
pub mod http1;
pub mod http2;
pub mod lifecycle;
pub mod limit;
pub mod listen;
pub mod observe;
pub mod pool;
pub mod process;
pub mod rejection;
pub mod snapshot;
pub mod tls;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    /// The files of a module, those of its tests left out: a test may use anything.
    fn files(path: &Path) -> Vec<PathBuf> {
        if path.is_file() {
            return vec![path.to_owned()];
        }
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let others = entries
            .map(|entry| entry.path())
            .filter(|path| !path.ends_with("tests") && !path.ends_with("tests.rs"));
        others.flat_map(|path| files(&path)).collect()
    }

    #[test]
    fn a_module_uses_only_those_below_it() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let floors: Vec<_> = include_str!("lib.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! - [`")?.split('`').next())
            .collect();
        assert!(floors.len() > 10);
        for (floor, module) in floors.iter().enumerate() {
            let files = [files(&source.join(module)), files(&source.join(format!("{module}.rs")))].concat();
            assert!(!files.is_empty(), "{module}");
            for file in files {
                let text = std::fs::read_to_string(&file).unwrap();
                for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
                    let used = line.split("crate::").nth(1).and_then(|rest| rest.split(':').next());
                    let above = floors[..floor].iter().any(|above| Some(*above) == used);
                    assert!(!above, "{}: {line}", file.display());
                }
            }
        }
    }
}
