//! The APIs that language models are served with, as far as routing needs them: which call it is, what the client fixed, the
//! prompt's text, what the response used, and answers in each API's own shape.
//!
//! Every reader here is incremental: bytes come in pieces cut anywhere, are looked at once, and are not kept. The shapes are those
//! of vLLM 0.32, recorded in `tests/fixtures`.

mod error;
mod probe;
mod request;
mod response;
mod scan;
mod sse;
mod tokens;

pub use error::{Listed, error_body, model_body, models_body, words_of_envoy};
pub use probe::{Probe, ProbeScan, REPEAT_MAX};
pub use request::{BodyError, Patch, Prompt, RequestScan, patched};
pub use response::{Ending, ErrorCause, Observed, ResponseScan, Usage};

/// An API that takes a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// `/v1/chat/completions`
    ChatCompletions,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages` (Anthropic's)
    Messages,
    /// `/v1/messages/count_tokens`: nothing is generated
    CountTokens,
    /// `/v1/embeddings`: nothing is generated
    Embeddings,
}

/// A call that the filter handles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A POST with a body to route.
    Generate(Api),
    /// `GET /v1/models`
    Models,
    /// `GET /v1/models/{name}`
    Model {
        /// Percent-decoded; may contain slashes.
        name: String,
    },
    /// `GET` or `DELETE /v1/responses/{id}`, or `POST /v1/responses/{id}/cancel`: belongs to the instance that made the response.
    ResponseItem {
        /// The response's id.
        id: String,
    },
}

/// The call that a request makes, if it is one of ours. The query is ignored, and anything may stand before `/v1/`, because
/// routes may rewrite prefixes.
pub fn call_of(method: &str, path: &str) -> Option<Call> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    path.match_indices("/v1").find_map(|(at, root)| call_at(method, path.get(at + root.len()..)?.strip_prefix('/')?))
}

/// Whether a path is one of those at which common servers generate, however it is spelt: with escapes, doubled slashes, other prefixes or
/// in other letters.
pub fn generates(path: &str) -> bool {
    const SEGMENTS: [&str; 15] = [
        "completions",
        "responses",
        "compact",
        "messages",
        "chat",
        "invocations",
        "generate",
        "generate_stream",
        "embeddings",
        "embed",
        "transcriptions",
        "translations",
        "speech",
        "generations",
        "realtime",
    ];
    let path = percent_decoded(path.split(['?', '#']).next().unwrap_or_default()).to_ascii_lowercase();
    let last = path.split('/').rfind(|segment| !segment.is_empty());
    last.is_some_and(|last| SEGMENTS.contains(&last.trim()))
}

/// The part of a path, with its query, that names the call: what stands before it is for routes to rewrite.
pub fn path_of_call(path: &str) -> &str {
    let query = path.find(['?', '#']).unwrap_or(path.len());
    let is_call = |at: &usize| path.get(*at..query).is_some_and(|call| call_of("POST", call).is_some());
    path.match_indices("/v1").map(|(at, _)| at).filter(is_call).last().and_then(|at| path.get(at..)).unwrap_or(path)
}

fn call_at(method: &str, path: &str) -> Option<Call> {
    let call = match (method, path) {
        ("POST", "chat/completions") => Call::Generate(Api::ChatCompletions),
        ("POST", "completions") => Call::Generate(Api::Completions),
        ("POST", "responses") => Call::Generate(Api::Responses),
        ("POST", "messages") => Call::Generate(Api::Messages),
        ("POST", "messages/count_tokens") => Call::Generate(Api::CountTokens),
        ("POST", "embeddings") => Call::Generate(Api::Embeddings),
        ("GET", "models") => Call::Models,
        _ => return item_at(method, path),
    };
    Some(call)
}

fn item_at(method: &str, path: &str) -> Option<Call> {
    let (collection, item) = path.split_once('/')?;
    match (method, collection) {
        ("GET", "models") if !item.is_empty() => Some(Call::Model { name: percent_decoded(item) }),
        ("GET" | "DELETE" | "POST", "responses") => {
            let id = if method == "POST" { item.strip_suffix("/cancel")? } else { item };
            let is_id = !id.is_empty() && !id.contains('/');
            is_id.then(|| Call::ResponseItem { id: percent_decoded(id) })
        }
        _ => None,
    }
}

/// A `%` that no two hexadecimal digits follow stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|&digit| char::from(digit).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high << 4 | low) as u8);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn calls() {
        let model = |name: &str| Some(Call::Model { name: name.to_owned() });
        let item = |id: &str| Some(Call::ResponseItem { id: id.to_owned() });
        let rows = [
            ("POST", "/v1/chat/completions", Some(Call::Generate(Api::ChatCompletions))),
            ("POST", "/v1/completions?api-version=1", Some(Call::Generate(Api::Completions))),
            ("POST", "/v1/responses", Some(Call::Generate(Api::Responses))),
            ("POST", "/anthropic/v1/messages?beta=true", Some(Call::Generate(Api::Messages))),
            ("POST", "/v1/messages/count_tokens", Some(Call::Generate(Api::CountTokens))),
            ("POST", "/a/b/v1/embeddings", Some(Call::Generate(Api::Embeddings))),
            ("POST", "/v1/v1/completions", Some(Call::Generate(Api::Completions))),
            ("GET", "/v1/models", Some(Call::Models)),
            ("GET", "/v1/models/qwen2.5-7b", model("qwen2.5-7b")),
            ("GET", "/v1/models/Qwen/Qwen2.5-7B", model("Qwen/Qwen2.5-7B")),
            ("GET", "/v1/models/Qwen%2FQwen2.5%zz%4", model("Qwen/Qwen2.5%zz%4")),
            ("GET", "/v1/models/a/v1/models", model("a/v1/models")),
            ("GET", "/v1/responses/resp_1?stream=true", item("resp_1")),
            ("DELETE", "/v1/responses/resp_1", item("resp_1")),
            ("POST", "/v1/responses/resp_1/cancel", item("resp_1")),
            ("GET", "/v1/chat/completions", None),
            ("POST", "/v1/chat/completions/", None),
            ("POST", "/v1/chat/completions/batch", None),
            ("POST", "/chat/completions", None),
            ("POST", "/v1x/completions", None),
            ("POST", "v1/completions", None),
            ("POST", "/v1/models", None),
            ("GET", "/v1/models/", None),
            ("GET", "/v1/responses/", None),
            ("GET", "/v1/responses/resp_1/input_items", None),
            ("POST", "/v1/responses/resp_1", None),
            ("PUT", "/v1/responses/resp_1", None),
            ("GET", "/health", None),
            ("", "", None),
        ];
        for (method, path, expected) in rows {
            assert_eq!(call_of(method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn paths_that_generate() {
        let rows = [
            ("/v1%2Fchat/completions", true),
            ("/v1/chat//completions/", true),
            ("/V1/CHAT/Completions", true),
            ("/v1/chat/%63ompletions?x=/health", true),
            ("/invocations", true),
            ("/v1/responses/compact", true),
            ("/openai/deployments/gpt/chat/completions?api-version=1", true),
            ("/v1/audio/transcriptions", true),
            ("/tokenize", false),
            ("/health", false),
            ("/", false),
            ("", false),
            ("/v1/models?a=/completions", false),
        ];
        for (path, expected) in rows {
            assert_eq!(generates(path), expected, "{path}");
        }
    }

    #[test]
    fn paths_of_calls() {
        let rows = [
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("/quality/v1/messages?beta=true", "/v1/messages?beta=true"),
            ("/v1/v1/completions", "/v1/completions"),
            ("/a?b=/v1/completions", "/a?b=/v1/completions"),
            ("/v1", "/v1"),
            ("", ""),
        ];
        for (path, expected) in rows {
            assert_eq!(path_of_call(path), expected);
        }
    }
}
