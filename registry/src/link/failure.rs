//! What a failure of Redis says: in which words, with what way out, and whether its connection can be used again.

use std::fmt;

use redis::{RedisError, ServerError};

use super::Link;
use crate::Error;

/// A longer error is cut: the server decides how long its replies are.
const MAX_SHOWN: usize = 200;

/// Why an attempt failed, and whether its connection can be used again.
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) in_order: bool,
}

impl Link {
    /// What a failed command says, and whether its connection can be used again.
    pub(super) fn failure(&self, error: &RedisError) -> Failure {
        let replies = error.clone().into_server_errors();
        let Some((_, reply)) = replies.as_deref().and_then(<[_]>::first) else {
            let text = error.to_string();
            if self.url.uses_tls() && is_about_tls(&text) {
                return self.refused(
                    &text,
                    "check REDIS_URL, the server's certificate and this machine's trusted roots",
                );
            }
            return self.broken(format_args!("{text}"));
        };
        let text = match reply.details() {
            Some(details) => format!("{} {details}", reply.code()),
            None => reply.code().to_owned(),
        };
        match way_out(reply) {
            Some(way_out) => self.refused(&text, way_out),
            None => Failure {
                error: Error::new(self.shown(&text)),
                in_order: !matches!(reply.code(), "READONLY" | "LOADING" | "MASTERDOWN"),
            },
        }
    }

    pub(super) fn refused(&self, text: &str, way_out: &str) -> Failure {
        Failure {
            error: Error::refused(format!("{}; {way_out}", self.shown(text))),
            in_order: true,
        }
    }

    pub(super) fn broken(&self, what: fmt::Arguments<'_>) -> Failure {
        Failure {
            error: Error::new(self.shown(&what.to_string())),
            in_order: false,
        }
    }

    /// `text` behind the address. Servers repeat in some errors what they were sent, the password included.
    pub(super) fn shown(&self, text: &str) -> String {
        let text = match self.url.password() {
            Some(password) if !password.is_empty() => text.replace(password, "…"),
            _ => text.to_owned(),
        };
        let cut = text.char_indices().nth(MAX_SHOWN).map_or(text.len(), |(end, _)| end);
        format!("{}: {}", self.url, text[..cut].trim_end_matches('.'))
    }
}
/// How to fix what made the server refuse; `None` for an error that may pass by itself.
fn way_out(reply: &ServerError) -> Option<&'static str> {
    let details = reply.details().unwrap_or_default();
    match reply.code() {
        "WRONGPASS" => Some("the user or the password in REDIS_URL is wrong"),
        "NOAUTH" => Some("put the password into REDIS_URL (redis://:password@host:port)"),
        "NOPERM" => Some("allow it to the Redis user (ACL SETUSER)"),
        "WRONGTYPE" => Some("delete the key that has another type (DEL), or use another database"),
        "ERR" if details.starts_with("AUTH ") || details.starts_with("wrong number of arguments for 'auth'") => {
            Some("take the user, or the user and the password, out of REDIS_URL")
        }
        "ERR" if details.contains("DB index") => Some("correct the database in REDIS_URL"),
        "ERR" if details.starts_with("unknown command") => Some("this server lacks a command that the registry needs"),
        _ => None,
    }
}

/// Whether an I/O error comes from TLS, of which the client library passes on the words alone.
fn is_about_tls(text: &str) -> bool {
    let about = [
        "certificate",
        "fatal alert",
        "corrupt message",
        "peer is incompatible",
        "peer misbehaved",
    ];
    about.iter().any(|words| text.contains(words))
}
