//! The CPU time, memory, threads and descriptors of this process: the `process_*` metrics of every Prometheus client.
//!
//! The `prometheus` crate's own collector counts CPU time only in whole seconds.

use std::fs::File;
use std::io::Seek;
use std::sync::{Mutex, PoisonError};

use procfs::FromRead;
use procfs::process::Stat;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, IntGauge, Registry};
use rustix::process::{Resource, getrlimit};

/// Registers the metrics of this process.
///
/// # Errors
/// When one of the names is taken, or /proc can't be read.
pub fn register(registry: &Registry) -> prometheus::Result<()> {
    registry.register(Box::new(ProcessMetrics::new()?))
}

struct ProcessMetrics {
    /// Stays open, because a process that has no descriptor left is one that an operator wants to see.
    stat: Mutex<File>,
    cpu_seconds: Counter,
    open_fds: IntGauge,
    max_fds: IntGauge,
    virtual_memory: IntGauge,
    resident_memory: IntGauge,
    start_time: Gauge,
    threads: IntGauge,
}

impl ProcessMetrics {
    fn new() -> prometheus::Result<Self> {
        let metrics = Self {
            stat: Mutex::new(File::open("/proc/self/stat").map_err(unreadable)?),
            cpu_seconds: Counter::new("process_cpu_seconds_total", "User and system CPU time, in seconds.")?,
            open_fds: IntGauge::new("process_open_fds", "Open file descriptors.")?,
            max_fds: IntGauge::new("process_max_fds", "The limit on open file descriptors.")?,
            virtual_memory: IntGauge::new("process_virtual_memory_bytes", "Virtual memory, in bytes.")?,
            resident_memory: IntGauge::new("process_resident_memory_bytes", "Resident memory, in bytes.")?,
            start_time: Gauge::new(
                "process_start_time_seconds",
                "When the process started, in seconds since 1970.",
            )?,
            threads: IntGauge::new("process_threads", "Threads of the operating system.")?,
        };
        // Once, because the kernel moves the time of its boot when the clock is set, and a change would look like a restart.
        let booted = procfs::boot_time_secs().map_err(unreadable)?;
        let started = metrics.read().map_err(unreadable)?.starttime;
        metrics.start_time.set(booted as f64 + seconds(started));
        Ok(metrics)
    }

    fn read(&self) -> procfs::ProcResult<Stat> {
        let mut stat = self.stat.lock().unwrap_or_else(PoisonError::into_inner);
        stat.rewind()?;
        Stat::from_read(&mut *stat)
    }

    fn collectors(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu_seconds,
            &self.open_fds,
            &self.max_fds,
            &self.virtual_memory,
            &self.resident_memory,
            &self.start_time,
            &self.threads,
        ]
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.collectors().into_iter().flat_map(Collector::desc).collect()
    }

    /// What can't be read stays what it was at the last scrape.
    fn collect(&self) -> Vec<MetricFamily> {
        if let Ok(stat) = self.read() {
            let used = seconds(stat.utime + stat.stime);
            // Two scrapes at once may come here in either order.
            self.cpu_seconds.inc_by((used - self.cpu_seconds.get()).max(0.0));
            self.virtual_memory.set(whole(stat.vsize));
            self.resident_memory.set(whole(stat.rss * procfs::page_size()));
            self.threads.set(stat.num_threads);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // One of them is for the look.
            self.open_fds.set(whole(open.count() as u64) - 1);
        }
        // None stands for no limit.
        self.max_fds
            .set(getrlimit(Resource::Nofile).current.map_or(i64::MAX, whole));
        self.collectors().into_iter().flat_map(Collector::collect).collect()
    }
}

/// A number of the kernel's clock ticks, in seconds.
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unreadable(error: impl std::fmt::Display) -> prometheus::Error {
    prometheus::Error::Msg(format!("can't read /proc: {error}"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn cpu_time_is_counted_to_the_tick_and_never_goes_back() {
        let metrics = ProcessMetrics::new().unwrap();
        let seen = || {
            metrics.collect();
            metrics.cpu_seconds.get()
        };
        let tick = seconds(1);
        let (first, end) = (seen(), Instant::now() + std::time::Duration::from_secs(30));
        let mut before = first;
        // A step that is far below a second shows; how long that takes depends on who else wants the CPU.
        loop {
            let now = seen();
            assert!(now >= before);
            if now > before {
                assert!(now - before < 0.9, "{before}, then {now}");
                assert!(((now / tick).round() - now / tick).abs() < 0.01, "{now}");
                break;
            }
            before = now;
            assert!(Instant::now() < end, "never counted");
        }
    }

    #[test]
    fn the_process_is_described_as_every_client_does_it() {
        let registry = Registry::new();
        register(&registry).unwrap();
        let families = registry.gather();
        let names: Vec<&str> = families.iter().map(MetricFamily::name).collect();
        assert_eq!(
            names,
            [
                "process_cpu_seconds_total",
                "process_max_fds",
                "process_open_fds",
                "process_resident_memory_bytes",
                "process_start_time_seconds",
                "process_threads",
                "process_virtual_memory_bytes",
            ]
        );
        let started = families[4].get_metric()[0].get_gauge().get_value();
        let now = crate::clock::since_1970().as_secs_f64();
        assert!(
            (now - 3600.0..=now + 2.0).contains(&started),
            "{started}, and now it is {now}"
        );
    }
}
