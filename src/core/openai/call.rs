//! Which call a request makes, by its method and its path.

use super::Api;

/// A call that the filter handles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A POST with a body to route.
    Generate(Api),
    /// The same at a path of Azure's, which names the model.
    Deployment {
        /// The API.
        api: Api,
        /// The deployment's name, percent-decoded.
        model: String,
        /// The path of the API's own call, with the query.
        path: String,
    },
    /// `GET /v1/models`
    Models,
    /// `GET /v1/models/{name}`
    Model {
        /// Percent-decoded; may contain slashes.
        name: String,
    },
    /// `/v1/responses/{id}` and everything below it: belongs to the instance that made the response.
    ResponseItem {
        /// The response's id.
        id: String,
    },
}

/// Calls below `/v1/`.
const VERSIONED: [(&str, Api); 7] = [
    ("chat/completions", Api::ChatCompletions),
    ("completions", Api::Completions),
    ("responses", Api::Responses),
    ("responses/compact", Api::Responses),
    ("messages", Api::Messages),
    ("messages/count_tokens", Api::CountTokens),
    ("embeddings", Api::Embeddings),
];

/// Calls that servers have at several places, by the last segment of their paths.
const ANYWHERE: [(&str, Api); 13] = [
    ("tokenize", Api::Tokenize),
    ("detokenize", Api::Tokenize),
    ("pooling", Api::Pooling),
    ("score", Api::Pooling),
    ("rerank", Api::Pooling),
    ("classify", Api::Pooling),
    ("invocations", Api::Named),
    ("transcriptions", Api::Named),
    ("translations", Api::Named),
    ("speech", Api::Named),
    ("generations", Api::Named),
    ("edits", Api::Named),
    ("variations", Api::Named),
];

/// What stands before the name of a deployment.
const DEPLOYMENTS: &str = "/openai/deployments/";

/// The call that a request makes, if it is one of ours. The query is ignored, and anything may stand before `/v1/`, because
/// routes may rewrite prefixes.
pub fn call_of(method: &str, path: &str) -> Option<Call> {
    if method == "POST"
        && let Some((_, call)) = generating(path)
    {
        return Some(call);
    }
    let path = without_query(path);
    let after_version = |(at, root): (usize, &str)| path.get(at + root.len()..)?.strip_prefix('/');
    path.match_indices("/v1").filter_map(after_version).find_map(|rest| item_at(method, rest))
}

/// The POST of a path with a body to route, and where its own part of the path begins.
fn generating(path: &str) -> Option<(usize, Call)> {
    let bare = without_query(path);
    let versioned = bare.match_indices("/v1").find_map(|(at, root)| {
        let call = bare.get(at + root.len()..)?.strip_prefix('/')?;
        Some((at, Call::Generate(VERSIONED.iter().find(|(name, _)| *name == call)?.1)))
    });
    versioned.or_else(|| deployment(path)).or_else(|| {
        let at = bare.rfind('/')?;
        let last = bare.get(at + 1..)?;
        let api = ANYWHERE.iter().find(|(name, _)| *name == last)?.1;
        // `/v2/rerank`, `/v1/audio/speech` and the like are one path.
        let version = ["/v1/", "/v2/"].iter().find_map(|version| bare.rfind(version));
        Some((version.unwrap_or(at), Call::Generate(api)))
    })
}

fn deployment(path: &str) -> Option<(usize, Call)> {
    let (bare, query) = path.split_at_checked(without_query(path).len())?;
    let at = bare.find(DEPLOYMENTS)?;
    let (model, call) = bare.get(at + DEPLOYMENTS.len()..)?.split_once('/')?;
    let api = VERSIONED.iter().find(|(name, _)| *name == call)?.1;
    let model = percent_decoded(model);
    let path = format!("{}/v1/{call}{query}", bare.get(..at)?);
    (!model.is_empty()).then_some((at, Call::Deployment { api, model, path }))
}

fn without_query(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or_default()
}

/// Whether a path is one of those at which common servers generate, however it is spelt: with escapes, doubled slashes, other prefixes or
/// in other letters.
pub fn generates(path: &str) -> bool {
    // As vLLM, SGLang, TensorRT-LLM, Triton, TGI, llama.cpp, Ollama, SageMaker and Vertex name them, and whatever is named alike.
    const STEMS: [&str; 18] = [
        "generat",
        "complet",
        "chat",
        "respon",
        "compact",
        "messages",
        "invocations",
        "infer",
        "infill",
        "predict",
        "embed",
        "batch",
        "transcri",
        "translat",
        "speech",
        "edits",
        "variations",
        "realtime",
    ];
    let path = percent_decoded(without_query(path)).to_ascii_lowercase();
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.trim().is_empty()).collect();
    // The root is TGI's own; some servers put a word behind the call, as in `/generate/stream`.
    let mut last = segments.iter().rev().take(2);
    segments.is_empty() || last.any(|segment| STEMS.iter().any(|stem| segment.contains(stem)))
}

/// The part of a path, with its query, that names the call: what stands before it is for routes to rewrite.
pub fn path_of_call(path: &str) -> &str {
    generating(path).and_then(|(at, _)| path.get(at..)).unwrap_or(path)
}

fn item_at(method: &str, path: &str) -> Option<Call> {
    if (method, path) == ("GET", "models") {
        return Some(Call::Models);
    }
    let (collection, item) = path.split_once('/')?;
    match (method, collection) {
        ("GET", "models") if !item.is_empty() => Some(Call::Model { name: percent_decoded(item) }),
        (_, "responses") => {
            let id = percent_decoded(item.split('/').next().unwrap_or_default());
            (!id.is_empty()).then_some(Call::ResponseItem { id })
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
        let deployment = |api, model: &str, path: &str| {
            Some(Call::Deployment { api, model: model.to_owned(), path: path.to_owned() })
        };
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
            ("POST", "/v1/responses/compact", Some(Call::Generate(Api::Responses))),
            ("POST", "/tokenize", Some(Call::Generate(Api::Tokenize))),
            ("POST", "/quality/v1/detokenize", Some(Call::Generate(Api::Tokenize))),
            ("POST", "/v2/rerank?x=1", Some(Call::Generate(Api::Pooling))),
            ("POST", "/score", Some(Call::Generate(Api::Pooling))),
            ("POST", "/v1/audio/transcriptions", Some(Call::Generate(Api::Named))),
            ("POST", "/invocations", Some(Call::Generate(Api::Named))),
            ("GET", "/tokenize", None),
            (
                "POST",
                "/a/openai/deployments/gpt%204/chat/completions?api-version=1",
                deployment(Api::ChatCompletions, "gpt 4", "/a/v1/chat/completions?api-version=1"),
            ),
            ("POST", "/openai/deployments/e/embeddings", deployment(Api::Embeddings, "e", "/v1/embeddings")),
            ("POST", "/openai/deployments//embeddings", None),
            ("POST", "/generate?x=/openai/deployments/e/messages/count_tokens", None),
            ("POST", "/invocations?x=/openai/deployments/e/embeddings", Some(Call::Generate(Api::Named))),
            ("POST", "/openai/deployments/e/other", None),
            ("POST", "/openai/v1/chat/completions", Some(Call::Generate(Api::ChatCompletions))),
            ("POST", "/v1/responses/a/v1/chat/completions", Some(Call::Generate(Api::ChatCompletions))),
            ("GET", "/v1/responses/resp_1/input_items?limit=1", item("resp_1")),
            ("POST", "/v1/responses/resp%5F1/anything/else", item("resp_1")),
            ("POST", "/chat/completions", None),
            ("POST", "/v1x/completions", None),
            ("POST", "v1/completions", None),
            ("POST", "/v1/models", None),
            ("GET", "/v1/models/", None),
            ("GET", "/v1/responses/", None),
            ("PUT", "/v1/responses/resp_1", item("resp_1")),
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
            ("/", true),
            ("/v1/chat/completions/batch", true),
            ("/v2/models/m/infer", true),
            ("/v1beta/models/m:streamGenerateContent", true),
            ("/infill", true),
            ("/api/extra/generate/stream", true),
            ("/chat/v1/load_lora_adapter", false),
            ("/metrics", false),
            ("/v1/load_lora_adapter", false),
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
            ("/quality/tokenize", "/tokenize"),
            ("/quality/v2/rerank", "/v2/rerank"),
            ("/quality/v1/audio/speech", "/v1/audio/speech"),
            ("/v1", "/v1"),
            ("", ""),
        ];
        for (path, expected) in rows {
            assert_eq!(path_of_call(path), expected);
        }
    }
}
