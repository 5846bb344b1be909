//! Certificates and keys, as they are found on disk, and the certificates that clients show.
//!
//! An input that begins with `0` is a certificate in DER form, which is given to the loader as PEM with the key [`KEY`]: so most of a
//! certificate can be wrong, and it belongs to its key all the same. Any other is a file as it is, with a certificate and a key. Either
//! it can be used, and is for the names that it says, or there is a reason, which quotes nothing of the file.
#![no_main]

use std::time::SystemTime;

use gopherproxy::tls::certificates::{Certificate, Certificates, Unusable};
use gopherproxy::tls::subject;
use libfuzzer_sys::{Corpus, fuzz_target};

/// An Ed25519 key in PKCS #8: 32 bytes of 7.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
                   MC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH\n\
                   -----END PRIVATE KEY-----\n";

/// All reasons: none depends on what is in a file.
const REASONS: [&str; 6] = [
    "it holds no certificate",
    "it is not PEM",
    "its first certificate can't be read",
    "its first certificate has names that can't be read",
    "it holds no unencrypted private key in PEM form",
    "it is a key of a kind that is not supported: use ECDSA (P-256, P-384), Ed25519 or RSA",
];

fuzz_target!(|input: &[u8]| -> Corpus {
    let is_der = input.starts_with(b"0");
    let loaded = if is_der {
        let pem = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            base64(input)
        );
        Certificate::parse(pem.as_bytes(), KEY.as_bytes())
    } else {
        Certificate::parse(input, input)
    };
    if is_der && let Some(text) = subject::of(input) {
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text:?}");
    }
    match loaded {
        Err(Unusable::Certificate(why) | Unusable::Key(why)) => assert!(REASONS.contains(&&*why), "{why}"),
        Err(Unusable::Pair) => {}
        Ok(certificate) => {
            let leaf = certificate.leaf().expect("it has one");
            assert!(!is_der || leaf.as_ref() == input);
            let _ = certificate.remark(SystemTime::now());
            let (names, ends) = (certificate.names.clone(), certificate.not_after);
            let name = certificate.name();
            let all = Certificates::new(vec![certificate.clone(), certificate]);
            assert_eq!(all.expiry().into_iter().collect::<Vec<_>>(), [(name, ends)]);
            for name in names {
                assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase()));
                let host = name.strip_prefix("*.").map(|parent| format!("any.{parent}"));
                assert!(all.has(Some(host.as_deref().unwrap_or(&name))), "{name}");
            }
            assert!(!all.has(None));
        }
    }
    Corpus::Keep
});

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(*group.get(at).unwrap_or(&0)));
        for at in 0..4 {
            let digit = char::from(DIGITS[(bits >> (18 - 6 * at)) as usize & 63]);
            text.push(if at <= group.len() { digit } else { '=' });
        }
    }
    text
}
