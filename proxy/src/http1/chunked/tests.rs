use super::*;

/// What becomes of a body: how many bytes belong to it (`None` if it has not ended), its data, its trailers.
type Decoded = Result<(Option<usize>, Vec<u8>, Vec<u8>), BadFraming>;

fn decode<'b>(pieces: impl Iterator<Item = &'b [u8]>, room: usize) -> Decoded {
    let (mut decoder, mut data, mut at) = (Decoder::default(), BytesMut::new(), 0);
    for mut piece in pieces {
        while !piece.is_empty() && !decoder.ended() {
            let before = data.len();
            let taken = decoder.decode(piece, &mut data, room)?;
            assert!(data.len() - before <= room);
            assert!(taken == piece.len() || decoder.ended() || data.len() - before == room);
            at += taken;
            piece = &piece[taken..];
        }
    }
    let trailers = decoder.trailers().to_vec();
    Ok((decoder.ended().then_some(at), data.into(), trailers))
}

/// The same, in whatever pieces the body arrives and however little room there is for the data.
fn decoded(body: &[u8]) -> Decoded {
    let whole = decode([body].into_iter(), usize::MAX);
    for room in [1, 2, 3, 7] {
        assert_eq!(decode([body].into_iter(), room), whole, "room for {room}");
    }
    for at in 1..body.len() {
        let shown = body.escape_ascii();
        assert_eq!(decode(body.chunks(at), usize::MAX), whole, "in pieces of {at}: {shown}");
        let (first, second) = body.split_at(at);
        assert_eq!(decode([first, second].into_iter(), 5), whole, "cut at {at}: {shown}");
    }
    whole
}

#[test]
fn a_body_ends_at_its_empty_line_and_not_a_byte_later() {
    for (body, data, trailers) in [
        ("0\r\n\r\n", "", ""),
        ("4\r\nwiki\r\n0\r\n\r\n", "wiki", ""),
        ("A\r\n0123456789\r\n00\r\n\r\n", "0123456789", ""),
        ("1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n0\r\n\r\n", "abcdef", ""),
        ("4;name=\"value\"\r\n\r\n\r\n\r\n0\r\n\r\n", "\r\n\r\n", ""),
        ("4 \t; name\r\nwiki\r\n0\r\n\r\n", "wiki", ""),
        ("000000000000004\r\nwiki\r\n0\r\n\r\n", "wiki", ""),
        (
            "1 \r\nx\r\n0\r\nName: value\r\nOther:\tvalue \r\n\r\n",
            "x",
            "Name: value\r\nOther:\tvalue \r\n",
        ),
        ("0\r\nEmpty:\r\n\r\n", "", "Empty:\r\n"),
        (
            "0\r\nContent-Length: 5\r\nA: b\r\nHost: c\r\nD: e\r\n\r\n",
            "",
            "A: b\r\nD: e\r\n",
        ),
    ] {
        let expected = |end| Ok((end, data.into(), trailers.into()));
        assert_eq!(decoded(body.as_bytes()), expected(Some(body.len())), "{body:?}");
        let more = body.to_owned() + "GET / HTTP/1.1\r\n\r\n";
        assert_eq!(decoded(more.as_bytes()), expected(Some(body.len())), "{more:?}");
        let cut = &body.as_bytes()[..body.len() - 1];
        assert_eq!(decoded(cut), Ok((None, data.into(), Vec::new())), "{body:?} cut short");
    }
}

#[test]
fn framing_that_readers_disagree_on_is_refused() {
    let lf = "a line ends with LF alone";
    let cr = "a CR is not followed by LF";
    let empty = "a chunk size is empty";
    let size = "a chunk size is not a hexadecimal number";
    let long = "a chunk size has more than 15 digits";
    let data = "the data of a chunk is longer than its size";
    let trailer = "a trailer is not a field";
    for (body, why) in [
        ("\r\n\r\n", empty),
        (";x\r\n\r\n", empty),
        (" 4\r\nwiki\r\n0\r\n\r\n", empty),
        ("4\r\nwiki\r\n\r\n", empty),
        ("+4\r\nwiki\r\n0\r\n\r\n", size),
        ("-4\r\nwiki\r\n0\r\n\r\n", size),
        ("0x4\r\nwiki\r\n0\r\n\r\n", size),
        ("4\nwiki\n0\n\n", lf),
        ("4;a\nb\r\nwiki\r\n0\r\n\r\n", lf),
        ("4 \nwiki\r\n0\r\n\r\n", lf),
        ("4;a\rb\r\nwiki\r\n0\r\n\r\n", cr),
        ("4\rwiki", cr),
        ("4;a\0\r\n", "a chunk extension has a control character"),
        ("4;a\x7f\r\n", "a chunk extension has a control character"),
        ("4\r\nwikipedia\r\n0\r\n\r\n", data),
        ("4\r\nwiki0\r\n\r\n", data),
        ("4\r\nwiki\n0\r\n\r\n", data),
        ("4\r\nwiki\r0\r\n\r\n", cr),
        ("g\r\n\r\n", size),
        ("11111111111111111\r\n\r\n", long),
        ("ffffffffffffffff\r\n\r\n", long),
        ("0000000000000004\r\nwiki\r\n0\r\n\r\n", long),
        ("4 4\r\nwiki\r\n0\r\n\r\n", size),
        ("0\r\nTrailer\0: x\r\n\r\n", trailer),
        ("0\r\nTrailer : x\r\n\r\n", trailer),
        ("0\r\nTrailer: x\0\r\n\r\n", trailer),
        ("0\r\nTrailer: x\n\r\n", lf),
        ("0\r\nTrailer: x\ry\r\n\r\n", cr),
        ("0\r\nTrailer\r\n\r\n", trailer),
        ("0\r\n: x\r\n\r\n", trailer),
        ("0\r\n x\r\n\r\n", trailer),
        ("0\r\nTrailer: x\r\n y\r\n\r\n", trailer),
        ("0\r\nGET / HTTP/1.1\r\n\r\n", trailer),
        ("0\r\n\n", lf),
        ("0\r\n\r\r\n", cr),
    ] {
        assert_eq!(decoded(body.as_bytes()), Err(BadFraming(why)), "{body:?}");
    }
}

#[test]
fn lines_and_trailers_have_a_greatest_length() {
    let ended = |body: &str| decode([body.as_bytes()].into_iter(), usize::MAX).map(|(end, ..)| end == Some(body.len()));
    let line = |length: usize| format!("0;{}\r\n\r\n", "x".repeat(length - 4));
    let longer = Err(BadFraming("the line of a chunk size is longer than 256 bytes"));
    assert_eq!(ended(&line(256)), Ok(true));
    assert_eq!(ended(&line(257)), longer);
    assert_eq!(ended(&format!("4;{}", "x".repeat(1 << 20))), longer);
    assert_eq!(ended(&format!("4{}", " ".repeat(1 << 20))), longer);
    let trailers = |length: usize| format!("0\r\nX:{}\r\n\r\n", "y".repeat(length - 6));
    let longer = Err(BadFraming("the trailers are longer than 8 KiB"));
    assert_eq!(ended(&trailers(8 << 10)), Ok(true));
    assert_eq!(ended(&trailers((8 << 10) + 1)), longer);
    // Those that are dropped count too.
    assert_eq!(ended(&format!("0\r\n{}", "Host: x\r\n".repeat(1 << 10))), longer);
}

#[test]
fn trailers_keep_nothing_that_decides_how_the_message_is_read() {
    for name in [
        "Transfer-Encoding",
        "content_length",
        "Trailer",
        "Connection",
        "TE",
        "upgrade",
        "AUTHORIZATION",
        "Set-Cookie",
        "Cookie",
        "Content-Type",
        "Cache-Control",
        "X-Forwarded-For",
        "X_Real_IP",
        "Host",
    ] {
        let body = format!("0\r\nA: b\r\n{name}: x\r\nServer-Timing: c\r\n\r\n");
        let (_, _, trailers) = decoded(body.as_bytes()).unwrap();
        assert_eq!(
            trailers.escape_ascii().to_string(),
            r"A: b\r\nServer-Timing: c\r\n",
            "{name}"
        );
    }
}

#[test]
fn a_broken_body_gives_the_data_of_its_whole_chunks() {
    for (body, expected) in [
        ("2\r\nok\r\n-2\r\nok\r\n", "ok"),
        ("2\r\nok\r\n2\r\nno0\r\n\r\n", "ok"),
        ("2\r\nok\r\n2\r\nno\rx", "ok"),
        ("2\r\nok0\r\n\r\n", ""),
        ("2\r\nok\r\n0\r\n:\r\n", "ok"),
    ] {
        let mut data = BytesMut::from("head");
        let result = Decoder::default().decode(body.as_bytes(), &mut data, usize::MAX);
        assert!(result.is_err(), "{body:?}");
        assert_eq!(data, format!("head{expected}"), "{body:?}");
    }
}

#[test]
fn without_room_all_is_read_but_data() {
    let (mut decoder, mut data) = (Decoder::default(), BytesMut::new());
    let body = b"2\r\nok\r\n0\r\n\r\n";
    assert_eq!(decoder.decode(body, &mut data, 0), Ok(3));
    assert_eq!(decoder.decode(&body[3..], &mut data, 1), Ok(1));
    assert_eq!(decoder.decode(&body[4..], &mut data, 0), Ok(0));
    assert_eq!(
        decoder.decode(&body[4..], &mut data, 1),
        Ok(8),
        "to the end of the body"
    );
    assert!(decoder.ended());
    assert_eq!(data, "ok");
    assert!(size_of::<Decoder>() <= 48);
}

/// Every short line that is taken here is read the same way by another parser.
#[test]
fn what_is_a_size_line_here_is_the_same_for_httparse() {
    const BYTES: &[u8] = b"04Fx; \t\r\n";
    let mut taken = 0;
    for number in 0..BYTES.len().pow(6) {
        let digit = |place: u32| BYTES[number / BYTES.len().pow(place) % BYTES.len()];
        let line = [digit(0), digit(1), digit(2), digit(3), digit(4), digit(5)];
        let mut decoder = Decoder::default();
        for (index, byte) in line.iter().enumerate() {
            if decoder.step(*byte).is_err() {
                assert_eq!(plain_size_line(Place::Size(None), &line), None);
                break;
            }
            let size = match decoder.place {
                Place::Data(size) => size,
                Place::TrailerStart => 0,
                _ => continue,
            };
            let read = httparse::parse_chunk_size(&line);
            let expected = (size, index + 1);
            let shown = line.escape_ascii();
            assert_eq!(read, Ok(httparse::Status::Complete((index + 1, size))), "{shown}");
            let plain = plain_size_line(Place::Size(None), &line);
            assert!(plain.is_none_or(|plain| plain == expected), "{shown}");
            taken += 1;
            break;
        }
    }
    assert!(taken > 1000, "{taken} lines were taken");
}

#[test]
fn a_chunk_is_written_with_the_size_of_what_is_in_it() {
    for before in [0, 1, 17, 200, 70_000] {
        for length in [0, 1, 15, 16, 255, 256, 4096, 65_535, 65_536] {
            let front: Vec<u8> = (b'a'..=b'z').cycle().take(before).collect();
            let body: Vec<u8> = (b'A'..=b'W').cycle().take(length).collect();
            let mut out = BytesMut::from(&front[..]);
            let fill = |out: &mut BytesMut| {
                out.put_slice(&body);
                Ok::<_, ()>(())
            };
            assert_eq!(write_chunk(&mut out, fill), Ok(length));
            let expected = match length {
                0 => front,
                _ => [&front, format!("{length:x}\r\n").as_bytes(), &body, b"\r\n"].concat(),
            };
            assert!(out == expected, "{length} bytes behind {before}");
        }
    }
    let mut out = BytesMut::from("head");
    let failing = |out: &mut BytesMut| {
        out.put_slice(b"data");
        Err("failed")
    };
    assert_eq!(write_chunk(&mut out, failing), Err("failed"));
    assert_eq!(write_chunk(&mut out, |_| Err("failed")), Err("failed"));
    write_last(&mut out, b"A: b\r\n");
    assert_eq!(out, "head4\r\ndata\r\n0\r\nA: b\r\n\r\n");
}
