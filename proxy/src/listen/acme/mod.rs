//! Gets certificates from an authority that speaks ACME (RFC 8555), and renews them.
//!
//! - `store`: what is kept in `acme.storage`.
//! - [`challenge`]: proofs to the authority that a host is this proxy's.
//! - `client`: the HTTP client.
//! - `order`: from the account to the certificate.
//! - `schedule`: when a certificate is renewed, and when an order that failed is tried again.
//!
//! Each round looks at every host of the configuration. All that decides is in the storage and not in memory, so a process that starts
//! again, or another that shares it, goes on where the last one stopped. One process orders at a time; the others find the certificates in
//! the storage, as they would find any that was replaced. A certificate is in use until another one is there.

pub mod challenge;
mod client;
mod order;
mod schedule;
mod store;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chassis::clock;
use chassis::replace::replace;
use chassis::supervisor::supervise;
use instant_acme::{Account, CertificateIdentifier};
use log::{error, info, warn};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::watch;
use tokio::time::sleep;

use self::client::Client;
use self::order::Failure;
use self::store::{HostState, State, Store};
use crate::config::Acme;
use crate::lifecycle::Stage;
use crate::observe::acme::{AcmeMetrics, Order as Counted};
use crate::tls::certificates::{Certificate, LoadError};

/// The longest time between two rounds.
const INTERVAL: Duration = Duration::from_secs(10);
/// The shortest.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// When an authority that could not be asked about renewals is asked again, in seconds.
const ASK_AGAIN: u64 = 6 * 3600;
/// How often one is asked at most, in seconds.
const ASK_AGAIN_AT_LEAST: u64 = 60;
/// How many hosts the page of `/readyz` names.
const MOST_NAMED: usize = 3;

/// Whether what `acme` names can be used, without changing anything.
///
/// # Errors
/// What can't, and why.
pub fn check(acme: &Acme) -> Result<(), LoadError> {
    Client::new(acme.ca_file.as_deref())?;
    Store::at(&acme.storage)
        .try_to_open()
        .map_err(|error| LoadError::new(&acme.storage, format_args!("acme.storage: {error}")))
}

/// What fails now, for the page of `/readyz`.
#[derive(Debug, Default)]
pub struct Failing(Mutex<BTreeMap<String, HostState>>);

impl Failing {
    fn set(&self, failing: BTreeMap<String, HostState>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = failing;
    }

    /// In words; `None` when nothing fails.
    pub fn text(&self) -> Option<String> {
        let failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = failing.iter().take(MOST_NAMED).map(|(host, state)| {
            let why = state.error.as_deref().unwrap_or_default();
            format!("no new certificate for {host} ({why}; tried {} times)", state.failures)
        });
        let mut named: Vec<_> = named.collect();
        if failing.len() > named.len() {
            named.push(format!("{} hosts more", failing.len() - named.len()));
        }
        (!named.is_empty()).then(|| named.join(", "))
    }
}

/// Gets certificates and renews them.
#[derive(Clone)]
pub struct Issuer {
    /// The configuration, which a reload can change.
    pub acme: watch::Receiver<Option<Arc<Acme>>>,
    /// How far the start has come: the authority asks where clients connect.
    pub stage: watch::Receiver<Stage>,
    /// What fails.
    pub failing: Arc<Failing>,
    /// Where orders are counted.
    pub metrics: AcmeMetrics,
    /// Has a new certificate used.
    pub installed: Arc<dyn Fn() + Send + Sync>,
}

impl Issuer {
    async fn run(mut self) {
        // Its sender lives as long as the process.
        let _ = self.stage.wait_for(|stage| *stage == Stage::Serving).await;
        let mut complained = None;
        loop {
            let acme = self.acme.borrow_and_update().clone();
            let wait = match acme {
                None => {
                    self.tell(&State::new(), &[]);
                    Duration::MAX
                }
                Some(acme) => match self.round(&acme).await {
                    Ok(next) => {
                        complained = None;
                        Duration::from_secs(next.saturating_sub(now())).clamp(SHORTEST_INTERVAL, INTERVAL)
                    }
                    Err(problem) => {
                        // Once, and not every round.
                        if complained.as_ref() != Some(&problem) {
                            error!(error = problem.as_str(); "no certificates can be ordered");
                            self.metrics.ordered(Counted::Storage);
                            let host = |host: &String| (host.clone(), failed_state(&problem));
                            self.failing.set(acme.hosts.iter().map(host).collect());
                            complained = Some(problem);
                        }
                        INTERVAL
                    }
                },
            };
            tokio::select! {
                () = sleep(wait) => {}
                Ok(()) = self.acme.changed() => {}
            }
        }
    }

    /// Looks at each host, and orders what is due. Returns when the next round is due.
    ///
    /// An error is one of the whole storage.
    async fn round(&self, acme: &Acme) -> Result<u64, String> {
        let storage = |error: io::Error| format!("acme.storage: {}: {error}", acme.storage.display());
        let store = Store::at(&acme.storage);
        let mut state = store.read_state();
        let work = |state: &State| {
            acme.hosts
                .iter()
                .any(|host| Look::at(acme, state, host).has_work(now()))
        };
        if work(&state)
            && let Some(_lock) = store.open().and_then(|()| store.lock()).map_err(storage)?
        {
            // Another process may just have done it.
            state = store.read_state();
            self.work(acme, &store, &mut state).await.map_err(storage)?;
        }
        self.tell(&state, &acme.hosts);
        let next = acme.hosts.iter().map(|host| Look::at(acme, &state, host).next());
        Ok(next.min().unwrap_or(u64::MAX))
    }

    async fn work(&self, acme: &Acme, store: &Store, state: &mut State) -> io::Result<()> {
        state.retain(|host, _| acme.hosts.contains(host));
        let mut account = None;
        for host in &acme.hosts {
            let look = Look::at(acme, state, host);
            if !look.has_work(now()) {
                continue;
            }
            // Of a directory that does not answer, each host would have to wait for the same.
            let account = match &account {
                Some(account) => account,
                None => account.insert(self.account(acme, store).await),
            };
            let before = state.clone();
            let entry = state.entry(host.clone()).or_default();
            if look.is_due(now()) {
                // Nothing is ordered where its failure could not be remembered.
                store.write_state(&before)?;
                self.order(acme, account, store, host, entry, &look).await;
            } else if let (Ok(account), Some(id)) = (account, look.id()) {
                ask(account, host, entry, id).await;
            } else {
                entry.ask_again = now() + ASK_AGAIN;
            }
            store.write_state(state)?;
            self.tell(state, &acme.hosts);
        }
        Ok(())
    }

    async fn account(&self, acme: &Acme, store: &Store) -> Result<Account, Failure> {
        let client = Client::new(acme.ca_file.as_deref()).map_err(|error| Failure::of_setting(&error))?;
        let account = order::account(acme, &client, store).await;
        if account.as_ref().is_err_and(|failure| failure.no_account) {
            store.forget_account();
            return order::account(acme, &client, store).await;
        }
        account
    }

    async fn order(
        &self,
        acme: &Acme,
        account: &Result<Account, Failure>,
        store: &Store,
        host: &str,
        state: &mut HostState,
        look: &Look<'_>,
    ) {
        info!(host = host, directory = acme.directory.as_str(); "ordering a certificate");
        // One that the authority has offered to replace early, and only at the first try.
        let replaces = look.id().filter(|_| state.suggested.is_some() && state.failures == 0);
        let obtained = match account {
            Ok(account) => order::obtain(acme, account, store, host, replaces).await,
            Err(failure) => Err(failure.clone()),
        };
        let result = obtained.and_then(|both| replace(&acme.certificate(host), &both).map_err(Failure::of_storage));
        match result {
            Ok(()) => {
                store.forget_order(host);
                let before = std::mem::replace(
                    state,
                    HostState {
                        directory: acme.directory.clone(),
                        ..HostState::default()
                    },
                );
                self.metrics.ordered(Counted::Issued);
                let installed = Arc::clone(&self.installed);
                // A panic has been logged.
                let _ = tokio::task::spawn_blocking(move || installed()).await;
                info!(host = host; "the certificate is there");
                // The next order would be made at once, and the next.
                if Look::of(acme, state.clone(), host).is_due(now()) {
                    state.failures = before.failures;
                    self.failed(host, state, &Failure::of_life());
                }
            }
            Err(failure) => {
                if failure.no_account {
                    store.forget_account();
                }
                self.failed(host, state, &failure);
            }
        }
    }

    /// Notes in `state` that an order for `host` has failed, and when there is another.
    fn failed(&self, host: &str, state: &mut HostState, failure: &Failure) {
        state.failures = state.failures.saturating_add(1);
        let reached = failure.counted != Counted::Directory && !failure.no_account;
        state.next_attempt = schedule::next_attempt(host, state.failures, reached, now(), failure.retry_after);
        state.error = Some(failure.why.clone());
        self.metrics.ordered(failure.counted);
        let wait = state.next_attempt.saturating_sub(now());
        warn!(
            host = host, error = failure.why.as_str(), failures = state.failures, next_attempt_in_seconds = wait;
            "no certificate"
        );
    }

    /// Says which hosts fail, in the metrics and on the page of `/readyz`.
    fn tell(&self, state: &State, hosts: &[String]) {
        let failures = |host: &str| state.get(host).map_or(0, |state| state.failures);
        self.metrics
            .failures(&hosts.iter().map(|host| (host.as_str(), failures(host))).collect());
        let failing = state
            .iter()
            .filter(|(host, state)| state.failures > 0 && hosts.contains(host));
        self.failing
            .set(failing.map(|(host, state)| (host.clone(), state.clone())).collect());
    }
}

/// Asks the authority when the certificate of this name is to be renewed (RFC 9773).
async fn ask(account: &Account, host: &str, state: &mut HostState, id: CertificateIdentifier<'_>) {
    match account.renewal_info(&id).await {
        Ok((info, again)) => {
            let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
            let window = info.suggested_window;
            let (start, end) = (window.start.unix_timestamp(), window.end.unix_timestamp());
            state.suggested = Some(schedule::within(host, seconds(start), seconds(end)));
            state.ask_again = now() + again.as_secs().clamp(ASK_AGAIN_AT_LEAST, 4 * ASK_AGAIN);
        }
        // Not every authority has that.
        Err(_) => state.ask_again = now() + ASK_AGAIN,
    }
}

fn failed_state(problem: &str) -> HostState {
    HostState {
        failures: 1,
        error: Some(problem.to_owned()),
        ..HostState::default()
    }
}

/// What there is of a host.
struct Look<'a> {
    host: &'a str,
    state: HostState,
    certificate: Option<Certificate>,
}

impl<'a> Look<'a> {
    fn at(acme: &Acme, state: &State, host: &'a str) -> Self {
        Self::of(acme, state.get(host).cloned().unwrap_or_default(), host)
    }

    fn of(acme: &Acme, mut state: HostState, host: &'a str) -> Self {
        state.next_attempt = schedule::noted(state.next_attempt, now(), schedule::LONGEST_ASKED);
        state.ask_again = schedule::noted(state.ask_again, now(), 4 * ASK_AGAIN);
        // One that can't be used, or is another authority's, is as good as none. Where the state was lost, it is taken for ours.
        let certificate = Certificate::load_issued(&acme.certificate(host)).ok().flatten();
        let is_ours = |certificate: &Certificate| {
            (state.directory.is_empty() || state.directory == acme.directory)
                && certificate.names.iter().any(|name| name == host)
        };
        Self {
            host,
            certificate: certificate.filter(is_ours),
            state,
        }
    }

    /// When its next certificate is ordered.
    fn due(&self) -> u64 {
        let renewal = self.certificate.as_ref().map_or(0, |certificate| {
            let [from, until] =
                [certificate.not_before, certificate.not_after].map(|time| u64::try_from(time).unwrap_or(0));
            schedule::renewal(self.host, from, until, self.state.suggested)
        });
        renewal.max(self.state.next_attempt)
    }

    fn is_due(&self, now: u64) -> bool {
        self.due() <= now
    }

    /// When there is something to do for it.
    fn next(&self) -> u64 {
        let asks = self.certificate.is_some() && self.state.failures == 0;
        if asks {
            self.due().min(self.state.ask_again)
        } else {
            self.due()
        }
    }

    fn has_work(&self, now: u64) -> bool {
        self.next() <= now
    }

    /// The name that its authority knows its certificate by.
    fn id(&self) -> Option<CertificateIdentifier<'static>> {
        self.certificate.as_ref().and_then(order::identifier)
    }
}

/// In seconds since 1970.
fn now() -> u64 {
    clock::since_1970().as_secs()
}

#[async_trait]
impl BackgroundService for Issuer {
    async fn start(&self, shutdown: ShutdownWatch) {
        supervise("acme", shutdown, || self.clone().run()).await;
    }
}
