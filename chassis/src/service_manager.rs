//! Notifications to systemd, for a unit of `Type=notify`. Without systemd, nothing happens.

use log::debug;
use sd_notify::NotifyState;

/// This process serves now. After a handover it is also the one that the unit is about.
pub fn serving() {
    tell(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
}

/// This process is on its way out.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(problem) = sd_notify::notify(state) {
        debug!(error = problem.to_string().as_str(); "can't notify the service manager");
    }
}
