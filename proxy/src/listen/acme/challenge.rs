//! Proofs to an authority that a host is this proxy's.
//!
//! They lie in `acme.storage` while the authority asks for them, so that each process that shares it can give them: a replica, or the
//! successor in an upgrade.

use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::store::answer_to;
use crate::http1::redirect::CHALLENGES;
use crate::tls::certificates::provider;

/// No token is longer.
const LONGEST_TOKEN: usize = 128;

/// What proves to an authority that asks for `path` that the host is this proxy's, if it is about to ask for that.
pub async fn proof(storage: &Path, path: &[u8]) -> Option<Vec<u8>> {
    let token = path.strip_prefix(CHALLENGES.as_bytes())?.strip_prefix(b"/")?;
    let token = std::str::from_utf8(token).ok().filter(|token| is_token(token))?;
    let (storage, token) = (storage.to_owned(), token.to_owned());
    beside(move || answer_to(&storage, &token)).await
}

/// What `look` finds in the storage. That may be another machine's disk, and anybody can make the proxy look there, so whoever serves
/// other clients does not wait for it.
async fn beside<T: Send + 'static>(look: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
    // A panic has been logged.
    tokio::task::spawn_blocking(look).await.ok().flatten()
}

/// Whether `token` is one, which is also the name of a file and never a path.
pub(super) fn is_token(token: &str) -> bool {
    let of_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=LONGEST_TOKEN).contains(&token.len()) && token.bytes().all(of_base64)
}

/// The protocol that an authority asks for when it wants a proof in the handshake (RFC 8737).
pub const PROTOCOL: &[u8] = b"acme-tls/1";

/// The name of what proves that `host` is this proxy's. No token has a dot.
pub(super) fn file(host: &str) -> String {
    format!("{host}.pem")
}

/// The certificate that proves it, with its key, PEM: `digest` is what the authority expects in it.
pub(super) fn certificate(host: &str, digest: &[u8]) -> Result<String, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([host.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    Ok(key.serialize_pem() + &certificate.pem())
}

/// What to shake hands with when an authority asks for a proof that `host` is this proxy's, if it is about to ask for that.
pub async fn handshake(storage: &Path, host: &str) -> Option<Arc<ServerConfig>> {
    let (storage, host) = (storage.to_owned(), host.to_ascii_lowercase());
    beside(move || proving(&storage, &host)).await
}

fn proving(storage: &Path, host: &str) -> Option<Arc<ServerConfig>> {
    let of_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if host.starts_with('.') || !host.bytes().all(of_host) {
        return None;
    }
    let pem = answer_to(storage, &file(host))?;
    let key = any_supported_type(&PrivateKeyDer::from_pem_slice(&pem).ok()?).ok()?;
    let certificate = CertificateDer::from_pem_slice(&pem).ok()?;
    let builder = ServerConfig::builder_with_provider(Arc::new(provider()));
    let builder = builder
        .with_safe_default_protocol_versions()
        .ok()?
        .with_no_client_auth();
    // The library would refuse the extension that this certificate is made for, if it looked.
    let resolver = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Some(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::super::store::Store;
    use super::*;

    #[tokio::test]
    async fn only_a_token_that_is_being_asked_for_has_a_proof() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path());
        store.open().unwrap();
        let _answer = store.answer("a-B_9", b"proof").unwrap();
        let proof = async |path: &str| proof(directory.path(), path.as_bytes()).await;
        assert_eq!(
            proof("/.well-known/acme-challenge/a-B_9").await.as_deref(),
            Some(&b"proof"[..])
        );
        let long = format!("/.well-known/acme-challenge/{}", "a".repeat(300));
        for path in [
            "/",
            "/.well-known/acme-challenge",
            "/.well-known/acme-challenge/",
            "/.well-known/acme-challenge/other",
            "/.well-known/acme-challenge/a-B_9/",
            "/.well-known/acme-challenge/a-B_9?x",
            "/.well-known/acme-challenge/../state.json",
            "/.well-known/acme-challenge/.",
            "/.well-known/acme-challenge/a%2dB_9",
            "/x/.well-known/acme-challenge/a-B_9",
            &long,
        ] {
            assert_eq!(proof(path).await, None, "{path}");
        }
    }

    #[tokio::test]
    async fn only_a_host_that_is_being_asked_for_has_a_handshake() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path());
        store.open().unwrap();
        let pem = certificate("a.example", &[7; 32]).unwrap();
        let answer = store.answer(&file("a.example"), pem.as_bytes()).unwrap();
        let handshake = async |host: &str| handshake(directory.path(), host).await;
        assert!(handshake("a.example").await.is_some() && handshake("A.Example").await.is_some());
        for host in [
            "b.example",
            "",
            ".",
            "../a.example",
            "/a.example",
            "challenges/a.example",
        ] {
            assert!(handshake(host).await.is_none(), "{host}");
        }
        drop(answer);
        assert!(handshake("a.example").await.is_none());
    }
}
