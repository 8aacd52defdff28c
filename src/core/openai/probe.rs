//! The body of a question to the predictor: `{"text": "...", "repeat": 1}`, read by the scanner that reads requests, so that
//! escapes and broken bytes become the same text.

use std::ops::Range;

use super::scan::{Container, Kept, Scalar, ScanFailure, Scanner, Sink, Want};
use crate::features::TextWindow;

/// Most repetitions that one question may ask for: they hold up a worker.
pub const REPEAT_MAX: u32 = 10_000;

/// A question to the predictor.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    /// The text.
    pub text: TextWindow,
    /// How often features and prediction are computed, 1 to [`REPEAT_MAX`].
    pub repeat: u32,
}

/// Reads a question piece by piece.
#[derive(Clone, Debug, Default)]
pub struct ProbeScan {
    scanner: Scanner,
    reading: ProbeReading,
}

#[derive(Clone, Debug, Default)]
struct ProbeReading {
    field: ProbeField,
    depth: usize,
    text: Option<TextWindow>,
    repeat: Option<f64>,
    /// What is wrong, if the JSON itself is not.
    problem: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, Default)]
enum ProbeField {
    Text,
    Repeat,
    #[default]
    Unknown,
}

const NOT_AN_OBJECT: &str = "The body must be a JSON object.";
const UNKNOWN_FIELD: &str = "The body may hold the fields 'text' and 'repeat' only.";
const TEXT_TYPE: &str = "The field 'text' must be a string.";
const REPEAT_RANGE: &str = "The field 'repeat' must be a whole number from 1 to 10000.";
const NO_TEXT: &str = "The field 'text' is missing.";

impl ProbeScan {
    /// Reads the next piece, wherever it is cut.
    pub fn push(&mut self, bytes: &[u8]) {
        self.scanner.push(bytes, &mut self.reading);
    }

    /// Says that the body ended, and takes the question out.
    ///
    /// # Errors
    /// One sentence that says what is wrong with the body.
    pub fn finish(mut self) -> Result<Probe, String> {
        match self.scanner.finish(&mut self.reading) {
            Err(ScanFailure::Syntax { offset }) => {
                return Err(format!("The body is not valid JSON: look at byte {offset}."));
            }
            Err(ScanFailure::TooDeep) => return Err(UNKNOWN_FIELD.to_owned()),
            Ok(()) => {}
        }
        if let Some(problem) = self.reading.problem {
            return Err(problem.to_owned());
        }
        let repeat = self.reading.repeat.unwrap_or(1.0);
        if !(repeat >= 1.0 && repeat <= f64::from(REPEAT_MAX) && repeat.fract() == 0.0) {
            return Err(REPEAT_RANGE.to_owned());
        }
        let text = self.reading.text.ok_or(NO_TEXT)?;
        Ok(Probe { text, repeat: repeat as u32 })
    }
}

impl ProbeReading {
    fn wrong(&mut self, problem: &'static str) {
        self.problem.get_or_insert(problem);
    }

    /// A value that its field cannot have.
    fn wrong_type(&mut self) {
        self.wrong(match (self.depth, self.field) {
            (0, _) => NOT_AN_OBJECT,
            (_, ProbeField::Text) => TEXT_TYPE,
            (_, ProbeField::Repeat) => REPEAT_RANGE,
            (_, ProbeField::Unknown) => UNKNOWN_FIELD,
        });
    }
}

impl Sink for ProbeReading {
    fn open(&mut self, container: Container, _at: u64) {
        if self.depth > 0 || container == Container::Array {
            self.wrong_type();
        }
        self.depth += 1;
    }

    fn close(&mut self, _end: u64) {
        self.depth = self.depth.saturating_sub(1);
    }

    fn key(&mut self, name: &str) {
        self.field = match name {
            "text" => ProbeField::Text,
            "repeat" => ProbeField::Repeat,
            _ => ProbeField::Unknown,
        };
        if let ProbeField::Unknown = self.field {
            self.wrong(UNKNOWN_FIELD);
        }
    }

    fn string(&mut self) -> Want {
        match (self.depth, self.field) {
            (1, ProbeField::Text) => {
                self.text = Some(TextWindow::default());
                Want::Pieces
            }
            _ => {
                self.wrong_type();
                Want::Nothing
            }
        }
    }

    fn text(&mut self, piece: &str) {
        if let Some(text) = &mut self.text {
            text.push_str(piece);
        }
    }

    fn string_end(&mut self, _kept: Kept<'_>, _span: Range<u64>) {}

    fn scalar(&mut self, scalar: Scalar<'_>, _span: Range<u64>) {
        match (self.depth, self.field, scalar) {
            // What does not parse is out of range.
            (1, ProbeField::Repeat, Scalar::Number(number)) => self.repeat = Some(number.parse().unwrap_or(f64::NAN)),
            _ => self.wrong_type(),
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;
    use crate::features::extract;

    fn probe(body: &[u8]) -> Result<Probe, String> {
        let mut scan = ProbeScan::default();
        body.chunks(3).for_each(|piece| scan.push(piece));
        scan.finish()
    }

    #[test]
    fn questions() {
        let rows: [(&[u8], &str, u32); 5] = [
            (br#"{"text": ""}"#, "", 1),
            (br#" {"repeat": 10000, "text": "a \"b\"\n"} "#, "a \"b\"\n", 10_000),
            (br#"{"text": "\u00e4\ud83e\udd80\ud83e"}"#, "ä🦀\u{FFFD}", 1),
            (b"{\"text\": \"a\xFFb\xE2\x82\", \"repeat\": 2.0}", "a\u{FFFD}b\u{FFFD}", 2),
            (br#"{"text": "first", "text": "last"}"#, "last", 1),
        ];
        for (body, text, repeat) in rows {
            let probe = probe(body).unwrap();
            let mut window = TextWindow::default();
            window.push_str(text);
            assert_eq!(probe.text.chars(), window.chars(), "{text:?}");
            assert_eq!(extract(&probe.text), extract(&window), "{text:?}");
            assert_eq!(probe.repeat, repeat);
        }
    }

    #[test]
    fn refusals() {
        let rows = [
            ("", "not valid JSON"),
            (r#"{"text": "a""#, "not valid JSON"),
            (r#"["text"]"#, NOT_AN_OBJECT),
            (r#""text""#, NOT_AN_OBJECT),
            ("{}", NO_TEXT),
            (r#"{"text": 1}"#, TEXT_TYPE),
            (r#"{"text": ["a"]}"#, TEXT_TYPE),
            (r#"{"text": "a", "repeat": 0}"#, REPEAT_RANGE),
            (r#"{"text": "a", "repeat": 10001}"#, REPEAT_RANGE),
            (r#"{"text": "a", "repeat": 1.5}"#, REPEAT_RANGE),
            (r#"{"text": "a", "repeat": NaN}"#, REPEAT_RANGE),
            (r#"{"text": "a", "repeat": "2"}"#, REPEAT_RANGE),
            (r#"{"text": "a", "repeat": null}"#, REPEAT_RANGE),
            (r#"{"text": "a", "prompt": "b"}"#, UNKNOWN_FIELD),
            (r#"{"text": "a", "": {"text": "b"}}"#, UNKNOWN_FIELD),
        ];
        for (body, problem) in rows {
            let refused = probe(body.as_bytes()).unwrap_err();
            assert!(refused.contains(problem), "{body}: {refused}");
        }
        assert!(REPEAT_RANGE.contains(&REPEAT_MAX.to_string()));
    }
}
