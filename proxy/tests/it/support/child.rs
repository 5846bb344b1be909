//! Child processes: started so that they never outlive the tests, signalled without help from another program.

use std::ffi::OsStr;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{LazyLock, Mutex, mpsc};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// A child process. Dropping it kills it.
pub struct Started(Child);

impl Deref for Started {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Started {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command for [`start`]: the kernel kills it when the test process ends, however that ends. It needs setpriv, which is part of
/// util-linux as `mount` is.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = setpriv();
    command.arg("--").arg(program);
    command
}

fn setpriv() -> Command {
    let mut command = Command::new(tool("setpriv"));
    command.arg("--pdeathsig=KILL");
    command
}

/// Where a program is: on the PATH, or where `make test` unpacks what it does not find there. A whole path, because the command may get
/// another PATH or none.
pub fn tool(name: &str) -> PathBuf {
    find(name).unwrap_or_else(|| panic!("{name} is not installed; `make test` gets it"))
}

/// Where a program is; `None` when it is not installed.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
    std::env::split_paths(&path)
        .chain([unpacked])
        .map(|directory| directory.join(name))
        .find(|program| program.exists())
}

/// Starts it.
///
/// The kernel takes the end of the starting *thread* for the end of the parent, and a test may start a process from a thread that ends
/// before the test does. So one thread, which lives as long as the test process, starts them all.
pub fn start(command: Command) -> Started {
    type Reply = mpsc::Sender<io::Result<Child>>;
    static STARTER: LazyLock<Mutex<mpsc::Sender<(Command, Reply)>>> = LazyLock::new(|| {
        let (sender, commands) = mpsc::channel::<(Command, Reply)>();
        std::thread::spawn(move || {
            for (mut command, reply) in commands {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (reply, answer) = mpsc::channel();
    let program = format!("{command:?}");
    let sender = STARTER.lock().expect("no test panics with it").clone();
    sender.send((command, reply)).expect("the starter never ends");
    match answer.recv().expect("the starter never ends") {
        Ok(child) => Started(child),
        Err(problem) => panic!("{program}: {problem}"),
    }
}

/// Sends a signal by its name, such as `TERM`.
pub fn signal(pid: u32, name: &str) {
    kill_process(pid_of(pid), signal_named(name)).expect("the process is there");
}

/// The same to each process of a group.
pub fn signal_group(group: u32, name: &str) {
    kill_process_group(pid_of(group), signal_named(name)).expect("the group is there");
}

/// Kills what is left of a group.
pub fn kill_group(group: u32) {
    let _ = kill_process_group(pid_of(group), Signal::KILL);
}

fn pid_of(pid: u32) -> Pid {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.expect("the kernel's own number")
}

fn signal_named(name: &str) -> Signal {
    match name {
        "CONT" => Signal::CONT,
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "KILL" => Signal::KILL,
        "QUIT" => Signal::QUIT,
        "STOP" => Signal::STOP,
        "TERM" => Signal::TERM,
        other => panic!("add SIG{other} to this list"),
    }
}
