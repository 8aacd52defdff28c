//! The scan of a request's body, and what is replaced in it, against serde_json.

use routebalance_core::openai::{Api, BodyError, Prompt, RequestScan, patched};
use serde_json::{Map, Value};

use super::{any_api, json};
use crate::choices::Choices;
use crate::material::REQUESTS;
use crate::novelty::see;

const NAMES: [&str; 36] = [
    "model",
    "model",
    "stream",
    "stream_options",
    "include_usage",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "min_tokens",
    "n",
    "best_of",
    "messages",
    "messages",
    "prompt",
    "prompt",
    "input",
    "input",
    "system",
    "instructions",
    "content",
    "role",
    "name",
    "text",
    "type",
    "image_url",
    "tools",
    "tool_calls",
    "arguments",
    "previous_response_id",
    "prompt_embeds",
    "prompt_token_ids",
    "documents",
    "chat_template_kwargs",
    "reasoning_content",
    "source",
    "metadata",
];

/// Reads a body.
pub fn request(data: &[u8]) {
    let mut choices = Choices::new(data);
    let api = any_api(&mut choices);
    let body = match choices.byte() {
        0..=149 => {
            let value = json::object(&mut choices, &NAMES, 0);
            json::written(&mut choices, &value).into_bytes()
        }
        150..=229 => choices.bytes_like(REQUESTS),
        _ => choices.raw(4_096),
    };
    let mut whole = RequestScan::new(api);
    whole.push(&body);
    let result = whole.finish();
    let mut cut = RequestScan::new(api);
    choices.pieces(&body).into_iter().for_each(|piece| cut.push(piece));
    let again = cut.finish();
    assert_eq!(result.as_ref().err(), again.as_ref().err(), "cut in pieces");
    if let (Ok(result), Ok(again)) = (&result, &again) {
        compare(result, again);
    }
    see((api as u8, result.is_ok(), result.as_ref().err().map(|error| error.to_string().len())));
    let oracle = serde_json::from_slice::<Value>(&body);
    match (&oracle, &result) {
        (Err(problem), _) => check_invalid(&body, problem, &result),
        (Ok(value), result) => check_valid(api, value, result),
    }
    if let (Ok(Value::Object(fields)), Ok(prompt)) = (oracle, result) {
        check_fields(api, &fields, &prompt);
        check_patches(api, &body, &fields, &prompt, &mut choices);
    }
}

/// Wherever the body is cut, the same is read.
fn compare(one: &Prompt, other: &Prompt) {
    let read = |prompt: &Prompt| {
        let Prompt { model, body_model, model_span, insert_at, limit_spans, previous_response_id, .. } = prompt.clone();
        let spans = (model_span, insert_at, limit_spans);
        let limits = (prompt.max_tokens, prompt.min_tokens, prompt.n, prompt.max_tokens_is_plain);
        let flags = (prompt.stream, prompt.include_usage, prompt.has_input, prompt.empty_object);
        let counts = (prompt.media_parts, prompt.messages, prompt.prompts, prompt.token_ids, prompt.tool_bytes);
        let text = (prompt.text.tokens_to_read(), prompt.replaced_tokens, prompt.bytes);
        (model, body_model, previous_response_id, spans, limits, flags, counts, text)
    };
    assert_eq!(read(one), read(other), "cut in pieces");
    assert_eq!(format!("{:?}", one.text), format!("{:?}", other.text), "cut in pieces");
    assert_eq!(format!("{:?}", one.prefix), format!("{:?}", other.prefix), "cut in pieces");
}

/// What no JSON is, is refused, but for what Python's reader takes besides.
fn check_invalid(body: &[u8], problem: &serde_json::Error, result: &Result<Prompt, BodyError>) {
    let Ok(text) = std::str::from_utf8(body) else { return };
    let is_pythons = ["NaN", "Infinity", "\\u", "\u{feff}"].iter().any(|word| text.contains(word));
    let said = problem.to_string();
    if is_pythons || said.contains("out of range") || said.contains("recursion limit") {
        return;
    }
    let is_refused = matches!(result, Err(BodyError::Empty | BodyError::InvalidJson { .. } | BodyError::TooDeep));
    assert!(is_refused, "{text:?}: {problem}, but {result:?}");
}

fn check_valid(api: Api, value: &Value, result: &Result<Prompt, BodyError>) {
    let model = value.get("model");
    let is_name = model.is_none_or(|model| model.is_string() || model.is_null());
    match result {
        Err(error @ (BodyError::Empty | BodyError::InvalidJson { .. } | BodyError::TooDeep)) => {
            panic!("{value}: {error:?}")
        }
        Err(BodyError::NotAnObject) => assert!(!value.is_object(), "{value} is an object"),
        Err(BodyError::WrongType("model")) => assert!(!is_name, "{value} names a model"),
        Err(_) => assert!(value.is_object()),
        Ok(_) => assert!(value.is_object() && is_name, "{api:?}: {value} is taken"),
    }
}

/// A number as every server reads it; `Err` where they read other things, too.
fn plain(fields: &Map<String, Value>, name: &str) -> Result<Option<u64>, ()> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => number.as_u64().map(Some).ok_or(()),
        Some(_) => Err(()),
    }
}

fn limits_of(api: Api) -> &'static [&'static str] {
    match api {
        Api::ChatCompletions => &["max_completion_tokens", "max_tokens"],
        Api::Completions | Api::Messages => &["max_tokens"],
        Api::Responses => &["max_output_tokens"],
        _ => &[],
    }
}

fn check_fields(api: Api, fields: &Map<String, Value>, prompt: &Prompt) {
    match fields.get("model") {
        Some(Value::String(name)) if name.len() <= 256 => {
            let named = Some(name.as_str()).filter(|name| !name.is_empty());
            assert_eq!(prompt.model.as_deref(), named);
        }
        Some(Value::String(_)) => assert!(prompt.model.as_ref().is_some_and(|model| model.ends_with('…'))),
        _ => assert_eq!(prompt.model, None),
    }
    if api.is_guessed() {
        return;
    }
    if let None | Some(Value::Bool(_)) = fields.get("stream") {
        assert_eq!(Some(prompt.stream), fields.get("stream").map_or(Some(false), Value::as_bool), "stream");
    }
    let options = fields.get("stream_options");
    if let None | Some(Value::Object(_)) = options {
        let usage = options.and_then(|options| options.get("include_usage"));
        if let None | Some(Value::Bool(_)) = usage {
            assert_eq!(Some(prompt.include_usage), usage.map_or(Some(false), Value::as_bool), "include_usage");
        }
    }
    let limits: Result<Vec<Option<u64>>, ()> = limits_of(api).iter().map(|name| plain(fields, name)).collect();
    if let Ok(limits) = limits {
        let is_absent = limits_of(api).iter().all(|name| !fields.contains_key(*name));
        let default = (api == Api::Completions && is_absent).then_some(16);
        let first = limits.into_iter().flatten().find(|limit| *limit > 0);
        let first = first.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX));
        assert_eq!(prompt.max_tokens, first.or(default), "{fields:?}");
    }
    if matches!(api, Api::ChatCompletions | Api::Completions)
        && let (Ok(n), Ok(best_of)) = (plain(fields, "n"), plain(fields, "best_of"))
    {
        let answers = n.unwrap_or(1).max(best_of.unwrap_or(1)).max(1);
        assert_eq!(prompt.n, u32::try_from(answers).unwrap_or(u32::MAX), "{fields:?}");
    }
}

/// A patched body says what was asked for, and everything else as before.
fn check_patches(api: Api, body: &[u8], fields: &Map<String, Value>, prompt: &Prompt, choices: &mut Choices<'_>) {
    let served = choices.pick(&["org/small", "auto", "a \"quoted\" \\ name", "\u{1f600}", ""]);
    let limit = (api.generates() && choices.in_256(128)).then(|| 1 + choices.below(60_000) as u32);
    let patches = prompt.patch_places().patches(api, served, limit);
    let once = patched(&patches, body).expect("patches are the body's own");
    let said = |body: &[u8]| match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => fields,
        other => panic!("{:?} became {other:?}", String::from_utf8_lossy(body)),
    };
    let after = said(&once);
    assert_eq!(after, expected(api, fields, served, limit, &after), "{patches:?}");
    // The same body for another model, as if it had not been changed before.
    let (other, other_limit) = (choices.pick(&["org/large", served]), limit.map(|limit| limit / 2 + 1));
    let patches = prompt.patch_places().patches_after(&patches, api, other, other_limit);
    let twice = patched(&patches, &once).expect("patches are the patched body's own");
    let after = said(&twice);
    assert_eq!(after, expected(api, fields, other, other_limit, &after), "{patches:?}");
    see(("patches", patches.len()));
}

/// Of a limit that is a list or an object, nothing is promised.
fn expected(
    api: Api,
    fields: &Map<String, Value>,
    served: &str,
    limit: Option<u32>,
    after: &Map<String, Value>,
) -> Map<String, Value> {
    let mut expected = fields.clone();
    expected.insert("model".to_owned(), served.into());
    let Some(limit) = limit else { return expected };
    let named: Vec<&str> = limits_of(api).iter().copied().filter(|name| fields.contains_key(*name)).collect();
    for name in &named {
        let is_plain = fields.get(*name).is_some_and(|value| !value.is_object() && !value.is_array());
        let value = if is_plain { Some(limit.into()) } else { after.get(*name).cloned() };
        expected.extend(value.map(|value| ((*name).to_owned(), value)));
    }
    let inserted = if api == Api::Responses { "max_output_tokens" } else { "max_tokens" };
    if named.is_empty() || (!named.contains(&inserted) && after.contains_key(inserted)) {
        expected.insert(inserted.to_owned(), limit.into());
    }
    expected
}
