//! Rows per API, recorded responses of a vLLM 0.32, and properties.

mod generated;

use super::*;

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

use Api::*;

fn observe<'a>(api: Api, is_sse: bool, pieces: impl Iterator<Item = &'a [u8]>) -> Observed {
    let mut scan = ResponseScan::new(api, is_sse);
    pieces.for_each(|piece| scan.push(piece));
    scan.observed().clone()
}

/// Scans whole, byte by byte, and in pieces of other sizes.
fn check(api: Api, is_sse: bool, body: &str, expected: &Observed) {
    assert_eq!(observe(api, is_sse, [body.as_bytes()].into_iter()), *expected, "{body}");
    for size in [1, 2, 3, 5, 17, 101] {
        assert_eq!(observe(api, is_sse, body.as_bytes().chunks(size)), *expected, "{body} in pieces of {size}");
    }
}

fn usage(prompt_tokens: u64, completion_tokens: u64, cached_tokens: impl Into<Option<u64>>) -> Option<Usage> {
    Some(Usage { prompt_tokens, completion_tokens, cached_tokens: cached_tokens.into() })
}

fn ended(content_events: u64, usage: Option<Usage>) -> Observed {
    Observed { content_events, usage, ended: true, ..Observed::default() }
}

#[test]
fn recorded_responses() {
    macro_rules! recorded {
        ($name:literal) => {
            include_str!(concat!("../../../../tests/fixtures/vllm-small/", $name, ".body"))
        };
    }
    let response = |observed: Observed, id: &str| Observed { response_id: Some(id.to_owned()), ..observed };
    let busy = |observed: Observed| Observed { error_event: true, error_cause: Some(ErrorCause::Busy), ..observed };
    let told = |ending, tokens, observed: Observed| Observed {
        ending: Some(ending),
        completion_tokens_estimate: tokens,
        has_output: true,
        ..observed
    };
    let cut = |tokens, observed| told(Ending::Limit, tokens, observed);
    let rows = [
        (ChatCompletions, true, recorded!("chat-stream"), cut(14, ended(15, None))),
        (ChatCompletions, true, recorded!("chat-stream-n2"), cut(12, ended(11, usage(35, 12, 0)))),
        (ChatCompletions, true, recorded!("chat-stream-continuous-usage"), cut(7, ended(5, usage(35, 6, 0)))),
        (
            ChatCompletions,
            true,
            recorded!("chat-tools-named-stream"),
            told(Ending::ByItself, 18, ended(25, usage(175, 64, 128))),
        ),
        (ChatCompletions, true, recorded!("overload-race-chat-stream"), busy(ended(0, None))),
        (ChatCompletions, false, recorded!("chat"), cut(14, ended(0, usage(35, 16, 0)))),
        (ChatCompletions, false, recorded!("overload-chat"), busy(ended(0, None))),
        (Completions, true, recorded!("completions-stream"), cut(14, ended(16, usage(4, 16, 0)))),
        (Completions, false, recorded!("completions"), cut(14, ended(0, usage(4, 16, 0)))),
        (
            Responses,
            true,
            recorded!("responses-stream"),
            cut(14, response(ended(15, usage(16, 16, 0)), "resp_8b9af9a1bcc00327")),
        ),
        (
            Responses,
            false,
            recorded!("responses"),
            cut(19, response(ended(0, usage(16, 16, 0)), "resp_bfc48a0e4b9f7fef")),
        ),
        (Messages, true, recorded!("messages-stream"), cut(13, ended(14, usage(16, 16, 0)))),
        (Messages, false, recorded!("messages"), cut(15, ended(0, usage(16, 16, 0)))),
        (Messages, true, recorded!("overload-race-messages-stream"), busy(Observed::default())),
        (CountTokens, false, recorded!("messages-count"), Observed { has_output: true, ..ended(0, None) }),
    ];
    for (api, is_sse, body, expected) in rows {
        check(api, is_sse, body, &expected);
        if is_sse {
            check(api, is_sse, &body.replace('\n', "\r\n"), &expected);
            check(api, is_sse, &body.replace("\n\n", "\n\n: keep-alive\n\n"), &expected);
        }
    }
}

/// Events of one stream each: what counts as content.
#[test]
fn content_events() {
    let chat = |delta: &str| format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#);
    let rows = [
        (ChatCompletions, chat(r#"{"role":"assistant","content":""}"#), 0),
        (ChatCompletions, chat(r#"{"role":"assistant","content":null}"#), 0),
        (ChatCompletions, chat(r#"{"role":"assistant"}"#), 0),
        (ChatCompletions, chat(r#"{"role":"assistant","content":"Hi"}"#), 1),
        (ChatCompletions, chat(r#"{"role":null,"content":"Hi","reasoning_content":null,"tool_calls":null}"#), 1),
        (ChatCompletions, chat(r#"{"role":null,"content":null,"reasoning_content":null,"tool_calls":null}"#), 0),
        (ChatCompletions, chat(r#"{"content":"Hi"}"#), 1),
        (ChatCompletions, chat(r#"{"content":""}"#), 1),
        (ChatCompletions, chat(r#"{"content":"\u0000"}"#), 1),
        (ChatCompletions, chat(r#"{"reasoning":"so"}"#), 1),
        (ChatCompletions, chat(r#"{"reasoning_content":"so"}"#), 1),
        (ChatCompletions, chat(r#"{"content":null,"tool_calls":[{"index":0,"function":{"arguments":"3"}}]}"#), 1),
        (ChatCompletions, chat(r#"{"role":"assistant","tool_calls":[{"index":0,"function":{"name":"f"}}]}"#), 1),
        (ChatCompletions, chat(r#"{"tool_calls":[]}"#), 0),
        (ChatCompletions, chat("{}"), 0),
        (ChatCompletions, r#"{"choices":[],"usage":{"prompt_tokens":1}}"#.to_owned(), 0),
        (ChatCompletions, r#"{"choices":[{"delta":{"role":"a"}},{"delta":{"content":"b"}}]}"#.to_owned(), 1),
        (ChatCompletions, r#"{"delta":{"content":"no"}}"#.to_owned(), 0),
        (ChatCompletions, r#"{"choices":[{"delta":{"content":"broken"#.to_owned(), 0),
        (Completions, r#"{"choices":[{"index":0,"text":"a"}]}"#.to_owned(), 1),
        (Completions, r#"{"choices":[{"index":0,"text":""}]}"#.to_owned(), 1),
        (Completions, r#"{"choices":[]}"#.to_owned(), 0),
        (Responses, r#"{"type":"response.output_text.delta","delta":"a"}"#.to_owned(), 1),
        (Responses, r#"{"delta":"a","type":"response.reasoning_text.delta"}"#.to_owned(), 1),
        (Responses, r#"{"delta":"{","type":"response.function_call_arguments.delta"}"#.to_owned(), 1),
        (Responses, r#"{"type":"response.output_text.done","text":"a"}"#.to_owned(), 0),
        (Responses, r#"{"type":"response.output_item.added","item":{"type":"response.x.delta"}}"#.to_owned(), 0),
        (Messages, r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}"#.to_owned(), 1),
        (
            Messages,
            r#"{"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"{"}}"#.to_owned(),
            1,
        ),
        (Messages, r#"{"type":"content_block_start","content_block":{"type":"text","text":""}}"#.to_owned(), 0),
        (Messages, r#"{"type":"ping"}"#.to_owned(), 0),
    ];
    for (api, event, expected) in rows {
        let stream = format!("data: {event}\n\ndata: {event}\n\n");
        let seen = observe(api, true, stream.as_bytes().chunks(7));
        assert_eq!(seen.content_events, 2 * expected, "{event}");
        assert!(!seen.ended && !seen.error_event, "{event}");
    }
}

/// How an answer ended, as each API says it.
#[test]
fn endings() {
    use Ending::{ByItself, Limit, Other};
    let chat = |reason: &str| format!(r#"{{"choices":[{{"finish_reason":{reason},"delta":{{}}}}]}}"#);
    let two = |a, b| format!(r#"{{"choices":[{{"finish_reason":"{a}"}},{{"finish_reason":"{b}"}}]}}"#);
    let message = |reason: &str| format!(r#"{{"type":"message_delta","delta":{{"stop_reason":{reason}}}}}"#);
    let response = |kind, rest| format!(r#"{{"type":"response.{kind}","response":{{{rest}}}}}"#);
    let whole = |rest: &str| format!(r#"{{"object":"response","output":[{{"status":"completed"}}],{rest}}}"#);
    let text = str::to_owned;
    let rows = [
        (ChatCompletions, chat(r#""stop""#), Some(ByItself)),
        (ChatCompletions, chat(r#""tool_calls""#), Some(ByItself)),
        (ChatCompletions, chat(r#""function_call""#), Some(ByItself)),
        (ChatCompletions, chat(r#""length""#), Some(Limit)),
        (ChatCompletions, chat(r#""content_filter""#), Some(Other)),
        (ChatCompletions, chat(r#""abort""#), Some(Other)),
        (ChatCompletions, chat(r#""error""#), Some(Other)),
        (ChatCompletions, chat(r#""repetition""#), Some(Other)),
        (ChatCompletions, chat(r#""a word that nobody knows""#), Some(Other)),
        (ChatCompletions, chat("null"), None),
        (ChatCompletions, chat(r#""""#), None),
        (ChatCompletions, two("stop", "stop"), Some(ByItself)),
        (ChatCompletions, two("length", "stop"), Some(Limit)),
        (ChatCompletions, two("length", "abort"), Some(Other)),
        (ChatCompletions, text(r#"{"choices":[{"message":{"finish_reason":"length"}}]}"#), None),
        (ChatCompletions, text(r#"{"choices":[{"delta":{"content":"length"},"finish_reason":null}]}"#), None),
        (Completions, text(r#"{"choices":[{"text":"a","finish_reason":"length"}]}"#), Some(Limit)),
        (Responses, whole(r#""status":"completed","incomplete_details":null"#), Some(ByItself)),
        (Responses, whole(r#""status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}"#), Some(Limit)),
        (Responses, whole(r#""incomplete_details":{"reason":"max_output_tokens"},"status":"incomplete""#), Some(Limit)),
        (Responses, whole(r#""status":"incomplete","incomplete_details":{"reason":"content_filter"}"#), Some(Other)),
        (Responses, whole(r#""status":"incomplete""#), Some(Other)),
        (Responses, whole(r#""status":"cancelled""#), Some(Other)),
        (Responses, whole(r#""status":"failed""#), Some(Other)),
        (Responses, whole(r#""status":"in_progress""#), None),
        (Responses, response("created", r#""status":"in_progress""#), None),
        (Responses, response("completed", r#""status":"completed""#), Some(ByItself)),
        (Responses, response("completed", ""), Some(ByItself)),
        (Responses, response("incomplete", r#""incomplete_details":{"reason":"max_output_tokens"}"#), Some(Limit)),
        (Responses, response("incomplete", ""), Some(Other)),
        (Responses, response("failed", r#""status":"failed""#), Some(Other)),
        (Messages, text(r#"{"stop_reason":"max_tokens"}"#), Some(Limit)),
        (Messages, text(r#"{"type":"message_start","message":{"stop_reason":null}}"#), None),
        (Messages, message(r#""end_turn""#), Some(ByItself)),
        (Messages, message(r#""stop_sequence""#), Some(ByItself)),
        (Messages, message(r#""tool_use""#), Some(ByItself)),
        (Messages, message(r#""max_tokens""#), Some(Limit)),
        (Messages, message(r#""pause_turn""#), Some(Other)),
        (Messages, message(r#""refusal""#), Some(Other)),
        (Messages, message(r#""model_context_window_exceeded""#), Some(Other)),
        (Messages, text(r#"{"type":"content_block_delta","delta":{"text":"max_tokens"}}"#), None),
    ];
    for (api, body, expected) in rows {
        let sse = format!("data: {body}\n\n");
        assert_eq!(observe(api, true, sse.as_bytes().chunks(3)).ending, expected, "{api:?} {body}");
        assert_eq!(observe(api, false, body.as_bytes().chunks(3)).ending, expected, "{api:?} {body}");
    }
}

#[test]
fn usage_errors_and_ends() {
    let none = Observed::default;
    let caused = |cause| Observed { error_event: true, error_cause: Some(cause), ..none() };
    let error = || caused(ErrorCause::Server);
    let by_itself = |observed| Observed { ending: Some(Ending::ByItself), ..observed };
    let otherwise = |observed| Observed { ending: Some(Ending::Other), ..observed };
    let used = |usage| Observed { usage, ..none() };
    let rows = [
        (ChatCompletions, true, "", none()),
        (ChatCompletions, false, "", none()),
        (ChatCompletions, true, "data: [DONE]\n\n", ended(0, None)),
        (ChatCompletions, true, "data:[DONE]\n", ended(0, None)),
        (ChatCompletions, true, "data: \"[DONE]\"\n\n", none()),
        (ChatCompletions, false, "data: [DONE]\n\n", none()),
        (ChatCompletions, true, ": keep-alive\n\n: keep-alive\n\n", none()),
        // Usage: the last word counts, null says nothing, an unfinished event says nothing.
        (
            ChatCompletions,
            true,
            "data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\ndata: {\"usage\":null}\n\n",
            used(usage(1, 2, None)),
        ),
        (
            ChatCompletions,
            true,
            "data: {\"usage\":{\"prompt_tokens\":1}}\n\ndata: {\"usage\":{\"completion_tokens\":3}}\n\n",
            used(usage(1, 3, None)),
        ),
        (ChatCompletions, true, "data: {\"usage\":{\"prompt_tokens\":1},\n\n", none()),
        (ChatCompletions, true, "data: {\"usage\":\ndata: {\"prompt_tokens\":1}}\n\n", used(usage(1, 0, None))),
        (ChatCompletions, true, "data: {\"x\":{\"usage\":{\"prompt_tokens\":1}}}\n\n", none()),
        (
            ChatCompletions,
            true,
            "data: {\"usage\":{\"prompt_tokens\":-1,\"completion_tokens\":1.5}}\n\n",
            used(usage(0, 0, None)),
        ),
        (
            Messages,
            true,
            "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":9,\"cache_read_input_tokens\":4,\"output_tokens\":1}}}\n\n\
             data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":7}}\n\n",
            used(usage(9, 7, 4)),
        ),
        (
            ChatCompletions,
            false,
            "{\"usage\":{\"prompt_tokens\":1,\"prompt_tokens_details\":{\"cached_tokens\":1}}} \n",
            ended(0, usage(1, 0, 1)),
        ),
        (
            Embeddings,
            false,
            "{\"data\":[{\"usage\":{}}],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":5}}",
            Observed { has_output: true, ..ended(0, usage(5, 0, None)) },
        ),
        (ChatCompletions, false, "{\"usage\":{\"prompt_tokens\":1}", none()),
        (ChatCompletions, false, "<html>502</html>", none()),
        // Errors inside of a stream.
        (ChatCompletions, true, "data: {\"error\": {\"message\": \"x\", \"code\": 500}}\n\n", error()),
        (ChatCompletions, true, "data: {\"error\": {\"code\": \"x\", \"x\": {\"code\": 1}}}\n\n", error()),
        (ChatCompletions, true, "data: {\"error\": \"\"}\n\n", none()),
        (ChatCompletions, true, "data: {\"error\": {}}\n\n", none()),
        (ChatCompletions, true, "data: {\"error\": []}\n\n", none()),
        (ChatCompletions, true, "data: {\"error\": false}\n\n", none()),
        (ChatCompletions, true, "data: {\"error\": \"x\"}\n\n", error()),
        (ChatCompletions, true, "data: {\"error\": null}\n\n", none()),
        (ChatCompletions, true, "data: {\"x\":{\"error\": {}}}\n\n", none()),
        (Messages, true, "event: error\ndata: {}\n\n", error()),
        (
            Messages,
            true,
            "data: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
            caused(ErrorCause::Busy),
        ),
        (Responses, true, "data: {\"type\":\"error\",\"message\":\"x\"}\n\n", error()),
        (
            Responses,
            true,
            "data: {\"type\":\"response.failed\",\"response\":{\"id\":\"r\",\"error\":{},\"usage\":{\"input_tokens\":3}}}\n\n",
            otherwise(Observed { response_id: Some("r".to_owned()), usage: usage(3, 0, None), ended: true, ..error() }),
        ),
        // Ends.
        (Responses, true, "data: {\"type\":\"response.incomplete\"}\n\n", otherwise(ended(0, None))),
        (Responses, true, "data: {\"type\":\"response.completed\"}\n", by_itself(ended(0, None))),
        (Messages, true, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", ended(0, None)),
        (Messages, true, "data: {\"type\":\"message_delta\",\"delta\":{\"type\":\"message_stop\"}}\n\n", none()),
        // Ids of other APIs and of other things are no response's.
        (ChatCompletions, false, "{\"id\":\"chatcmpl-1\"}", ended(0, None)),
        (Responses, true, "data: {\"item\":{\"id\":\"msg_1\"},\"type\":\"response.output_item.added\"}\n\n", none()),
    ];
    for (api, is_sse, body, expected) in rows {
        check(api, is_sse, body, &expected);
    }
}

/// Random bytes in the likeness of a stream: cuts do not matter, and everything is survived.
#[test]
fn any_bytes_are_survived() {
    let words = [
        "data: ",
        "data:",
        "event: error",
        "event: ",
        ":",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        "[DONE]",
        "{",
        "}",
        "{\"choices\":[{\"delta\":{",
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n",
        "\"content\":\"a\"",
        "}}]}",
        "\"usage\":{\"prompt_tokens\":7}",
        "{\"type\":\"message_stop\"}",
        "\"error\":{}",
        ",",
        "\\",
        "é",
    ];
    let mut seed = 5_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    let (mut content_events, mut ended) = (0, 0);
    for round in 0..20_000 {
        let api = [ChatCompletions, Completions, Responses, Messages, CountTokens, Embeddings][round % 6];
        let length = random(20);
        let mut body: Vec<u8> = (0..length).flat_map(|_| words[random(words.len())].bytes()).collect();
        if round % 4 == 0 && !body.is_empty() {
            let at = random(body.len());
            body[at] = random(256) as u8;
        }
        let is_sse = round % 8 != 0;
        let whole = observe(api, is_sse, [body.as_slice()].into_iter());
        assert_eq!(observe(api, is_sse, body.chunks(1)), whole, "{}", String::from_utf8_lossy(&body));
        let size = 1 + random(7);
        assert_eq!(observe(api, is_sse, body.chunks(size)), whole, "{}", String::from_utf8_lossy(&body));
        content_events += whole.content_events;
        ended += u64::from(whole.ended);
    }
    assert!(content_events > 100 && ended > 100, "the generator is too wild: {content_events}, {ended}");
}
