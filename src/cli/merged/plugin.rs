//! The plugin as Envoy's configuration has it: whether it is the filter's, and what it is configured with.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::fields::{deep, field, held, text, typed};

/// What this module's names contain wherever nobody has changed them.
const NAME: &str = "routebalance";

/// The plugin of a Wasm filter, if it is this one.
pub(super) fn own<'a>(filter: &'a Value, module: Option<&str>) -> Option<&'a Value> {
    let plugin = field(held(filter, "filters.http.wasm.v3.Wasm")?, "config")?;
    let code = deep(plugin, &["vm_config", "code"]);
    let file = code.and_then(|code| deep(code, &["local", "filename"])).and_then(Value::as_str);
    let uri = code.and_then(|code| deep(code, &["remote", "http_uri", "uri"])).and_then(Value::as_str);
    let names = [text(plugin, "name"), vm_id(plugin), file, uri];
    let is_named = names.into_iter().flatten().any(|name| name.contains(NAME));
    let is_configured = || inline(plugin).is_ok_and(|text| is_ours(&text));
    (is_named || file.is_some() && file == module || is_configured()).then_some(plugin)
}

fn is_ours(configuration: &str) -> bool {
    let value: Result<Value, _> = serde_json::from_str(configuration);
    value.is_ok_and(|value| ["models", "pools", "default_policy"].iter().all(|part| value.get(part).is_some()))
}

/// The name of its VM.
pub(super) fn vm_id(plugin: &Value) -> Option<&str> {
    deep(plugin, &["vm_config", "vm_id"]).and_then(Value::as_str)
}

/// The text with which Envoy configures a plugin.
///
/// # Errors
/// What is wrong with it, and what to write.
pub(super) fn inline(plugin: &Value) -> Result<String, String> {
    const WRITE: &str =
        "write `\"@type\": type.googleapis.com/google.protobuf.StringValue` and the JSON as its `value`";
    let Some(any) = field(plugin, "configuration") else {
        return Err(format!("the plugin has no `configuration`: {WRITE}"));
    };
    let Some((kind, value)) = typed(any) else {
        return Err(format!("the plugin's `configuration` has no type: {WRITE}"));
    };
    let value = value.get("value").unwrap_or(&Value::Null);
    match (kind, value) {
        ("google.protobuf.StringValue", Value::String(text)) => Ok(text.clone()),
        ("google.protobuf.Struct", Value::Object(_)) => Ok(value.to_string()),
        ("google.protobuf.BytesValue", Value::String(text)) => STANDARD
            .decode(text.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| format!("the plugin's `configuration` is no text in base64: {WRITE}")),
        ("google.protobuf.StringValue" | "google.protobuf.Struct" | "google.protobuf.BytesValue", _) => {
            Err(format!("the `value` of the plugin's `configuration` is not what its type takes: {WRITE}"))
        }
        (kind, _) => Err(format!("the plugin's `configuration` is of the type {kind}: {WRITE}")),
    }
}

/// Where the first difference is between the configuration in Envoy's file and the one beside it. What only `render` reads may differ.
pub(super) fn difference(inline: &Value, file: &Value) -> Option<String> {
    let without = |value: &Value| {
        let mut value = value.clone();
        if let Some(envoy) = value.get_mut("envoy").and_then(Value::as_object_mut) {
            for name in ["listen", "admin", "module", "access_log", "endpoints_dir"] {
                envoy.remove(name);
            }
            if envoy.is_empty() {
                value.as_object_mut().map(|value| value.remove("envoy"));
            }
        }
        value
    };
    first_difference(&without(inline), &without(file), String::new())
}

fn first_difference(left: &Value, right: &Value, at: String) -> Option<String> {
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => {
            let names = left.keys().chain(right.keys());
            let mut pairs = names.map(|name| (name, left.get(name), right.get(name)));
            pairs.find_map(|(name, left, right)| {
                let below = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                match (left, right) {
                    (Some(left), Some(right)) => first_difference(left, right, below),
                    _ => Some(below),
                }
            })
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            let mut pairs = left.iter().zip(right).enumerate();
            pairs.find_map(|(index, (left, right))| first_difference(left, right, format!("{at}[{index}]")))
        }
        (Value::Number(left), Value::Number(right)) if left.as_f64() == right.as_f64() => None,
        _ => (left != right).then_some(at),
    }
}
