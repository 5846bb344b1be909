//! How much memory this process may have.
//!
//! A control group (a container, a systemd unit with `MemoryMax=`) ends a process that takes more than its limit. The limits of
//! its parents count too. A container sees its own group as the root, whatever its path is outside.

use std::fs::read_to_string;
use std::path::{Component, Path};

/// The limit of the control group, or what the machine has; in bytes.
pub fn limit() -> usize {
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let group = read_to_string("/proc/self/cgroup").ok();
    let group = group.and_then(|text| of_groups(Path::new("/sys/fs/cgroup"), &text));
    let bytes = machine.into_iter().chain(group).min();
    bytes.map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// `MemTotal` of /proc/meminfo.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The lowest limit of the groups that `text`, in the format of /proc/self/cgroup, names, and of those above them, under `root`.
fn of_groups(root: &Path, text: &str) -> Option<u64> {
    let groups = text.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        Some((root, path, file))
    });
    let limits = groups.flat_map(|(root, path, file)| {
        let mut directory = root;
        let mut directories = vec![directory.clone()];
        for part in Path::new(path).components() {
            if let Component::Normal(part) = part {
                directory.push(part);
                directories.push(directory.clone());
            }
        }
        // "max" is no number, and no limit.
        directories
            .into_iter()
            .filter_map(move |directory| read_to_string(directory.join(file)).ok()?.trim().parse().ok())
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_lowest_limit_above_a_process_is_its_own() {
        let root = tempfile::tempdir().unwrap();
        let group = |path: &str, file: &str, limit: &str| {
            let directory = root.path().join(path);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(file), format!("{limit}\n")).unwrap();
        };
        group("a", "memory.max", "134217728");
        group("a/b", "memory.max", "max");
        group("c", "memory.max", "max");
        assert_eq!(of_groups(root.path(), "0::/a/b\n"), Some(128 << 20));
        assert_eq!(of_groups(root.path(), "0::/c\n"), None);
        assert_eq!(of_groups(root.path(), "0::/gone\n"), None);
        // Version 1, in a container whose path outside is not there.
        group("memory", "memory.limit_in_bytes", "67108864");
        let text = "5:cpu,cpuacct:/a\n4:memory:/docker/1\n0::/\n";
        assert_eq!(of_groups(root.path(), text), Some(64 << 20));
    }

    #[test]
    fn a_process_may_have_some_memory_and_not_more_than_the_machine() {
        let machine = total("MemTotal:       24689516 kB\nMemFree: 1 kB\n");
        assert_eq!(machine, Some(24_689_516 << 10));
        assert!((1 << 20..usize::MAX).contains(&limit()), "{}", limit());
    }
}
