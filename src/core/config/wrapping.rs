//! What a configuration may come wrapped in: Envoy hands a `google.protobuf.Struct` over in protobuf's binary form, and editors, shells and
//! templates put things around JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// No configuration nests as deep; bounds the reader's stack.
const DEPTH_MAX: usize = 64;

/// A configuration's JSON: the bytes themselves, or what a `Struct` in binary form holds, its fields in the order of their names.
pub(super) fn unwrapped(bytes: &[u8]) -> Cow<'_, [u8]> {
    // A field of the struct begins with the byte of a line feed, which JSON may begin with as well.
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace());
    if first == Some(&b'{') && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok() {
        return Cow::Borrowed(bytes);
    }
    match structure(bytes, 0) {
        Some(json) if !bytes.is_empty() => Cow::Owned(json.into_bytes()),
        _ => Cow::Borrowed(bytes),
    }
}

/// What is around a configuration that cannot be read, and what to do about it.
pub(super) fn wrapping(bytes: &[u8]) -> Option<&'static str> {
    let text = bytes.trim_ascii_start();
    Some(match bytes {
        [0xef, 0xbb, 0xbf, ..] => "it starts with a byte order mark: save it as UTF-8 without one",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, b'{', ..] | [b'{', 0, ..] => "it is UTF-16: save it as UTF-8",
        [0x1f, 0x8b, ..] => "it is packed with gzip: unpack it",
        _ if text.is_empty() => {
            "it is empty: Envoy's `configuration` must be a StringValue, a BytesValue or a Struct with the file's content"
        }
        _ if text.starts_with(b"```") => "it stands in a Markdown fence: take the lines with ``` away",
        _ if text.starts_with(b"\"") => "it is JSON inside a JSON string: take the quotes and backslashes away",
        _ if text.starts_with(b"[") => "it is a list: the file is one object",
        _ if text.starts_with(b"//") || text.starts_with(b"/*") || text.starts_with(b"#") => {
            "it starts with a comment, which JSON does not have"
        }
        _ if text.starts_with(b"<") => "it is XML or HTML: this is no configuration",
        _ if is_base64(text) => "it is base64: decode it",
        _ if !text.starts_with(b"{") => "it is YAML or some other text: write it as JSON",
        _ => return None,
    })
}

/// Whether a text is a JSON object in base64.
fn is_base64(text: &[u8]) -> bool {
    // `{"`, `{ ` and `{` with a line feed in base64.
    let begins = [b"eyJ".as_slice(), b"eyA", b"ewo", b"ew0"].iter().any(|begin| text.starts_with(begin));
    begins && text.trim_ascii_end().iter().all(|b| b.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(b))
}

/// What an object that is not a configuration is instead, by the names of its fields.
pub(super) fn enclosing(json: &[u8]) -> Option<&'static str> {
    let fields: BTreeMap<String, serde::de::IgnoredAny> = serde_json::from_slice(json).ok()?;
    let has = |name: &str| fields.contains_key(name);
    if has("models") || has("pools") {
        return None;
    }
    if has("@type") || (has("value") && fields.len() <= 2) {
        return Some("it is a protobuf value in JSON: give what stands in its field `value`");
    }
    if has("apiVersion") && has("kind") {
        return Some("it is a Kubernetes object: give the file that stands in its `data`");
    }
    (has("static_resources") || has("dynamic_resources")).then_some("it is Envoy's own configuration, not the filter's")
}

/// A `google.protobuf.Struct` as JSON: field 1, repeated, is an entry of name (1) and value (2).
fn structure(bytes: &[u8], depth: usize) -> Option<String> {
    let mut fields = BTreeMap::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let entry = match field(&mut rest)? {
            (1, Wire::Bytes(entry)) => entry,
            _ => return None,
        };
        let (mut name, mut content, mut rest) = ("", "null".to_owned(), entry);
        while !rest.is_empty() {
            match field(&mut rest)? {
                (1, Wire::Bytes(text)) => name = std::str::from_utf8(text).ok()?,
                (2, Wire::Bytes(bytes)) => content = value(bytes, depth)?,
                _ => return None,
            }
        }
        fields.insert(name, content);
    }
    let fields = fields.into_iter().map(|(name, content)| Some(format!("{}:{content}", text_of(name)?)));
    Some(format!("{{{}}}", fields.collect::<Option<Vec<String>>>()?.join(",")))
}

/// A `google.protobuf.Value`: one of null (1), number (2), string (3), bool (4), struct (5), list (6).
fn value(bytes: &[u8], depth: usize) -> Option<String> {
    let depth = depth.checked_add(1).filter(|depth| *depth <= DEPTH_MAX)?;
    let mut rest = bytes;
    let value = match field(&mut rest)? {
        (1, Wire::Varint(_)) => "null".to_owned(),
        (2, Wire::Fixed(number)) => serde_json::to_string(&f64::from_le_bytes(number)).ok()?,
        (3, Wire::Bytes(text)) => text_of(std::str::from_utf8(text).ok()?)?,
        (4, Wire::Varint(flag)) => (flag != 0).to_string(),
        (5, Wire::Bytes(fields)) => structure(fields, depth)?,
        (6, Wire::Bytes(items)) => list(items, depth)?,
        _ => return None,
    };
    rest.is_empty().then_some(value)
}

fn list(bytes: &[u8], depth: usize) -> Option<String> {
    let (mut rest, mut items) = (bytes, Vec::new());
    while !rest.is_empty() {
        let (1, Wire::Bytes(item)) = field(&mut rest)? else { return None };
        items.push(value(item, depth)?);
    }
    Some(format!("[{}]", items.join(",")))
}

fn text_of(text: &str) -> Option<String> {
    serde_json::to_string(text).ok()
}

/// A field's content in protobuf's binary form.
enum Wire<'a> {
    Varint(u64),
    Fixed([u8; 8]),
    Bytes(&'a [u8]),
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Wire<'a>)> {
    let tag = varint(rest)?;
    let content = match tag & 7 {
        0 => Wire::Varint(varint(rest)?),
        1 => {
            let (number, after) = rest.split_first_chunk::<8>()?;
            *rest = after;
            Wire::Fixed(*number)
        }
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            let (bytes, after) = rest.split_at_checked(length)?;
            *rest = after;
            Wire::Bytes(bytes)
        }
        _ => return None,
    };
    Some((tag >> 3, content))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut all = vec![number << 3 | 2];
        let mut length = bytes.len();
        while length > 0x7f {
            all.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        all.push(length as u8);
        all.extend_from_slice(bytes);
        all
    }

    fn encoded(value: &Value) -> Vec<u8> {
        match value {
            Value::Null => vec![8, 0],
            Value::Bool(flag) => vec![32, u8::from(*flag)],
            Value::Number(number) => [&[17][..], &number.as_f64().unwrap().to_le_bytes()].concat(),
            Value::String(text) => bytes_field(3, text.as_bytes()),
            Value::Array(items) => {
                bytes_field(6, &items.iter().flat_map(|i| bytes_field(1, &encoded(i))).collect::<Vec<u8>>())
            }
            Value::Object(_) => bytes_field(5, &encoded_struct(value, false)),
        }
    }

    fn encoded_struct(value: &Value, reversed: bool) -> Vec<u8> {
        let entry = |(name, value): (&String, &Value)| {
            bytes_field(1, &[bytes_field(1, name.as_bytes()), bytes_field(2, &encoded(value))].concat())
        };
        let mut entries: Vec<Vec<u8>> = value.as_object().unwrap().iter().map(entry).collect();
        if reversed {
            entries.reverse();
        }
        entries.concat()
    }

    #[test]
    fn a_struct_is_its_json_whatever_the_order_of_its_fields() {
        let value = json!({
            "text": "ä \"quoted\"\n", "number": 1e5, "fraction": -0.25, "yes": true, "no": false, "nothing": null,
            "list": [1.0, "two", [], {}], "object": {"deep": {"er": [null]}}, "long": "x".repeat(300),
        });
        let (straight, reversed) = (encoded_struct(&value, false), encoded_struct(&value, true));
        let json = unwrapped(&straight);
        assert_eq!(serde_json::from_slice::<Value>(&json).unwrap(), value);
        assert!(straight != reversed && json == unwrapped(&reversed));
        // A part of it is no struct, and nothing that it could be read as.
        for end in 1..straight.len() {
            if let Cow::Owned(json) = unwrapped(&straight[..end]) {
                let part: Value = serde_json::from_slice(&json).unwrap();
                assert!(part.as_object().unwrap().iter().all(|(name, field)| value[name] == *field), "{end}");
            }
        }
        let text = b"\n{\"a\": 1}";
        assert_eq!(unwrapped(text), Cow::Borrowed(text));
    }

    #[test]
    fn a_deep_struct_is_refused_and_not_followed() {
        let deep = |depth: usize| {
            let mut value = json!(1);
            for _ in 0..depth {
                value = json!([value]);
            }
            encoded_struct(&json!({"a": value}), false)
        };
        assert!(matches!(unwrapped(&deep(DEPTH_MAX - 1)), Cow::Owned(_)));
        assert!(matches!(unwrapped(&deep(DEPTH_MAX)), Cow::Borrowed(_)));
    }

    #[test]
    fn what_is_around_a_configuration_is_named() {
        let rows: &[(&[u8], &str)] = &[
            (b"\xef\xbb\xbf{\"models\": []}", "byte order mark"),
            (b"\xff\xfe{\0\"\0", "UTF-16"),
            (b"\0{\0\"", "UTF-16"),
            (b"{\0\"\0", "UTF-16"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"", "empty"),
            (b" \n", "empty"),
            (b"```json\n{}\n```", "Markdown"),
            (b"\"{\\\"models\\\": []}\"", "JSON string"),
            (b"[{}]", "a list"),
            (b"// mine\n{}", "comment"),
            (b"# mine\n", "comment"),
            (b"<html>", "HTML"),
            (b"eyJtb2RlbHMiOiBbXX0=\n", "base64"),
            (b"models:\n- name: a\n", "YAML"),
        ];
        for (bytes, word) in rows {
            let sentence = wrapping(bytes).unwrap_or_default();
            assert!(sentence.contains(word), "{word}: {sentence}");
        }
        assert_eq!(wrapping(b"{\"models\": []"), None);
        for (json, word) in [
            (json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "{}"}), "protobuf"),
            (json!({"value": {}}), "protobuf"),
            (json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {}}), "Kubernetes"),
            (json!({"static_resources": {}}), "Envoy's own"),
        ] {
            assert!(enclosing(json.to_string().as_bytes()).unwrap_or_default().contains(word), "{json}");
        }
        assert_eq!(enclosing(b"{\"models\": [], \"value\": 1}"), None);
    }
}
