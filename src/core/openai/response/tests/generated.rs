//! What was generated, wherever it stands, and when a stream is at its end.

use super::*;

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const SAID: &str = "The ferry leaves the harbour at half past six, says the old keeper of the lighthouse.";

fn seen(api: Api, is_sse: bool, body: &str) -> Observed {
    let whole = observe(api, is_sse, [body.as_bytes()].into_iter());
    for size in [1, 2, 7, 64] {
        assert_eq!(observe(api, is_sse, body.as_bytes().chunks(size)), whole, "{body}");
    }
    whole
}

fn estimate_of(text: &str) -> u64 {
    let mut tally = TokenTally::default();
    tally.push(0, text);
    tally.tokens()
}

/// Shapes of an answer in which `@` is a text; how many times it counts.
const WHOLE: &[(Api, &str, u64)] = &[
    (ChatCompletions, r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"@"}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"message":{"content":[{"type":"text","text":"@"}]}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"message":{"content":null,"refusal":"@"}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"message":{"reasoning":"@","content":null}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"message":{"reasoning_content":"@","reasoning":null}}]}"#, 1),
    // One text by two names is one text.
    (ChatCompletions, r#"{"choices":[{"message":{"reasoning":"@","reasoning_content":"@"}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"message":{"reasoning_content":"@","reasoning":"@"}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"message":{"content":[{"thinking":[{"text":"@"}]}]}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"message":{"tool_calls":[{"function":{"arguments":"@"}}]}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"message":{"tool_calls":[{"function":{"name":"@"}}]}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"message":{"function_call":{"arguments":"@"}}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"message":{"audio":{"data":"@","transcript":""}}}]}"#, 0),
    (ChatCompletions, r#"{"choices":[{"message":{"audio":{"data":"","transcript":"@"}}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"index":0,"message":{"content":"@"}},{"message":{"content":"@"}}]}"#, 2),
    (Completions, r#"{"choices":[{"index":0,"text":"@"},{"index":1,"text":"@"}]}"#, 2),
    (Responses, r#"{"output":[{"type":"message","content":[{"type":"output_text","text":"@"}]}]}"#, 1),
    (Responses, r#"{"output":[{"type":"reasoning","content":[{"text":"@"}],"encrypted_content":"x"}]}"#, 1),
    (Responses, r#"{"output":[{"type":"reasoning","summary":[{"text":"@"}]}]}"#, 1),
    (Responses, r#"{"output":[{"type":"function_call","arguments":"@","call_id":"x"}]}"#, 1),
    (Responses, r#"{"output":[{"type":"custom_tool_call","input":"@"}]}"#, 1),
    (Responses, r#"{"output":[{"type":"image_generation_call","result":"@"}]}"#, 0),
    (Messages, r#"{"type":"message","content":[{"type":"text","text":"@"}]}"#, 1),
    (Messages, r#"{"content":[{"type":"thinking","thinking":"@","signature":"x"}]}"#, 1),
    (Messages, r#"{"content":[{"type":"tool_use","name":"@","input":{}}]}"#, 1),
];

/// Events with `@` in them, likewise.
const EVENTS: &[(Api, &str, u64)] = &[
    (ChatCompletions, r#"{"choices":[{"index":0,"delta":{"content":"@"}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"delta":{"content":[{"type":"text","text":"@"}]}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"delta":{"reasoning":"@"}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"delta":{"reasoning_content":"@"}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"delta":{"reasoning":"@","reasoning_content":"@"}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"delta":{"refusal":"@"}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"@"}}]}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"delta":{"tool_calls":[{"id":"x","function":{"arguments":"@"}}]}}]}"#, 1),
    (ChatCompletions, r#"{"choices":[{"delta":{"audio":{"data":"@"}}}]}"#, 0),
    (ChatCompletions, r#"{"choices":[{"delta":{"audio":{"transcript":"@"}}}]}"#, 1),
    (Completions, r#"{"choices":[{"text":"@","logprobs":{"tokens":["x"]}}]}"#, 1),
    (Responses, r#"{"type":"response.output_text.delta","delta":"@"}"#, 1),
    (Responses, r#"{"delta":"@","type":"response.reasoning_text.delta"}"#, 1),
    (Responses, r#"{"delta":"@","type":"response.function_call_arguments.delta"}"#, 1),
    (Responses, r#"{"delta":"@","type":"response.refusal.delta"}"#, 1),
    (Responses, r#"{"delta":"@","type":"response.audio.transcript.delta"}"#, 1),
    (Responses, r#"{"delta":"@","type":"response.output_audio.delta"}"#, 0),
    (Responses, r#"{"type":"response.output_item.added","item":{"type":"function_call","name":"@"}}"#, 1),
    (Messages, r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"@"}}"#, 1),
    (Messages, r#"{"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":"@"}}"#, 1),
    (Messages, r#"{"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"@"}}"#, 1),
    (Messages, r#"{"type":"content_block_start","content_block":{"type":"tool_use","name":"@","input":{}}}"#, 1),
];

#[test]
fn texts_count_wherever_they_stand() {
    let one = estimate_of(SAID);
    assert!((17..=20).contains(&one), "{one}");
    for (is_sse, rows) in [(false, WHOLE), (true, EVENTS)] {
        for (api, shape, times) in rows {
            let body = |text: &str| {
                let json = shape.replace('@', text);
                if is_sse { format!("data: {json}\n\n") } else { json }
            };
            let full = seen(*api, is_sse, &body(SAID));
            assert!(full.has_output, "{api:?} {shape}");
            // Rounding is of the sum.
            assert!(full.completion_tokens_estimate.abs_diff(times * one) < 1 + times, "{api:?} {shape}: {full:?}");
            let empty = seen(*api, is_sse, &body(""));
            let is_call = shape.contains("tool_calls");
            assert_eq!((empty.has_output, empty.completion_tokens_estimate), (is_call, 0), "{api:?} {shape}");
        }
    }
    // A text in many events is estimated as the same text in one.
    for (api, shape, times) in EVENTS {
        let events = SAID.as_bytes().chunks(3).map(|part| String::from_utf8_lossy(part).into_owned());
        let stream: String = events.map(|part| format!("data: {}\n\n", shape.replace('@', &part))).collect();
        let estimate = seen(*api, true, &stream).completion_tokens_estimate;
        assert_eq!(estimate, times * one, "{api:?} {shape}");
    }
}

#[test]
fn json_that_the_model_wrote_counts_as_it_is() {
    let input = r#"{"city": "Freiburg", "days": 3, "units": {"wind": null, "rain": [true, 0.5]}}"#;
    let body = format!(r#"{{"content":[{{"type":"tool_use","input":{input}}}],"usage":{{"output_tokens":9}}}}"#);
    let told = seen(Messages, false, &body);
    assert!(told.completion_tokens_estimate.abs_diff(estimate_of(input)) <= 6, "{told:?}, {}", estimate_of(input));
    assert_eq!(told.usage, usage(0, 9, None));
    let deep = format!("{}1{}", "[".repeat(300), "]".repeat(300));
    let body = format!(r#"{{"content":[{{"type":"tool_use","input":{deep}}}],"stop_reason":"tool_use"}}"#);
    assert_eq!(seen(Messages, false, &body).ending, Some(Ending::ByItself));
}

#[test]
fn nothing_counts_twice_or_without_being_generated() {
    let item = r#"{"type":"message","content":[{"type":"output_text","text":"Good morning"}]}"#;
    let call = r#"{"type":"function_call","name":"weather","arguments":"{}"}"#;
    let delta = r#"data: {"type":"response.output_text.delta","delta":"Good morning"}"#;
    let completed = format!(r#"data: {{"type":"response.completed","response":{{"output":[{item}]}}}}"#);
    let done = format!(
        "data: {{\"type\":\"response.output_text.done\",\"text\":\"Good morning\"}}\n\n\
         data: {{\"type\":\"response.output_item.done\",\"item\":{item}}}\n\n\
         data: {{\"type\":\"response.output_item.done\",\"item\":{call}}}"
    );
    let words = estimate_of("Good morning");
    let rows = [
        (Responses, true, format!("{delta}\n\n{done}\n\n{completed}\n\n"), words, true),
        // A server that streams nothing tells it at the end.
        (Responses, true, format!("{completed}\n\n"), words, true),
        (Responses, true, format!("{done}\n\n"), 0, false),
        (Responses, false, r#"{"instructions":"Say hello","output":[],"tools":[{"name":"x"}]}"#.to_owned(), 0, false),
        (ChatCompletions, false, String::new(), 0, false),
        (ChatCompletions, false, "{}".to_owned(), 0, false),
        (ChatCompletions, false, r#"{"choices":[]}"#.to_owned(), 0, false),
        (ChatCompletions, false, r#"{"choices":[{"message":{"role":"assistant","content":""}}]}"#.to_owned(), 0, false),
        (ChatCompletions, false, r#"{"choices":[{"message":{"content":"cut"#.to_owned(), 0, false),
        (ChatCompletions, false, r#"{"prompt_text":"Hello","model":"x"}"#.to_owned(), 0, false),
        (ChatCompletions, true, "data: [DONE]\n\n".to_owned(), 0, false),
        (ChatCompletions, true, "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n".to_owned(), 0, false),
        (ChatCompletions, true, "data: {\"choices\":[{\"delta\":{\"content\":\"cut\"}}\n\n".to_owned(), 0, false),
        (ChatCompletions, false, r#"{"error":{"message":"x"}}"#.to_owned(), 0, false),
        (Embeddings, false, r#"{"object":"list","data":[{"embedding":[0.5]}]}"#.to_owned(), 0, true),
        (Embeddings, false, r#"{"data":[{"embedding":"AAAA"}]}"#.to_owned(), 0, true),
        (Embeddings, false, r#"{"data":[]}"#.to_owned(), 0, false),
        (Embeddings, false, r#"{"data":[{"embedding":[0.5]}"#.to_owned(), 0, false),
        (CountTokens, false, r#"{"input_tokens":16}"#.to_owned(), 0, true),
        (CountTokens, false, "{}".to_owned(), 0, false),
    ];
    for (api, is_sse, body, estimate, has_output) in rows {
        let told = seen(api, is_sse, &body);
        assert_eq!((told.completion_tokens_estimate, told.has_output), (estimate, has_output), "{api:?} {body}");
    }
}

/// Streams of choices `(index, finish_reason)`, an event each, without `[DONE]`.
#[test]
fn a_stream_ends_with_its_last_choice() {
    type Event = &'static [(&'static str, &'static str)];
    let rows: [(&[Event], bool); 14] = [
        (&[], false),
        (&[&[]], false),
        (&[&[("0", "null")]], false),
        (&[&[("0", "\"stop\"")]], true),
        (&[&[("0", "\"length\"")], &[]], true),
        (&[&[("0", "\"\"")]], false),
        (&[&[("0", "null")], &[("0", "\"stop\"")]], true),
        (&[&[("0", "null")], &[("1", "null")], &[("0", "\"stop\"")]], false),
        (&[&[("0", "null")], &[("1", "null")], &[("0", "\"stop\"")], &[("1", "\"stop\"")]], true),
        (&[&[("0", "\"stop\"")], &[("1", "null")]], false),
        (&[&[("0", "\"stop\""), ("1", "null")]], false),
        (&[&[("127", "\"stop\"")]], true),
        // Nobody keeps a bit for these.
        (&[&[("0", "\"stop\"")], &[("128", "\"stop\"")]], false),
        (&[&[("null", "\"stop\""), ("null", "\"stop\"")]], true),
    ];
    for (events, expected) in rows {
        for (api, gain) in [(ChatCompletions, r#""delta":{"content":"a"}"#), (Completions, r#""text":"a""#)] {
            let choice =
                |(index, reason): &(&str, &str)| format!(r#"{{{gain},"finish_reason":{reason},"index":{index}}}"#);
            let choices = |event: &Event| event.iter().map(choice).collect::<Vec<_>>().join(",");
            let stream: String =
                events.iter().map(|event| format!("data: {{\"choices\":[{}]}}\n\n", choices(event))).collect();
            assert_eq!(seen(api, true, &stream).ended, expected, "{stream}");
            let done = format!("{stream}data: [DONE]\n\n");
            assert!(seen(api, true, &done).ended, "{done}");
        }
    }
}

/// 1,000 streams and bodies out of the shapes above, cut at random.
#[test]
fn cuts_do_not_matter() {
    let texts = [SAID, "", "für \\\"uns\\\"", "\\ud83d\\ude00 \\n\\n42", "今日は", "👩‍💻", "'code': 429", "x"];
    let errors = [
        r#"{"error":{"type":"internal_error","message":"2 validation errors {'message': 'x', 'code': 503}}"}}"#,
        r#"{"type":"error","code":"rate_limit_exceeded","message":"@"}"#,
        r#"{"object":"error","message":"@","type":"BadRequestError","code":400}"#,
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
        r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"server_error","message":"@"}}}"#,
    ];
    let mut seed = 11_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    let (mut outputs, mut failures) = (0, 0);
    for round in 0..1_000 {
        let is_sse = round % 4 != 0;
        let (api, shape, _) = if is_sse { EVENTS[random(EVENTS.len())] } else { WHOLE[random(WHOLE.len())] };
        let mut body = String::new();
        for _ in 0..if is_sse { random(8) } else { 1 } {
            let text = texts[random(texts.len())];
            let json = if random(4) == 0 { errors[random(errors.len())] } else { shape }.replace('@', text);
            let name = if random(6) == 0 { "event: error\n" } else { "" };
            body += &if is_sse { format!("{name}data: {json}\n\n") } else { json };
        }
        let whole = observe(api, is_sse, [body.as_bytes()].into_iter());
        let mut scan = ResponseScan::new(api, is_sse);
        let mut rest = body.as_bytes();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((1 + random(40)).min(rest.len()));
            scan.push(piece);
            rest = after;
            let so_far = scan.observed();
            assert_eq!(so_far.error_event, so_far.error_cause.is_some(), "{body}");
        }
        assert_eq!(*scan.observed(), whole, "{body}");
        assert_eq!(observe(api, is_sse, body.as_bytes().chunks(1)), whole, "{body}");
        outputs += u64::from(whole.has_output);
        failures += u64::from(whole.error_event);
    }
    assert!(outputs > 300 && failures > 300, "the generator is too wild: {outputs}, {failures}");
}
