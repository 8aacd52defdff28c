//! The scan of a response, as JSON and as a stream of events, against serde_json and eventsource-stream.

use std::convert::Infallible;

use eventsource_stream::{Event, Eventsource};
use futures::StreamExt;
use futures::executor::block_on;
use routebalance_core::openai::{Api, Observed, ResponseScan, Usage};
use serde_json::{Value, json};

use super::{any_api, json};
use crate::choices::Choices;
use crate::material::RESPONSES;
use crate::novelty::{magnitude, see};

const NAMES: [&str; 34] = [
    "choices",
    "delta",
    "message",
    "content",
    "role",
    "text",
    "finish_reason",
    "index",
    "usage",
    "prompt_tokens",
    "completion_tokens",
    "input_tokens",
    "output_tokens",
    "prompt_tokens_details",
    "cached_tokens",
    "error",
    "code",
    "type",
    "status",
    "id",
    "response",
    "output",
    "item",
    "stop_reason",
    "reasoning",
    "reasoning_content",
    "tool_calls",
    "function",
    "arguments",
    "data",
    "object",
    "detail",
    "incomplete_details",
    "content_block",
];

fn observed<'a>(api: Api, is_sse: bool, pieces: impl IntoIterator<Item = &'a [u8]>) -> Observed {
    let mut scan = ResponseScan::new(api, is_sse);
    pieces.into_iter().for_each(|piece| scan.push(piece));
    scan.observed().clone()
}

fn note(api: Api, seen: &Observed) {
    see((api as u8, seen.error_event, seen.ended, seen.has_output, format!("{:?}", (seen.ending, seen.error_cause))));
    see((api as u8, magnitude(seen.content_events), seen.usage.is_some(), seen.response_id.is_some()));
}

/// A body that is no stream.
pub fn response(data: &[u8]) {
    let mut choices = Choices::new(data);
    let api = any_api(&mut choices);
    let body = if choices.in_256(150) {
        let value = json::object(&mut choices, &NAMES, 0);
        json::written(&mut choices, &value).into_bytes()
    } else {
        choices.bytes_like(RESPONSES)
    };
    let whole = observed(api, false, [body.as_slice()]);
    assert_eq!(whole, observed(api, false, choices.pieces(&body)), "cut in pieces");
    note(api, &whole);
    assert_eq!(whole.content_events, 0, "there are no events");
    assert_eq!(whole.error_event, whole.error_cause.is_some());
    if let Ok(value @ Value::Object(_)) = serde_json::from_slice::<Value>(&body) {
        assert!(whole.ended, "a whole body is its own end");
        // What is read of one usage among several is not promised.
        if body.windows(7).filter(|window| window == b"\"usage\"").count() == 1 && !body.contains(&b'\\') {
            assert_eq!(whole.usage, usage_of(&value, api), "{value}");
        }
    }
}

/// What a body says of its usage.
fn usage_of(value: &Value, api: Api) -> Option<Usage> {
    let subject = match api {
        Api::Responses => value.get("response"),
        Api::Messages => value.get("message"),
        _ => None,
    };
    let usage = value.get("usage").or_else(|| subject.and_then(|subject| subject.get("usage")));
    let usage = usage?.as_object()?;
    let count = |names: [&str; 2]| {
        let mut counts = names.into_iter().filter_map(|name| usage.get(name)?.as_u64());
        let first = counts.next();
        // Of two names for one thing, the last one written counts; this oracle does not know the order.
        if counts.next().is_some() { Err(()) } else { Ok(first) }
    };
    let (Ok(prompt), Ok(completion)) =
        (count(["prompt_tokens", "input_tokens"]), count(["completion_tokens", "output_tokens"]))
    else {
        return observed(api, false, [value.to_string().as_bytes()]).usage;
    };
    let details = ["prompt_tokens_details", "input_tokens_details"].map(|name| usage.get(name));
    let cached = observed(api, false, [value.to_string().as_bytes()]).usage.and_then(|usage| usage.cached_tokens);
    let is_told = usage.contains_key("cached_tokens")
        || usage.contains_key("cache_read_input_tokens")
        || details.iter().flatten().any(|details| details.is_object());
    assert!(cached.is_none() || is_told, "{value}");
    Some(Usage {
        prompt_tokens: prompt.unwrap_or_default(),
        completion_tokens: completion.unwrap_or_default(),
        cached_tokens: cached,
    })
}

/// A stream of events.
pub fn stream(data: &[u8]) {
    let mut choices = Choices::new(data);
    let api = any_api(&mut choices);
    let body = match choices.byte() {
        0..=99 => return known_events(api, &mut choices),
        100..=229 => choices.bytes_like(RESPONSES),
        _ => choices.raw(2_048),
    };
    let whole = observed(api, true, [body.as_slice()]);
    assert_eq!(whole, observed(api, true, choices.pieces(&body)), "cut in pieces");
    note(api, &whole);
    assert_eq!(whole.error_event, whole.error_cause.is_some());
    // A last event without its end is one here, and none to the standard.
    let ended = [body.as_slice(), b"\n\n"].concat();
    let Some(events) = events_of(&ended) else { return };
    let plain: String = events.iter().map(written).collect();
    let by_standard = observed(api, true, [plain.as_bytes()]);
    let mut here = observed(api, true, [ended.as_slice()]);
    // An error without data is one here, and no event to the standard; and of two names, the last one would count.
    if ended.windows(5).any(|window| window == b"event") {
        (here.error_event, here.error_cause) = (by_standard.error_event, by_standard.error_cause);
    }
    assert_eq!(here, by_standard, "{:?}, which is {plain:?}", String::from_utf8_lossy(&ended));
}

/// The events by another reader; `None` where it takes no such bytes, or reads them otherwise than browsers do.
fn events_of(bytes: &[u8]) -> Option<Vec<Event>> {
    // It panics at a byte order mark.
    std::str::from_utf8(bytes).ok().filter(|text| !text.starts_with('\u{feff}'))?;
    let stream = futures::stream::iter([Ok::<_, Infallible>(bytes)]).eventsource();
    block_on(stream.collect::<Vec<_>>()).into_iter().collect::<Result<_, _>>().ok()
}

/// An event in its plainest form.
fn written(event: &Event) -> String {
    let name = if event.event == "message" { String::new() } else { format!("event: {}\n", event.event) };
    let data: String = event.data.split('\n').map(|line| format!("data: {line}\n")).collect();
    format!("{name}{data}\n")
}

/// Events of which it is known what they say.
fn known_events(api: Api, choices: &mut Choices<'_>) {
    let (mut text, mut usage, mut has_error, mut content, mut is_done) = (String::new(), None, false, 0, false);
    let line_end = choices.pick(&["\n", "\r\n", "\r"]);
    for _ in 0..choices.below(6) {
        let event = match choices.byte() % 5 {
            0 => {
                content += u64::from(matches!(api, Api::ChatCompletions | Api::Completions));
                let said = choices.pick(&["x", "two words", "\u{1f600}"]);
                if api == Api::Completions {
                    json!({"choices": [{"index": 0, "text": said}]})
                } else {
                    json!({"choices": [{"index": 0, "delta": {"content": said}}]})
                }
            }
            1 => {
                let (prompt, completion) = (choices.byte(), choices.byte());
                usage = Some((u64::from(prompt), u64::from(completion)));
                json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})
            }
            2 => {
                has_error = true;
                json!({"error": {"message": "it broke", "code": 500}})
            }
            3 => json!({"choices": [], "usage": null, "error": null}),
            _ => {
                is_done = true;
                text.push_str(&format!("data: [DONE]{line_end}{line_end}"));
                continue;
            }
        };
        let written = json::written(choices, &event).replace(['\r', '\n'], "");
        if choices.in_256(30) {
            text.push_str(&format!(": keep-alive{line_end}id: 1{line_end}"));
        }
        let space = if choices.in_256(30) { "" } else { " " };
        text.push_str(&format!("data:{space}{written}{line_end}{line_end}"));
    }
    let seen = observed(api, true, choices.pieces(text.as_bytes()));
    note(api, &seen);
    let told = seen.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens));
    assert_eq!(told, usage, "{text:?}");
    assert_eq!(seen.error_event, has_error, "{text:?}");
    if matches!(api, Api::ChatCompletions | Api::Completions) {
        assert_eq!(seen.content_events, content, "{text:?}");
    }
    assert!(seen.ended || !is_done || text.rfind("[DONE]") < text.rfind("choices"), "{text:?}");
}
