//! Random requests and responses, and what they look like on the wire.

use fastrand::Rng;

/// The field that each origin writes.
pub const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// How a body is framed, and how long the pieces are that it is sent in.
#[derive(Debug, Clone)]
pub enum Framing {
    None,
    Length(Vec<usize>),
    Chunked {
        pieces: Vec<usize>,
        trailers: bool,
    },
    /// Until the connection ends; only of responses.
    Close(Vec<usize>),
}

impl Framing {
    pub fn data(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Length(pieces) | Self::Chunked { pieces, .. } | Self::Close(pieces) => {
                filled(pieces).concat().into_iter().map(char::from).collect()
            }
        }
    }

    pub fn trailers(&self) -> Vec<String> {
        let has_some = matches!(self, Self::Chunked { trailers: true, .. });
        has_some.then(|| "X-Sum: 1".to_owned()).into_iter().collect()
    }

    pub fn fields(&self) -> String {
        match self {
            Self::None | Self::Close(_) => String::new(),
            Self::Length(_) => format!("Content-Length: {}\r\n", self.data().len()),
            Self::Chunked { trailers: false, .. } => "Transfer-Encoding: chunked\r\n".to_owned(),
            Self::Chunked { trailers: true, .. } => "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n".to_owned(),
        }
    }

    /// As it is sent, piece by piece.
    pub fn wire(&self) -> Vec<Vec<u8>> {
        match self {
            Self::None => Vec::new(),
            Self::Length(pieces) | Self::Close(pieces) => filled(pieces),
            Self::Chunked { pieces, .. } => {
                let chunk = |piece: &Vec<u8>| [format!("{:X}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
                let last = self
                    .trailers()
                    .iter()
                    .map(|line| format!("{line}\r\n"))
                    .collect::<String>();
                let last = format!("0\r\n{last}\r\n").into_bytes();
                filled(pieces).iter().map(chunk).chain([last]).collect()
            }
        }
    }
}

/// When the origin answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// When it has the whole request.
    Whole,
    /// In place of "100 Continue", and without the body.
    Early,
    /// It breaks off in the middle.
    Broken,
}

/// A request and its response.
#[derive(Debug, Clone)]
pub struct Exchange {
    pub method: &'static str,
    pub old: bool,
    pub fields: String,
    /// The client wants to keep the connection.
    pub keeps: bool,
    pub body: Framing,
    /// The client waits for a word of the origin before it sends the body.
    pub expects: bool,
    /// The next request is sent without waiting for the response.
    pub pipelined: bool,
    pub interim: Vec<u16>,
    pub status: u16,
    pub reason: &'static str,
    pub response_fields: String,
    pub response: Framing,
    pub answer: Answer,
    /// The origin closes the connection, and says so.
    pub closes: bool,
}

fn pieces(random: &mut Rng) -> Vec<usize> {
    let most = [3, 40, 5_000, 30_000][random.usize(..4)];
    (0..random.usize(..5)).map(|_| random.usize(1..=most)).collect()
}

/// Pieces of these lengths, of which no two bytes in a row are alike.
fn filled(lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut letters = (b'a'..=b'z').cycle();
    lengths
        .iter()
        .map(|length| letters.by_ref().take(*length).collect())
        .collect()
}

fn some_of(random: &mut Rng, lines: &[&str]) -> String {
    lines
        .iter()
        .filter(|_| random.bool())
        .map(|line| format!("{line}\r\n"))
        .collect()
}

impl Exchange {
    pub fn random(random: &mut Rng) -> Self {
        let method = ["GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE", "OPTIONS"][random.usize(..8)];
        let old = random.u8(..6) == 0;
        let body = match random.u8(..5) {
            0 | 1 => Framing::None,
            2 if !old => Framing::Chunked {
                pieces: pieces(random),
                trailers: random.bool(),
            },
            _ => Framing::Length(pieces(random)),
        };
        let expects = !old && !body.data().is_empty() && random.u8(..3) == 0;
        let close = random.u8(..6) == 0;
        let connection = match (close, old && random.bool()) {
            (true, _) => "Connection: close\r\n",
            (false, true) => "Connection: keep-alive\r\n",
            (false, false) => "",
        };
        let lines = [
            "A: 1",
            "X-Two: 1",
            "cookie: a=b",
            "X-two: 2",
            "TE: trailers",
            "Connection: x-hop",
            "X-Hop: 1",
        ];
        let status = [200, 200, 200, 201, 204, 304, 404, 500, 503][random.usize(..9)];
        let response = match random.u8(..4) {
            _ if status == 204 => Framing::None,
            0 => Framing::Chunked {
                pieces: pieces(random),
                trailers: random.bool(),
            },
            1 => Framing::Close(pieces(random)),
            _ => Framing::Length(pieces(random)),
        };
        let answer = match random.u8(..10) {
            0 | 1 if expects => Answer::Early,
            2 if matches!(response, Framing::Length(_) | Framing::Chunked { .. }) => Answer::Broken,
            _ => Answer::Whole,
        };
        let lines_back = [
            "server: origin",
            "Set-Cookie: a=1",
            "X-B: b",
            "Set-Cookie: c=2",
            "Keep-Alive: timeout=5",
            "Connection: X-Hop",
            "X-Hop: 1",
        ];
        Self {
            method,
            old,
            fields: connection.to_owned() + &some_of(random, &lines),
            keeps: !close && (!old || !connection.is_empty()),
            expects,
            pipelined: !expects && random.bool(),
            body,
            interim: (0..random.usize(..3)).map(|_| [102, 103][random.usize(..2)]).collect(),
            status,
            reason: ["OK", "Fine", ""][random.usize(..3)],
            response_fields: some_of(random, &lines_back) + &some_of(random, &[&format!("Date: {DATE}")]),
            closes: matches!(response, Framing::Close(_)) || answer != Answer::Whole || random.u8(..6) == 0,
            response,
            answer,
        }
    }

    /// The head of the request, which is for the exchange of this number.
    pub fn head(&self, number: usize) -> Vec<u8> {
        let (method, minor) = (self.method, u8::from(!self.old));
        let expect = if self.expects { "Expect: 100-continue\r\n" } else { "" };
        let fields = self.fields.clone() + &self.body.fields() + expect;
        format!("{method} /{number}?q=1 HTTP/1.{minor}\r\nHost: shop.example\r\n{fields}\r\n").into_bytes()
    }

    pub fn has_response_body(&self) -> bool {
        self.method != "HEAD" && !matches!(self.status, 204 | 304)
    }

    /// What the origin sends.
    pub fn answers(&self) -> Vec<Vec<u8>> {
        let interim = |status: &u16| format!("HTTP/1.1 {status} Wait\r\nLink: </a>\r\n\r\n").into_bytes();
        let mut parts: Vec<Vec<u8>> = self.interim.iter().map(interim).collect();
        // Pingora reads the first Connection field only, so there is no other.
        let fields = match self.closes {
            true => self.response_fields.replace("Connection: X-Hop\r\n", "") + "Connection: close\r\n",
            false => self.response_fields.clone(),
        };
        let fields = fields + &self.response.fields();
        parts.push(format!("HTTP/1.1 {} {}\r\n{fields}\r\n", self.status, self.reason).into_bytes());
        if self.has_response_body() {
            parts.extend(self.response.wire());
        }
        if self.answer == Answer::Broken {
            let last = parts.len() - 1;
            let half = parts[last].len() / 2;
            parts[last].truncate(half);
        }
        parts
    }

    /// The client's connection is kept after it.
    pub fn is_kept(&self) -> bool {
        let endless =
            self.has_response_body() && self.old && !matches!(self.response, Framing::Length(_) | Framing::None);
        // Without a length an answer to a client of HTTP/1.0 ends with the connection.
        self.keeps && !endless && self.answer == Answer::Whole
    }
}
