//! A proxy that runs as the shipped container's does: a user of its own, no capabilities, no way to get any.

use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::Process;

/// The user and group of the images.
const USER: u32 = 1001;

/// A directory of that user, with the binary in it, because a checkout may lie where only its owner gets.
///
/// A test that does not run as root can become nobody else: the user is then the one it runs as.
pub struct Unprivileged {
    files: TempDir,
    root: bool,
}

impl Unprivileged {
    pub fn new() -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let root = files.path().metadata().expect("it is there").uid() == 0;
        let unprivileged = Self { files, root };
        // By a process of its own: a file that this one has open for writing can't be run by what another test starts just then.
        let copied = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_gopherproxy"))
            .arg(unprivileged.path("gopherproxy"))
            .status()
            .expect("cp is there");
        assert!(copied.success());
        std::fs::set_permissions(unprivileged.files.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
        if root {
            chown(unprivileged.files.path(), Some(USER), Some(USER)).expect("root may");
        }
        unprivileged
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// A proxy with this configuration and these further arguments.
    pub fn start(&self, configuration: &str, arguments: &[&str]) -> Process {
        let file = self.path("gopherproxy.yaml");
        let place = format!("upgrade_sock: {}\n", self.path("private/upgrade.sock").display());
        std::fs::write(&file, place + configuration).expect("the configuration is written");
        let (user, group) = (format!("--reuid={USER}"), format!("--regid={USER}"));
        let become_user = ["--clear-groups", "--bounding-set=-all", &user, &group];
        let mut all = vec!["--no-new-privs", "--inh-caps=-all"];
        if self.root {
            all.extend(become_user);
        }
        let binary = self.path("gopherproxy");
        all.extend([binary.to_str().expect("text"), "-c", file.to_str().expect("text")]);
        all.extend(arguments);
        Process::start_with("/usr/bin/setpriv".into(), None, &[], &all)
    }

    /// The same, listening on both its ports.
    pub async fn proxy(&self, configuration: &str) -> Process {
        let proxy = self.start(configuration, &[]);
        for service in ["proxy", "admin"] {
            proxy.said("listening", |line| line["service"] == service).await;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).expect("it runs");
        for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
            assert!(status.contains(line), "{status}");
        }
        assert!(!status.contains("Uid:\t0\t"), "{status}");
        proxy
    }
}

/// `configuration` with these addresses in place of free ones.
pub fn listening_at(configuration: &str, clients: SocketAddr, admin: SocketAddr) -> String {
    configuration
        .replacen("127.0.0.1:0", &clients.to_string(), 1)
        .replacen("127.0.0.1:0", &admin.to_string(), 1)
}
