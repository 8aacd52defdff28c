//! Values as vLLM reads them: its fields are pydantic's, in its lax mode. A number or a flag may come as a string, and a flag as a
//! number.

use super::Scalar;

pub(super) fn lenient(text: &str) -> Scalar<'_> {
    let is_any = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    if is_any(&["true", "t", "yes", "y", "on"]) { Scalar::Bool(true) } else { Scalar::Number(text) }
}

pub(super) fn boolean(value: Scalar<'_>) -> bool {
    value == Scalar::Bool(true) || integer(value) == Some(1)
}

/// A whole number; a greater one than the type holds is the type's greatest.
pub(super) fn integer(value: Scalar<'_>) -> Option<u32> {
    let Scalar::Number(text) = value else { return None };
    let number: f64 = text.trim().parse().ok()?;
    (number >= 0.0 && number.fract() == 0.0).then_some(number as u32)
}
