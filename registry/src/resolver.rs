//! Resolves members to addresses: asynchronously, in bounded time, and without one name delaying another.
//!
//! The system's resolver blocks a thread for as long as a name server is silent, which can be half a minute. So a name is
//! looked up by one task at a time, however many ask for it; a lookup that takes longer than [`SLOW`] makes room for others,
//! and the next one of that name starts among the slow ones. A caller waits only a moment for a name that had an answer before,
//! or whose lookup has been slow already ([`PATIENCE`]). The last good answer stands in for one that
//! does not come in time or is an error, for [`KEPT`]: so a name server that is down takes no origin away at once, and a
//! name that is gone does leave.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::{Error, Host, Member};

/// A look-up that takes longer is slow.
const SLOW: Duration = Duration::from_secs(1);
/// How many look-ups may be under way, those aside that are slow.
const QUICK_LOOKUPS: usize = 32;
/// How many slow ones. Each may block a thread, of which the runtime has 512.
const SLOW_LOOKUPS: usize = 224;
/// How long somebody waits who could have the last good answer, or who can expect nothing.
const PATIENCE: Duration = Duration::from_millis(100);
/// For how long an answer may be used in place of a new one. Names that nobody asks for are forgotten after it.
const KEPT: Duration = Duration::from_secs(60);
/// Fewer names are not worth looking through for those to forget.
const FEW_NAMES: usize = 1024;

/// How long the name of a Redis may take: less than a connection to it may.
const REDIS_LIMIT: Duration = Duration::from_millis(900);

type Lookup = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync;
type Outcome = Result<Vec<IpAddr>, String>;

/// Looks up names through the system's resolver (hosts file, search domains, all that `getaddrinfo` honours). Clones share
/// look-ups and answers.
#[derive(Clone)]
pub struct Resolver(Arc<Shared>);

struct Shared {
    lookup: Box<Lookup>,
    names: Mutex<Names>,
    quick: Arc<Semaphore>,
    slow: Arc<Semaphore>,
}

#[derive(Default)]
struct Names {
    known: HashMap<String, Name>,
    /// So many names are to be looked through for those to forget.
    full_at: usize,
}

impl Names {
    /// What is known of `name`, and that somebody has asked for it.
    fn asked(&mut self, name: &str) -> &mut Name {
        let now = Instant::now();
        if self.known.len() >= self.full_at.max(FEW_NAMES) {
            self.known
                .retain(|_, name| name.under_way.is_some() || name.asked.is_some_and(|asked| now - asked <= KEPT));
            self.full_at = 2 * self.known.len();
        }
        let name = self.known.entry(name.to_owned()).or_default();
        name.asked = Some(now);
        name
    }
}

/// A look-up that is under way.
#[derive(Clone)]
struct UnderWay {
    /// The outcome, when it ends.
    outcome: watch::Receiver<Option<Outcome>>,
    begun: Instant,
}

/// What is known of a name.
#[derive(Default)]
struct Name {
    under_way: Option<UnderWay>,
    /// The last good answer, and when its look-up ended.
    last: Option<(Vec<IpAddr>, Instant)>,
    /// The last look-up was slow.
    slow: bool,
    asked: Option<Instant>,
}

impl Name {
    /// The last good answer, if it is not too old.
    fn kept(&self) -> Option<Vec<IpAddr>> {
        let (addresses, when) = self.last.as_ref()?;
        (when.elapsed() <= KEPT).then(|| addresses.clone())
    }
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new(|name| {
            async move {
                let addresses = tokio::net::lookup_host((name, 0)).await?;
                Ok(addresses.map(|address| address.ip()).collect())
            }
            .boxed()
        })
    }
}

impl Resolver {
    fn new(lookup: impl Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared {
            lookup: Box::new(lookup),
            names: Mutex::default(),
            quick: Arc::new(Semaphore::new(QUICK_LOOKUPS)),
            slow: Arc::new(Semaphore::new(SLOW_LOOKUPS)),
        }))
    }

    /// All addresses of `member`, at least one, within `limit`. A member that is an address resolves to itself at once.
    ///
    /// # Errors
    /// When the name has no address, or none came in time, and it had none lately.
    pub async fn resolve(&self, member: &Member, limit: Duration) -> Result<Vec<SocketAddr>, Error> {
        match member.host() {
            Host::Address(address) => Ok(vec![SocketAddr::new(*address, member.port())]),
            Host::Name(name) => {
                let addresses = self.addresses(name, limit).await;
                let addresses =
                    addresses.map_err(|problem| Error::new(format!("can't resolve {member}: {problem}")))?;
                let port = member.port();
                Ok(addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
            }
        }
    }

    /// All addresses of `name`, at least one, within `limit`.
    ///
    /// # Errors
    /// As [`Resolver::resolve`].
    pub(crate) async fn addresses(&self, name: &str, limit: Duration) -> Outcome {
        let (mut under_way, kept) = self.ask(name);
        let hopeless = under_way.begun.elapsed() > SLOW;
        let patience = if kept.is_some() || hopeless {
            limit.min(PATIENCE)
        } else {
            limit
        };
        let ended = timeout(patience, under_way.outcome.wait_for(Option::is_some)).await;
        let outcome = match ended {
            Ok(Ok(outcome)) => outcome
                .clone()
                .unwrap_or_else(|| Err("the look-up gave nothing".into())),
            Ok(Err(_)) => Err("the look-up was aborted".into()),
            Err(_) => Err(format!("no answer for {} ms", under_way.begun.elapsed().as_millis())),
        };
        match (outcome, kept) {
            (Err(_), Some(kept)) => Ok(kept),
            (outcome, _) => outcome,
        }
    }

    /// The look-up of `name` that is under way, begun now if there is none; and the last good answer.
    fn ask(&self, name: &str) -> (UnderWay, Option<Vec<IpAddr>>) {
        let mut names = self.0.names();
        let known = names.asked(name);
        let kept = known.kept();
        if let Some(under_way) = &known.under_way {
            return (under_way.clone(), kept);
        }
        let (outcome, receiver) = watch::channel(None);
        let under_way = UnderWay {
            outcome: receiver,
            begun: Instant::now(),
        };
        known.under_way = Some(under_way.clone());
        let slow = known.slow;
        drop(names);
        // A task of its own, because it goes on when nobody waits for it any more.
        tokio::spawn(Arc::clone(&self.0).look_up(name.to_owned(), slow, outcome));
        (under_way, kept)
    }
}

impl Shared {
    async fn look_up(self: Arc<Self>, name: String, slow: bool, outcome: watch::Sender<Option<Outcome>>) {
        // Also when the runtime drops this task, so that the name can be looked up again.
        let mut end = End {
            shared: Arc::clone(&self),
            name: name.clone(),
            outcome: None,
            slow,
        };
        let places = if slow { &self.slow } else { &self.quick };
        // Neither semaphore is ever closed.
        let mut place = Arc::clone(places).acquire_owned().await;
        let begun = Instant::now();
        let lookup = (self.lookup)(name);
        tokio::pin!(lookup);
        let found = match timeout(SLOW, &mut lookup).await {
            Ok(found) => found,
            Err(_) if slow => lookup.await,
            Err(_) => {
                // Where there is no room among the slow ones, it keeps its place.
                if let Ok(room) = Arc::clone(&self.slow).try_acquire_owned() {
                    place = Ok(room);
                }
                end.slow = true;
                lookup.await
            }
        };
        drop(place);
        end.slow = begun.elapsed() >= SLOW;
        let found = match found {
            Ok(addresses) if addresses.is_empty() => Err("it has no address".to_owned()),
            Ok(addresses) => Ok(addresses),
            Err(error) => Err(error.to_string()),
        };
        end.outcome = Some(found.clone());
        drop(end);
        outcome.send_replace(Some(found));
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes how a look-up ended, when it is dropped.
struct End {
    shared: Arc<Shared>,
    name: String,
    outcome: Option<Outcome>,
    slow: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        let mut names = self.shared.names();
        let Some(name) = names.known.get_mut(&self.name) else {
            return;
        };
        name.under_way = None;
        name.slow = self.slow;
        if let Some(Ok(addresses)) = self.outcome.take() {
            name.last = Some((addresses, Instant::now()));
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

/// So that the name of a Redis is looked up in the same way.
impl redis::io::AsyncDNSResolver for Resolver {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> redis::RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        async move {
            let addresses = match host.parse::<IpAddr>() {
                Ok(address) => vec![address],
                Err(_) => self
                    .addresses(host, REDIS_LIMIT)
                    .await
                    .map_err(|problem| io::Error::other(format!("can't resolve {host}: {problem}")))?,
            };
            let addresses = addresses.into_iter().map(move |ip| SocketAddr::new(ip, port));
            Ok(Box::new(addresses) as Box<dyn Iterator<Item = _> + Send>)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn member(text: &str) -> Member {
        text.parse().unwrap()
    }

    /// A resolver in which names that begin with "hung" never end and the others are 192.0.2.1; and how many look-ups
    /// were begun.
    fn some_hang() -> (Resolver, Arc<AtomicUsize>) {
        let begun = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&begun);
        let resolver = Resolver::new(move |name| {
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                if name.starts_with("hung") {
                    std::future::pending::<()>().await;
                }
                Ok(vec![IpAddr::from([192, 0, 2, 1])])
            }
            .boxed()
        });
        (resolver, begun)
    }

    #[tokio::test]
    async fn names_and_addresses_resolve_and_unknown_names_say_so() {
        let resolver = Resolver::default();
        assert_eq!(
            resolver.resolve(&member("[::1]:80"), SOON).await.unwrap(),
            ["[::1]:80".parse().unwrap()]
        );
        let addresses = resolver.resolve(&member("localhost:81"), SOON).await.unwrap();
        assert!(
            addresses
                .iter()
                .all(|address| address.ip().is_loopback() && address.port() == 81)
        );
        let unknown = resolver.resolve(&member("no-such-name.invalid:80"), SOON).await;
        assert!(unknown.unwrap_err().to_string().contains("no-such-name.invalid:80"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_once_however_many_ask_and_however_long_it_takes() {
        let (resolver, begun) = some_hang();
        for _ in 0..10 {
            let (first, other_port) = (member("hung:80"), member("hung:81"));
            let (one, two) = tokio::join!(
                resolver.resolve(&first, Duration::from_secs(5)),
                resolver.resolve(&other_port, Duration::from_secs(5)),
            );
            assert!(one.unwrap_err().to_string().contains("no answer for") && two.is_err());
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        // By now nobody waits for it to the end.
        let asked = Instant::now();
        assert!(resolver.resolve(&member("hung:80"), SOON).await.is_err());
        assert!(asked.elapsed() <= PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_hang_hold_up_no_other_for_long_and_later_not_at_all() {
        let (resolver, begun) = some_hang();
        let hung: Vec<Member> = (0..100).map(|number| member(&format!("hung{number}:80"))).collect();
        let ask = |hung: &Vec<Member>| {
            for name in hung.clone() {
                let resolver = resolver.clone();
                tokio::spawn(async move { resolver.resolve(&name, SOON).await });
            }
        };
        ask(&hung);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(resolver.resolve(&member("healthy:80"), SOON).await.is_ok());
        tokio::time::sleep(SLOW).await;
        ask(&hung);
        for number in 0..100 {
            let healthy = member(&format!("healthy{number}:80"));
            assert!(resolver.resolve(&healthy, Duration::from_millis(1)).await.is_ok());
        }
        assert_eq!(begun.load(Ordering::SeqCst), 201);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_known_to_be_slow_starts_among_the_slow() {
        let resolver = Resolver::new(|name| {
            async move {
                if name.starts_with("slow") {
                    tokio::time::sleep(Duration::from_secs(20)).await;
                    return Err(io::Error::other("no server answers"));
                }
                Ok(vec![IpAddr::from([192, 0, 2, 1])])
            }
            .boxed()
        });
        let slow: Vec<Member> = (0..QUICK_LOOKUPS)
            .map(|number| member(&format!("slow{number}:80")))
            .collect();
        for round in 0..2 {
            let asked = slow.clone().into_iter().map(|name| {
                let resolver = resolver.clone();
                tokio::spawn(async move { resolver.resolve(&name, Duration::from_secs(60)).await })
            });
            let asked: Vec<_> = asked.collect();
            tokio::time::sleep(Duration::from_millis(1)).await;
            let healthy = resolver.resolve(&member("healthy:80"), Duration::from_millis(1)).await;
            assert_eq!(
                healthy.is_ok(),
                round == 1,
                "in the first round they take every place, for a moment"
            );
            for one in asked {
                let error = one.await.unwrap().unwrap_err();
                assert!(error.to_string().contains("no server answers"), "{error}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_answer_is_used_for_a_while_when_a_look_up_hangs_or_fails() {
        for hangs in [true, false] {
            let asked = AtomicUsize::new(0);
            let resolver = Resolver::new(move |_| {
                let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
                async move {
                    match (first, hangs) {
                        (true, _) => Ok(vec![IpAddr::from([192, 0, 2, 1])]),
                        (false, true) => std::future::pending().await,
                        (false, false) => Err(io::Error::other("no such name")),
                    }
                }
                .boxed()
            });
            let name = member("origin:80");
            let good = resolver.resolve(&name, SOON).await.unwrap();
            let start = Instant::now();
            while start.elapsed() < KEPT - SOON {
                let asked = Instant::now();
                assert_eq!(resolver.resolve(&name, SOON).await.unwrap(), good);
                assert!(asked.elapsed() <= PATIENCE);
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            tokio::time::sleep(2 * SOON).await;
            assert!(resolver.resolve(&name, SOON).await.is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_nobody_asks_for_are_forgotten() {
        let (resolver, _) = some_hang();
        for number in 0..3 * FEW_NAMES {
            if number == FEW_NAMES {
                tokio::time::sleep(2 * KEPT).await;
            }
            let name = member(&format!("name{number}:80"));
            resolver.resolve(&name, SOON).await.unwrap();
        }
        assert!(resolver.0.names().known.len() <= 2 * FEW_NAMES);
    }
}
