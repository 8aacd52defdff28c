//! Small changes to a JSON file that leave the rest of its text as it is, and what they were.

use jsonc_parser::cst::{CstInputValue, CstObject};

/// Changes that were made.
#[derive(Debug, Default)]
pub(super) struct Edits {
    lines: Vec<String>,
}

impl Edits {
    /// Sets a field of an object, whatever it was; says so if it was something else.
    pub(super) fn set(&mut self, object: &CstObject, place: &str, field: &str, value: CstInputValue) {
        let (written, words) = (whole(&value), short(&value));
        match object.get(field) {
            None => {
                object.append(field, value);
                self.lines.push(format!("{place}: {field} = {words}"));
            }
            Some(property) => {
                let before = property.value().map(|value| value.to_string()).unwrap_or_default();
                let is_same = squeezed(&before) == squeezed(&written)
                    || before.parse::<f64>().is_ok_and(|before| written.parse() == Ok(before));
                if is_same {
                    return;
                }
                property.set_value(value);
                let was = if before.len() > WORDS_MAX { "replaced".to_owned() } else { format!("was {before}") };
                self.lines.push(format!("{place}: {field} = {words} ({was})"));
            }
        }
    }

    /// Says something about the whole.
    pub(super) fn note(&mut self, line: String) {
        self.lines.push(line);
    }

    /// A line per change, in the order in which they were made.
    pub(super) fn lines(self) -> Vec<String> {
        self.lines
    }
}

/// Characters of an old value that are repeated.
const WORDS_MAX: usize = 60;

/// Without white space: to compare values.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect()
}

/// A value on one line.
fn whole(value: &CstInputValue) -> String {
    match value {
        CstInputValue::Null => "null".to_owned(),
        CstInputValue::Bool(value) => value.to_string(),
        CstInputValue::Number(number) => number.clone(),
        CstInputValue::String(text) => format!("\"{text}\""),
        CstInputValue::Array(values) => format!("[{}]", values.iter().map(whole).collect::<Vec<_>>().join(", ")),
        CstInputValue::Object(fields) => {
            let field = |(name, value): &(String, CstInputValue)| format!("\"{name}\": {}", whole(value));
            format!("{{ {} }}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
    }
}

/// The same, or how much it is.
fn short(value: &CstInputValue) -> String {
    match value {
        CstInputValue::Array(values) => format!("{} entries", values.len()),
        _ => whole(value),
    }
}

/// Digits of a written number: prices and shares mean no more.
const DIGITS: i32 = 6;

/// A number with so many significant digits, without a tail of zeros.
pub(super) fn number(value: f64) -> CstInputValue {
    let magnitude = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    let decimals = (DIGITS - 1 - magnitude).clamp(0, 9) as usize;
    let text = format!("{value:.decimals$}");
    let short = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    CstInputValue::Number(short.to_owned())
}

/// A text.
pub(super) fn text(value: &str) -> CstInputValue {
    CstInputValue::String(value.to_owned())
}

/// An object with its fields in this order.
pub(super) fn object<const N: usize>(fields: [(&str, CstInputValue); N]) -> CstInputValue {
    CstInputValue::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
