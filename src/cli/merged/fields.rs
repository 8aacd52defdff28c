//! Envoy's configuration as JSON: fields by their names in the protocol buffers, whichever way they are spelled, and what is inside of
//! an `Any`.

use serde_json::Value;

/// A field by its name, `per_connection_buffer_limit_bytes`; Envoy also reads `perConnectionBufferLimitBytes`.
pub(super) fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let found = value.get(name).or_else(|| value.get(camel_case(name)));
    found.filter(|value| !value.is_null())
}

fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| {
        let mut letters = part.chars();
        let upper = letters.next().map(|c| c.to_ascii_uppercase());
        name + &upper.into_iter().chain(letters).collect::<String>()
    })
}

/// A field of a field.
pub(super) fn deep<'a>(value: &'a Value, names: &[&str]) -> Option<&'a Value> {
    names.iter().try_fold(value, |value, name| field(value, name))
}

/// A list; empty if there is none.
pub(super) fn items<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    field(value, name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    field(value, name).and_then(Value::as_str)
}

/// A whole number. JSON has those of 64 bits as text.
pub(super) fn number(value: &Value, name: &str) -> Option<u64> {
    let value = field(value, name)?;
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// Whether a field is true, in the words that Envoy's YAML has for it.
pub(super) fn is_true(value: &Value, name: &str) -> bool {
    match field(value, name) {
        Some(Value::Bool(value)) => *value,
        Some(Value::String(word)) => ["true", "yes", "on", "y"].contains(&word.to_ascii_lowercase().as_str()),
        _ => false,
    }
}

/// Seconds of a duration, `1.5s`.
pub(super) fn seconds(value: &Value, name: &str) -> Option<f64> {
    text(value, name)?.strip_suffix('s')?.parse().ok()
}

/// The name of the type of what an `Any` holds, without `type.googleapis.com/`, and what it holds.
pub(super) fn typed(any: &Value) -> Option<(&str, &Value)> {
    let kind = type_name(any.get("@type")?.as_str()?);
    if kind.ends_with(".TypedStruct") {
        return Some((type_name(text(any, "type_url")?), field(any, "value")?));
    }
    Some((kind, any))
}

fn type_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

/// What an `Any` holds, if it is of the type whose name ends so.
pub(super) fn held<'a>(any: &'a Value, kind: &str) -> Option<&'a Value> {
    typed(any).filter(|(name, _)| name.ends_with(kind)).map(|(_, value)| value)
}

/// Every value below this one, itself included.
pub(super) fn walk(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    let below: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(items) => Box::new(items.iter().flat_map(walk)),
        Value::Object(fields) => Box::new(fields.values().flat_map(walk)),
        _ => Box::new(std::iter::empty()),
    };
    Box::new(std::iter::once(value).chain(below))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_found_however_they_are_spelled() {
        let value = json!({"a_long_name": 1, "otherLongName": "7", "none": null, "flag": "Yes", "time": "1.5s"});
        assert_eq!(number(&value, "a_long_name"), Some(1));
        assert_eq!(number(&value, "other_long_name"), Some(7));
        assert!(field(&value, "none").is_none() && !is_true(&value, "none"));
        assert!(is_true(&value, "flag") && !is_true(&value, "a_long_name"));
        assert_eq!(seconds(&value, "time"), Some(1.5));
        assert!(items(&value, "flag").is_empty());
    }

    #[test]
    fn a_typed_struct_is_what_it_wraps() {
        let plain = json!({"@type": "type.googleapis.com/a.v3.B", "c": 1});
        assert_eq!(held(&plain, "v3.B"), Some(&plain));
        assert_eq!(held(&plain, "v3.C"), None);
        let wrapped =
            json!({"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": "x/a.v3.B", "value": {"c": 1}});
        assert_eq!(held(&wrapped, "v3.B"), Some(&json!({"c": 1})));
    }
}
