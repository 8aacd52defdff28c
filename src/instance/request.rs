//! Reading a request as vLLM's front end does, with its complaints word for word.

use axum::http::StatusCode;
use serde_json::{Map, Value};

/// Whose error shape an API uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    OpenAi,
    Anthropic,
}

/// An error as the client sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
}

impl ApiError {
    fn bad_request(message: String, param: Option<&str>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "BadRequestError", message, param: param.map(str::to_owned) }
    }

    pub(super) fn unknown_model(name: &str, served: &[String]) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "NotFoundError",
            message: format!("The model `{name}` does not exist. Valid aliases: {}.", served.join(", ")),
            param: Some("model".into()),
        }
    }

    pub(super) fn unknown_response(id: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "invalid_request_error",
            message: format!("Response with id '{id}' not found."),
            param: Some("response_id".into()),
        }
    }

    pub(super) fn busy() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "Service Unavailable",
            message: "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
                .into(),
            param: None,
        }
    }

    pub(super) fn engine_dead() -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "InternalServerError",
            message: "EngineCore encountered an issue. See stack trace (above) for the root cause.".into(),
            param: None,
        }
    }

    pub(super) fn draining() -> Self {
        Self { message: "cannot schedule new futures after shutdown".into(), ..Self::engine_dead() }
    }

    pub(super) fn prompt_too_long(max_model_len: u32) -> Self {
        let seen = max_model_len + 1;
        Self::bad_request(
            format!(
                "This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least {seen} input \
                 tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. \
                 (parameter=input_tokens, value={seen})"
            ),
            Some("input_tokens"),
        )
    }

    pub(super) fn tools_without_parser(choice: &str) -> Self {
        Self::bad_request(choice.to_owned(), None)
    }

    /// The body, in the API's shape and with the field order of the real server.
    pub(super) fn body(&self, shape: Shape) -> String {
        let (kind, message) = (quote(self.kind), quote(&self.message));
        match shape {
            Shape::Anthropic => format!(r#"{{"type":"error","error":{{"type":{kind},"message":{message}}}}}"#),
            Shape::OpenAi => {
                let param = self.param.as_deref().map_or_else(|| "null".to_owned(), quote);
                let code = self.status.as_u16();
                format!(r#"{{"error":{{"message":{message},"type":{kind},"param":{param},"code":{code}}}}}"#)
            }
        }
    }

    /// The data of an error event inside a stream: Python's `json.dumps`, which puts a space after `:` and `,`.
    pub(super) fn event_data(&self) -> String {
        format!(
            r#"{{"error": {{"message": {}, "type": {}, "param": null, "code": {}}}}}"#,
            quote(&self.message),
            quote(self.kind),
            self.status.as_u16()
        )
    }
}

/// A JSON string literal.
pub(super) fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

/// One finding of the front end's validation.
struct Problem {
    kind: &'static str,
    loc: String,
    message: &'static str,
    input: String,
    context: Option<&'static str>,
}

/// All findings in one error, as vLLM's exception handler words them.
fn invalid(problems: &[Problem]) -> ApiError {
    let lines: String = problems
        .iter()
        .map(|p| {
            let context = p.context.map(|c| format!(", 'ctx': {{'error': '{c}'}}")).unwrap_or_default();
            format!(
                "\n  {{'type': '{}', 'loc': '{}', 'msg': '{}', 'input': {}{context}}}",
                p.kind, p.loc, p.message, p.input
            )
        })
        .collect();
    let s = if problems.len() == 1 { "" } else { "s" };
    ApiError {
        status: StatusCode::BAD_REQUEST,
        kind: "Bad Request",
        message: format!("{} validation error{s}:{lines}", problems.len()),
        param: problems.first().map(|p| p.loc.clone()),
    }
}

/// The body as an object, if content type and syntax are right.
pub(super) fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let media_type = content_type.unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if media_type != "application/json" {
        return Err(ApiError {
            status: StatusCode::BAD_REQUEST,
            kind: "Bad Request",
            message: "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed".into(),
            param: None,
        });
    }
    if body.is_empty() {
        let missing = Problem {
            kind: "missing",
            loc: "body".into(),
            message: "Field required",
            input: "None".into(),
            context: None,
        };
        return Err(invalid(&[missing]));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(invalid(&[Problem {
            kind: "model_attributes_type",
            loc: "body".into(),
            message: "Input should be a valid dictionary or object to extract fields from",
            input: python(&other),
            context: None,
        }])),
        Err(error) => {
            let lines_before: usize =
                body.split_inclusive(|b| *b == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
            let at = (lines_before + error.column()).saturating_sub(1);
            let words = error.to_string();
            // Python's json module has its own words for what it misses.
            let missing = [
                ("key must be a string", "Expecting property name enclosed in double quotes"),
                ("expected `:`", "Expecting ':' delimiter"),
                ("expected `,`", "Expecting ',' delimiter"),
                ("EOF while parsing a string", "Unterminated string starting at"),
                ("trailing characters", "Extra data"),
                ("control character", "Invalid control character at"),
            ];
            let context =
                missing.iter().find(|(serde, _)| words.contains(serde)).map_or("Expecting value", |(_, python)| python);
            Err(invalid(&[Problem {
                kind: "json_invalid",
                loc: format!("body.{at}"),
                message: "JSON decode error",
                input: "'<dict of 0 items>'".into(),
                context: Some(context),
            }]))
        }
    }
}

/// A field's type as the schema wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Integer,
    Number,
    Bool,
    Text,
    List,
}

/// Fields of any API, as far as they are read.
const FIELDS: [(&str, Type); 10] = [
    ("model", Type::Text),
    ("messages", Type::List),
    ("max_tokens", Type::Integer),
    ("max_completion_tokens", Type::Integer),
    ("max_output_tokens", Type::Integer),
    ("n", Type::Integer),
    ("temperature", Type::Number),
    ("top_p", Type::Number),
    ("stream", Type::Bool),
    ("ignore_eos", Type::Bool),
];

/// Required fields are there and known fields have their types; `null` counts as absent.
pub(super) fn validate(body: &Map<String, Value>, required: &[&str]) -> Result<(), ApiError> {
    let mut problems = Vec::new();
    for name in required {
        if !body.contains_key(*name) {
            problems.push(Problem {
                kind: "missing",
                loc: format!("body.{name}"),
                message: "Field required",
                input: format!("'<dict of {} items>'", body.len()),
                context: None,
            });
        }
    }
    for (name, wanted) in FIELDS {
        let Some(value) = body.get(name).filter(|value| !value.is_null()) else { continue };
        let (kind, message) = match (wanted, value) {
            (Type::Integer, Value::String(s)) if s.trim().parse::<i64>().is_err() => {
                ("int_parsing", "Input should be a valid integer, unable to parse string as an integer")
            }
            (Type::Integer, Value::Number(x)) if x.as_f64().is_some_and(|x| x.fract() != 0.0) => {
                ("int_from_float", "Input should be a valid integer, got a number with a fractional part")
            }
            (Type::Number, Value::String(s)) if s.trim().parse::<f64>().is_err() => {
                ("float_parsing", "Input should be a valid number, unable to parse string as a number")
            }
            (Type::Bool, Value::String(s)) if !["true", "false"].contains(&s.to_ascii_lowercase().as_str()) => {
                ("bool_parsing", "Input should be a valid boolean, unable to interpret input")
            }
            (Type::Integer | Type::Number, Value::String(_) | Value::Number(_))
            | (Type::Bool, Value::String(_) | Value::Bool(_))
            | (Type::Text, Value::String(_))
            | (Type::List, Value::Array(_)) => continue,
            (Type::Integer, _) => ("int_type", "Input should be a valid integer"),
            (Type::Number, _) => ("float_type", "Input should be a valid number"),
            (Type::Bool, _) => ("bool_type", "Input should be a valid boolean"),
            (Type::Text, _) => ("string_type", "Input should be a valid string"),
            (Type::List, _) => ("list_type", "Input should be a valid list"),
        };
        problems.push(Problem { kind, loc: format!("body.{name}"), message, input: python(value), context: None });
    }
    if problems.is_empty() { Ok(()) } else { Err(invalid(&problems)) }
}

/// An integer field, lenient as pydantic: `"16"` is 16.
pub(super) fn integer(body: &Map<String, Value>, name: &str) -> Option<i64> {
    let value = body.get(name)?;
    value.as_i64().or_else(|| value.as_f64().map(|x| x as i64)).or_else(|| value.as_str()?.trim().parse().ok())
}

/// A boolean field; absent is false.
pub(super) fn flag(body: &Map<String, Value>, name: &str) -> bool {
    match body.get(name) {
        Some(Value::Bool(value)) => *value,
        Some(Value::String(value)) => value.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

/// The first of `names` that is given, as the limit of output tokens.
///
/// # Errors
/// A limit below 1, above the context, or above what the prompt leaves of it; a negative temperature.
pub(super) fn max_tokens(
    body: &Map<String, Value>,
    names: &[&str],
    default: Option<u32>,
    prompt_tokens: u32,
    max_model_len: u32,
) -> Result<u32, ApiError> {
    if prompt_tokens > max_model_len {
        return Err(ApiError::prompt_too_long(max_model_len));
    }
    if let Some(value) = body.get("temperature").and_then(Value::as_f64).filter(|value| *value < 0.0) {
        let message =
            format!("temperature must be non-negative, got {value:?}. (parameter=temperature, value={value:?})");
        return Err(ApiError::bad_request(message, Some("temperature")));
    }
    let room = max_model_len - prompt_tokens;
    let Some((name, wanted)) = names.iter().find_map(|name| Some((*name, integer(body, name)?))) else {
        return if room == 0 {
            Err(ApiError::prompt_too_long(max_model_len))
        } else {
            Ok(default.unwrap_or(room).min(room))
        };
    };
    if wanted < 1 {
        let message = format!("max_tokens must be at least 1, got {wanted}. (parameter=max_tokens, value={wanted})");
        return Err(ApiError::bad_request(message, Some("max_tokens")));
    }
    if wanted > i64::from(max_model_len) {
        let message = format!(
            "{name}={wanted} cannot be greater than max_model_len={max_model_len}. Please request fewer output tokens. \
             (parameter={name}, value={wanted})"
        );
        return Err(ApiError::bad_request(message, Some(name)));
    }
    if wanted > i64::from(room) {
        let message = format!(
            "This model's maximum context length is {max_model_len} tokens. However, you requested {wanted} output tokens and your \
             prompt contains at least {prompt_tokens} input tokens, for a total of at least {} tokens. Please reduce the length of \
             the input prompt or the number of requested output tokens. (parameter=input_tokens, value={prompt_tokens})",
            wanted + i64::from(prompt_tokens)
        );
        return Err(ApiError::bad_request(message, Some("input_tokens")));
    }
    Ok(wanted as u32)
}

/// A value as Python's `repr` shows it; containers by their size, as vLLM's handler shortens them.
fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(value) => if *value { "True" } else { "False" }.into(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("'{text}'"),
        Value::Array(items) => format!("'<list of {} items>'", items.len()),
        Value::Object(fields) => format!("'<dict of {} items>'", fields.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Map<String, Value> {
        parse(Some("application/json; charset=utf-8"), text.as_bytes()).unwrap()
    }

    #[test]
    fn syntax_errors_name_the_place() {
        for (body, place, words) in [
            (r#"{"messages":[}"#, "'body.13'", "Expecting value"),
            ("{\n\"a\":}", "'body.6'", "Expecting value"),
            ("{\"a\" 1}", "'body.5'", "Expecting ':' delimiter"),
            ("{1:2}", "'body.1'", "Expecting property name"),
            ("[]", "'body'", "valid dictionary"),
            ("", "'body'", "Field required"),
        ] {
            let error = parse(Some("application/json"), body.as_bytes()).unwrap_err();
            assert!(error.message.contains(place) && error.message.contains(words), "{body}: {}", error.message);
        }
        assert!(parse(None, b"{}").is_err());
        assert!(parse(Some("text/plain"), b"{}").is_err());
    }

    #[test]
    fn types_are_checked_as_pydantic_does() {
        for (body, kind) in [
            (r#"{"max_tokens":"many"}"#, Some("int_parsing")),
            (r#"{"max_tokens":1.5}"#, Some("int_from_float")),
            (r#"{"max_tokens":[]}"#, Some("int_type")),
            (r#"{"temperature":"hot"}"#, Some("float_parsing")),
            (r#"{"stream":"perhaps"}"#, Some("bool_parsing")),
            (r#"{"model":1}"#, Some("string_type")),
            (r#"{"messages":{}}"#, Some("list_type")),
            (r#"{"max_tokens":"16","temperature":null,"stream":"true","n":1.0,"frobnicate":1}"#, None),
        ] {
            let found = validate(&object(body), &[]).err().map(|error| error.message);
            assert_eq!(found.is_some(), kind.is_some(), "{body}");
            assert!(found.is_none_or(|message| message.contains(kind.unwrap())), "{body}");
        }
    }

    #[test]
    fn limits_of_output() {
        for (body, prompt, expected) in [
            ("{}", 100, Ok(1948)),
            (r#"{"max_tokens":5}"#, 100, Ok(5)),
            (r#"{"max_completion_tokens":6,"max_tokens":5}"#, 100, Ok(6)),
            (r#"{"max_tokens":0}"#, 100, Err("max_tokens")),
            (r#"{"max_tokens":2049}"#, 100, Err("max_tokens")),
            (r#"{"max_tokens":2000}"#, 100, Err("input_tokens")),
            ("{}", 2048, Err("input_tokens")),
            ("{}", 2049, Err("input_tokens")),
        ] {
            let found = max_tokens(&object(body), &["max_completion_tokens", "max_tokens"], None, prompt, 2048);
            assert_eq!(found.map_err(|error| error.param.unwrap()), expected.map_err(str::to_owned), "{body}");
        }
    }
}
