use std::time::Duration;

use super::*;

fn settings(variables: &[(&str, &str)]) -> Settings {
    Settings::new(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())))
}

fn yaml(text: &str) -> Option<Node> {
    crate::yaml::parse(text).expect("test YAML")
}

/// The remarks, or the mistakes, as lines.
fn said(settings: Settings) -> Vec<String> {
    match settings.finish(()) {
        Ok(((), remarks)) => remarks
            .into_iter()
            .map(|remark| match remark {
                Remark::Overridden { key, line, variable } => format!("line {line}: {key} < {variable}"),
                Remark::NoEffect { key, line, why } => format!("line {line}: {key}: {why}"),
            })
            .collect(),
        Err(mistakes) => mistakes.texts,
    }
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
    let settings = settings(&[("WAIT", "1s"), ("EMPTY", ""), ("BLANK", "  ")]);
    let mut section = settings.top(yaml("wait: 2s\nother: 3s\nempty: 5s\nblank: 6s"));
    let mut wait = |key, variable| section.value(key, Some(variable), Duration::from_secs(4), duration);
    assert_eq!(wait("wait", "WAIT"), Duration::from_secs(1));
    assert_eq!(wait("other", "OTHER"), Duration::from_secs(3));
    assert_eq!(wait("third", "THIRD"), Duration::from_secs(4));
    assert_eq!(
        wait("empty", "EMPTY"),
        Duration::from_secs(5),
        "an empty variable is unset"
    );
    assert_eq!(
        wait("blank", "BLANK"),
        Duration::from_secs(6),
        "an empty variable is unset"
    );
    section.finish();
    assert_eq!(settings.variable("EMPTY", duration), None);
    assert_eq!(said(settings), ["line 1: wait < WAIT"]);
}

#[test]
fn a_prefixed_variable_wins_over_the_plain_one() {
    let settings = settings(&[
        ("PORT", "tcp://10.0.0.1:80"),
        ("GOPHERPROXY_PORT", "1"),
        ("LIST", "1"),
        ("GOPHERPROXY_LIST", "2"),
        ("ONLY", "3"),
        ("GOPHERPROXY_ONLY", ""),
    ]);
    let mut section = settings.top(None);
    assert_eq!(section.value("port", Some("PORT"), 9, whole(0..=9)), 1);
    assert_eq!(section.list("list", Some("LIST"), vec![], whole(0..=9)), [2]);
    assert_eq!(settings.variable("ONLY", whole(0..=9)), Some(3));
    assert_eq!(said(settings), [""; 0]);
}

#[test]
fn a_kubernetes_service_link_is_called_one() {
    for (name, service, advice) in [
        ("PROXY_PORT", "proxy", ", or set GOPHERPROXY_PROXY_PORT, which wins"),
        ("GOPHERPROXY_PROXY_PORT", "gopherproxy-proxy", ""),
    ] {
        let settings = settings(&[(name, "tcp://10.0.0.1:80")]);
        assert_eq!(settings.variable("PROXY_PORT", whole(0..=9)), None);
        assert_eq!(
            said(settings),
            [format!(
                "{name}: \"tcp://10.0.0.1:80\" looks like a service link, which Kubernetes sets for a Service named \"{service}\"; \
                 set enableServiceLinks: false in the pod's spec{advice}"
            )]
        );
    }
}

#[test]
fn every_mistake_names_its_line_and_key_what_was_expected_and_what_is_there() {
    let settings = settings(&[("SIZE", "64"), ("LIST", "1, ,x")]);
    let file = "top:\n  wait: 5\n  count: [1]\n  sub: 3\n  spelt: 1\n  nothing:\n  many: [1, [2],\n    x]";
    let mut top = settings.top(yaml(file));
    let mut section = top.section("top");
    section.value("wait", None, Duration::ZERO, duration);
    section.value("count", None, 1u8, whole(1..=9));
    section.value("size", Some("SIZE"), 1, size);
    section.value("nothing", None, 1, size);
    section.list("list", Some("LIST"), vec![], whole(1..=9u8));
    section.list("many", None, vec![], whole(1..=9u8));
    section.section("sub").finish();
    section.finish();
    top.finish();
    let mistakes = settings.finish(()).expect_err("the settings are wrong");
    assert_eq!(
        mistakes.texts,
        [
            r#"line 2: top.wait: expected a duration with a unit, such as 5s or 5ms, got "5""#,
            "line 3: top.count: expected one value, got a list",
            r#"line 4: top.sub: expected keys and values (each in a line of its own, with a space after the colon), got "3""#,
            "line 5: top.spelt: unknown key; the keys here are wait, count, size, nothing, list, many, sub",
            "line 6: top.nothing: expected a size above zero with a unit (B, KiB, MiB or GiB), such as 64KiB, got nothing",
            "line 7: top.many: entry 2: expected one value, got a list",
            r#"line 8: top.many: entry 3: expected a whole number from 1 to 9, got "x""#,
            r#"SIZE: expected a size with a unit, such as 64B, 64KiB or 64MiB, got "64""#,
            "LIST: entry 2: expected a whole number from 1 to 9, got nothing",
            r#"LIST: entry 3: expected a whole number from 1 to 9, got "x""#,
        ]
    );
    let text = mistakes.to_string();
    assert!(
        text.starts_with("the configuration has 10 mistakes:\n  line 2: top.wait"),
        "{text}"
    );
}

#[test]
fn an_unknown_key_is_told_apart_from_the_one_that_was_meant() {
    let file = "inner:\n  brust: 1\n  waiting: 2\n  max-size: 3\n  outer: 4\n  both: 5\nburst: 6\n'pass word': 7";
    let settings = settings(&[]);
    let mut top = settings.top(yaml(file));
    top.value("outer", None, 0, whole(0..=9));
    for (name, keys) in [
        ("inner", &["burst", "wait", "max_size"][..]),
        ("one", &["both"]),
        ("two", &["both"]),
    ] {
        let mut section = top.section(name);
        for key in keys {
            section.value(key, None, 0, whole(0..=9));
        }
        section.finish();
    }
    top.finish();
    assert_eq!(
        said(settings),
        [
            "line 2: inner.brust: unknown key; did you mean burst?",
            "line 3: inner.waiting: unknown key; the keys here are burst, wait, max_size",
            "line 4: inner.max-size: unknown key; did you mean max_size?",
            "line 5: inner.outer: unknown key; did you mean outer?",
            "line 6: inner.both: unknown key; did you mean one.both or two.both?",
            "line 7: burst: unknown key; did you mean inner.burst?",
            r#"line 8: "pass…": unknown key; the keys here are outer, inner, one, two"#,
        ]
    );
}

#[test]
fn thousands_of_mistakes_are_counted_and_not_shown() {
    let settings = settings(&[]);
    let file: String = (0..5_000).map(|n| format!("{n}: {n}\n")).collect();
    settings.top(yaml(&file)).finish();
    let text = settings.finish(()).expect_err("unknown keys").to_string();
    assert!(
        text.starts_with("the configuration has 5000 mistakes:\n  line 1: 0"),
        "{text}"
    );
    assert!(text.ends_with("\n  and 4970 more"), "{text}");
}

#[test]
fn what_is_hidden_by_a_variable_and_differs_is_remarked() {
    let settings = settings(&[("WAIT", "1s"), ("LIST", "1,2"), ("OTHER", "3"), ("PORT", "4")]);
    let mut section = settings.top(yaml("wait: 1000ms\nlist: [1, 2]\nother: 4\nport: 5"));
    section.value("wait", Some("WAIT"), Duration::ZERO, duration);
    section.list("list", Some("LIST"), vec![], whole(0..=9));
    section.list("other", Some("OTHER"), vec![], whole(0..=9));
    let port = section.value("port", None, 0, whole(0..=9));
    assert_eq!(section.part("port", "PORT", port, whole(0..=9), |_, port| port), 4);
    section.finish();
    assert_eq!(said(settings), ["line 3: other < OTHER", "line 4: port < PORT",]);
}

#[test]
fn only_keys_that_differ_from_their_defaults_are_said_to_have_no_effect() {
    let settings = settings(&[("C", "3")]);
    let mut section = settings.top(yaml("a: 1\nb: 2\nc: 3"));
    for (key, variable) in [("a", None), ("b", None), ("c", Some("C"))] {
        section.value(key, variable, 1, whole(0..=9));
    }
    section.has_no_effect("it is off");
    section.finish();
    assert_eq!(said(settings), ["line 2: b: it is off"]);
}

#[test]
fn a_section_can_be_off() {
    for (file, variable, on, remarks) in [
        ("", "", true, 0),
        ("a: {b: 2}", "", true, 0),
        ("a: off", "", false, 0),
        ("a: none", "", false, 0),
        ("a: false", "", false, 0),
        ("a: on", "", true, 0),
        ("a: off", "on", true, 1),
        ("a: {b: 2}", "off", false, 1),
        ("", "off", false, 0),
    ] {
        let settings = settings(&[("A", variable)]);
        let mut top = settings.top(yaml(file));
        let (is_on, mut section) = top.switchable("a", Some("A"));
        assert_eq!(is_on, on, "{file} {variable}");
        section.value("b", None, 1, whole(0..=9));
        section.finish();
        top.finish();
        assert_eq!(said(settings).len(), remarks, "{file} {variable}");
    }
    let settings = settings(&[("A", "100")]);
    settings.top(yaml("a: 100")).switchable("a", Some("A")).1.finish();
    assert_eq!(
        said(settings),
        [
            r#"line 1: a: expected keys and values, or off, got "100""#,
            r#"A: expected on or off, got "100""#
        ]
    );
}

#[test]
fn no_mistake_repeats_a_secret() {
    let url = "redis://user:hunter2@host/x";
    let settings = settings(&[("URL", "hunter2"), ("LIST", url), ("ONLY", "hunter2"), ("OTHER", url)]);
    let mut section = settings.top(yaml(&format!("file: hunter2\nsub: {url}\nplain: {url}\n{url}: 1")));
    section.secret("url", Some("URL"), 0, whole(1..=9));
    section.secret("file", None, 0, whole(1..=9));
    section.list("list", Some("LIST"), vec![], whole(1..=9));
    section.value("plain", None, 0, whole(1..=9));
    section.section("sub").finish();
    section.finish();
    assert_eq!(settings.secret_variable("ONLY", whole(1..=9)), None);
    assert_eq!(settings.variable("OTHER", whole(1..=9)), None);
    let mistakes = said(settings);
    assert_eq!(mistakes.len(), 8, "{mistakes:#?}");
    for mistake in mistakes {
        assert!(!mistake.contains("hunter2"), "{mistake}");
    }
}

#[test]
fn a_list_is_the_same_from_a_file_and_from_a_variable() {
    let settings = settings(&[("LIST", " 1 ,2"), ("NONE", "none")]);
    let parse = whole(1..=9u8);
    let mut section = settings.top(yaml("b: [1, 2]\nc: 1,2\nd: ''\ne:\nf: none"));
    assert_eq!(section.list("a", Some("LIST"), vec![], &parse), [1, 2]);
    for key in ["b", "c"] {
        assert_eq!(section.list(key, None, vec![], &parse), [1, 2]);
    }
    for key in ["d", "e", "f"] {
        assert_eq!(section.list(key, None, vec![7], &parse), [0u8; 0]);
    }
    assert_eq!(section.list("g", Some("NONE"), vec![7], &parse), [0u8; 0]);
    section.finish();
    assert_eq!(said(settings), [""; 0]);
}

#[test]
fn names_that_the_user_chose_stand_for_groups_and_for_values() {
    let file = "pools:\n  web: {size: 2, sub: {deep: 3}}\n  api:\n  x.y: {size: 1}\n  last: 4\nshares: {a: 1, b: x, '-': 3, c: [1]}\nkeys: {k: hunter2}\nnone:\nlist: [1]";
    let settings = settings(&[]);
    let mut top = settings.top(yaml(file));
    let name = |text: &str| match text.bytes().all(|byte| byte.is_ascii_lowercase()) {
        true => Ok(text.to_owned()),
        false => Err("a word".into()),
    };
    let mut sizes = Vec::new();
    for Named {
        name,
        place,
        mut section,
    } in top.named("pools", name)
    {
        let size = section.value("size", None, 9, whole(0..=9));
        let deep = section.section("sub").value("deep", None, 8, whole(0..=9));
        sizes.push((name, place.to_string(), size, deep));
        section.finish();
    }
    let row = |name: &str, line, size, deep| (name.to_owned(), format!("line {line}: pools.{name}"), size, deep);
    assert_eq!(sizes, [row("api", 3, 9, 8), row("last", 5, 9, 8), row("web", 2, 2, 3)]);
    assert_eq!(top.pairs("shares", name, whole(0..=9u8)), [("a".to_owned(), 1)]);
    assert_eq!(top.secret_pairs("keys", name, whole(0..=9u8)), []);
    assert_eq!(top.named("none", name).len() + top.named("unset", name).len(), 0);
    assert_eq!(top.pairs("list", name, whole(0..=9u8)), []);
    top.finish();
    assert_eq!(
        said(settings),
        [
            r#"line 4: pools."x…": expected a word, got the name "x…""#,
            r#"line 5: pools.last: expected keys and values (each in a line of its own, with a space after the colon), got "4""#,
            "line 6: shares.-: expected a word, got the name -",
            r#"line 6: shares.b: expected a whole number from 0 to 9, got "x""#,
            "line 6: shares.c: expected one value, got a list",
            "line 7: keys.k: expected a whole number from 0 to 9, got a value that is not shown because it may hold a password",
            "line 9: list: expected keys and values (each in a line of its own, with a space after the colon), got a list",
        ]
    );
}

#[test]
fn an_unknown_key_in_a_named_group_is_told_apart_once_for_all_groups() {
    let settings = settings(&[]);
    let mut top = settings.top(yaml("pools: {a: {sise: 1}, b: {other: 2}, c: {}}\nsize: 3"));
    for mut pool in top.named("pools", |text| Ok(text.to_owned())) {
        pool.section.value("size", None, 0, whole(0..=9));
        pool.section.finish();
    }
    top.finish();
    assert_eq!(
        said(settings),
        [
            "line 1: pools.a.sise: unknown key; did you mean size?",
            "line 1: pools.b.other: unknown key; the keys here are size",
            "line 2: size: unknown key; did you mean pools.NAME.size?",
        ]
    );
}

#[test]
fn a_misplaced_key_is_told_its_place_though_the_file_has_no_such_group() {
    let settings = settings(&[]);
    let mut top = settings.top(yaml("size: 3\ncolour: red"));
    top.section("paint").value("colour", None, 0, whole(0..=9));
    top.finish();
    settings.knows(["pools.NAME.size", "pools.NAME.colour"].map(Into::into).into());
    assert_eq!(
        said(settings),
        [
            "line 1: size: unknown key; did you mean pools.NAME.size?",
            "line 2: colour: unknown key; did you mean paint.colour?",
        ]
    );
}

type Shown = Vec<(Option<String>, Vec<u8>)>;

/// The lists of `file` and of the variable, and the mistakes or remarks.
fn lists(file: &str, variable: &str) -> (Option<Shown>, Vec<String>) {
    let settings = settings(&[("LISTS", variable)]);
    let mut section = settings.top(yaml(file));
    let name = |text: &str| match text.len() {
        1 => Ok(text.to_owned()),
        _ => Err("a letter".to_owned()),
    };
    let lists = section.lists("a", "more", "LISTS", &[7], name, whole(1..=9u8));
    section.has_no_effect("it is off");
    section.finish();
    let shown = lists.map(|lists| lists.into_iter().map(|list| (list.name, list.values)).collect());
    (shown, said(settings))
}

#[test]
fn several_lists_are_the_same_from_a_file_and_from_a_variable() {
    let list = |name: Option<&str>, values: &[u8]| (name.map(str::to_owned), values.to_vec());
    let both = vec![list(None, &[1, 2]), list(Some("b"), &[3])];
    for (file, variable, expected) in [
        ("", "", None),
        ("more: {}", "", None),
        ("more:", "", None),
        ("", "1,2; b = 3", Some(both.clone())),
        ("a: [1, 2]\nmore: {b: [3]}", " 1 , 2 ;b=3", Some(both.clone())),
        ("", "b=3", Some(vec![list(Some("b"), &[3])])),
        ("", "none;b=3", Some(vec![list(None, &[]), list(Some("b"), &[3])])),
        ("a: 7", "", Some(vec![list(None, &[7])])),
    ] {
        assert_eq!(lists(file, variable), (expected, vec![]), "{file:?} {variable:?}");
    }
    let (found, mut remarks) = lists("a: [1, 2]\nmore: {b: 3}", "");
    remarks.sort();
    assert_eq!(found, Some(both));
    assert_eq!(remarks, ["line 1: a: it is off", "line 2: more: it is off"]);
    let (found, remarks) = lists("a: 1\nmore: {b: 3}", "b=3");
    assert_eq!(found, Some(vec![list(Some("b"), &[3])]));
    assert_eq!(remarks, ["line 1: a < LISTS", "line 2: more < LISTS"]);
}

#[test]
fn a_mistake_in_one_of_several_lists_names_the_list() {
    for (file, variable, said) in [
        (
            "",
            "1;b=3,x",
            "LISTS: b: entry 2: expected a whole number from 1 to 9, got \"x\"",
        ),
        ("", "1;bb=3", "LISTS: expected a letter, got \"bb\""),
        (
            "",
            "1;b=3;",
            "LISTS: expected a list before and behind each ;, got nothing",
        ),
        ("", "1;=3", "LISTS: expected a letter, got nothing"),
        (
            "",
            "1;b,c=3",
            "LISTS: entry 1: expected a whole number from 1 to 9, got \"b\"",
        ),
        (
            "more: {b: [x]}",
            "",
            "line 1: more.b: entry 1: expected a whole number from 1 to 9, got \"x\"",
        ),
        (
            "more: {bb: 3}",
            "",
            "line 1: more.bb: expected a letter, got the name bb",
        ),
        (
            "more: 3",
            "",
            "line 1: more: expected keys and values (each in a line of its own, with a space after the colon), got \"3\"",
        ),
    ] {
        let mistakes = lists(file, variable).1;
        assert_eq!(
            mistakes.first().map(String::as_str),
            Some(said),
            "{file:?} {variable:?}: {mistakes:#?}"
        );
    }
    let secret = lists("", "1;http://user:hunter=2@host").1;
    assert!(!format!("{secret:?}").contains("hunter"), "{secret:?}");
}
