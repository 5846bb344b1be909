//! Why an exchange with a backend failed, in words for the log.

use std::fmt::Display;
use std::io;

use pingora::prelude::{Error, ErrorType};

/// What the text of rustls or Pingora says when something is wrong, and what the log does. Nothing else of that text gets into the log:
/// it quotes the origin's certificate.
const REASONS: [(&str, &str); 16] = [
    (
        NO_ROOTS,
        "this machine has no root certificates to verify the backend by: install ca-certificates, or set upstream.tls.ca_file",
    ),
    (
        "UnknownIssuer",
        "the certificate of the backend is signed by nobody that is trusted (upstream.tls.ca_file)",
    ),
    (
        "certificate not valid for name",
        "the certificate of the backend is not for the name of the member (upstream.tls.server_name)",
    ),
    ("certificate expired", "the certificate of the backend has expired"),
    (
        "certificate not valid yet",
        "the certificate of the backend is not valid yet",
    ),
    ("Revoked", "the certificate of the backend is revoked"),
    (
        "CaUsedAsEndEntity",
        "the certificate of the backend is one of an authority",
    ),
    ("InvalidPurpose", "the certificate of the backend is not for servers"),
    (
        "BadSignature",
        "the certificate of the backend is not signed by whom it names (upstream.tls.ca_file)",
    ),
    ("invalid peer certificate", "the certificate of the backend is invalid"),
    (
        NO_HTTP1,
        "the backend speaks HTTP/2 alone, which can't carry this request",
    ),
    (
        "invalid dns name",
        "the name of the backend is none that a certificate can have (upstream.tls.server_name)",
    ),
    (
        "CertificateRequired",
        "the backend demands a certificate (upstream.tls.cert)",
    ),
    ("received fatal alert", "the backend refuses the TLS handshake"),
    ("corrupt message", "the backend does not speak TLS"),
    (
        "peer is incompatible",
        "the backend speaks no version or cipher suite of TLS that is safe",
    ),
];

/// What comes where HTTP/1.1 was offered and is not spoken.
const NO_HTTP1: &str = "received fatal alert: NoApplicationProtocol";

/// What Pingora says where nobody is trusted.
const NO_ROOTS: &str = "CA list is empty";

/// What comes where an origin judges what it is shown after the handshake, as in TLS 1.3: in place of the first response.
const LATE: &str = "received fatal alert";

/// Pingora's `error`. What it quotes is left out, because heads have secrets in them.
pub fn in_words(error: &Error) -> String {
    if let Some(words) = of_tls(error) {
        return words;
    }
    let kind = of_kind(error.etype()).to_owned();
    let cause = error.root_cause();
    let of_http2 = cause.downcast_ref::<h2::Error>();
    match cause.downcast_ref().or_else(|| of_http2.and_then(h2::Error::get_io)) {
        Some(cause) => {
            let cause: &io::Error = cause;
            kind + ": " + &cause.to_string()
        }
        None => match of_http2.and_then(h2::Error::reason) {
            Some(reason) => kind + ": " + reason.description(),
            None => kind,
        },
    }
}

/// Pingora's kinds of errors, in words.
fn of_kind(kind: &ErrorType) -> &str {
    match kind {
        ErrorType::ConnectRefused => "no connection to the backend: it refuses connections",
        ErrorType::ConnectTimedout => "no connection to the backend in time",
        ErrorType::ConnectNoRoute => "no connection to the backend: there is no route to it",
        ErrorType::ConnectError | ErrorType::SocketError | ErrorType::BindError => "no connection to the backend",
        ErrorType::TLSHandshakeTimedout => "no TLS connection to the backend in time",
        ErrorType::ConnectionClosed => "the backend closed the connection",
        ErrorType::ReadError => "reading from the backend failed",
        ErrorType::ReadTimedout => "the backend said nothing in time",
        ErrorType::WriteError => "writing to the backend failed",
        ErrorType::WriteTimedout => "the backend took nothing in time",
        ErrorType::InvalidHTTPHeader | ErrorType::H1Error => "what the backend sent is not a response of HTTP/1.1",
        ErrorType::H2Error => "HTTP/2 with the backend failed",
        kind => kind.as_str(),
    }
}

/// Why there is no TLS connection, when this is what was said about that.
fn because(text: &str) -> String {
    let known = REASONS.iter().find(|(sign, _)| text.contains(sign));
    let reason = known.map_or("the backend ends the TLS handshake", |(_, reason)| reason);
    format!("no TLS connection to the backend: {reason}")
}

/// Why there is no TLS connection, if that is what `error` is about.
fn of_tls(error: &Error) -> Option<String> {
    let text = error.to_string();
    let is_early = matches!(error.etype(), ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert);
    (is_early || text.contains(LATE)).then(|| because(&text))
}

/// Why there is none without root certificates.
pub fn no_roots() -> String {
    because(NO_ROOTS)
}

/// The same for an error of a handshake.
pub fn early_in_words(error: &io::Error) -> String {
    because(&error.to_string())
}

/// Whether this was said because the backend speaks none of the protocols that it was offered. That is HTTP/1.1 at least, so it speaks
/// HTTP/2 alone, and a client has asked for what that can't carry.
pub fn speaks_http2_alone(error: &impl Display) -> bool {
    error.to_string().contains(NO_HTTP1)
}

/// The same for an error after a handshake.
pub fn late_in_words(error: &io::Error) -> Option<String> {
    let text = error.to_string();
    text.starts_with(LATE).then(|| because(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_in_words_with_what_the_system_says() {
        let cause = io::Error::from(io::ErrorKind::ConnectionReset);
        for (error, words) in [
            (
                Error::new(ErrorType::ConnectRefused),
                "no connection to the backend: it refuses connections",
            ),
            (
                Error::because(ErrorType::ReadError, "cookie: hush", cause),
                "reading from the backend failed: connection reset",
            ),
            (
                Error::explain(ErrorType::InvalidHTTPHeader, "cookie: hush"),
                "what the backend sent is not a response of HTTP/1.1",
            ),
            (
                Error::explain(ErrorType::H2Error, "cookie: hush"),
                "HTTP/2 with the backend failed",
            ),
        ] {
            assert_eq!(in_words(&error), words);
        }
    }
}
