//! JSON values that an input chooses, and ways to write them.

use serde_json::{Map, Number, Value};

use crate::choices::Choices;

const TEXTS: [&str; 14] = [
    "",
    "auto",
    "small",
    "user",
    "What is 2 + 2?",
    "\u{1f600}\u{e9}\u{0}\n\"\\",
    "5",
    "0005_000",
    "true",
    "data:image/png;base64,AAAA",
    "stop",
    "length",
    "tool_result",
    "resp_1",
];
const NUMBERS: [f64; 8] = [0.0, -0.0, 1.5, 5000.0, -1.0, 1e300, 0.1, 1e-7];
/// Deeper values are plain ones.
const DEPTH_MAX: usize = 6;

/// A value, with these names for its fields most often.
pub(super) fn value(choices: &mut Choices<'_>, names: &[&str], depth: usize) -> Value {
    match choices.byte() {
        0..=15 => Value::Null,
        16..=35 => Value::Bool(choices.in_256(128)),
        36..=59 => Value::from(choices.below(70_000) % 40_000),
        60..=67 => Value::from(choices.number()),
        68..=75 => Number::from_f64(choices.pick(&NUMBERS)).map_or(Value::Null, Value::Number),
        76..=139 => Value::from(choices.pick(&TEXTS)),
        140..=155 => Value::from(String::from_utf8_lossy(&choices.raw(24)).into_owned()),
        156..=159 => Value::from("long ".repeat(choices.below(400))),
        160..=199 if depth < DEPTH_MAX => {
            (0..choices.below(4)).map(|_| value(choices, names, depth + 1)).collect::<Vec<_>>().into()
        }
        _ if depth < DEPTH_MAX => object(choices, names, depth + 1),
        _ => Value::from(1),
    }
}

pub(super) fn object(choices: &mut Choices<'_>, names: &[&str], depth: usize) -> Value {
    let mut fields = Map::new();
    for _ in 0..choices.below(7) {
        let name = if choices.in_256(12) {
            String::from_utf8_lossy(&choices.raw(12)).into_owned()
        } else {
            choices.pick(names).to_owned()
        };
        fields.insert(name, value(choices, names, depth));
    }
    Value::Object(fields)
}

/// Writes a value: with spaces anywhere, and with characters as escapes.
pub(super) fn written(choices: &mut Choices<'_>, value: &Value) -> String {
    let mut text = String::new();
    let style = choices.byte();
    write(&mut text, value, style, &mut 0);
    text
}

fn space(text: &mut String, style: u8, turn: &mut u32) {
    *turn = turn.wrapping_add(1);
    if style & 1 == 1 && (*turn).is_multiple_of(2 + u32::from(style >> 6)) {
        text.push_str([" ", "\n", "\t", "\r\n  "][(*turn % 4) as usize]);
    }
}

fn write(text: &mut String, value: &Value, style: u8, turn: &mut u32) {
    space(text, style, turn);
    match value {
        Value::Object(fields) => {
            text.push('{');
            for (at, (name, value)) in fields.iter().enumerate() {
                if at > 0 {
                    text.push(',');
                }
                space(text, style, turn);
                string(text, name, style, turn);
                space(text, style, turn);
                text.push(':');
                write(text, value, style, turn);
            }
            space(text, style, turn);
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    text.push(',');
                }
                write(text, item, style, turn);
            }
            space(text, style, turn);
            text.push(']');
        }
        Value::String(of) => string(text, of, style, turn),
        other => text.push_str(&other.to_string()),
    }
    space(text, style, turn);
}

fn string(text: &mut String, of: &str, style: u8, turn: &mut u32) {
    if style & 2 == 0 {
        return text.push_str(&Value::from(of).to_string());
    }
    text.push('"');
    for character in of.chars() {
        *turn = turn.wrapping_add(1);
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            '/' if style & 4 == 4 => text.push_str("\\/"),
            _ if character.is_control() || (*turn).is_multiple_of(3) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
            _ => text.push(character),
        }
    }
    text.push('"');
}
