//! Which forwarder the proxies of the tests use: FORWARDER=pingora runs the tests over Pingora's own proxying.

use std::ffi::OsString;
use std::process::Command;

const VARIABLE: &str = "FORWARDER";

/// What Pingora's own proxying can't do: the tests that are skipped over it, and why.
const SKIPPED: [(&str, &str); 28] = [
    (
        "compression::streams::trailers_pass_behind_a_compressed_body",
        "it has no trailers over HTTP/1.1",
    ),
    (
        "connection_reuse::posts_on_connections_that_the_origin_closes_when_idle_all_arrive_once",
        "its pool does not say how long a connection was idle",
    ),
    (
        "connection_reuse::what_must_not_be_repeated_is_not_put_on_a_connection_that_was_idle_for_long",
        "its pool does not say how long a connection was idle",
    ),
    (
        "full_duplex::a_client_that_leaves_while_its_upload_waits_for_the_origin_is_noticed_at_once",
        "it looks at no client while a piece of the request waits",
    ),
    (
        "full_duplex::an_early_answer_arrives_at_once_though_the_origin_neither_reads_nor_closes",
        "it reads no response while a piece of the request waits",
    ),
    (
        "full_duplex::an_upload_that_waits_for_the_origin_does_not_hold_up_its_reports",
        "it reads no response while a piece of the request waits",
    ),
    (
        "held::an_upload_that_the_origin_does_not_take_gets_503",
        "it does not tell what it has read of a request and not sent",
    ),
    (
        "held::responses_that_nobody_reads_do_not_end_a_proxy_in_its_container",
        "several pieces wait in the channels between its two halves, where they are not counted",
    ),
    (
        "http2::an_upload_waits_at_the_client_while_its_origin_takes_nothing",
        "it does not tell what it has read of a request and not sent",
    ),
    ("http2::trailers_pass_both_ways", "it has no trailers over HTTP/1.1"),
    (
        "http2_connections::a_websocket_whose_stream_is_reset_behind_its_end_ends_though_the_origin_says_nothing",
        "it ends a tunnel with its first half",
    ),
    (
        "http2_stalls::a_hundred_stalled_responses_on_one_connection_hold_little",
        "several pieces wait in the channels between its two halves",
    ),
    (
        "http2_stalls::clients_over_the_budget_for_memory_lose_their_oldest_streams",
        "several pieces wait in the channels between its two halves, where they are not counted",
    ),
    (
        "memory::a_response_that_its_client_does_not_read_waits_at_the_origin",
        "several pieces wait in the channels between its two halves",
    ),
    (
        "memory::an_upload_that_the_origin_does_not_read_waits_at_the_client",
        "several pieces wait in the channels between its two halves",
    ),
    (
        "origin_answers::a_chunked_answer_with_two_readings_is_cut",
        "its reader of chunks is lenient",
    ),
    (
        "origin_answers::interim_answers_without_end_are_no_answer",
        "it waits anew after each of them",
    ),
    (
        "origin_answers::the_fields_of_an_answer_keep_their_order_their_case_and_their_values",
        "it keeps fields of one name together",
    ),
    (
        "origin_answers::trailers_of_a_request_pass_to_the_origin",
        "it has no trailers over HTTP/1.1",
    ),
    (
        "origin_answers::trailers_of_an_answer_pass_to_whom_they_can_be_sent",
        "it has no trailers over HTTP/1.1",
    ),
    (
        "origin_tls_http1::a_session_is_resumed_by_the_next_connection",
        "it makes what it connects with anew for each connection",
    ),
    (
        "origin_tls_http1::an_origin_that_chooses_http_2_is_asked_once_until_it_chooses_otherwise",
        "it needs not ask",
    ),
    (
        "records::the_log_says_which_rule_a_response_breaks",
        "its reader of heads is lenient and names no rule",
    ),
    (
        "smuggling::a_request_line_means_one_thing_or_is_refused",
        "its type for a URI does not take every byte",
    ),
    (
        "targets::every_byte_that_cannot_end_a_target_passes_unchanged",
        "its type for a URI does not take every byte",
    ),
    (
        "websocket::a_tunnel_carries_much_both_ways_at_the_same_time",
        "it reads nothing from the origin while a piece for it waits",
    ),
    (
        "websocket::a_tunnel_that_ends_because_one_end_takes_nothing_is_nobodys_failure",
        "to it that client is slow, by the deadline of a response",
    ),
    (
        "websocket::either_end_of_a_tunnel_may_close_its_half_and_still_be_sent_the_other",
        "it ends a tunnel with its first half",
    ),
];

/// The variable for a process that a test starts, if it is set for the tests.
pub fn variable() -> Option<(&'static str, OsString)> {
    std::env::var_os(VARIABLE).map(|value| (VARIABLE, value))
}

/// Whether the test of this name, which is in the table above, is skipped in this run.
#[allow(clippy::print_stderr, reason = "for whoever runs the tests")]
pub fn skips(test: &str) -> bool {
    let Some((_, reason)) = SKIPPED.iter().find(|(name, _)| *name == test) else {
        panic!("{test} is not in the table of tests that can be skipped");
    };
    let skips = variable().is_some_and(|(_, value)| value == "pingora");
    if skips {
        eprintln!("skipped over Pingora's own proxying: {reason}");
    }
    skips
}

#[test]
fn each_test_that_can_be_skipped_exists() {
    let this = std::env::current_exe().expect("it runs");
    let listed = Command::new(this).arg("--list").output().expect("it starts");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for (name, reason) in SKIPPED {
        assert!(
            listed.lines().any(|line| line == format!("{name}: test")),
            "no test {name}"
        );
        assert!(!reason.is_empty(), "{name}");
    }
}
