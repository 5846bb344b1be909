//! The connection to Redis, and the handling of its failures.
//!
//! - A connection is opened when it is first needed, and replaced at the age of [`MAX_AGE`]: after a failover by name the
//!   old node may answer for ever, and only a new connection resolves the name again. A replica is read from, reported
//!   once, and replaced at the age of [`REPLICA_AGE`].
//! - Redis may close a connection that was idle (its `timeout`). A call that finds it closed is repeated on a new connection.
//!   Every command of this crate is idempotent, so it does not matter whether the first one arrived.
//! - A reply that does not come in time leaves a connection in an unknown state, and on a black-holed one no error ever
//!   comes, so that connection is dropped. An error reply leaves it in order, so it is kept; unless it says that the
//!   node is no usable primary, because then the name may mean another node by now.
//! - After any failure calls fail at once with the same error for a while, longer each time and with jitter, so that a
//!   fleet does not overrun a Redis that comes back, or one that refuses. An error reply may be about the keys of one pool, so it
//!   holds for that pool alone.

mod failure;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use log::{info, warn};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, Pipeline, RedisError, RedisResult, Value};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::{Error, PoolName, RedisUrl, Resolver};
use failure::Failure;

/// How long opening a connection may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a call may take, opening the connection included.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// The first and the longest pause after a failure.
const PAUSE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(2);
/// The greatest age of a connection. Each one gets between half and all of it, so that a fleet does not reconnect at once.
const MAX_AGE: Duration = Duration::from_secs(60);
/// The greatest age of a connection to a replica.
const REPLICA_AGE: Duration = Duration::from_secs(10);

/// A connection to one Redis. Calls wait for one another; each process has one reader or one writer.
pub(crate) struct Link {
    client: Client,
    resolver: Resolver,
    url: RedisUrl,
    max_age: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// After a failure of the connection.
    pause: Option<Pause>,
    /// After an error reply to a call for this pool.
    pauses: HashMap<PoolName, Pause>,
    /// The last node was a replica.
    on_replica: bool,
}

struct Connection {
    inner: MultiplexedConnection,
    renew_at: Instant,
    /// It has answered a call, so it may have been idle since.
    used: bool,
}

/// The time after a failure.
struct Pause {
    error: Error,
    until: Instant,
    /// How long the next one is.
    next: Duration,
}

impl Link {
    pub(crate) fn new(url: &RedisUrl) -> Result<Self, Error> {
        // Redis may be on rediss://, and rustls needs a default cryptography provider. It is fine if another part of the process
        // has set one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::open(url.connection()).map_err(|error| Error::new(error.to_string()))?;
        Ok(Self {
            client,
            resolver: Resolver::default(),
            url: url.clone(),
            max_age: MAX_AGE,
            state: Mutex::default(),
        })
    }

    pub(crate) fn set_max_age(&mut self, age: Duration) {
        self.max_age = age;
    }

    /// Runs `commands` for `pool`, all of which must be idempotent, within [`CALL_TIMEOUT`].
    pub(crate) async fn call<T: FromRedisValue>(&self, pool: &PoolName, commands: &Pipeline) -> Result<T, Error> {
        self.checked(pool, commands, Ok).await
    }

    /// The same for two commands, where an error reply to the second is no failure.
    pub(crate) async fn call_with_optional<T: FromRedisValue, U: FromRedisValue>(
        &self,
        pool: &PoolName,
        mut commands: Pipeline,
    ) -> Result<(T, Result<U, Error>), Error> {
        commands.ignore_errors();
        let check = |(needed, optional): (RedisResult<T>, RedisResult<U>)| Ok((needed?, optional));
        let (needed, optional) = self.checked(pool, &commands, check).await?;
        Ok((needed, optional.map_err(|error| self.failure(&error).error)))
    }

    /// Runs `commands`; `check` says which of their replies are failures.
    async fn checked<T: FromRedisValue, U>(
        &self,
        pool: &PoolName,
        commands: &Pipeline,
        check: impl Fn(T) -> RedisResult<U>,
    ) -> Result<U, Error> {
        let mut state = self.state.lock().await;
        let now = Instant::now();
        let pauses = state.pause.iter().chain(state.pauses.get(pool));
        if let Some(pause) = pauses.into_iter().find(|pause| now < pause.until) {
            return Err(pause.error.clone());
        }
        let attempt = timeout(CALL_TIMEOUT, self.attempt(&mut state, commands, check)).await;
        let failure = match attempt {
            Ok(Ok(answer)) => {
                state.pause = None;
                state.pauses.remove(pool);
                return Ok(answer);
            }
            Ok(Err(failure)) => failure,
            Err(_) => self.broken(format_args!("no answer within {CALL_TIMEOUT:?}")),
        };
        if !failure.in_order {
            state.connection = None;
        }
        let of_pool = state.connection.is_some();
        let before = if of_pool {
            state.pauses.get(pool)
        } else {
            state.pause.as_ref()
        };
        let wait = before.map_or(*PAUSE.start(), |pause| pause.next);
        let pause = Pause {
            error: failure.error.clone(),
            until: Instant::now() + jittered(wait),
            next: (wait * 2).min(*PAUSE.end()),
        };
        if of_pool {
            state.pause = None;
            state.pauses.insert(pool.clone(), pause);
        } else {
            state.pause = Some(pause);
        }
        Err(failure.error)
    }

    async fn attempt<T: FromRedisValue, U>(
        &self,
        state: &mut State,
        commands: &Pipeline,
        check: impl Fn(T) -> RedisResult<U>,
    ) -> Result<U, Failure> {
        let connection = self.connection(state).await?;
        let was_used = connection.used;
        let mut answer = commands.query_async(&mut connection.inner).await;
        if was_used && answer.as_ref().is_err_and(RedisError::is_io_error) {
            state.connection = None;
            let connection = self.connection(state).await?;
            answer = commands.query_async(&mut connection.inner).await;
        }
        let answer = answer.and_then(check).map_err(|error| self.failure(&error))?;
        if let Some(connection) = &mut state.connection {
            connection.used = true;
        }
        Ok(answer)
    }

    /// The connection: the one there, or a new one if there is none or it is too old.
    async fn connection<'s>(&self, state: &'s mut State) -> Result<&'s mut Connection, Failure> {
        let now = Instant::now();
        if state.connection.as_ref().is_none_or(|old| old.renew_at <= now) {
            match (self.connect().await, &mut state.connection) {
                (Ok((inner, is_replica)), _) => {
                    self.note_role(state, is_replica);
                    let age = if is_replica {
                        self.max_age.min(REPLICA_AGE)
                    } else {
                        self.max_age
                    };
                    state.connection = Some(Connection {
                        inner,
                        renew_at: now + jittered(age),
                        used: false,
                    });
                }
                // The old one still works, for all that is known.
                (Err(_), Some(old)) => old.renew_at = now + jittered(REPLICA_AGE),
                (Err(failure), None) => return Err(failure),
            }
        }
        state
            .connection
            .as_mut()
            .ok_or_else(|| self.broken(format_args!("no connection")))
    }

    /// A new connection, authenticated and on its database, and whether its node is a replica.
    async fn connect(&self) -> Result<(MultiplexedConnection, bool), Failure> {
        let connected = timeout(CONNECT_TIMEOUT, async {
            // The time limits are this module's own, so that one place has them and their errors name them.
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(None)
                .set_response_timeout(None)
                .set_dns_resolver(self.resolver.clone());
            let opened = self.client.get_multiplexed_async_connection_with_config(&config);
            let mut connection = opened.await.map_err(|error| self.failure(&error))?;
            let is_replica = self.introduce(&mut connection).await?;
            Ok((connection, is_replica))
        });
        connected
            .await
            .unwrap_or_else(|_| Err(self.broken(format_args!("no connection within {CONNECT_TIMEOUT:?}"))))
    }

    /// Authenticates, selects the database and asks for the role.
    async fn introduce(&self, connection: &mut MultiplexedConnection) -> Result<bool, Failure> {
        let mut commands = redis::pipe();
        commands.ignore_errors();
        if let Some(password) = self.url.password() {
            let auth = commands.cmd("AUTH");
            if let Some(username) = self.url.username() {
                auth.arg(username);
            }
            auth.arg(password);
        }
        if self.url.database() != 0 {
            commands.cmd("SELECT").arg(self.url.database());
        }
        // HELLO reports the role even to users who may not use ROLE and INFO, which count as dangerous.
        commands.cmd("HELLO");
        let replies = commands.query_async::<Vec<RedisResult<Value>>>(connection).await;
        let mut replies = replies.map_err(|error| match error.is_io_error() {
            // The server says why before it closes, but the client library drops what was not asked for.
            true => self.broken(format_args!(
                "{error} on a new connection; Redis may be in protected mode, at its maxclients, or want TLS (rediss://)"
            )),
            false => self.failure(&error),
        })?;
        // A server that does not know HELLO, or does not allow it, has no replicas that matter here.
        let hello = replies.pop().and_then(Result::ok);
        for reply in replies {
            reply.map_err(|error| self.failure(&error))?;
        }
        let hello = hello.and_then(|hello| redis::from_redis_value::<HashMap<String, Value>>(hello).ok());
        let role = hello.and_then(|mut hello| redis::from_redis_value::<String>(hello.remove("role")?).ok());
        Ok(matches!(role.as_deref(), Some("replica" | "slave")))
    }

    fn note_role(&self, state: &mut State, is_replica: bool) {
        let was_replica = std::mem::replace(&mut state.on_replica, is_replica);
        let redis = self.url.to_string();
        if is_replica && !was_replica {
            let seconds = REPLICA_AGE.as_secs();
            warn!(redis = redis.as_str(), seconds = seconds; "Redis node is a replica, whose data can be old; reconnecting by name at this age");
        } else if was_replica && !is_replica {
            info!(redis = redis.as_str(); "Redis node is the primary again");
        }
    }
}

/// Between half of `time` and all of it.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers each piece it reads with what `answer` makes of it, and closes when that is empty; and how
    /// many connections it has had.
    async fn server(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (answer, connections) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                        let reply = answer(&String::from_utf8_lossy(&bytes[..read]));
                        if reply.is_empty() || stream.write_all(reply.as_bytes()).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        (address, connections)
    }

    fn ping() -> Pipeline {
        let mut ping = redis::pipe();
        ping.cmd("PING").ignore();
        ping
    }

    fn link(url: &str) -> Link {
        Link::new(&RedisUrl::parse(url).unwrap()).unwrap()
    }

    impl State {
        fn longest_pause(&self) -> Option<&Pause> {
            let pauses = self.pause.iter().chain(self.pauses.values());
            pauses.max_by_key(|pause| pause.until)
        }
    }

    /// Calls until one is not answered from a pause.
    async fn outcome_after_pause(link: &Link) -> Result<(), Error> {
        let until = link.state.lock().await.longest_pause().map(|pause| pause.until);
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
        link.call::<()>(&PoolName::default(), &ping()).await
    }

    #[tokio::test]
    async fn a_black_holed_redis_costs_no_more_than_the_timeout_and_then_nothing() {
        // Connections succeed (the kernel takes them), and no byte ever comes back.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = link(&silent.local_addr().unwrap().to_string());
        let (pool, pinged) = (PoolName::default(), ping());
        let call = timeout(CALL_TIMEOUT + CONNECT_TIMEOUT, link.call::<()>(&pool, &pinged));
        let error = call.await.expect("within its timeout").unwrap_err();
        assert!(error.to_string().contains("within"), "{error}");
        // Until the pause is over the last error is the answer.
        let (again, at_once) = (link.call::<()>(&pool, &pinged), std::future::ready(()));
        tokio::pin!(again);
        tokio::select! { biased;
            again = &mut again => assert_eq!(again.unwrap_err(), error),
            () = at_once => panic!("a call during the pause waited"),
        }
    }

    #[tokio::test]
    async fn an_error_reply_keeps_the_connection_and_pauses_grow() {
        for (reply, connections, refused) in [
            ("-WRONGTYPE Operation against a key", 1, true),
            ("-NOPERM this user has no permissions", 1, true),
            ("-NOAUTH Authentication required.", 1, true),
            ("-OOM command not allowed", 1, false),
            ("-ERR something passing", 1, false),
            // These say that another node may be the primary.
            ("-READONLY You can't write against a read only replica.", 3, false),
            ("-LOADING Redis is loading the dataset in memory", 3, false),
            ("-MASTERDOWN Link with MASTER is down", 3, false),
        ] {
            let (address, seen) = server(move |_| format!("{reply}\r\n")).await;
            let link = link(&address);
            for _ in 0..3 {
                let error = outcome_after_pause(&link).await.unwrap_err();
                assert_eq!(error.is_refusal(), refused, "{error}");
            }
            assert_eq!(seen.load(Ordering::SeqCst), connections, "{reply}");
            let state = link.state.lock().await;
            assert_eq!(state.longest_pause().unwrap().next, *PAUSE.start() * 8);
            assert_eq!(
                state.pause.is_none(),
                connections == 1,
                "{reply}: an error reply is about this pool alone"
            );
        }
    }

    #[tokio::test]
    async fn a_pool_that_is_refused_holds_up_no_other_and_a_redis_that_is_gone_holds_up_all() {
        let (address, _) = server(|request| match request {
            _ if request.contains("HELLO") => "-ERR unknown command 'HELLO'\r\n".into(),
            _ if request.contains("DBSIZE") => String::new(),
            _ if request.contains("TIME") => "-WRONGTYPE Operation against a key\r\n".into(),
            _ => "+PONG\r\n".into(),
        })
        .await;
        let link = link(&address);
        let (one, other) = (PoolName::default(), "other".parse().unwrap());
        let [mut refused, mut gone] = [redis::pipe(), redis::pipe()];
        refused.cmd("TIME").ignore();
        gone.cmd("DBSIZE").ignore();
        let error = link.call::<()>(&one, &refused).await.unwrap_err();
        assert!(error.is_refusal(), "{error}");
        assert_eq!(link.call::<()>(&one, &ping()).await, Err(error), "from the pause");
        assert_eq!(link.call::<()>(&other, &ping()).await, Ok(()));
        let error = link.call::<()>(&other, &gone).await.unwrap_err();
        assert_eq!(link.call::<()>(&one, &ping()).await, Err(error), "from the pause");
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_while_idle_is_replaced_unseen() {
        // The first connection closes after its first call.
        let asked = AtomicUsize::new(0);
        let (address, seen) = server(move |request| match asked.fetch_add(1, Ordering::SeqCst) {
            2 => String::new(),
            _ if request.contains("HELLO") => "*2\r\n$4\r\nrole\r\n$6\r\nmaster\r\n".into(),
            _ => "+PONG\r\n".into(),
        })
        .await;
        let link = link(&address);
        link.call::<()>(&PoolName::default(), &ping()).await.unwrap();
        link.call::<()>(&PoolName::default(), &ping()).await.unwrap();
        assert_eq!(seen.load(Ordering::SeqCst), 2);
        assert!(link.state.lock().await.pause.is_none());
    }

    #[tokio::test]
    async fn one_that_closes_every_connection_is_asked_once_more_and_no_oftener() {
        let (address, seen) = server(|request| match request {
            _ if request.contains("HELLO") => "-ERR unknown command 'HELLO'\r\n".into(),
            _ => String::new(),
        })
        .await;
        let link = link(&address);
        let error = link.call::<()>(&PoolName::default(), &ping()).await.unwrap_err();
        assert!(!error.is_refusal(), "{error}");
        assert_eq!(seen.load(Ordering::SeqCst), 1, "a new connection is no stale one");
    }

    #[tokio::test]
    async fn no_reply_can_bring_the_password_into_an_error() {
        let echo = "-ERR unknown command 'AUTH', with args beginning with: 'gopher' 'se-cret' \r\n+OK\r\n+OK\r\n";
        let (address, _) = server(move |_| echo.into()).await;
        let link = link(&format!("redis://gopher:se-cret@{address}/3"));
        let error = link.call::<()>(&PoolName::default(), &ping()).await.unwrap_err();
        assert!(
            error.is_refusal() && error.to_string().contains("unknown command"),
            "{error}"
        );
        assert!(!error.to_string().contains("se-cret"), "{error}");
        let long = link.shown(&"é".repeat(10_000));
        assert!(long.len() < 1_000, "{} bytes", long.len());
    }
}
