//! Quotes in messages what a user wrote.

/// The longest text that is shown whole, in characters.
const MAX_SHOWN: usize = 80;

/// A value in quotes, without what may be a secret. Messages go into the log, and people put URLs into the wrong key: of whatever
/// looks like a URL, only the scheme and a plain host and port are shown, and of anything else nothing before an `@` or after a `?`.
pub fn quoted(text: &str) -> String {
    let (shown, cut) = match text.split_once("://") {
        Some((scheme, rest)) => url(scheme, rest),
        None => {
            let (before, place) = text.rsplit_once('@').map_or(("", text), |(_, place)| ("…@", place));
            let place_only = place.split('?').next().unwrap_or_default();
            (format!("{before}{place_only}"), place_only.len() < place.len())
        }
    };
    let short: String = shown.chars().take(MAX_SHOWN).collect();
    let end = if cut || short.len() < shown.len() { "…" } else { "" };
    format!("\"{}{end}\"", short.escape_debug())
}

/// What is shown of a URL, and whether that leaves something out at the end.
fn url(scheme: &str, rest: &str) -> (String, bool) {
    let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if scheme.is_empty() || !scheme.bytes().all(is_scheme) {
        return (String::new(), true);
    }
    let authority = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let credentials = if authority.len() < rest.len() { "…@" } else { "" };
    let end = authority.find(['/', '?', '#']).unwrap_or(authority.len());
    let (authority, path) = authority.split_at(end);
    // `user:password:host:port`, with a forgotten @, is no host and port.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !host.ends_with(':') => (host, port),
        _ => (authority, ""),
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let plain = match bracketed {
        Some(address) => address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':'),
        None => host.bytes().all(is_host),
    };
    if plain && port.bytes().all(|byte| byte.is_ascii_digit()) {
        (
            format!("{scheme}://{credentials}{authority}"),
            !path.is_empty() && path != "/",
        )
    } else {
        (format!("{scheme}://"), true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_wrote_is_shown_without_secrets() {
        for (text, shown) in [
            ("none", r#""none""#),
            ("10.0.0.0/33", r#""10.0.0.0/33""#),
            ("a\nb\"", r#""a\nb\"""#),
            ("http://a:1", r#""http://a:1""#),
            ("http://[::1]:80/", r#""http://[::1]:80""#),
            ("http://a:1/hunter2", r#""http://a:1…""#),
            ("https://user:hunter2@host/x", r#""https://…@host…""#),
            ("redis://user:hunter2:host:6379", r#""redis://…""#),
            ("redis://user:hunter2", r#""redis://…""#),
            ("redis+unix:///run/redis.sock?pass=hunter2", r#""redis+unix://…""#),
            ("redis://user:hun?ter2@host:1?pass=hunter2", r#""redis://…@host:1…""#),
            ("user:hunter2@host:1", r#""…@host:1""#),
            ("host:1?pass=hunter2", r#""host:1…""#),
            ("hunter2 hunter2://x", r#""…""#),
        ] {
            assert_eq!(quoted(text), shown, "{text}");
        }
        assert!(quoted(&"x".repeat(10_000)).len() < 100);
    }
}
