//! Rows per API, recorded requests of a vLLM 0.32, and properties.

mod counting;

use super::*;

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

use Api::*;

fn scan<'a>(api: Api, pieces: impl Iterator<Item = &'a [u8]>) -> Result<Prompt, BodyError> {
    let mut scan = RequestScan::new(api);
    pieces.for_each(|piece| scan.push(piece));
    scan.finish()
}

fn prompt(api: Api, body: &str) -> Prompt {
    scan(api, [body.as_bytes()].into_iter()).unwrap_or_else(|error| panic!("{error} {body}"))
}

fn in_pieces(api: Api, body: &str, bytes: usize) -> Prompt {
    scan(api, body.as_bytes().chunks(bytes)).unwrap_or_else(|error| panic!("{error} {body}"))
}

fn error(api: Api, body: &str) -> BodyError {
    scan(api, [body.as_bytes()].into_iter()).expect_err(body)
}

/// The state of a window, which is the same for the same text however it came in.
fn window(text: &str) -> String {
    let mut window = TextWindow::default();
    window.push_str(text);
    window.settle();
    format!("{window:?}")
}

#[test]
fn malformed_utf8_is_replaced() {
    let mut scan = RequestScan::new(Completions);
    scan.push(b"{\"prompt\":\"a\xE2");
    scan.push(b"\x82\xACb\xFF\",\"model\":\"m\xFF\"}");
    let prompt = scan.finish().unwrap();
    assert_eq!(format!("{:?}", prompt.text), window("a€b\u{FFFD}"));
    assert_eq!(prompt.model.as_deref(), Some("m\u{FFFD}"));
}

/// What the client fixed: stream, include_usage, max_tokens, n.
#[test]
fn fixed_fields() {
    let rows = [
        (ChatCompletions, "", (false, false, None, 1)),
        (ChatCompletions, r#""stream":true,"stream_options":{"include_usage":true},"#, (true, true, None, 1)),
        (ChatCompletions, r#""stream":true,"stream_options":{"include_usage":false},"#, (true, false, None, 1)),
        (ChatCompletions, r#""stream_options":{"include_usage":true},"stream_options":null,"#, (false, false, None, 1)),
        (
            ChatCompletions,
            r#""stream_options":{"x":{"include_usage":true}},"include_usage":true,"#,
            (false, false, None, 1),
        ),
        (ChatCompletions, r#""stream":null,"max_tokens":null,"n":null,"#, (false, false, None, 1)),
        (ChatCompletions, r#""max_tokens":7,"n":3,"#, (false, false, Some(7), 3)),
        (ChatCompletions, r#""max_completion_tokens":8,"max_tokens":7,"#, (false, false, Some(8), 1)),
        (ChatCompletions, r#""max_completion_tokens":null,"max_tokens":7,"#, (false, false, Some(7), 1)),
        (ChatCompletions, r#""max_tokens":7,"max_tokens":9,"#, (false, false, Some(9), 1)),
        (
            ChatCompletions,
            r#""max_output_tokens":7,"x":{"max_tokens":9,"stream":true,"n":4},"#,
            (false, false, None, 1),
        ),
        // What vLLM's pydantic takes for a flag or a whole number, and what it does not.
        (ChatCompletions, r#""stream":"True","max_tokens":"7","n":2.0,"#, (true, false, Some(7), 2)),
        (ChatCompletions, r#""stream":1,"max_tokens":7e0,"n":"2","#, (true, false, Some(7), 2)),
        (ChatCompletions, r#""stream":0,"max_tokens":-7,"n":false,"#, (false, false, None, 1)),
        (ChatCompletions, r#""stream":"no","max_tokens":"many","n":0,"#, (false, false, None, 1)),
        (ChatCompletions, r#""stream":[true],"max_tokens":NaN,"best_of":5,"#, (false, false, None, 5)),
        (ChatCompletions, r#""max_tokens":99999999999,"n":"1_6","#, (false, false, Some(u32::MAX), 16)),
        (ChatCompletions, r#""max_completion_tokens":0,"max_tokens":7,"n":3,"best_of":2,"#, (false, false, Some(7), 3)),
        (Completions, r#""max_tokens":7,"n":2,"max_completion_tokens":8,"#, (false, false, Some(7), 2)),
        // What the API says where the client says nothing.
        (Completions, "", (false, false, Some(16), 1)),
        (Completions, r#""max_tokens":null,"#, (false, false, None, 1)),
        (Responses, r#""max_output_tokens":7,"n":2,"max_tokens":8,"#, (false, false, Some(7), 1)),
        (Messages, r#""max_tokens":7,"stream":true,"#, (true, false, Some(7), 1)),
    ];
    for (api, fields, expected) in rows {
        let body = format!("{{{fields}{}}}", input(api));
        let Prompt { stream, include_usage, max_tokens, n, .. } = prompt(api, &body);
        assert_eq!((stream, include_usage, max_tokens, n), expected, "{body}");
    }
}

/// The shortest input of an API.
fn input(api: Api) -> &'static str {
    match api {
        ChatCompletions | Messages | CountTokens => r#""messages":[{}]"#,
        Completions => r#""prompt":"x""#,
        Responses | Embeddings => r#""input":"x""#,
        Tokenize | Pooling | Named => "",
    }
}

#[test]
fn previous_response() {
    let long = format!(r#"{{"input":"x","previous_response_id":"{}"}}"#, "r".repeat(300));
    let rows = [
        (Responses, r#"{"input":"x","previous_response_id":"resp_1"}"#, Some("resp_1")),
        (Responses, r#"{"input":"x","previous_response_id":"resp_1","previous_response_id":null}"#, None),
        (Responses, r#"{"input":"x","previous_response_id":""}"#, None),
        (Responses, r#"{"input":"x","metadata":{"previous_response_id":"no"}}"#, None),
        (Responses, &long, None),
        (ChatCompletions, r#"{"messages":[{}],"previous_response_id":"resp_1"}"#, None),
    ];
    for (api, body, expected) in rows {
        assert_eq!(prompt(api, body).previous_response_id.as_deref(), expected, "{body}");
    }
}

/// The model's name, and the body after the patch to `to`.
#[test]
fn model_and_patch() {
    let long = format!(r#"{{"prompt":"x","model":"{}"}}"#, "m".repeat(300));
    let long_name = "m".repeat(256) + "…";
    let rows = [
        (r#"{"model":"m","prompt":"x"}"#, Some("m"), r#"{"model":"to","prompt":"x"}"#),
        (r#"{"prompt":"x", "model" : "m" }"#, Some("m"), r#"{"prompt":"x", "model" : "to" }"#),
        (r#" { "prompt":"x"}"#, None, r#" {"model":"to", "prompt":"x"}"#),
        (r#"{"model":null,"prompt":"x"}"#, None, r#"{"model":"to","prompt":"x"}"#),
        (r#"{"model":"","prompt":"x"}"#, None, r#"{"model":"to","prompt":"x"}"#),
        (r#"{"model":"a","prompt":"x","model":"b"}"#, Some("b"), r#"{"model":"a","prompt":"x","model":"to"}"#),
        (r#"{"model":"a","prompt":"x","model":null}"#, None, r#"{"model":"a","prompt":"x","model":"to"}"#),
        (r#"{"model":7,"prompt":"x","model":"b"}"#, Some("b"), r#"{"model":7,"prompt":"x","model":"to"}"#),
        (r#"{"mod\u0065l":"\u006d/\"1\"","prompt":"x"}"#, Some("m/\"1\""), r#"{"mod\u0065l":"to","prompt":"x"}"#),
        (
            r#"{"prompt":"x","metadata":{"model":"no"}}"#,
            None,
            r#"{"model":"to","prompt":"x","metadata":{"model":"no"}}"#,
        ),
        (&long, Some(long_name.as_str()), r#"{"prompt":"x","model":"to"}"#),
    ];
    for (body, model, patched) in rows {
        let prompt = prompt(Completions, body);
        assert_eq!(prompt.model.as_deref(), model, "{body}");
        assert_eq!(apply(body, &prompt.patch_places().patches(Completions, "to", None)), patched);
    }
    let same = prompt(Completions, r#"{"model":"to","prompt":"x"}"#);
    assert_eq!(same.patch_places().patches(Completions, "to", None), []);
    let quoted = same.patch_places().patches(Completions, "a\"\\\n", None);
    assert_eq!(apply(r#"{"model":"to","prompt":"x"}"#, &quoted), r#"{"model":"a\"\\\n","prompt":"x"}"#);

    let mut empty = RequestScan::new(Completions);
    assert_eq!(empty.so_far().patch_places().patches(Completions, "to", Some(7)), []);
    empty.push(b" {}");
    assert_eq!(apply(" {}", &empty.so_far().patch_places().patches(Completions, "to", None)), r#" {"model":"to"}"#);
}

/// The limit of generated tokens: replaced where it stands, else inserted, together with the model.
#[test]
fn limits() {
    let rows = [
        (ChatCompletions, r#"{"model":"a","messages":[{}]}"#, r#"{"max_tokens":7,"model":"to","messages":[{}]}"#),
        (ChatCompletions, r#"{"messages":[{}]}"#, r#"{"model":"to","max_tokens":7,"messages":[{}]}"#),
        (ChatCompletions, r#"{"model":"to","messages":[{}]}"#, r#"{"max_tokens":7,"model":"to","messages":[{}]}"#),
        (
            ChatCompletions,
            r#"{"model":"a","max_tokens":100,"messages":[{}]}"#,
            r#"{"model":"to","max_tokens":7,"messages":[{}]}"#,
        ),
        (
            ChatCompletions,
            r#"{"messages":[{}],"max_tokens": "100" ,"model":"a"}"#,
            r#"{"messages":[{}],"max_tokens": 7 ,"model":"to"}"#,
        ),
        (
            ChatCompletions,
            r#"{"max_completion_tokens":null,"model":"a","messages":[{}],"max_tokens":90}"#,
            r#"{"max_completion_tokens":7,"model":"to","messages":[{}],"max_tokens":7}"#,
        ),
        (
            ChatCompletions,
            r#"{"max_tokens":1,"messages":[{}],"max_tokens":90}"#,
            r#"{"model":"to","max_tokens":1,"messages":[{}],"max_tokens":7}"#,
        ),
        // Whatever the value is, the last of equal keys counts, so it must be this one.
        (ChatCompletions, r#"{"max_tokens":-1,"messages":[{}]}"#, r#"{"model":"to","max_tokens":7,"messages":[{}]}"#),
        (
            ChatCompletions,
            r#"{"max_tokens":"many","messages":[{}]}"#,
            r#"{"model":"to","max_tokens":7,"messages":[{}]}"#,
        ),
        // Servers refuse it.
        (
            ChatCompletions,
            r#"{"max_tokens":[9],"messages":[{}]}"#,
            r#"{"model":"to","max_tokens":7,"max_tokens":[9],"messages":[{}]}"#,
        ),
        (
            ChatCompletions,
            r#"{"messages":[{"max_tokens":9}],"metadata":{"max_tokens":9}}"#,
            r#"{"model":"to","max_tokens":7,"messages":[{"max_tokens":9}],"metadata":{"max_tokens":9}}"#,
        ),
        (Completions, r#"{"prompt":"x","max_tokens":99}"#, r#"{"model":"to","prompt":"x","max_tokens":7}"#),
        (Messages, r#"{"max_tokens":99,"messages":[{}]}"#, r#"{"model":"to","max_tokens":7,"messages":[{}]}"#),
        (Responses, r#"{"input":"x"}"#, r#"{"model":"to","max_output_tokens":7,"input":"x"}"#),
        (Responses, r#"{"input":"x","max_output_tokens":9}"#, r#"{"model":"to","input":"x","max_output_tokens":7}"#),
    ];
    for (api, body, patched) in rows {
        let patches = prompt(api, body).patch_places().patches(api, "to", Some(7));
        assert_eq!(apply(body, &patches), patched);
        assert_eq!(crate::openai::patched(&patches, body.as_bytes()).as_deref(), Some(patched.as_bytes()));
        assert_eq!(crate::openai::patched(&patches, b""), None, "patches of another body");
        let starts: Vec<u64> = patches.iter().map(|patch| patch.replace.start).collect();
        assert!(starts.is_sorted(), "{starts:?}");
        let patches = prompt(api, body).patch_places().patches(api, "to", None);
        assert_eq!(prompt(api, &apply(body, &patches)).max_tokens, prompt(api, body).max_tokens, "{body}");
    }
    // Another model's turn: the body that was patched for the first one asks for the second.
    for (api, body, _) in rows {
        let asked = prompt(api, body);
        for (first, second) in [(None, None), (Some(7), None), (None, Some(12)), (Some(7), Some(1_234))] {
            let done = asked.patch_places().patches(api, "to", first);
            let patched = apply(body, &done);
            let again = apply(&patched, &asked.patch_places().patches_after(&done, api, "another \"one\"", second));
            let seen = prompt(api, &again);
            assert_eq!(seen.model.as_deref(), Some("another \"one\""), "{again}");
            if second.is_none() {
                assert_eq!(seen.max_tokens, asked.max_tokens, "the client's own limit counts again: {again}");
            } else {
                assert_eq!(
                    seen.max_tokens,
                    prompt(api, &apply(body, &asked.patch_places().patches(api, "to", second))).max_tokens,
                    "{again}"
                );
            }
            // The one that the client itself names, too.
            let named = asked.model.clone().unwrap_or_default();
            let back = prompt(api, &apply(&patched, &asked.patch_places().patches_after(&done, api, &named, None)));
            assert_eq!(back.model.unwrap_or_default(), named);
        }
    }
}

fn apply(body: &str, patches: &[Patch]) -> String {
    let mut body = body.to_owned();
    for Patch { replace, with } in patches.iter().rev() {
        body.replace_range(replace.start as usize..replace.end as usize, with);
    }
    body
}

#[test]
fn errors() {
    let deep = format!(r#"{{"messages":{}"#, "[".repeat(600));
    let long_number = format!(r#"{{"n":"{}16","messages":[{{}}]}}"#, "0".repeat(300));
    let rows = [
        (ChatCompletions, "", BodyError::Empty),
        (ChatCompletions, " \r\n\t", BodyError::Empty),
        (ChatCompletions, "[]", BodyError::NotAnObject),
        (ChatCompletions, "null", BodyError::NotAnObject),
        (ChatCompletions, "7", BodyError::NotAnObject),
        (ChatCompletions, r#""{}""#, BodyError::NotAnObject),
        (ChatCompletions, "[", BodyError::InvalidJson { offset: 1 }),
        (ChatCompletions, r#"{"model":"tiny-b","messages":[}"#, BodyError::InvalidJson { offset: 30 }),
        (ChatCompletions, r#"{"messages":[{}]}}"#, BodyError::InvalidJson { offset: 17 }),
        (ChatCompletions, r#"{"messages":[{}]"#, BodyError::InvalidJson { offset: 16 }),
        (ChatCompletions, &deep, BodyError::TooDeep),
        (ChatCompletions, r#"{"model":7,"messages":[{}]}"#, BodyError::WrongType("model")),
        (ChatCompletions, r#"{"model":"m","model":["m"],"messages":[{}]}"#, BodyError::WrongType("model")),
        (ChatCompletions, r#"{"model":{},"messages":[{}]}"#, BodyError::WrongType("model")),
        (ChatCompletions, r#"{"model":true}"#, BodyError::WrongType("model")),
        (ChatCompletions, r#"{"messages":"x"}"#, BodyError::WrongType("messages")),
        (ChatCompletions, r#"{"messages":{}}"#, BodyError::WrongType("messages")),
        (Messages, r#"{"messages":7}"#, BodyError::WrongType("messages")),
        (Completions, r#"{"prompt":7}"#, BodyError::WrongType("prompt")),
        (Completions, r#"{"prompt":{}}"#, BodyError::WrongType("prompt")),
        (Responses, r#"{"input":{}}"#, BodyError::WrongType("input")),
        (ChatCompletions, "{}", BodyError::MissingInput("messages")),
        (ChatCompletions, r#"{"model":"tiny-b"}"#, BodyError::MissingInput("messages")),
        (ChatCompletions, r#"{"messages":[]}"#, BodyError::MissingInput("messages")),
        (ChatCompletions, r#"{"messages":null}"#, BodyError::MissingInput("messages")),
        (ChatCompletions, r#"{"messages":[{}],"messages":[]}"#, BodyError::MissingInput("messages")),
        (ChatCompletions, r#"{"prompt":"x","metadata":{"messages":[{}]}}"#, BodyError::MissingInput("messages")),
        (Messages, r#"{"system":"s"}"#, BodyError::MissingInput("messages")),
        (CountTokens, "{}", BodyError::MissingInput("messages")),
        (Completions, r#"{"prompt":""}"#, BodyError::MissingInput("prompt")),
        (Completions, r#"{"prompt":[]}"#, BodyError::MissingInput("prompt")),
        (Completions, r#"{"messages":[{}]}"#, BodyError::MissingInput("prompt")),
        (Responses, r#"{"instructions":"i"}"#, BodyError::MissingInput("input")),
        (Responses, r#"{"input":[]}"#, BodyError::MissingInput("input")),
        (Embeddings, r#"{"input":[]}"#, BodyError::MissingInput("input")),
        // A number of answers that is misread costs more than the client may spend.
        (ChatCompletions, r#"{"n":-2,"messages":[{}]}"#, BodyError::WrongType("n")),
        (ChatCompletions, r#"{"n":1.5,"messages":[{}]}"#, BodyError::WrongType("n")),
        (ChatCompletions, r#"{"n":[2],"messages":[{}]}"#, BodyError::WrongType("n")),
        (Completions, r#"{"n":2,"prompt":"x","n":"two"}"#, BodyError::WrongType("n")),
        (Completions, r#"{"best_of":1e999,"prompt":"x"}"#, BodyError::WrongType("best_of")),
        (ChatCompletions, r#"{"min_tokens":"1__6","messages":[{}]}"#, BodyError::WrongType("min_tokens")),
        (ChatCompletions, &long_number, BodyError::WrongType("n")),
    ];
    for (api, body, expected) in rows {
        assert_eq!(error(api, body), expected, "{body}");
        assert!(expected.to_string().ends_with('.'), "{expected}");
    }
}

#[test]
fn a_body_too_large_to_see_whole() {
    let mut scan = RequestScan::new(ChatCompletions);
    scan.push(br#"{"model":"auto","stream":true,"messages":[{"role":"user","content":"once upon"#);
    let prompt = scan.so_far();
    assert_eq!((prompt.model.as_deref(), prompt.stream, prompt.has_input), (Some("auto"), true, true));
    assert_eq!(format!("{:?}", prompt.text), window("once upon"));
    assert_eq!(
        prompt.patch_places().patches(ChatCompletions, "big", None),
        [Patch { replace: 9..15, with: "\"big\"".to_owned() }]
    );
    scan.push(br#" a time"}]}"#);
    assert_eq!(format!("{:?}", scan.finish().unwrap().text), window("once upon a time"));

    let mut scan = RequestScan::new(ChatCompletions);
    scan.push(b"{");
    let inserted = Patch { replace: 1..1, with: "\"model\":\"big\",".to_owned() };
    assert_eq!(scan.so_far().patch_places().patches(ChatCompletions, "big", None), [inserted]);
    scan.push(b"\"model\":\"au");
    assert_eq!((scan.so_far().model, scan.so_far().model_span), (None, None));
}

/// Requests recorded at a vLLM 0.32: model, text, max_tokens, stream, n; or the error.
#[test]
fn recorded_requests() {
    macro_rules! recorded {
        ($name:literal) => {
            include_str!(concat!("../../../../tests/fixtures/vllm-small/", $name, ".req"))
        };
    }
    const TERSE: &str = "You are terse.\nSay hello to the router.";
    let rows = [
        (ChatCompletions, recorded!("chat"), Ok((TERSE, Some(16), false, 1))),
        (ChatCompletions, recorded!("chat-n2"), Ok((TERSE, Some(8), false, 2))),
        (ChatCompletions, recorded!("chat-stream-usage"), Ok((TERSE, Some(16), true, 1))),
        (ChatCompletions, recorded!("chat-tools-auto"), Ok((TERSE, Some(16), false, 1))),
        (ChatCompletions, recorded!("chat-tools-named-stream"), Ok((TERSE, Some(128), true, 1))),
        (ChatCompletions, recorded!("err-no-model"), Ok((TERSE, Some(4), false, 1))),
        (ChatCompletions, recorded!("err-invalid-json"), Err(BodyError::InvalidJson { offset: 30 })),
        (ChatCompletions, recorded!("err-missing-messages"), Err(BodyError::MissingInput("messages"))),
        (Completions, recorded!("completions"), Ok(("def main(", Some(16), false, 1))),
        (Completions, recorded!("completions-batch2"), Ok(("def main(\nimport ", Some(4), false, 1))),
        (Completions, recorded!("completions-stream"), Ok(("def main(", Some(16), true, 1))),
        (Responses, recorded!("responses"), Ok(("Say hello", Some(16), false, 1))),
        (Responses, recorded!("responses-previous"), Ok(("Again", Some(4), false, 1))),
        (Responses, recorded!("responses-stream"), Ok(("Say hello", Some(16), true, 1))),
        (Messages, recorded!("messages"), Ok(("Say hello", Some(16), false, 1))),
        (Messages, recorded!("messages-stream"), Ok(("Say hello", Some(16), true, 1))),
        (CountTokens, recorded!("messages-count"), Ok(("Say hello", None, false, 1))),
        (Embeddings, recorded!("err-embeddings"), Ok(("x", None, false, 1))),
    ];
    for (api, body, expected) in rows {
        let whole = scan(api, [body.as_bytes()].into_iter());
        let seen = whole.as_ref().map(|prompt| {
            assert_eq!(prompt.model.as_deref(), body.contains("model").then_some("tiny-b"), "{body}");
            (format!("{:?}", prompt.text), prompt.max_tokens, prompt.stream, prompt.n)
        });
        let expected = expected.as_ref().map(|&(text, max_tokens, stream, n)| (window(text), max_tokens, stream, n));
        assert_eq!(seen, expected, "{body}");
        for cut in 0..=body.len() {
            let pieces = [&body.as_bytes()[..cut], &body.as_bytes()[cut..]];
            assert_eq!(format!("{:?}", scan(api, pieces.into_iter())), format!("{whole:?}"), "{body} cut at {cut}");
        }
    }
}

/// Bodies built from random fields: the same prompt however they are cut, and every prefix is survived.
#[test]
fn cuts_do_not_matter() {
    let words = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"model\":",
        "\"messages\":[",
        "\"content\":",
        "\"é😀\\ud83d\\ude00\\n\"",
        "\"type\":\"image\"",
        "\"tools\":",
        "\"prompt\":",
        "\"input\":",
        "\"text\":\"t\"",
        "{\"content\":[{",
        "}]}",
        "null",
        "7",
        "true",
        "\"stream\":true",
    ];
    let mut seed = 3_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    for round in 0..20_000 {
        let api = [ChatCompletions, Completions, Responses, Messages, CountTokens, Embeddings][round % 6];
        let length = random(20);
        let mut body: Vec<u8> = (0..length).flat_map(|_| words[random(words.len())].bytes()).collect();
        if round % 2 == 0 {
            body.insert(0, b'{');
        }
        if round % 5 == 0 && !body.is_empty() {
            let at = random(body.len());
            body[at] = random(256) as u8;
        }
        let whole = format!("{:?}", scan(api, [body.as_slice()].into_iter()));
        assert_eq!(format!("{:?}", scan(api, body.chunks(1))), whole);
        let size = 1 + random(7);
        assert_eq!(format!("{:?}", scan(api, body.chunks(size))), whole);
    }
}
