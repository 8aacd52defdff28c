//! Rows of what answers show, by status, API, cause and Envoy's words.

use super::*;
use crate::openai::{Api, ErrorCause, Observed, ResponseScan};
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn seen(error_cause: Option<ErrorCause>) -> Observed {
    Observed { error_event: error_cause.is_some(), error_cause, ended: true, ..Observed::default() }
}

fn outcome(status: u16, seen: &Observed) -> AnswerOutcome<'_> {
    AnswerOutcome { status, retry_after: None, seen, bytes: 1, readable: true, common: false, names_ours: false }
}

const REFUSED: Event = Event::Refused { common: false };

#[test]
fn a_request_that_two_instances_fail_at_is_the_suspect() {
    // Failures after the first attempt, and whether that one met a silent instance.
    for (failures, first_is_silent, expected) in
        [(0, false, false), (0, true, false), (1, false, true), (1, true, false), (2, true, true), (3, false, true)]
    {
        let mut suspect = Suspect::default();
        (0..failures).for_each(|_| suspect.failed());
        assert_eq!(suspect.is_certain(first_is_silent), expected, "{failures} {first_is_silent}");
    }
}

#[test]
fn every_status_has_one_owner() {
    use ErrorCause::{Busy, Client, Server};
    let status = Event::Suspected(Failure::Status);
    let rows = [
        (200, None, Event::Succeeded),
        (201, None, Event::Succeeded),
        (200, Some(Busy), Event::Busy(None)),
        (200, Some(Client), Event::Unjudged),
        (200, Some(Server), Event::Suspected(Failure::ErrorEvent)),
        (304, None, Event::Unjudged),
        (400, Some(Client), REFUSED),
        (400, Some(Busy), Event::Busy(None)),
        (401, Some(Client), REFUSED),
        (403, None, REFUSED),
        (404, None, REFUSED),
        (408, None, Event::Unjudged),
        (413, Some(Client), REFUSED),
        (422, Some(Client), REFUSED),
        (429, None, Event::Busy(None)),
        (499, None, Event::Unjudged),
        (500, None, status),
        (500, Some(Server), status),
        (500, Some(Client), Event::Unjudged),
        (500, Some(Busy), Event::Busy(None)),
        (501, Some(Server), Event::Unjudged),
        (502, None, status),
        (503, Some(Server), Event::Busy(None)),
        (504, None, status),
        (505, None, Event::Unjudged),
        (529, Some(Server), Event::Busy(None)),
    ];
    for (code, cause, expected) in rows {
        let seen = seen(cause);
        assert_eq!(of_answer(&outcome(code, &seen)), expected, "{code} {cause:?}");
    }
}

#[test]
fn a_name_that_the_filter_wrote_is_no_clients_fault() {
    let seen = seen(Some(ErrorCause::Client));
    let ours = |status| of_answer(&AnswerOutcome { names_ours: true, ..outcome(status, &seen) });
    assert_eq!(ours(404), Event::Refused { common: true });
    assert_eq!(ours(400), REFUSED);
    let common = |status| of_answer(&AnswerOutcome { common: true, ..outcome(status, &seen) });
    assert_eq!(common(400), Event::Refused { common: true });
}

#[test]
fn answers_that_are_not_whole() {
    let (whole, cut) = (seen(None), Observed { ended: false, ..seen(None) });
    let truncated = Event::Suspected(Failure::Truncated);
    assert_eq!(of_answer(&outcome(200, &cut)), truncated);
    assert_eq!(of_answer(&AnswerOutcome { bytes: 0, ..outcome(200, &whole) }), truncated, "an empty 200");
    assert_eq!(of_answer(&AnswerOutcome { bytes: 0, readable: false, ..outcome(200, &cut) }), truncated, "of any type");
    assert_eq!(of_answer(&AnswerOutcome { bytes: 0, readable: false, ..outcome(204, &cut) }), Event::Succeeded);
    let compressed = AnswerOutcome { readable: false, ..outcome(200, &cut) };
    assert_eq!(of_answer(&compressed), Event::Succeeded, "a compressed body says nothing");
}

#[test]
fn envoys_own_words() {
    use Event::{Failed, Suspected, Unjudged};
    use Failure::Unanswered;
    let rows = [
        ("upstream_reset_before_response_started{remote_connection_failure|Connection_refused}", Failed(Unanswered)),
        ("upstream_reset_before_response_started{connection_timeout}", Failed(Unanswered)),
        ("upstream_reset_before_response_started{connection_termination}", Suspected(Unanswered)),
        ("upstream_reset_before_response_started{protocol_error}", Suspected(Unanswered)),
        ("upstream_per_try_idle_timeout", Suspected(Unanswered)),
        ("upstream_response_timeout", Suspected(Unanswered)),
        ("upstream_reset_before_response_started{overflow}", Unjudged),
        ("no_healthy_upstream", Unjudged),
        ("cluster_not_found", Unjudged),
        ("routebalance_silence", Unjudged),
    ];
    for (details, expected) in rows {
        assert_eq!(of_silence(details), expected, "{details}");
    }
    let broken = "upstream_reset_after_response_started{connection_termination}";
    assert_eq!(of_interruption(broken), Suspected(Failure::Truncated));
    assert_eq!(of_interruption("downstream_remote_disconnect"), Unjudged);
}

#[test]
fn the_last_attempt_tells_whose_fault_the_earlier_ones_were() {
    use Failure::{Status, Unanswered};
    let failed = |count| Attempts { count }.failed(3);
    assert_eq!([failed(0), failed(1), failed(3), failed(9)], [0, 0, 2, 3]);
    let rows = [
        (Event::Succeeded, Event::Failed(Unanswered)),
        (Event::Began, Event::Failed(Unanswered)),
        (Event::Failed(Unanswered), Event::Failed(Unanswered)),
        (Event::Suspected(Status), Event::Suspected(Unanswered)),
        (REFUSED, Event::Unjudged),
        (Event::Unjudged, Event::Unjudged),
    ];
    for (last, expected) in rows {
        assert_eq!(Attempts { count: 3 }.earlier(last), expected, "{last:?}");
    }
}

#[test]
fn times_to_come_again() {
    let rows =
        [("3", Some(3_000)), (" 0.5 ", Some(500)), ("-1", None), ("Wed, 21 Oct 2015 07:28:00 GMT", None), ("", None)];
    for (value, expected) in rows {
        assert_eq!(retry_after(value), expected.map(Duration::from_millis), "{value}");
    }
    assert_eq!(retry_after("1e300"), None);
}

#[test]
fn recorded_answers_are_judged() {
    use Failure::{ErrorEvent, Truncated};
    macro_rules! recorded {
        ($name:literal) => {
            include_bytes!(concat!("../../../../tests/fixtures/vllm-small/", $name, ".body")).as_slice()
        };
    }
    let (chat, messages) = (Api::ChatCompletions, Api::Messages);
    let rows = [
        ("whole", chat, recorded!("chat-stream"), Event::Succeeded),
        ("the worker is killed", chat, recorded!("killed-worker-stream"), Event::Suspected(ErrorEvent)),
        ("the server is killed", chat, recorded!("killed-server-stream"), Event::Suspected(Truncated)),
        ("the server hangs until Envoy gives up", chat, recorded!("hung-server-stream"), Event::Suspected(Truncated)),
        ("the server drains", chat, recorded!("drained-server-stream"), Event::Succeeded),
        ("too many requests at once", chat, recorded!("overload-race-chat-stream"), Event::Busy(None)),
        ("the same for Messages", messages, recorded!("overload-race-messages-stream"), Event::Busy(None)),
    ];
    for (what, api, body, expected) in rows {
        let mut scan = ResponseScan::new(api, true);
        scan.push(body);
        assert_eq!(of_answer(&outcome(200, scan.observed())), expected, "{what}");
    }
}

/// What reports and records say of an instance that has a request, and of one that is asked first.
#[test]
fn silent_and_stuck_instances() {
    let settings = settings();
    let report = |unreachable| InstanceReport { unreachable, ..InstanceReport::default() };
    let mut stalled = Records::default();
    stalled.apply(1, Event::Failed(Failure::Stalled), (ms(5_000), ms(5_000)), |_| true, &settings);
    let mut failed = Records::default();
    failed.apply(1, Event::Failed(Failure::Unanswered), (ms(4_000), ms(5_000)), |_| true, &settings);
    let none = Records::default();
    // Records, lost scrapes, when the request was sent, whether the instance is stuck, and whether it is silent.
    let rows = [
        (&none, 0, 4_000, false, false),
        (&none, 1, 4_000, false, true),
        (&none, 8, 4_000, true, true),
        (&failed, 0, 4_000, false, true),
        (&stalled, 0, 4_000, true, true),
        (&stalled, 0, 6_000, false, true),
    ];
    for (records, lost, sent, stuck, silent) in rows {
        let report = report(lost);
        assert_eq!(records.is_stuck(1, Some(&report), ms(sent)), stuck, "{records:?} {lost} {sent}");
        assert_eq!(records.is_silent(1, Some(&report), ms(6_000), &settings), silent, "{records:?} {lost}");
        assert!(!records.is_stuck(2, None, ms(sent)) && !records.is_silent(2, None, ms(6_000), &settings));
    }
}
