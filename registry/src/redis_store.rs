//! The registry in Redis: the set at [`KEY`].
//!
//! One connection, opened when it is first needed and thrown away after any failure: a reply that did not come in time
//! leaves a connection of which nothing is known, and on a black-holed one no error ever comes. After a failed attempt to
//! connect the next one waits, longer each time and with jitter, so that a fleet does not fall upon a Redis that
//! comes back; a call in between fails at once with the error of the last attempt.

use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::{Error, KEY, Member, Registry, Snapshot};

/// How long opening a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a call may take, opening the connection included.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// The first and the longest wait between attempts to connect.
const BACKOFF: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(2);

/// Where Redis is. Its `Display` and `Debug` leave the password out.
#[derive(Clone)]
pub struct RedisUrl {
    info: Box<ConnectionInfo>,
    /// The whole URL, password included, for `==`.
    url: String,
    shown: String,
}

impl PartialEq for RedisUrl {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

impl RedisUrl {
    /// Reads `host:port`, `redis://…` or `rediss://…` (TLS), the URLs with `user:password@` and `/database` if need be.
    ///
    /// # Errors
    /// What the text should have been.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || "host:port, redis://[user:password@]host[:port][/database] or rediss:// for TLS".to_owned();
        // "redis:6379" would be a URL of the scheme "redis", so a bare address is told by what it lacks.
        let url = if text.contains("://") {
            text.to_owned()
        } else {
            text.parse::<Member>().map_err(|_| expected())?;
            format!("redis://{text}")
        };
        if !(url.starts_with("redis://") || url.starts_with("rediss://")) {
            return Err(expected());
        }
        let info = url.as_str().into_connection_info().map_err(|_| expected())?;
        let (scheme, rest) = url.split_once("://").ok_or_else(expected)?;
        let place = rest.rsplit_once('@').map_or(rest, |(_credentials, place)| place);
        let shown = format!("{scheme}://{place}");
        Ok(Self {
            info: Box::new(info),
            url,
            shown,
        })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The set in Redis. Calls wait for one another; each process has one reader or one writer.
pub struct RedisStore {
    client: Client,
    shown: String,
    link: Mutex<Link>,
}

/// The connection, or when to try for one again.
enum Link {
    Up(MultiplexedConnection),
    Down {
        error: Error,
        next_attempt: Instant,
        wait: Duration,
    },
}

impl RedisStore {
    /// A store that connects when it is first used, inside the runtime that uses it.
    ///
    /// # Errors
    /// When the URL asks for something this build does not have.
    pub fn new(url: &RedisUrl) -> Result<Self, Error> {
        // Redis may be on rediss://, and rustls wants to be told which cryptography to use. That another part of the
        // process told it first is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::open((*url.info).clone()).map_err(|error| Error::new(error.to_string()))?;
        Ok(Self {
            client,
            shown: url.to_string(),
            link: Mutex::new(Link::Down {
                error: Error::new("not connected yet"),
                next_attempt: Instant::now(),
                wait: *BACKOFF.start(),
            }),
        })
    }

    /// Runs `command` on the connection, within [`CALL_TIMEOUT`].
    async fn call<T: redis::FromRedisValue>(&self, command: &redis::Pipeline) -> Result<T, Error> {
        let mut link = self.link.lock().await;
        let in_time = timeout(CALL_TIMEOUT, async {
            let connection = self.connection(&mut link).await?;
            command
                .query_async(connection)
                .await
                .map_err(|error| self.error(&error.to_string()))
        });
        let result = match in_time.await {
            Ok(result) => result,
            Err(_) => Err(self.error(&format!("no answer within {CALL_TIMEOUT:?}"))),
        };
        if let (Err(error), Link::Up(_)) = (&result, &*link) {
            *link = Link::Down {
                error: error.clone(),
                next_attempt: Instant::now(),
                wait: *BACKOFF.start(),
            };
        }
        result
    }

    async fn connection<'l>(&self, link: &'l mut Link) -> Result<&'l mut MultiplexedConnection, Error> {
        if let Link::Down {
            error,
            next_attempt,
            wait,
        } = &*link
        {
            if Instant::now() < *next_attempt {
                return Err(error.clone());
            }
            let wait = *wait;
            *link = match self.connect().await {
                Ok(connection) => Link::Up(connection),
                Err(error) => Link::Down {
                    error,
                    next_attempt: Instant::now() + wait.mul_f64(0.5 + fastrand::f64() / 2.0),
                    wait: (wait * 2).min(*BACKOFF.end()),
                },
            };
        }
        match link {
            Link::Up(connection) => Ok(connection),
            Link::Down { error, .. } => Err(error.clone()),
        }
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        // The time limits are this module's own, so that one place has them and their errors name them.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let attempt = self.client.get_multiplexed_async_connection_with_config(&config);
        match timeout(CONNECT_TIMEOUT, attempt).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.error(&error.to_string())),
            Err(_) => Err(self.error(&format!("no connection within {CONNECT_TIMEOUT:?}"))),
        }
    }

    fn error(&self, what: &str) -> Error {
        Error::new(format!("{}: {what}", self.shown))
    }
}

#[async_trait::async_trait]
impl Registry for RedisStore {
    async fn members(&self) -> Result<Snapshot, Error> {
        let mut command = redis::pipe();
        command.smembers(KEY);
        let (members,): (Vec<Vec<u8>>,) = self.call(&command).await?;
        Ok(Snapshot::parse(members.iter().map(Vec::as_slice)))
    }

    async fn publish(&self, present: &[Member], absent: &[Member]) -> Result<(), Error> {
        let encode = |members: &[Member]| members.iter().map(Member::encode).collect::<Vec<_>>();
        let mut command = redis::pipe();
        // SADD and SREM without a member are errors.
        if !present.is_empty() {
            command.sadd(KEY, encode(present)).ignore();
        }
        if !absent.is_empty() {
            command.srem(KEY, encode(absent)).ignore();
        }
        if present.is_empty() && absent.is_empty() {
            return Ok(());
        }
        self.call(&command).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_addresses_and_urls_are_taken_and_the_password_is_never_shown() {
        for (text, shown) in [
            ("localhost:16379", "redis://localhost:16379"),
            ("redis:6379", "redis://redis:6379"),
            ("[::1]:6379", "redis://[::1]:6379"),
            ("redis://host/3", "redis://host/3"),
            ("redis://user:secret@host:1/3", "redis://host:1/3"),
            ("rediss://:secret@host:1", "rediss://host:1"),
        ] {
            let url = RedisUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("secret"));
            RedisStore::new(&url).unwrap();
        }
    }

    #[test]
    fn urls_that_differ_in_the_password_alone_are_different() {
        let url = |password| RedisUrl::parse(&format!("redis://user:{password}@host:1")).unwrap();
        assert!(url("old") == url("old"));
        assert!(url("old") != url("new"));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "localhost",
            "localhost:",
            "localhost:x",
            "http://localhost:6379",
            "unix:///run/redis.sock",
            "redis://",
            "redis://host:port",
            "redis://host/db",
        ] {
            assert!(RedisUrl::parse(text).is_err(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_black_holed_redis_costs_no_more_than_the_timeout_and_then_nothing() {
        // Connections succeed (the kernel takes them), and no byte ever comes back.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = RedisUrl::parse(&silent.local_addr().unwrap().to_string()).unwrap();
        let store = RedisStore::new(&url).unwrap();
        let call = timeout(CALL_TIMEOUT + CONNECT_TIMEOUT, store.members());
        let error = call.await.expect("within its timeout").unwrap_err();
        assert!(error.to_string().contains("within"), "{error}");
        // Until the next attempt is due the last error is the answer.
        let (again, at_once) = (store.members(), std::future::ready(()));
        tokio::pin!(again);
        tokio::select! { biased;
            again = &mut again => assert_eq!(again.unwrap_err(), error),
            () = at_once => panic!("a call before the next attempt waited"),
        }
    }
}
