//! TLS with clients, and ACME.

use super::*;
use crate::tls::Source;

#[test]
fn the_file_for_https_takes_ten_lines_and_a_directory_to_write_to() {
    const FILE: &str = include_str!("../../../../conf/https.yaml");
    let config = read(FILE, &[]).unwrap();
    assert_eq!(config.remarks, []);
    assert!(FILE.lines().count() <= 10);
    let acme = config.acme.unwrap();
    assert_eq!(
        (acme.hosts, acme.challenge),
        (vec!["www.shop.example".to_owned()], Challenge::Http01)
    );
    let issued = "/var/lib/gopherproxy/acme/www.shop.example.pem".into();
    assert_eq!(config.tls.settings.certificates, [Source::Issued(issued)]);
    let unit = include_str!("../../../../conf/gopherproxy.service");
    assert!(unit.contains("StateDirectory=gopherproxy\n"), "it may write there");
    let page = include_str!("../../../../docs/https.md");
    let keys = FILE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('#').next().unwrap().trim_end());
    assert!(
        page.contains(&keys.collect::<Vec<_>>().join("\n")),
        "the page shows the file"
    );
}

#[test]
fn certificates_are_not_ordered_without_what_they_take() {
    let with = |more: &str| {
        let file = format!("gopherproxy:\n  tls: {{listen: 443}}\n  acme:\n    hosts: [a.example]\n{more}");
        read(&file, &[]).unwrap_err()
    };
    let refused = with("");
    assert!(
        refused.contains("gopherproxy.acme.terms_agreed: expected true, got false: "),
        "{refused}"
    );
    let refused = with("    terms_agreed: false\n");
    assert!(
        refused.contains("line 5: gopherproxy.acme.terms_agreed: expected true"),
        "{refused}"
    );
    for (more, says) in [
        (
            "directory: http://ca.example/dir",
            "gopherproxy.acme.directory: expected the URL of an ACME directory, https://",
        ),
        (
            "storage: acme",
            "gopherproxy.acme.storage: expected the absolute path of a directory",
        ),
        (
            "challenge: dns-01",
            "gopherproxy.acme.challenge: expected http-01 or tls-alpn-01",
        ),
        (
            "emails: [ops]",
            "gopherproxy.acme.emails: entry 1: expected an address for mail",
        ),
        (
            "ca_file: ca.pem",
            "gopherproxy.acme.ca_file: expected none or the absolute path",
        ),
    ] {
        let refused = with(&format!("    terms_agreed: true\n    {more}\n"));
        assert!(refused.contains(&format!("line 6: {says}")), "{refused}");
    }
    let refused = read(
        "gopherproxy: {tls: {listen: 443}, acme: {hosts: ['*.a.example'], terms_agreed: true}}",
        &[],
    );
    assert!(
        refused
            .unwrap_err()
            .contains("entry 1: expected the name of one host (a wildcard")
    );
    let refused = read("gopherproxy: {acme: {hosts: [a.example], terms_agreed: true}}", &[]).unwrap_err();
    assert!(
        refused.contains("gopherproxy.tls.listen: acme.hosts gets certificates"),
        "{refused}"
    );
    assert_eq!(
        remarks("gopherproxy:\n  acme:\n    storage: /a\n", &[]),
        ["3 gopherproxy.acme.storage: gopherproxy.acme.hosts names no host"]
    );
}

#[test]
fn tls_is_on_where_it_has_a_port() {
    let certificates = "gopherproxy: {tls: {certificates: [/dir, {cert: /a.pem, key: /b.pem}]}}";
    let config = read(certificates, &[("TLS_PORT", "443")]).unwrap();
    assert_eq!(config.tls.listen, Some(any(443)));
    let (cert, key) = ("/a.pem".into(), "/b.pem".into());
    let sources = [Source::Directory("/dir".into()), Source::Pair { cert, key }];
    assert_eq!(config.tls.settings.certificates, sources);
    let config = read(
        "gopherproxy: {tls: {listen: '[::1]:1', certificates: /dir}}",
        &[("TLS_PORT", "443")],
    );
    assert_eq!(config.unwrap().tls.listen, Some("[::1]:443".parse().unwrap()));
    assert_eq!(
        remarks(certificates, &[]),
        ["1 gopherproxy.tls.certificates: gopherproxy.tls.listen is none; set it, or TLS_PORT"]
    );
    assert!(
        read("", &[("TLS_PORT", "443")])
            .unwrap_err()
            .contains("TLS_PORT: TLS needs a certificate")
    );
    let config = read("gopherproxy: {tls: {certificates: none}}", &[]).unwrap();
    assert_eq!((config.tls.listen, config.tls.settings.certificates), (None, vec![]));
}
