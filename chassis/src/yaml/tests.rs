use super::*;

/// The tree as JSON-like text, each value with its line.
fn shown(text: &str) -> String {
    fn show(node: &Node) -> String {
        let value = match &node.value {
            Value::Scalar { text, .. } => text.clone(),
            Value::List(nodes) => format!("[{}]", nodes.iter().map(show).collect::<Vec<_>>().join(" ")),
            Value::Mapping(entries) => {
                let entries = entries.iter().map(|(key, node)| format!("{key}={}", show(node)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(" "))
            }
        };
        format!("{value}@{}", node.line)
    }
    match parse(text) {
        Ok(node) => node.as_ref().map_or("nothing".into(), show),
        Err(error) => error.to_string(),
    }
}

#[test]
fn values_are_what_was_written_and_know_their_lines() {
    for (text, expected) in [
        ("", "nothing"),
        ("# only a comment\n", "nothing"),
        ("---\n", "nothing"),
        ("a: 0x10\nb:\n  c: \"2\"\n", "{a=0x10@1 b={c=2@3}@2}@1"),
        ("a:\n- 1\n- [2, 3]\n", "{a=[1@2 [2@3 3@3]@3]@1}@1"),
        ("\u{feff}a: 1\r\nb: off\r\n", "{a=1@1 b=off@2}@1"),
        ("a: !!str 5", "{a=5@1}@1"),
    ] {
        assert_eq!(shown(text), expected, "{text:?}");
    }
    assert!(
        parse("a: ~")
            .unwrap()
            .is_some_and(|node| matches!(&node.value, Value::Mapping(entries) if entries["a"].is_null()))
    );
    assert!(
        parse("a: '~'")
            .unwrap()
            .is_some_and(|node| matches!(&node.value, Value::Mapping(entries) if !entries["a"].is_null()))
    );
}

#[test]
fn aliases_and_merge_keys_are_resolved() {
    for (text, expected) in [
        ("a: &x [1]\nb: *x\n", "{a=[1@1]@1 b=[1@1]@2}@1"),
        (
            "a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}\n",
            "{a={k=1@1 l=2@1}@1 b={k=1@1 l=3@2}@2}@1",
        ),
        (
            "a: &x {k: 1}\nb: &y {k: 2, l: 2}\nc:\n  <<: [*x, *y]\n",
            "{a={k=1@1}@1 b={k=2@2 l=2@2}@2 c={k=1@1 l=2@2}@3}@1",
        ),
        (
            "a: 1\nb: {<<: [1]}",
            "line 2: << takes an alias of keys and values, or a list of such aliases",
        ),
    ] {
        assert_eq!(shown(text), expected, "{text:?}");
    }
}

#[test]
fn what_is_not_taken_is_named_with_its_line() {
    for (text, expected) in [
        (
            "a:\n\tb: 1\n",
            "line 2: YAML is indented with spaces, and there is a tab",
        ),
        ("a: 1\nb: [1\n", "line "),
        (
            "a: 1\nlisten: *:8080\n",
            "line 2: not YAML: a value that begins with * needs quotes",
        ),
        (
            "a: 1\nlisten: [::]:8080\n",
            "line 2: not YAML: a value that begins with [ needs",
        ),
        (
            "a: 1\nb: *nothing\n",
            "line 2: not YAML: a value that begins with * needs",
        ),
        (
            "a: {hosts: [*.example.com]}\n",
            "line 1: not YAML: a value that begins with * needs quotes",
        ),
        (
            "a: {hosts: [x.example, *.example.com], b: c}\n",
            "line 1: not YAML: a value that begins with * needs quotes",
        ),
        (
            "a:\n  - *.example.com\n",
            "line 2: not YAML: a value that begins with * needs quotes",
        ),
        ("a: {b: [c}\n", "line 1: not YAML: while parsing a flow sequence"),
        (
            "a: 1\n  b: 2\n",
            "line 2: not YAML: the line is indented more than the one before it",
        ),
        ("a: 1\n---\na: 2\n", "line 2: a second document begins"),
        ("a: 1\nb: 1\na: 2\n", "line 3: a is there twice, first in line 1"),
        ("'to ken': 1\n'to ken': 2\n", "line 2: \"to…\" is there twice"),
        ("? [a]\n: 1\n", "line 1: a key must be a word"),
        ("a: !secret x\n", "line 1: a tag (!) has no meaning here"),
        ("a: &x [*x]\n", "line 1: an alias inside of what it stands for"),
    ] {
        let error = shown(text);
        assert!(error.starts_with(expected), "{text:?}: {error}");
    }
}

#[test]
fn a_syntax_error_repeats_no_value() {
    for text in [
        "a: hunter2\n b: hunter2\n",
        "hunter2",
        "a: 'hunter2\n",
        "a: \"hunter2\\q\"\n",
        "a: [hunter2\n",
        "a: {hunter2: [}\n",
        "a: *hunter2\n",
        "a: !hunter2 x\n",
        "%hunter2\n",
        "a: @hunter2\n",
        "a: hunter2: hunter2\n",
        "pass=hunter2@x: 1\npass=hunter2@x: 1\n",
    ] {
        if let Err(error) = parse(text) {
            assert!(!error.to_string().contains("hunter2"), "{text:?}: {error}");
        }
    }
}

#[test]
fn everything_is_bounded() {
    let aliases: String = (1..=20)
        .map(|n| format!("a{n}: &a{n} [*a{p}, *a{p}, *a{p}]\n", p = n - 1))
        .collect();
    let deep: String = (1..=10_000)
        .map(|n| format!("a{n}: &a{n} [*a{p}]\n", p = n - 1))
        .collect();
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), "*a, ".repeat(100_000));
    let nested: String = (0..1_000).map(|depth| " ".repeat(depth) + "a:\n").collect();
    for text in [
        "[".repeat(200_000),
        "{a: ".repeat(200_000),
        "- ".repeat(200_000),
        "? ".repeat(200_000),
        "&a ".repeat(200_000),
        nested,
        format!("[{}]", "a, ".repeat(300_000)),
        (0..150_000).map(|n| format!("{n}:\n")).collect(),
        format!("a0: &a0 x\n{aliases}"),
        format!("a0: &a0 x\n{deep}"),
        long,
    ] {
        // Neither the stack nor the memory nor the patience of the reader runs out.
        assert!(parse(&text).is_err(), "{:?}", text.get(..40));
    }
}

#[test]
fn only_a_regular_file_of_a_sane_size_is_read() {
    let files = tempfile::tempdir().unwrap();
    let at = |name: &str| files.path().join(name);
    assert!(read_file(files.path()).unwrap_err().contains("a directory"));
    assert!(read_file(Path::new("/dev/zero")).unwrap_err().contains("a device"));
    let made = std::process::Command::new("mkfifo").arg(at("fifo")).status();
    if made.is_ok_and(|status| status.success()) {
        assert!(read_file(&at("fifo")).unwrap_err().contains("a pipe"));
    }
    std::fs::File::create(at("large")).unwrap().set_len(1 << 30).unwrap();
    assert!(read_file(&at("large")).unwrap_err().contains("larger than 1 MiB"));
    std::fs::write(at("latin1"), b"a: 1\nb: caf\xe9\n").unwrap();
    assert_eq!(read_file(&at("latin1")).unwrap_err(), "line 2: it is not UTF-8 text");
    std::fs::write(at("good"), "a: 1").unwrap();
    assert_eq!(read_file(&at("good")), Ok("a: 1".into()));
}
