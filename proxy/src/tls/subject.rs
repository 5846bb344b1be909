//! The subject of a certificate as text (RFC 4514).
//!
//! It goes into a field and into decisions of origins, so nothing in a value can look like another attribute, and every byte of it
//! is printable ASCII: what RFC 4514 would leave as UTF-8 is written in its hexadecimal form, as other proxies do. A value in an encoding
//! that is out of use, such as BMPString, is written as its DER (section 2.4).

use x509_parser::der_parser::asn1_rs::ToDer;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

/// The attributes that have short names in RFC 4514, and the one for addresses of mail.
const SHORT: [(&str, &str); 10] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// The subject of the certificate in `der`; `None` when it can't be read.
pub fn of(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    text(certificate.subject())
}

/// The attributes, the last first.
fn text(name: &X509Name<'_>) -> Option<String> {
    let mut text = String::new();
    let mut relative: Vec<_> = name.iter_rdn().collect();
    relative.reverse();
    for (place, attributes) in relative.into_iter().enumerate() {
        for (number, attribute) in attributes.iter().enumerate() {
            match (place, number) {
                (0, 0) => {}
                (_, 0) => text.push(','),
                _ => text.push('+'),
            }
            let identifier = attribute.attr_type().to_id_string();
            let short = SHORT.iter().find(|(long, _)| *long == identifier);
            text.push_str(short.map_or(identifier.as_str(), |(_, short)| short));
            text.push('=');
            match attribute.as_str() {
                Ok(value) => escape(value, &mut text),
                Err(_) => {
                    let der = attribute.attr_value().to_der_vec().ok()?;
                    text.push('#');
                    text.extend(der.iter().map(|byte| format!("{byte:02X}")));
                }
            }
        }
    }
    Some(text)
}

fn escape(value: &str, text: &mut String) {
    let last = value.len().saturating_sub(1);
    for (place, byte) in value.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' | b'=' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b'#' if place == 0 => text.push_str("\\#"),
            b' ' if place == 0 || place == last => text.push_str("\\ "),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::string::{BmpString, TeletexString};
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::*;

    fn subject(attributes: &[(DnType, impl Into<DnValue> + Clone)]) -> String {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in attributes {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        of(certificate.der()).unwrap()
    }

    #[test]
    fn the_last_attribute_comes_first_with_its_short_name() {
        let attributes = [
            (DnType::CountryName, "DE"),
            (DnType::OrganizationName, "Shop"),
            (DnType::CommonName, "till 7"),
        ];
        assert_eq!(subject(&attributes), "CN=till 7,O=Shop,C=DE");
        let own = DnType::CustomDnType(vec![1, 2, 3, 4]);
        assert_eq!(subject(&[(own, "x")]), "1.2.3.4=x");
    }

    #[test]
    fn no_value_can_pass_for_another_attribute_or_end_a_field() {
        for (value, escaped) in [
            ("a,O=admin", "a\\,O\\=admin"),
            ("a+OU=x", "a\\+OU\\=x"),
            ("a\r\nX: y", "a\\0D\\0AX: y"),
            ("\u{e4}", "\\C3\\A4"),
            (" #a ", "\\ #a\\ "),
            ("#a", "\\#a"),
            ("a\\", "a\\\\"),
        ] {
            assert_eq!(subject(&[(DnType::CommonName, value)]), format!("CN={escaped}"));
        }
    }

    #[test]
    fn a_value_in_an_old_encoding_is_its_der() {
        let bmp = DnValue::BmpString(BmpString::try_from("a,").unwrap());
        let teletex = DnValue::TeletexString(TeletexString::try_from("b").unwrap());
        let attributes = [
            (DnType::OrganizationName, teletex),
            (DnType::CommonName, bmp),
            (DnType::CountryName, "DE".into()),
        ];
        assert_eq!(subject(&attributes), "C=DE,CN=#1E040061002C,O=#140162");
    }

    #[test]
    fn what_is_no_certificate_has_no_subject() {
        assert_eq!(of(b""), None);
        assert_eq!(of(b"\x30\x03\x02\x01\x01"), None);
    }
}
