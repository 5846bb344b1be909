//! Why there is no TLS connection to an origin, in words for the log.

use pingora::prelude::{Error, ErrorType};

/// What Pingora's text says when something is wrong, and what the log does. Nothing else of that text gets into the log: it quotes the
/// origin's certificate.
const REASONS: [(&str, &str); 14] = [
    (
        "CA list is empty",
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

/// Why there is no TLS connection, if that is what `error` is about. In TLS 1.3 an origin judges what it is shown after the handshake,
/// and says so in place of the first response.
pub fn in_words(error: &Error) -> Option<String> {
    let text = error.to_string();
    let is_late = text.contains("received fatal alert");
    if !is_late && !matches!(error.etype(), ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert) {
        return None;
    }
    let known = REASONS.iter().find(|(sign, _)| text.contains(sign));
    let reason = known.map_or("the backend ends the TLS handshake", |(_, reason)| reason);
    Some(format!("no TLS connection to the backend: {reason}"))
}
