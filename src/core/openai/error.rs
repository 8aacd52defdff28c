//! Answers that the filter gives itself, in each API's own shape.

use serde::Serialize;

use super::Api;

/// The body of an error: Anthropic's shape for its own APIs, else OpenAI's with vLLM's type names.
pub fn error_body(api: Option<Api>, status: u16, message: &str) -> String {
    error_body_about(api, status, message, None)
}

/// The same; OpenAI's shape also names the parameter that is wrong.
pub fn error_body_about(api: Option<Api>, status: u16, message: &str, param: Option<&str>) -> String {
    if matches!(api, Some(Api::Messages | Api::CountTokens)) {
        let error = AnthropicError { kind: anthropic_type(status), message };
        json(&AnthropicBody { kind: "error", error })
    } else {
        json(&OpenAiBody { error: OpenAiError { message, kind: vllm_type(status), param, code: status } })
    }
}

/// What Envoy's own answers say to a client, by their `response.code_details`; `None` where an instance or another filter has answered.
pub fn words_of_envoy(details: &str) -> Option<&'static str> {
    const WORDS: [(&str, &str); 11] = [
        ("upstream_reset_before_response_started{overflow", "The gateway has too many requests under way."),
        ("upstream_reset_before_response_started", "No instance has answered."),
        ("upstream_per_try_idle_timeout", "No instance has answered in time."),
        ("upstream_per_try_timeout", "No instance has answered in time."),
        ("upstream_response_timeout", "The instance has not answered in time."),
        ("response_timeout", "The instance has not answered in time."),
        ("no_healthy_upstream", "No instance is there that could serve this request."),
        ("cluster_not_found", "The gateway knows no cluster for this request."),
        ("request_payload_too_large", "The request body is too large."),
        ("request_overall_timeout", "The request has not arrived in time."),
        ("stream_idle_timeout", "Nothing was heard for too long."),
    ];
    WORDS.iter().find(|(name, _)| details.starts_with(name)).map(|(_, words)| *words)
}

/// A name that requests may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// The name.
    pub name: &'a str,
    /// Tokens of the longest context that it may have.
    pub max_model_len: u32,
    /// Whether an instance is there, as far as anybody knows.
    pub available: bool,
}

/// The body of `GET /v1/models`; `created` in Unix seconds.
pub fn models_body<'a>(models: impl Iterator<Item = Listed<'a>>, created: u64) -> String {
    json(&ModelList { object: "list", data: models.map(|model| ModelCard::new(model, created)).collect() })
}

/// The body of `GET /v1/models/{name}`; `created` in Unix seconds.
pub fn model_body(model: Listed<'_>, created: u64) -> String {
    json(&ModelCard::new(model, created))
}

#[derive(Serialize)]
struct OpenAiBody<'a> {
    error: OpenAiError<'a>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: u16,
}

#[derive(Serialize)]
struct AnthropicBody<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    error: AnthropicError<'a>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'a str,
    data: Vec<ModelCard<'a>>,
}

#[derive(Serialize)]
struct ModelCard<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    owned_by: &'a str,
    /// As vLLM says it.
    max_model_len: u32,
    /// False where no instance is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<bool>,
}

impl<'a> ModelCard<'a> {
    fn new(model: Listed<'a>, created: u64) -> ModelCard<'a> {
        let Listed { name, max_model_len, available } = model;
        let available = (!available).then_some(false);
        ModelCard { id: name, object: "model", created, owned_by: "routebalance", max_model_len, available }
    }
}

/// vLLM's own names where it has one, else the status's reason phrase, as vLLM does it.
fn vllm_type(status: u16) -> &'static str {
    match status {
        400 => "BadRequestError",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFoundError",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Request Entity Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        500 => "InternalServerError",
        501 => "NotImplementedError",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        402..500 => "BadRequestError",
        _ => "InternalServerError",
    }
}

/// From the error page of Anthropic's API reference.
fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    }
}

/// Strings and numbers always serialise.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn parsed(body: &str) -> Value {
        serde_json::from_str(body).unwrap()
    }

    #[test]
    fn errors() {
        let openai = |kind: &str, code: u16| json!({"error": {"message": "a \"b\"\n", "type": kind, "param": null, "code": code}});
        let anthropic = |kind: &str| json!({"type": "error", "error": {"type": kind, "message": "a \"b\"\n"}});
        let rows = [
            (None, 404, openai("NotFoundError", 404)),
            (Some(Api::ChatCompletions), 400, openai("BadRequestError", 400)),
            (Some(Api::Completions), 413, openai("Request Entity Too Large", 413)),
            (Some(Api::Responses), 429, openai("Too Many Requests", 429)),
            (Some(Api::Embeddings), 503, openai("Service Unavailable", 503)),
            (None, 500, openai("InternalServerError", 500)),
            (None, 418, openai("BadRequestError", 418)),
            (None, 599, openai("InternalServerError", 599)),
            (Some(Api::Messages), 400, anthropic("invalid_request_error")),
            (Some(Api::Messages), 404, anthropic("not_found_error")),
            (Some(Api::Messages), 413, anthropic("request_too_large")),
            (Some(Api::CountTokens), 429, anthropic("rate_limit_error")),
            (Some(Api::CountTokens), 503, anthropic("overloaded_error")),
            (Some(Api::Messages), 500, anthropic("api_error")),
        ];
        for (api, status, expected) in rows {
            assert_eq!(parsed(&error_body(api, status, "a \"b\"\n")), expected, "{api:?} {status}");
        }
    }

    #[test]
    fn envoys_own_answers_have_words() {
        let rows = [
            ("upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_111}", true),
            ("upstream_reset_before_response_started{overflow}", true),
            ("response_timeout", true),
            ("upstream_response_timeout", true),
            ("no_healthy_upstream", true),
            ("request_payload_too_large", true),
            ("via_upstream", false),
            ("", false),
            ("ext_authz_denied", false),
            ("direct_response", false),
        ];
        for (details, has_words) in rows {
            assert_eq!(words_of_envoy(details).is_some(), has_words, "{details}");
        }
    }

    #[test]
    fn a_recorded_error_has_the_same_shape() {
        let recorded = include_str!("../../../tests/fixtures/vllm-small/overload-chat.body");
        let message = parsed(recorded)["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(error_body(Some(Api::ChatCompletions), 503, &message), recorded.trim_end());
    }

    #[test]
    fn models() {
        let card = |id: &str| json!({"id": id, "object": "model", "created": 7, "owned_by": "routebalance", "max_model_len": 4096});
        let listed = |name| Listed { name, max_model_len: 4_096, available: true };
        assert_eq!(
            parsed(&models_body(["auto", "a/b\""].map(listed).into_iter(), 7)),
            json!({"object": "list", "data": [card("auto"), card("a/b\"")]})
        );
        assert_eq!(parsed(&models_body(std::iter::empty(), 7)), json!({"object": "list", "data": []}));
        assert_eq!(parsed(&model_body(listed("auto"), 7)), card("auto"));
        let missing = Listed { available: false, ..listed("auto") };
        assert_eq!(parsed(&model_body(missing, 7))["available"], false);
    }
}
