//! Keys of each kind that a certificate may have.

use rustls::version::{TLS12, TLS13};

use crate::support::tls::{Authority, Client, shown, with_tls};
use crate::support::{Process, embedded, origin};

const HOST: &str = "a.example";

/// A client of TLS 1.2 that knows nothing but RSA.
fn of_rsa_alone(authority: &Authority) -> Client {
    let mut provider = rustls::crypto::ring::default_provider();
    provider
        .cipher_suites
        .retain(|suite| format!("{:?}", suite.suite()).contains("ECDHE_RSA"));
    authority.client_of(provider, &[&TLS12], None)
}

#[tokio::test]
async fn rsa_serves_whoever_knows_it_and_an_elliptic_curve_comes_first() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    let (rsa, curve) = (authority.issue_rsa(&[HOST]), authority.issue(&[HOST]));
    rsa.write(files.path(), "a");
    let configuration = with_tls(&embedded(&[origin.address()]), files.path(), "");
    let alone = Process::proxy(&configuration).await;
    alone.active_backends(1).await;
    curve.write(files.path(), "b");
    let both = Process::proxy(&configuration).await;
    both.active_backends(1).await;
    for (proxy, client, pair) in [
        (&alone, authority.client_with(&[&TLS12], None), &rsa),
        (&alone, authority.client_with(&[&TLS13], None), &rsa),
        (&alone, of_rsa_alone(&authority), &rsa),
        (&both, authority.client_with(&[&TLS12], None), &curve),
        (&both, authority.client_with(&[&TLS13], None), &curve),
        (&both, of_rsa_alone(&authority), &rsa),
    ] {
        let mut connection = client.open(proxy.tls_address(), HOST).await;
        assert_eq!(shown(&connection), pair.der());
        assert_eq!(connection.get("/").await.status, 200);
    }
}
