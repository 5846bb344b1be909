//! How a member becomes addresses: asynchronously, in bounded time, and with a bound on lookups under way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::{Error, Host, Member};

/// How many lookups may be under way at once. A lookup that nobody waits for any more counts until the system's resolver
/// gives it up, so that a DNS that hangs can't pile up threads.
const MAX_LOOKUPS: usize = 32;

/// Looks up names through the system's resolver (hosts file, search domains, all that `getaddrinfo` honours).
#[derive(Debug, Clone)]
pub struct Resolver {
    lookups: Arc<Semaphore>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
        }
    }
}

impl Resolver {
    /// All addresses of `member`, at least one, within `limit`. A member that is an address resolves to itself at once.
    ///
    /// # Errors
    /// When the name has no address, or none came in time.
    pub async fn resolve(&self, member: &Member, limit: Duration) -> Result<Vec<SocketAddr>, Error> {
        let name = match member.host() {
            Host::Address(address) => return Ok(vec![SocketAddr::new(*address, member.port())]),
            Host::Name(name) => name.clone(),
        };
        let port = member.port();
        let lookups = Arc::clone(&self.lookups);
        let looked_up = timeout(limit, async move {
            let permit = lookups.acquire_owned().await;
            // A task of its own, so that the permit is held until the lookup ends and not until the caller gives up.
            let lookup = tokio::spawn(async move {
                let _permit = permit;
                let addresses = tokio::net::lookup_host((name.as_str(), port)).await?;
                Ok::<Vec<_>, std::io::Error>(addresses.collect())
            });
            lookup.await
        });
        let error = |problem: &str| Error::new(format!("can't resolve {member}: {problem}"));
        match looked_up.await {
            Err(_) => Err(error(&format!("no answer within {limit:?}"))),
            Ok(Err(ended)) => Err(error(&ended.to_string())),
            Ok(Ok(Err(failed))) => Err(error(&failed.to_string())),
            Ok(Ok(Ok(addresses))) if addresses.is_empty() => Err(error("it has no address")),
            Ok(Ok(Ok(addresses))) => Ok(addresses),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn names_and_addresses_resolve_and_unknown_names_say_so() {
        let resolver = Resolver::default();
        let address: Member = "[::1]:80".parse().unwrap();
        assert_eq!(
            resolver.resolve(&address, SOON).await.unwrap(),
            ["[::1]:80".parse().unwrap()]
        );
        let name: Member = "localhost:81".parse().unwrap();
        let addresses = resolver.resolve(&name, SOON).await.unwrap();
        assert!(addresses.iter().all(|address| address.ip().is_loopback()));
        let unknown: Member = "no-such-name.invalid:80".parse().unwrap();
        let error = resolver.resolve(&unknown, SOON).await.unwrap_err();
        assert!(error.to_string().contains("no-such-name.invalid:80"));
    }

    #[tokio::test]
    async fn a_resolver_that_hangs_costs_no_more_than_the_limit() {
        let resolver = Resolver::default();
        let _all = Arc::clone(&resolver.lookups)
            .acquire_many_owned(MAX_LOOKUPS.try_into().unwrap())
            .await;
        let name: Member = "localhost:81".parse().unwrap();
        let error = resolver.resolve(&name, Duration::from_millis(10)).await.unwrap_err();
        assert!(error.to_string().contains("within 10ms"), "{error}");
    }
}
