//! Fields as the servers read them: vLLM, SGLang and TensorRT-LLM take a body through Python's `json.loads` to pydantic models in
//! lax mode. A number or a flag may come as a string, a flag as a number and a number as a flag.

use super::super::scan::Scalar;

/// A field's value as the body writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written<'a> {
    Scalar(Scalar<'a>),
    /// A string, unescaped and whole: the beginning of a longer one may read as another number.
    Text(&'a str),
}

/// What a field of an optional type holds after pydantic read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lax<T> {
    /// The body writes null, and each server decides what that means: its default, no limit or a refusal.
    Absent,
    Value(T),
    /// The server refuses the whole request.
    Refused,
}

// === impl Written ===

impl Written<'_> {
    /// A whole number. pydantic knows no greatest one; all beyond this type's ends are equally far from any limit, so they become
    /// its ends.
    pub(super) fn integer(self) -> Lax<i64> {
        match self {
            Written::Scalar(Scalar::Null) => Lax::Absent,
            Written::Scalar(Scalar::Bool(flag)) => Lax::Value(flag.into()),
            Written::Scalar(Scalar::Number(number)) => number_as_integer(number).into(),
            Written::Text(text) => text_as_integer(text).into(),
        }
    }

    /// A flag.
    pub(super) fn boolean(self) -> Lax<bool> {
        match self {
            Written::Scalar(Scalar::Null) => Lax::Absent,
            Written::Scalar(Scalar::Bool(flag)) => Lax::Value(flag),
            Written::Scalar(Scalar::Number(number)) => match number_as_integer(number) {
                Some(0) => Lax::Value(false),
                Some(1) => Lax::Value(true),
                _ => Lax::Refused,
            },
            Written::Text(text) => text_as_boolean(text).into(),
        }
    }
}

// === impl Lax ===

impl<T> From<Option<T>> for Lax<T> {
    fn from(value: Option<T>) -> Lax<T> {
        value.map_or(Lax::Refused, Lax::Value)
    }
}

/// Reads a JSON number. Python reads one with a point or an exponent as a float, and pydantic takes a float that is whole and
/// inside 64 bits; the ends themselves are no longer inside.
fn number_as_integer(number: &str) -> Option<i64> {
    let negative = number.strip_prefix('-');
    if let Some(integer) = digits(negative.unwrap_or(number), negative.is_some()) {
        return Some(integer);
    }
    let float: f64 = number.parse().ok()?;
    let is_inside = (i64::MIN as f64) < float && float < (i64::MAX as f64);
    (is_inside && float.fract() == 0.0).then_some(float as i64)
}

/// Reads a string as pydantic-core's `str_as_int` does: without white space around it, with one sign, with zeros and underscores
/// in front, with single underscores between the digits and with `.0` behind.
fn text_as_integer(text: &str) -> Option<i64> {
    let text = text.trim();
    let (unsigned, is_negative) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(rest), _) if rest.starts_with('-') => return None,
        (_, Some(rest)) if rest.starts_with(['+', '-']) => return None,
        (Some(rest), _) => (rest, false),
        (_, Some(rest)) => (rest, true),
        (None, None) => (text, false),
    };
    let integer = without_zeros_behind(without_zeros_in_front(unsigned)?);
    // pydantic-core takes the zeros off before it looks for the sign again: to it `0-1` and `0-_1` are -1.
    let (integer, is_negative) = match integer.strip_prefix('-') {
        Some(_) if is_negative => return None,
        Some(rest) => (rest.strip_prefix('_').unwrap_or(rest), true),
        None => (integer, is_negative),
    };
    digits(integer, is_negative)
}

/// Takes off zeros and underscores, but leaves what stands before the end or a point: a zero there is the number.
fn without_zeros_in_front(text: &str) -> Option<&str> {
    if !text.starts_with('0') {
        return Some(text);
    }
    let rest = text.trim_start_matches(['0', '_']);
    let is_zero = rest.is_empty() || rest.starts_with('.');
    if is_zero { text.get(text.len().checked_sub(rest.len())?.checked_sub(1)?..) } else { Some(rest) }
}

fn without_zeros_behind(text: &str) -> &str {
    match text.split_once('.') {
        Some((integer, zeros)) if !zeros.is_empty() && zeros.bytes().all(|byte| byte == b'0') => integer,
        _ => text,
    }
}

/// Reads digits, of which the first is no needless zero, with single underscores between them.
fn digits(text: &str, is_negative: bool) -> Option<i64> {
    let has_zero_in_front = text.len() > 1 && text.starts_with('0');
    if text.is_empty() || has_zero_in_front || text.starts_with('_') || text.ends_with('_') || text.contains("__") {
        return None;
    }
    text.bytes().filter(|&byte| byte != b'_').try_fold(0_i64, |integer, byte| {
        let digit = i64::from(char::from(byte).to_digit(10)?);
        let tens = integer.saturating_mul(10);
        Some(if is_negative { tens.saturating_sub(digit) } else { tens.saturating_add(digit) })
    })
}

/// Reads a string as pydantic-core's `str_as_bool` does, which takes no white space off.
fn text_as_boolean(text: &str) -> Option<bool> {
    let is_any = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    if is_any(&["1", "t", "y", "on", "yes", "true"]) {
        return Some(true);
    }
    is_any(&["0", "f", "n", "no", "off", "false"]).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use Lax::{Absent, Refused, Value};

    const MAX: i64 = i64::MAX;
    const MIN: i64 = i64::MIN;

    fn number(text: &str) -> Written<'_> {
        Written::Scalar(Scalar::Number(text))
    }

    #[test]
    fn integers_of_json() {
        let rows = [
            (Written::Scalar(Scalar::Null), Absent),
            (Written::Scalar(Scalar::Bool(true)), Value(1)),
            (Written::Scalar(Scalar::Bool(false)), Value(0)),
            (number("0"), Value(0)),
            (number("-0"), Value(0)),
            (number("-17"), Value(-17)),
            (number("9223372036854775807"), Value(MAX)),
            (number("9223372036854775808"), Value(MAX)),
            (number("-9223372036854775809"), Value(MIN)),
            (number("100000000000000000000000000000000000000000"), Value(MAX)),
            (number("16.0"), Value(16)),
            (number("-16.000"), Value(-16)),
            (number("1.6e1"), Value(16)),
            (number("160E-1"), Value(16)),
            (number("1e-400"), Value(0)),
            (number("16.5"), Refused),
            // Rounded to a whole float, as in Python.
            (number("16.00000000000000000001"), Value(16)),
            (number("1e18"), Value(1_000_000_000_000_000_000)),
            (number("9223372036854774784.0"), Value(9_223_372_036_854_774_784)),
            (number("9223372036854775807.0"), Refused),
            (number("-9223372036854775808.0"), Refused),
            (number("1e19"), Refused),
            (number("1e999"), Refused),
            (number("NaN"), Refused),
            (number("Infinity"), Refused),
            (number("-Infinity"), Refused),
        ];
        for (written, integer) in rows {
            assert_eq!(written.integer(), integer, "{written:?}");
        }
    }

    #[test]
    fn integers_of_strings() {
        let rows = [
            ("16", Value(16)),
            ("+16", Value(16)),
            ("-16", Value(-16)),
            ("-0", Value(0)),
            (" \t\n\u{b}\u{c}\r\u{85}\u{a0}\u{1680}\u{2028}\u{202f}\u{3000}16\u{2003}", Value(16)),
            ("16\u{1c}", Refused),
            ("\u{200b}16", Refused),
            ("\u{feff}16", Refused),
            ("+ 16", Refused),
            ("++16", Refused),
            ("+-16", Refused),
            ("-+16", Refused),
            ("--16", Refused),
            ("", Refused),
            ("+", Refused),
            ("-", Refused),
            ("_", Refused),
            (".", Refused),
            ("000", Value(0)),
            ("0016", Value(16)),
            ("-0016", Value(-16)),
            ("0_016", Value(16)),
            ("0__016", Value(16)),
            ("0_", Refused),
            ("_16", Refused),
            ("16_", Refused),
            ("+_16", Refused),
            ("1_6", Value(16)),
            ("1__6", Refused),
            ("1_6_0.00", Value(160)),
            ("16.0", Value(16)),
            ("16.", Refused),
            ("16.0_0", Refused),
            ("1_.0", Refused),
            ("16.0.0", Refused),
            ("16.5", Refused),
            (".0", Refused),
            ("0.0", Value(0)),
            ("00.00", Value(0)),
            ("0_0.0", Value(0)),
            ("0_.0", Refused),
            ("0-16", Value(-16)),
            ("0-_16", Value(-16)),
            ("0_-1_6.0", Value(-16)),
            ("+0-16", Value(-16)),
            ("-0-16", Refused),
            ("0-016", Refused),
            ("0--16", Refused),
            ("16-1", Refused),
            ("1e1", Refused),
            ("0x10", Refused),
            ("1 6", Refused),
            ("１６", Refused),
            ("٣", Refused),
            ("true", Refused),
            ("null", Refused),
            ("NaN", Refused),
            ("Infinity", Refused),
            ("9223372036854775808", Value(MAX)),
            ("-9_223_372_036_854_775_809.0", Value(MIN)),
        ];
        for (text, integer) in rows {
            assert_eq!(Written::Text(text).integer(), integer, "{text:?}");
        }
    }

    #[test]
    fn flags() {
        let rows = [
            (Written::Scalar(Scalar::Null), Absent),
            (Written::Scalar(Scalar::Bool(true)), Value(true)),
            (Written::Scalar(Scalar::Bool(false)), Value(false)),
            (number("1"), Value(true)),
            (number("1.0"), Value(true)),
            (number("10e-1"), Value(true)),
            (number("-0.0"), Value(false)),
            (number("2"), Refused),
            (number("0.5"), Refused),
            (number("-1"), Refused),
            (number("NaN"), Refused),
            (Written::Text("tRUE"), Value(true)),
            (Written::Text("t"), Value(true)),
            (Written::Text("Yes"), Value(true)),
            (Written::Text("Y"), Value(true)),
            (Written::Text("ON"), Value(true)),
            (Written::Text("1"), Value(true)),
            (Written::Text("False"), Value(false)),
            (Written::Text("f"), Value(false)),
            (Written::Text("NO"), Value(false)),
            (Written::Text("n"), Value(false)),
            (Written::Text("oFF"), Value(false)),
            (Written::Text("0"), Value(false)),
            (Written::Text(" true"), Refused),
            (Written::Text("1.0"), Refused),
            (Written::Text("01"), Refused),
            (Written::Text(""), Refused),
            (Written::Text("null"), Refused),
        ];
        for (written, flag) in rows {
            assert_eq!(written.boolean(), flag, "{written:?}");
        }
    }
}
