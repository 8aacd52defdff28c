//! Errors of all servers, in every place where an error can stand.

use super::*;
use crate::openai::{
    Api::{self, ChatCompletions, Completions, CountTokens, Embeddings, Messages, Responses},
    Observed, ResponseScan,
};

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn observe(api: Api, is_sse: bool, body: &str, size: usize) -> Observed {
    let mut scan = ResponseScan::new(api, is_sse);
    body.as_bytes().chunks(size).for_each(|piece| scan.push(piece));
    scan.observed().clone()
}

fn check(api: Api, is_sse: bool, body: &str, expected: ErrorCause) {
    for size in [1, 7, usize::MAX] {
        let seen = observe(api, is_sse, body, size);
        let cause = (seen.error_event, seen.error_cause, seen.has_output);
        assert_eq!(cause, (true, Some(expected), false), "{api:?} {is_sse} {body} in pieces of {size}");
    }
}

/// What stands between the braces of an error object.
const OBJECTS: &[(&str, ErrorCause)] = &[
    // A number, however it is written, and whatever stands beside it.
    (r#""code":429"#, Busy),
    (r#""code":"429""#, Busy),
    (r#""code":503,"message":"x","type":"Service Unavailable","param":null"#, Busy),
    (r#""code":529,"message":"x""#, Busy),
    (r#""status":503"#, Busy),
    (r#""code":400,"message":"x","type":"BadRequestError","param":null"#, Client),
    (r#""code":404"#, Client),
    (r#""code":413"#, Client),
    (r#""code":422"#, Client),
    (r#""code":499"#, Client),
    (r#""code":501,"type":"not_supported_error""#, Client),
    (r#""code":408,"type":"ModelTimeoutException""#, Server),
    (r#""code":424,"type":"ModelErrorException""#, Server),
    (r#""code":500,"type":"InternalServerError","message":"x""#, Server),
    (r#""code":502"#, Server),
    (r#""code":504"#, Server),
    (r#""code":7"#, Server),
    (r#""code":99999999999999999999"#, Server),
    (r#""code":null,"message":"x""#, Server),
    // A word.
    (r#""type":"overloaded_error","message":"Overloaded""#, Busy),
    (r#""type":"rate_limit_error""#, Busy),
    (r#""code":"rate_limit_exceeded","message":"x""#, Busy),
    (r#""type":"requests","code":"rate_limit_exceeded""#, Busy),
    (r#""type":"too_many_requests""#, Busy),
    (r#""type":"unavailable_error""#, Busy),
    (r#""code":"server_overloaded""#, Busy),
    (r#""type":"engine_overloaded_error""#, Busy),
    (r#""code":"slow_down""#, Busy),
    (r#""type":"ServiceUnavailableError""#, Busy),
    (r#""code":"insufficient_quota","type":"insufficient_quota""#, Busy),
    (r#""status":"RESOURCE_EXHAUSTED""#, Busy),
    (r#""status":"UNAVAILABLE""#, Busy),
    (r#""code":"ThrottlingException""#, Busy),
    (r#""code":"ModelNotReadyException""#, Busy),
    (r#""type":"invalid_request_error","code":null"#, Client),
    (r#""code":"invalid_prompt""#, Client),
    (r#""type":"BadRequestError""#, Client),
    (r#""type":"Bad Request""#, Client),
    (r#""type":"authentication_error""#, Client),
    (r#""type":"permission_error""#, Client),
    (r#""type":"not_found_error""#, Client),
    (r#""type":"NotFoundError""#, Client),
    (r#""type":"request_too_large""#, Client),
    (r#""code":"context_length_exceeded""#, Client),
    (r#""type":"exceed_context_size_error""#, Client),
    (r#""code":"content_filter""#, Client),
    (r#""code":"content_policy_violation""#, Client),
    (r#""code":"invalid_image_url""#, Client),
    (r#""code":"unsupported_parameter""#, Client),
    (r#""type":"NotImplementedError""#, Client),
    (r#""status":"INVALID_ARGUMENT""#, Client),
    (r#""type":"billing_error""#, Client),
    (r#""code":"ValidationException""#, Client),
    (r#""code":"server_error","message":"x""#, Server),
    (r#""type":"internal_error","message":"x""#, Server),
    (r#""type":"api_error""#, Server),
    (r#""type":"timeout_error""#, Server),
    (r#""type":"a word that nobody knows""#, Server),
    (r#""message":"""#, Server),
    // A number that says more than a word, and a word that says more than a number.
    (r#""code":400,"status":"RESOURCE_EXHAUSTED""#, Client),
    (r#""code":429,"status":"INVALID_ARGUMENT""#, Busy),
    (r#""code":500,"type":"invalid_request_error""#, Client),
    (r#""type":"overloaded_error","code":500"#, Busy),
    (r#""type":"internal_error","code":"rate_limit_exceeded""#, Busy),
    (r#""type":"invalid_request_error","code":"server_error""#, Client),
    // A number inside of the message, which counts after both.
    (r#""type":"internal_error","message":"{'error': {'message': 'x', 'code': 400}}""#, Client),
    (r#""type":"internal_error","message":"{'message': 'x', 'code':429}""#, Busy),
    (r#""type":"internal_error","message":"{\"error\":{\"code\":503,\"message\":\"x\"}}""#, Busy),
    (r#""type":"internal_error","message":"{\\\"code\\\": \\\"404\\\"}""#, Client),
    (r#""message":"'code': 400""#, Client),
    (r#""message":"Error code: 429 - {'x': 1}""#, Busy),
    (r#""message":"x, status_code=422""#, Client),
    (r#""code":500,"message":"{'code': 422}""#, Client),
    (r#""type":"internal_error","message":"{'code': 500}""#, Server),
    (r#""type":"internal_error","message":"{'code': 4000}, {'code': 40}""#, Server),
    (r#""type":"internal_error","message":"the postal code: 429""#, Server),
    (r#""type":"BadRequestError","message":"{'code': 503}""#, Client),
    (r#""type":"rate_limit_error","message":"{'code': 400}""#, Busy),
    // A phrase, which counts last.
    (r#""message":"The engine is currently busy and cannot accept new requests.""#, Busy),
    (r#""message":"The engine is currently busy.","code":400"#, Client),
];

/// An error object in all APIs: as the body of a refusal, as an answer of status 200, as an event, and as wrapped by some.
#[test]
fn every_error_means_the_same_everywhere() {
    for api in [ChatCompletions, Completions, Responses, Messages, CountTokens, Embeddings] {
        for (object, expected) in OBJECTS {
            let bodies = [
                format!(r#"{{"error":{{{object}}}}}"#),
                format!(r#"{{"error":{{{object}}},"type":"error","request_id":"r"}}"#),
                format!(r#"{{"error":{{"error":{{{object}}}}}}}"#),
                format!(r#"[{{"error":{{{object}}}}}]"#),
                format!(r#"{{"object":"error",{object}}}"#),
                format!(r#"{{{object},"object":"error"}}"#),
            ];
            for body in &bodies {
                check(api, false, body, *expected);
                for stream in ["data: @\n\n", "event: error\ndata: @\n\n", "data: @\nevent: error\n\ndata: [DONE]\n\n"]
                {
                    check(api, true, &stream.replace('@', body), *expected);
                }
            }
        }
    }
}

/// As `/v1/responses` and `/v1/messages` say it in a stream.
#[test]
fn events_of_errors() {
    for (object, expected) in OBJECTS {
        let failed = |rest| format!(r#"{{"type":"response.failed","response":{{"error":{{{object}}}{rest}}}}}"#);
        let rows = [
            (Responses, failed("")),
            (Responses, failed(r#","status":"failed","output":[]"#)),
            (Messages, format!(r#"{{"type":"error","error":{{{object}}}}}"#)),
            (ChatCompletions, format!(r#"{{"choices":[{{"index":0,"delta":{{}},"error":{{{object}}}}}]}}"#)),
        ];
        for (api, event) in rows {
            check(api, true, &format!("event: error\ndata: {event}\n\n"), *expected);
            check(api, true, &format!("data: {event}\n\n"), *expected);
        }
        // Flat, where `type` is the event's.
        if !object.contains("type") {
            check(Responses, true, &format!("data: {{\"type\":\"error\",{object}}}\n\n"), *expected);
        }
    }
}

/// Errors without an error object.
#[test]
fn other_shapes() {
    let rows = [
        // FastAPI.
        (r#"{"detail":[{"type":"missing","loc":["body","model"],"msg":"Field required"}]}"#, Client),
        (r#"{"detail":"Not Found"}"#, Client),
        (r#"{"detail":"Too Many Requests"}"#, Busy),
        (r#"{"detail":"Internal Server Error"}"#, Server),
        (r#"{"detail":{"error":{"code":429}}}"#, Busy),
        (r#"{"detail":"a word that nobody knows"}"#, Client),
        // TGI.
        (r#"{"error":"Model is overloaded","error_type":"overloaded"}"#, Busy),
        (r#"{"error":"x","error_type":"validation"}"#, Client),
        (r#"{"error":"x","error_type":"generation"}"#, Server),
        (r#"{"error":"x","error_type":"incomplete_generation"}"#, Server),
        // Ollama.
        (r#"{"error":"server busy, please try again.  maximum pending requests exceeded"}"#, Busy),
        (r#"{"error":"model 'x' not found, try pulling it first"}"#, Client),
        (r#"{"error":"x"}"#, Server),
        // Gateways.
        (r#"{"error":"Too Many Requests","message":"x"}"#, Busy),
        (r#"{"error":429}"#, Busy),
        (r#"{"error":true}"#, Server),
        (r#"{"error":["x"]}"#, Server),
        (r#"{"statusCode":429,"message":"Rate limit is exceeded."}"#, Busy),
        (r#"{"__type":"ThrottlingException","message":"x","status":400}"#, Client),
        (r#"{"title":"Too Many Requests","status":429,"detail":"x"}"#, Busy),
        (r#"{"type":"error","message":"x"}"#, Server),
    ];
    for (body, expected) in rows {
        check(ChatCompletions, false, body, expected);
        check(ChatCompletions, true, &format!("data: {body}\n\n"), expected);
    }
    // Data that is no JSON, or none.
    for stream in ["event: error\ndata: x\n\n", "event: error\n\n", "event: error\ndata: {\"error\":{\"code\":400}"] {
        check(Messages, true, stream, Server);
    }
}

#[test]
fn what_is_no_error() {
    let rows = [
        r#"{"error":null}"#,
        r#"{"error":""}"#,
        r#"{"error":{}}"#,
        r#"{"error":[]}"#,
        r#"{"error":false}"#,
        r#"{"error":0}"#,
        r#"{"status":"completed","error":null}"#,
        r#"{"choices":[{"message":{"content":"{\"error\":{\"code\":400}}"}}]}"#,
        r#"{"choices":[{"message":{"tool_calls":[{"function":{"arguments":{"error":{"code":400}}}}]}}]}"#,
        r#"{"code":200}"#,
        r#"{"metadata":{"code":429,"detail":"x"}}"#,
    ];
    for api in [ChatCompletions, Completions, Responses, Messages] {
        for body in rows {
            let stream = format!("data: {body}\n\n");
            for seen in [observe(api, false, body, 3), observe(api, true, &stream, 3)] {
                assert_eq!((seen.error_event, seen.error_cause), (false, None), "{api:?} {body}");
            }
        }
    }
}

/// The first error of a stream counts, and what comes before and after it does not matter.
#[test]
fn the_first_error_counts() {
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
                  event: error\ndata: {\"error\":{\"code\":400}}\n\n\
                  event: error\ndata: {\"error\":{\"code\":429}}\n\n";
    let seen = observe(ChatCompletions, true, stream, 5);
    assert_eq!((seen.error_cause, seen.has_output, seen.ended), (Some(Client), true, false));
}

/// A code hides in a message of any length, at any place, and the memory stays what it is.
#[test]
fn long_messages() {
    for filler in ["x", "é", "'code': ", "code", " "] {
        for before in [0, 1, 100, 191, 200, 205, 247, 253, 256, 300, 10_000] {
            let mut evidence = Evidence::default();
            let filler = filler.repeat(before);
            let message = format!("{} {{'code': 503}}, {filler}", filler.get(..before).unwrap_or(&filler));
            for c in message.chars() {
                evidence.message(c.encode_utf8(&mut [0; 4]));
                assert!(evidence.window.len() < WINDOW_BYTES && evidence.head.len() <= WORD_BYTES_MAX + 1);
            }
            evidence.message_end(false);
            assert_eq!(evidence.cause(), Busy, "{before} of {filler:.10}");
        }
    }
}

#[test]
fn every_word_of_the_table_can_be_reached() {
    for (word, cause) in WORDS {
        assert_eq!(cause_of_word(word), Some(*cause), "{word}");
        assert!(word.bytes().all(|b| b.is_ascii_lowercase()), "{word}");
    }
    for (phrase, _) in PHRASES {
        assert!(phrase.len() < OVERLAP_BYTES && phrase.to_ascii_lowercase() == **phrase, "{phrase}");
    }
}
