use std::os::unix::fs::symlink;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use super::*;

/// A certificate for these hosts with its key, both PEM.
fn made(names: &[&str]) -> (String, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn write(directory: &Path, cert: &str, key: &str, (cert_pem, key_pem): &(String, String)) -> Source {
    let (cert, key) = (directory.join(cert), directory.join(key));
    for (path, pem) in [(&cert, cert_pem), (&key, key_pem)] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, pem).unwrap();
    }
    Source::Pair { cert, key }
}

fn certificate(names: &[&str]) -> Certificate {
    let (cert, key) = made(names);
    Certificate::parse(cert.as_bytes(), key.as_bytes()).unwrap()
}

#[test]
fn a_host_gets_its_own_certificate_or_its_domains_or_the_default() {
    let certificates = Certificates::new(vec![
        certificate(&["default.example"]),
        certificate(&["shop.example", "WWW.shop.example"]),
        certificate(&["*.shop.example"]),
    ]);
    let chosen = |name| certificates.choice(name).next().unwrap().name();
    for (name, expected) in [
        (Some("shop.example"), "shop.example"),
        (Some("www.shop.example"), "shop.example"),
        (Some("api.shop.example"), "*.shop.example"),
        (Some("a.b.shop.example"), "default.example"),
        (Some("example"), "default.example"),
        (Some(""), "default.example"),
        (None, "default.example"),
    ] {
        assert_eq!(chosen(name), expected, "{name:?}");
    }
    assert!(certificates.has(Some("api.shop.example")));
    for nobody in [Some("a.b.shop.example"), Some("other.example"), None] {
        assert!(!certificates.has(nobody), "{nobody:?}");
    }
}

#[test]
fn the_expiry_of_a_name_is_the_first_of_its_certificates() {
    let (mut one, mut other) = (certificate(&["a.example"]), certificate(&["a.example"]));
    (one.not_after, other.not_after) = (20, 10);
    let expiry = Certificates::new(vec![one, other]).expiry();
    assert_eq!(expiry, BTreeMap::from([("a.example".to_owned(), 10)]));
}

#[test]
fn what_is_expired_or_not_valid_yet_can_be_used_and_is_remarked_on() {
    let mut certificate = certificate(&["a.example"]);
    (certificate.not_before, certificate.not_after) = (100, 200);
    let at = |seconds| certificate.remark(UNIX_EPOCH + Duration::from_secs(seconds));
    assert!(at(99).unwrap().contains("not valid yet"));
    assert_eq!(at(100), None);
    assert_eq!(at(200), None);
    assert!(at(201).unwrap().contains("expired"));
}

#[test]
fn a_directory_holds_files_beside_each_other_and_folders_of_certbot() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path();
    write(path, "b.crt", "b.key", &made(&["b.example"]));
    write(
        path,
        "a.example/fullchain.pem",
        "a.example/privkey.pem",
        &made(&["a.example"]),
    );
    fs::write(path.join("README"), "certbot puts one here").unwrap();
    fs::create_dir(path.join("empty")).unwrap();
    // A Kubernetes volume: the files are links into a folder that is itself one.
    write(path, "..1/tls.crt", "..1/tls.key", &made(&["k8s.example"]));
    symlink("..1", path.join("..data")).unwrap();
    symlink("..data/tls.crt", path.join("tls.crt")).unwrap();
    symlink("..data/tls.key", path.join("tls.key")).unwrap();
    let sources = [Source::Directory(path.to_owned())];
    let certificates = Certificates::load(&sources).unwrap();
    let names: Vec<_> = certificates.all().iter().map(Certificate::name).collect();
    assert_eq!(names, ["a.example", "b.example", "k8s.example"]);

    // The volume is updated: the links stay, and what they lead to is another file.
    let before = marks(&sources, &[]);
    assert_eq!(marks(&sources, &[]), before);
    write(path, "..2/tls.crt", "..2/tls.key", &made(&["renewed.k8s.example"]));
    symlink("..2", path.join("..new")).unwrap();
    fs::rename(path.join("..new"), path.join("..data")).unwrap();
    assert_ne!(marks(&sources, &[]), before);
    let certificates = Certificates::load(&sources).unwrap();
    assert!(certificates.has(Some("renewed.k8s.example")) && !certificates.has(Some("k8s.example")));

    // A pair that appears is seen too.
    let before = marks(&sources, &[]);
    write(path, "c.crt", "c.key", &made(&["c.example"]));
    assert_ne!(marks(&sources, &[]), before);
}

#[test]
fn what_can_not_be_used_is_named_with_the_reason_and_never_quoted() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path();
    let (one, other) = (made(&["a.example"]), made(&["a.example"]));
    let secret = one.1.lines().nth(1).unwrap().to_owned();
    let broken = format!("-----BEGIN PRIVATE KEY-----\n{secret}!\n-----END PRIVATE KEY-----\n");
    let unended = format!("-----BEGIN {secret}\n");
    let none = (String::new(), String::new());
    for (number, (pair, file, why)) in [
        ((one.0.clone(), other.1), "key", "it is not the key of "),
        ((none.0.clone(), one.1.clone()), "crt", "it holds no certificate"),
        ((one.1.clone(), one.1.clone()), "crt", "it holds no certificate"),
        ((one.0.clone(), none.1), "key", "it holds no unencrypted private key"),
        (
            (one.0.clone(), one.0.clone()),
            "key",
            "it holds no unencrypted private key",
        ),
        ((one.0.clone(), broken), "key", "it is not PEM"),
        ((unended.clone(), one.1.clone()), "crt", "it is not PEM"),
        ((one.0.clone(), unended), "key", "it is not PEM"),
        (
            (one.0.replacen("MII", "AAA", 1), one.1.clone()),
            "crt",
            "its first certificate can't be read",
        ),
        (
            (one.0.clone(), "x".repeat(1 + (1 << 20))),
            "key",
            "it is longer than 1 MiB",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let source = write(path, &format!("{number}.crt"), &format!("{number}.key"), &pair);
        let error = Certificates::load(&[source]).unwrap_err().to_string();
        let begins = format!("{}/{number}.{file}: {why}", path.display());
        assert!(error.starts_with(&begins), "{number}: {error}");
        assert!(!error.contains(&secret[..16]), "{error}");
    }
    for (source, why) in [
        (Source::Directory(path.join("nothing")), "No such file or directory"),
        (Source::Directory(path.join("0.crt")), "Not a directory"),
        (
            Source::Pair {
                cert: path.to_owned(),
                key: path.join("0.key"),
            },
            "it is not a regular file",
        ),
    ] {
        let error = Certificates::load(&[source]).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let empty = path.join("empty");
    fs::create_dir(&empty).unwrap();
    let error = Certificates::load(&[Source::Directory(empty)]).unwrap_err().to_string();
    assert!(error.contains("it holds no certificates: neither NAME.crt"), "{error}");
}
