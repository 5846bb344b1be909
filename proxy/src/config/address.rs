//! Parses addresses and networks as people write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Every IPv4 address of this machine.
pub(super) fn any(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

/// An address to listen on. As in Caddy and nginx, a port alone, `:8080` and `*:8080` are every IPv4 address; `localhost` is 127.0.0.1.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let expected = || "an address and a port, such as 8080, 127.0.0.1:8080 or \"[::]:8080\"".to_owned();
    let (host, digits) = text.rsplit_once(':').unwrap_or(("", text));
    let port = port(digits).map_err(|_| expected())?;
    match host {
        "" | "*" => Ok(any(port)),
        _ if host.eq_ignore_ascii_case("localhost") => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        _ if host.parse::<Ipv6Addr>().is_ok() => Err(format!("{}, with brackets around an IPv6 address", expected())),
        _ => Err(expected()),
    }
}

/// A port number, or `:8080` as Go programs have it. With 0 the kernel picks a free one.
pub(super) fn port(text: &str) -> Result<u16, String> {
    let digits = text.strip_prefix(':').unwrap_or(text);
    let number = digits.parse().ok().filter(|_| !digits.starts_with('+'));
    number.ok_or_else(|| "a port from 1 to 65535, or 0 for any free one".into())
}

/// A network in CIDR notation; a bare address is a network of one.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let network = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network
        .map(|network| network.trunc())
        .map_err(|_| "an address or a network, such as 10.0.0.0/8 or fd00::/8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_listen_on_is_taken_as_caddy_and_nginx_write_it() {
        for (text, address) in [
            ("80", "0.0.0.0:80"),
            (":8080", "0.0.0.0:8080"),
            ("*:8080", "0.0.0.0:8080"),
            ("localhost:8080", "127.0.0.1:8080"),
            ("10.0.0.1:0", "10.0.0.1:0"),
            ("[::]:8080", "[::]:8080"),
        ] {
            assert_eq!(socket_address(text), Ok(address.parse().unwrap()), "{text}");
        }
        for wrong in [
            "",
            ":",
            "127.0.0.1",
            "localhost",
            "a:80",
            "::1:80",
            "+80",
            ":65536",
            "http://:80",
            "unix:/x",
        ] {
            let expected = socket_address(wrong).unwrap_err();
            assert!(expected.starts_with("an address and a port"), "{wrong}: {expected}");
        }
    }
}
