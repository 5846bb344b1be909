//! What heads and chunked bodies are, read as a whole and line by line, the plain way.

use gopherproxy::http1::head::Body;

/// What concerns a connection alone.
const HOP_BY_HOP: &str = "connection upgrade transfer-encoding keep-alive proxy-connection proxy-authenticate \
                          proxy-authorization te trailer http2-settings";

/// Beside `X-Forwarded-*`, what says where a request came from, or from whom.
const CLAIMS: [&str; 4] = ["forwarded", "x-real-ip", "x-request-id", "x-client-cert-subject"];

/// A request head that was let through.
pub struct Request<'h> {
    pub method: &'h [u8],
    pub target: &'h [u8],
    pub minor: u8,
    pub fields: Vec<(&'h [u8], &'h [u8])>,
    pub body: Body,
}

impl Request<'_> {
    /// How the client spells WebSocket, where it asks for that among others.
    fn websocket(&self) -> Option<&[u8]> {
        let named = self.options().iter().any(|option| option == "upgrade");
        let lists = self.values("upgrade").map(|list| split(list, b","));
        let mut protocols = lists.flatten().map(<[u8]>::trim_ascii);
        let websocket = protocols.find(|protocol| protocol.eq_ignore_ascii_case(b"websocket"));
        websocket.filter(|_| named && self.minor == 1)
    }

    /// The host that an absolute target names, and the target as an origin gets it.
    fn origin_form(&self) -> (Option<&[u8]>, Vec<u8>) {
        let begins = |scheme: &&str| {
            let beginning = self.target.get(..scheme.len());
            beginning.is_some_and(|beginning| beginning.eq_ignore_ascii_case(scheme.as_bytes()))
        };
        let Some(scheme) = ["http://", "https://"].into_iter().find(begins) else {
            return (None, self.target.into());
        };
        let rest = &self.target[scheme.len()..];
        let end = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
        let path = match &rest[end..] {
            [] if self.method == b"OPTIONS" => b"*".into(),
            path @ [b'/', ..] => path.into(),
            path => [b"/", path].concat(),
        };
        (Some(&rest[..end]), path)
    }

    /// Whether its connection is to be kept.
    pub fn keeps(&self) -> bool {
        let options = self.options();
        let says = |option: &str| options.iter().any(|one| one == option);
        !says("close") && (self.minor == 1 || says("keep-alive"))
    }

    /// The options of all `Connection` fields, in lower case.
    fn options(&self) -> Vec<String> {
        let lists = self
            .values("connection")
            .map(|value| str::from_utf8(value).expect("options are text"));
        let options = lists.flat_map(|list| list.split(','));
        options.map(|option| option.trim_ascii().to_ascii_lowercase()).collect()
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let named = move |field: &&(&[u8], &[u8])| field.0.eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().filter(named).map(|field| field.1)
    }
}

/// Where the first empty line ends, whether its lines end in CRLF or LF.
pub fn head_length(stream: &[u8]) -> Option<usize> {
    let ends = |at: &usize| stream[..*at].ends_with(b"\n\n") || stream[..*at].ends_with(b"\n\r\n");
    (0..=stream.len()).find(ends)
}

/// Checks what is passed on of `request`: all but what ends here, in order, and then what the proxy writes of it.
pub fn check_passed_on(request: &Request<'_>, trusted: bool, passed_on: &Request<'_>) {
    let (named, target) = request.origin_form();
    assert_eq!((passed_on.method, passed_on.target), (request.method, &target[..]));
    assert_eq!((passed_on.minor, passed_on.body), (1, request.body));
    let options = request.options();
    let goes_on = |field: &&(&[u8], &[u8])| {
        let name = str::from_utf8(field.0).expect("a name is text").to_ascii_lowercase();
        let alike = name.replace(|sign: char| !sign.is_ascii_alphanumeric(), "-");
        let claim = alike.starts_with("x-forwarded") || CLAIMS.contains(&&*alike);
        let ours = name == "x-forwarded-for" || name == "x-request-id";
        let announces = name == "trailer" && request.body == Body::Chunked;
        let hop_by_hop = HOP_BY_HOP.split_whitespace().any(|one| one == alike) && !announces
            || name != "content-length" && alike == "content-length";
        let nominated = options.contains(&name) && name != "content-length";
        !hop_by_hop && !nominated && !(claim && (!trusted || ours))
    };
    let mut expected: Vec<_> = request.fields.iter().filter(goes_on).copied().collect();
    for (name, value) in &mut expected {
        if name.eq_ignore_ascii_case(b"host") {
            *value = named.unwrap_or(value);
        }
    }
    match request.body {
        Body::Length(_) => {}
        Body::Chunked => expected.push((b"Transfer-Encoding", b"chunked")),
        Body::Upgrade => {
            let protocol = request.websocket().expect("it is asked for");
            expected.extend([(&b"Connection"[..], &b"Upgrade"[..]), (b"Upgrade", protocol)]);
        }
    }
    // A field that ends with the connection has said nothing.
    let said = |name: &str| trusted && request.values(name).next().is_some() && !options.iter().any(|one| one == name);
    if !said("x-forwarded-proto") {
        expected.push((b"X-Forwarded-Proto", b"http"));
    }
    let sent = request.values("host").next();
    if sent.is_none() {
        expected.push((b"Host", named.unwrap_or(b"backend:80")));
    }
    if let Some(host) = named.or(sent).filter(|_| !said("x-forwarded-host")) {
        expected.push((b"X-Forwarded-Host", host));
    }
    let via: &[u8] = if request.minor == 0 {
        b"1.0 gopherproxy"
    } else {
        b"1.1 gopherproxy"
    };
    expected.push((b"Via", via));
    let Some((rest, [(b"X-Forwarded-For", hops), (b"X-Request-Id", id)])) = passed_on.fields.split_last_chunk() else {
        unreachable!("hops and id are at the end: {:?}", passed_on.fields)
    };
    assert_eq!(rest, expected);
    assert!(hops.ends_with(b"192.0.2.1") && (trusted || *hops == b"192.0.2.1"));
    assert!(id.iter().all(u8::is_ascii_graphic) && (trusted || id.len() == 32));
}

/// Takes a head apart that has been let through, and checks what that promises.
pub fn request(head: &[u8]) -> Request<'_> {
    let text = head.strip_suffix(b"\r\n\r\n").expect("a head ends in an empty line");
    let text = text.strip_prefix(b"\r\n").unwrap_or(text);
    assert!(!text.contains(&0));
    let mut lines = split(text, b"\r\n").into_iter();
    let words = split(lines.next().unwrap_or_default(), b" ");
    let [method, target, version] = words[..] else {
        unreachable!("a request line has three words: {words:?}")
    };
    let minor = match version {
        b"HTTP/1.1" => 1,
        b"HTTP/1.0" => 0,
        _ => unreachable!("a request is of HTTP/1.1 or 1.0"),
    };
    assert!(!target.iter().any(|byte| byte.is_ascii_control() || *byte == b'#'));
    let field = |line: &'_ [u8]| {
        let colon = line.iter().position(|byte| *byte == b':').expect("a field has a colon");
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        assert!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic));
        assert!(!value.contains(&b'\r') && !value.contains(&b'\n'));
        colon
    };
    let fields = lines.map(|line| {
        let colon = field(line);
        (&line[..colon], line[colon + 1..].trim_ascii())
    });
    let mut request = Request {
        method,
        target,
        minor,
        fields: fields.collect(),
        body: Body::Length(0),
    };
    request.body = body(&request);
    request
}

/// How the body is delimited, where there is one way to read it.
fn body(request: &Request<'_>) -> Body {
    let hosts: Vec<_> = request.values("host").collect();
    assert!(
        hosts.len() == 1 || (request.minor == 0 && hosts.is_empty()),
        "{hosts:?}"
    );
    assert!(hosts.iter().all(|host| !host.is_empty() && !host.contains(&b'@')));
    let lengths: Vec<_> = request.values("content-length").collect();
    let codings: Vec<_> = request.values("transfer-encoding").collect();
    let switches = request.websocket().is_some();
    match (&lengths[..], &codings[..]) {
        ([], [coding]) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked") && request.minor == 1);
            Body::Chunked
        }
        (lengths @ ([] | [_]), []) => {
            let digits = lengths
                .first()
                .map_or("0", |length| str::from_utf8(length).expect("digits"));
            let length: u64 = digits.parse().expect("a length is a number");
            assert_eq!(digits, length.to_string());
            // Nobody could tell a body from what comes after the switch.
            if switches && length == 0 {
                Body::Upgrade
            } else {
                Body::Length(length)
            }
        }
        _ => unreachable!("one length at most: {lengths:?} {codings:?}"),
    }
}

/// What is between the separators.
fn split<'t>(text: &'t [u8], separator: &[u8]) -> Vec<&'t [u8]> {
    let mut parts = Vec::new();
    let mut from = 0;
    for at in 0..text.len() {
        if at >= from && text[at..].starts_with(separator) {
            parts.push(&text[from..at]);
            from = at + separator.len();
        }
    }
    parts.push(&text[from..]);
    parts
}
