//! Reads the header with which a balancer names the client that it connects for: the PROXY protocol, versions 1 and 2
//! (haproxy.org, proxy-protocol.txt).
//!
//! It comes before anything else on a connection, before TLS too. It is read exactly, not a byte further, so that whoever reads
//! next needs to know nothing of it. Version 1 is a line that doesn't tell its length, so that takes some twenty small reads;
//! version 2 takes three.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// What a header of version 2 begins with (section 2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family and protocol, and the length of the rest.
const FIXED: usize = 16;
/// The longest rest of version 2 that is read, in bytes. Nobody is known to send more than a few hundred.
const MAX_REST: usize = 4096;
/// What a header of version 1 begins with (section 2.1).
const WORD: &[u8; 6] = b"PROXY ";
/// The shortest line of version 1 and the longest, with CRLF.
const SHORTEST: usize = b"PROXY UNKNOWN\r\n".len();
const LONGEST: usize = 107;

/// What is known of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// It has not ended: at least so many more bytes belong to it.
    More(usize),
    /// It has ended, and names this client. `None`: the client is the peer itself, or one without an IP address.
    Whole(Option<SocketAddr>),
}

/// Why there is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoHeader {
    /// The peer has closed the connection without a byte, as a health check does that wants no more than a connection.
    Silent,
    /// What came is not one, in words for the log.
    Malformed(&'static str),
}

impl fmt::Display for NoHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Silent => "nothing came",
            Self::Malformed(what) => what,
        })
    }
}

const ABSENT: &str = "the connection does not begin with a PROXY protocol header";

/// Reads the header from `stream`, and nothing behind it. Returns the client that it names.
///
/// # Errors
/// When there is none.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, NoHeader> {
    let mut header = Vec::new();
    loop {
        match parse(&header).map_err(NoHeader::Malformed)? {
            Parsed::Whole(client) => return Ok(client),
            Parsed::More(count) => {
                let read = (&mut *stream)
                    .take(count as u64)
                    .read_buf(&mut header)
                    .await
                    .unwrap_or(0);
                if read == 0 && header.is_empty() {
                    return Err(NoHeader::Silent);
                } else if read == 0 {
                    return Err(NoHeader::Malformed(
                        "the connection ended within its PROXY protocol header",
                    ));
                }
            }
        }
    }
}

/// Reads the header that `bytes` begin with.
///
/// # Errors
/// What is wrong with it, in words for the log.
pub fn parse(bytes: &[u8]) -> Result<Parsed, &'static str> {
    let begins_with = |beginning: &[u8]| bytes.iter().zip(beginning).all(|(one, other)| one == other);
    if begins_with(SIGNATURE) && !bytes.is_empty() {
        binary(bytes)
    } else if begins_with(WORD) {
        line(bytes)
    } else {
        Err(ABSENT)
    }
}

/// Version 2.
fn binary(bytes: &[u8]) -> Result<Parsed, &'static str> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(Parsed::More(FIXED - bytes.len()));
    };
    let [.., version_and_command, family_and_protocol, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if version_and_command >> 4 != 2 {
        return Err("the version of its PROXY protocol header is not 2");
    }
    if length > MAX_REST {
        return Err("its PROXY protocol header is longer than 4 KiB");
    }
    // What a peer says of a connection of its own means nothing.
    let is_local = match version_and_command & 0x0f {
        0 => true,
        1 => false,
        _ => return Err("the command of its PROXY protocol header is neither LOCAL nor PROXY"),
    };
    // Both addresses, then both ports. What follows are TLVs.
    let addresses = match family_and_protocol {
        _ if is_local => 0,
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ => return Err("the address family of its PROXY protocol header is unknown"),
    };
    if length < addresses {
        return Err("its PROXY protocol header is too short for its addresses");
    }
    if rest.len() < length {
        return Ok(Parsed::More(length - rest.len()));
    }
    let port = |at: usize| Some(u16::from_be_bytes(*rest.get(at..)?.first_chunk()?));
    Ok(Parsed::Whole(match family_and_protocol {
        _ if is_local => None,
        0x11 => address(rest.first_chunk::<4>(), port(8)),
        0x21 => address(rest.first_chunk::<16>(), port(32)),
        // Nothing that has a client's address over TCP.
        _ => None,
    }))
}

fn address<A: Copy + Into<IpAddr>>(address: Option<&A>, port: Option<u16>) -> Option<SocketAddr> {
    Some(SocketAddr::new((*address?).into(), port?))
}

/// Version 1.
fn line(bytes: &[u8]) -> Result<Parsed, &'static str> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        let crlf = if bytes.ends_with(b"\r") { 1 } else { 2 };
        let more = crlf.max(SHORTEST.saturating_sub(bytes.len()));
        return if bytes.len() + more <= LONGEST {
            Ok(Parsed::More(more))
        } else {
            Err("the line of its PROXY protocol header is longer than 107 bytes")
        };
    };
    let text = bytes[..end].strip_suffix(b"\r").filter(|_| end < LONGEST);
    let text = text.and_then(|line| line.strip_prefix(WORD));
    let Some(text) = text.filter(|text| !text.contains(&b'\r')) else {
        return Err("the line of its PROXY protocol header does not end with CRLF alone");
    };
    // Whatever stands behind this word means nothing.
    if text == b"UNKNOWN" || text.starts_with(b"UNKNOWN ") {
        return Ok(Parsed::Whole(None));
    }
    let client = || {
        let words: Vec<&str> = str::from_utf8(text).ok()?.split(' ').collect();
        let [family, from, to, from_port, to_port] = words[..] else {
            return None;
        };
        let (from, to) = (from.parse::<IpAddr>().ok()?, to.parse::<IpAddr>().ok()?);
        let (from_port, _) = (port(from_port)?, port(to_port)?);
        let fits = match family {
            "TCP4" => from.is_ipv4() && to.is_ipv4(),
            "TCP6" => from.is_ipv6() && to.is_ipv6(),
            _ => false,
        };
        fits.then(|| SocketAddr::new(from, from_port))
    };
    let client =
        client().ok_or("the line of its PROXY protocol header is not a family, two addresses and two ports")?;
    Ok(Parsed::Whole(Some(client)))
}

/// A decimal number without a sign or zeros in front.
fn port(text: &str) -> Option<u16> {
    let port: u16 = text.parse().ok()?;
    (port.to_string() == text).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 2 with this command, family, rest and length.
    fn v2(command: u8, family: u8, rest: &[u8], length: usize) -> Vec<u8> {
        let length = u16::try_from(length).unwrap().to_be_bytes();
        [SIGNATURE, &[0x20 | command, family][..], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0x30, 0x39, 0x00, 0x50];

    fn v6() -> Vec<u8> {
        let ends: [std::net::Ipv6Addr; 2] = ["2001:db8::1", "::1"].map(|address| address.parse().unwrap());
        [&ends[0].octets()[..], &ends[1].octets(), &[0x30, 0x39, 0, 80]].concat()
    }

    fn whole(client: &str) -> Result<Parsed, &'static str> {
        Ok(Parsed::Whole(Some(client.parse().unwrap())))
    }

    #[test]
    fn a_line_of_version_1_names_the_client() {
        for (line, client) in [
            ("TCP4 192.0.2.1 198.51.100.1 12345 80", Some("192.0.2.1:12345")),
            (
                "TCP4 255.255.255.255 255.255.255.255 65535 65535",
                Some("255.255.255.255:65535"),
            ),
            ("TCP4 0.0.0.0 0.0.0.0 0 0", Some("0.0.0.0:0")),
            ("TCP6 2001:DB8::1 ::1 12345 80", Some("[2001:db8::1]:12345")),
            ("TCP6 ::ffff:192.0.2.1 ::1 1 2", Some("[::ffff:192.0.2.1]:1")),
            ("UNKNOWN", None),
            ("UNKNOWN ", None),
            ("UNKNOWN 1 2 3 4 5 6 \0\u{e4}", None),
        ] {
            let header = format!("PROXY {line}\r\n");
            let expected = Parsed::Whole(client.map(|client| client.parse().unwrap()));
            assert_eq!(parse(header.as_bytes()), Ok(expected), "{line}");
        }
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(LONGEST - 16));
        assert_eq!(parse(longest.as_bytes()), Ok(Parsed::Whole(None)));
    }

    #[test]
    fn what_is_no_line_of_version_1_is_refused() {
        for line in [
            "",
            "TCP4",
            "UNKNOWNS",
            "unknown",
            "TCP5 192.0.2.1 198.51.100.1 1 2",
            "tcp4 192.0.2.1 198.51.100.1 1 2",
            "UDP4 192.0.2.1 198.51.100.1 1 2",
            "TCP4 192.0.2.1 198.51.100.1 1",
            "TCP4 192.0.2.1 198.51.100.1 1 2 3",
            "TCP4 192.0.2.1 198.51.100.1 1 2 ",
            "TCP4  192.0.2.1 198.51.100.1 1 2",
            " TCP4 192.0.2.1 198.51.100.1 1 2",
            "TCP4\t192.0.2.1 198.51.100.1 1 2",
            "TCP4 192.0.2.1 ::1 1 2",
            "TCP4 ::1 ::1 1 2",
            "TCP6 192.0.2.1 198.51.100.1 1 2",
            "TCP6 [::1] ::1 1 2",
            "TCP6 fe80::1%1 ::1 1 2",
            "TCP4 192.0.2.01 198.51.100.1 1 2",
            "TCP4 192.0.2.256 198.51.100.1 1 2",
            "TCP4 192.0.2.1 198.51.100.1 65536 2",
            "TCP4 192.0.2.1 198.51.100.1 01 2",
            "TCP4 192.0.2.1 198.51.100.1 +1 2",
            "TCP4 192.0.2.1 198.51.100.1 1 -2",
            "TCP4 192.0.2.1 198.51.100.1 1 2\r",
            "TCP4 192.0.2.1\r198.51.100.1 1 2",
            "UNKNOWN \r x",
        ] {
            let header = format!("PROXY {line}\r\n");
            assert!(parse(header.as_bytes()).is_err(), "{line:?}");
        }
        for header in [
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n",
            "PROXY UNKNOWN\n",
            "PROXY\r\n",
            "proxy UNKNOWN\r\n",
            "GET / HTTP/1.1\r\n",
            "\x16\x03\x01",
            "\n",
        ] {
            assert!(parse(header.as_bytes()).is_err(), "{header:?}");
        }
        let too_long = format!("PROXY UNKNOWN {}", "f".repeat(LONGEST - 15));
        assert!(parse(too_long.as_bytes()).is_err(), "no CRLF can come in time");
        assert!(parse(format!("{too_long}\r\n").as_bytes()).is_err());
    }

    #[test]
    fn a_header_of_version_2_names_the_client() {
        assert_eq!(parse(&v2(1, 0x11, &V4, 12)), whole("192.0.2.1:12345"));
        assert_eq!(parse(&v2(1, 0x21, &v6(), 36)), whole("[2001:db8::1]:12345"));
        let tlvs = [&V4[..], &[4, 0, 1, 0], &[0xff; 4080]].concat();
        assert_eq!(parse(&v2(1, 0x11, &tlvs, 4096)), whole("192.0.2.1:12345"), "TLVs");
        for (header, what) in [
            (v2(0, 0x00, &[], 0), "LOCAL"),
            (v2(0, 0x11, &V4, 12), "LOCAL with addresses"),
            (v2(0, 0xff, &[1, 2, 3], 3), "LOCAL with nonsense"),
            (v2(1, 0x00, &[], 0), "UNSPEC"),
            (v2(1, 0x00, &[9; 40], 40), "UNSPEC with something"),
            (v2(1, 0x12, &V4, 12), "UDP"),
            (v2(1, 0x22, &v6(), 36), "UDP over IPv6"),
            (v2(1, 0x31, &[b'/'; 216], 216), "a Unix socket"),
        ] {
            assert_eq!(parse(&header), Ok(Parsed::Whole(None)), "{what}");
        }
    }

    #[test]
    fn what_is_no_header_of_version_2_is_refused_as_soon_as_it_is_known() {
        for (header, what) in [
            (v2(2, 0x11, &V4, 12), "a third command"),
            (v2(1, 0x10, &V4, 12), "no protocol"),
            (v2(1, 0x01, &V4, 12), "no family"),
            (v2(1, 0x13, &V4, 12), "a third protocol"),
            (v2(1, 0x41, &V4, 12), "a fourth family"),
            (v2(1, 0x11, &V4, 11), "too short"),
            (v2(1, 0x21, &v6(), 35), "too short for IPv6"),
            (v2(1, 0x31, &[0; 215], 215), "too short for a Unix socket"),
            (v2(1, 0x11, &V4, 4097), "too long"),
            (v2(0, 0x00, &[], 65535), "too long for LOCAL"),
        ] {
            assert!(parse(&header[..FIXED]).is_err(), "{what}");
        }
        let mut first = v2(1, 0x11, &V4, 12);
        first[12] = 0x11;
        assert!(parse(&first).is_err(), "version 1 in binary");
        first[11] = b'\r';
        assert_eq!(parse(&first), Err(ABSENT));
    }

    #[tokio::test]
    async fn it_is_read_to_its_end_and_not_a_byte_further_however_it_arrives() {
        for header in [
            b"PROXY TCP4 192.0.2.1 198.51.100.1 12345 80\r\n".to_vec(),
            b"PROXY UNKNOWN\r\n".to_vec(),
            v2(1, 0x11, &V4, 12),
            v2(1, 0x21, &[v6(), vec![7; 300]].concat(), 336),
            v2(0, 0x00, &[], 0),
        ] {
            let Ok(Parsed::Whole(client)) = parse(&header) else {
                panic!("{header:?}");
            };
            for cut in 0..header.len() {
                match parse(&header[..cut]) {
                    Ok(Parsed::More(more)) => assert!((1..=header.len() - cut).contains(&more), "{header:?} {cut}"),
                    other => panic!("{other:?} of {header:?} after {cut}"),
                }
                let rest = [&header[cut..], b"\r\nGET / HTTP/1.1\r\n"].concat();
                let mut stream = (&header[..cut]).chain(&rest[..]);
                assert_eq!(read(&mut stream).await, Ok(client));
                let mut left = Vec::new();
                stream.read_to_end(&mut left).await.unwrap();
                assert_eq!(left, b"\r\nGET / HTTP/1.1\r\n");
                if cut > 0 {
                    let ended = read(&mut &header[..cut]).await;
                    assert!(matches!(ended, Err(NoHeader::Malformed(_))), "{header:?} {cut}");
                }
            }
        }
        assert_eq!(read(&mut &b""[..]).await, Err(NoHeader::Silent));
        assert_eq!(
            read(&mut &b"GET / HTTP/1.1"[..]).await,
            Err(NoHeader::Malformed(ABSENT))
        );
    }
}
