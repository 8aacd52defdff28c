//! The name of the model in a form (`multipart/form-data`), as audio and images are sent. Bytes come in pieces cut anywhere, and files
//! are passed over.

use std::ops::Range;

/// Longest boundary (RFC 2046, section 5.1.1).
const BOUNDARY_BYTES_MAX: usize = 70;
/// Most bytes of a part's headers; a part with more has no name.
const HEADERS_BYTES_MAX: usize = 4_096;
/// Longest name of a model.
const MODEL_BYTES_MAX: usize = 256;

/// Reads a form for its model.
#[derive(Clone, Debug)]
pub(super) struct Form {
    /// What ends a part: a line break, two dashes and the boundary.
    delimiter: Vec<u8>,
    /// How much of it stands just before the next byte.
    matched: usize,
    state: FormState,
    /// The headers or the value that is being read.
    held: Vec<u8>,
    offset: u64,
    model: Option<(String, Range<u64>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FormState {
    /// In a part that does not matter, or before the first one.
    Part,
    /// In the value of `model`, which begins here.
    Model {
        at: u64,
    },
    /// Behind a boundary, up to the end of its line.
    Boundary,
    Headers,
}

/// The boundary that a content type names, if it is that of a form.
pub(super) fn boundary(content_type: &str) -> Option<&str> {
    let (kind, parameters) = content_type.split_once(';')?;
    let is_form = kind.trim().eq_ignore_ascii_case("multipart/form-data");
    let named = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
    });
    named.filter(|boundary| is_form && (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len()))
}

impl Form {
    pub(super) fn new(boundary: &str) -> Form {
        Form {
            delimiter: [b"\r\n--", boundary.as_bytes()].concat(),
            // The first boundary has no line before it.
            matched: 2,
            state: FormState::Part,
            held: Vec::new(),
            offset: 0,
            model: None,
        }
    }

    /// Bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.offset
    }

    /// The model's name and where it stands; the last one counts.
    pub(super) fn model(&self) -> Option<&(String, Range<u64>)> {
        self.model.as_ref()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            if self.state == FormState::Part && self.matched == 0 && byte != b'\r' {
                // Files are long, and only a line break can begin their end.
                let skipped = rest.iter().position(|b| *b == b'\r').unwrap_or(rest.len());
                self.offset = self.offset.saturating_add(skipped as u64);
                rest = rest.get(skipped..).unwrap_or_default();
                continue;
            }
            self.offset = self.offset.saturating_add(1);
            self.step(byte);
            rest = after;
        }
    }

    fn step(&mut self, byte: u8) {
        match self.state {
            FormState::Part | FormState::Model { .. } => self.content(byte),
            FormState::Boundary if byte == b'\n' => {
                self.held.clear();
                self.state = FormState::Headers;
            }
            FormState::Boundary => {}
            FormState::Headers => {
                self.held.push(byte);
                let is_end = self.held.ends_with(b"\r\n\r\n") || self.held == b"\r\n";
                if is_end || self.held.len() > HEADERS_BYTES_MAX {
                    let is_model = is_end && names_model(&self.held);
                    self.state = if is_model { FormState::Model { at: self.offset } } else { FormState::Part };
                    self.held.clear();
                    self.matched = 0;
                }
            }
        }
    }

    /// A byte of a part. The delimiter's first byte stands nowhere else in it.
    fn content(&mut self, byte: u8) {
        if matches!(self.state, FormState::Model { .. }) && self.held.len() < MODEL_BYTES_MAX + self.delimiter.len() {
            self.held.push(byte);
        }
        let follows = self.delimiter.get(self.matched) == Some(&byte);
        self.matched = if follows { self.matched.saturating_add(1) } else { usize::from(byte == b'\r') };
        if self.matched < self.delimiter.len() {
            return;
        }
        if let FormState::Model { at } = self.state {
            let end = self.offset.saturating_sub(self.delimiter.len() as u64);
            let length = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
            let value = self.held.get(..length).filter(|value| value.len() <= MODEL_BYTES_MAX);
            self.model = value.map(|value| (String::from_utf8_lossy(value).into_owned(), at..end));
        }
        self.matched = 0;
        self.state = FormState::Boundary;
    }
}

/// Whether a part's headers say that it is the field `model`, and no file.
fn names_model(headers: &[u8]) -> bool {
    let headers = String::from_utf8_lossy(headers);
    headers.lines().filter_map(|line| line.split_once(':')).any(|(header, value)| {
        let mut parameters = value.split(';').filter_map(|parameter| parameter.split_once('='));
        let is_file = value.to_ascii_lowercase().contains("filename");
        let mut is_model =
            || parameters.any(|(name, value)| name.trim() == "name" && value.trim().trim_matches('"') == "model");
        header.trim().eq_ignore_ascii_case("content-disposition") && !is_file && is_model()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn models_of_forms() {
        let file =
            "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"model\"\r\n\r\nab\r\n--C\r\rcd\r\n";
        let field = |value: &str| format!("--B\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n{value}\r\n");
        let (long, end) = (field(&"m".repeat(300)), "--B--\r\n");
        let rows = [
            (field("whisper") + end, Some("whisper")),
            (file.to_owned() + &field("whisper") + end, Some("whisper")),
            (field("a") + file + &field("b") + end, Some("b")),
            (format!("preamble\r\n{}{end}", field("utf-8: é")), Some("utf-8: é")),
            (field("") + end, Some("")),
            (field("x\r\n--C\r\ny") + end, Some("x\r\n--C\r\ny")),
            (file.to_owned() + end, None),
            (long + end, None),
            (
                "--B\r\nContent-Disposition: form-data; name=model\r\nContent-Type: text/plain\r\n\r\nw\r\n--B--"
                    .into(),
                Some("w"),
            ),
            ("--B\r\n\r\nno headers\r\n".to_owned() + &field("w") + end, Some("w")),
            (format!("--B\r\nx: {}\r\n\r\n\r\n", "y".repeat(5_000)) + &field("w") + end, Some("w")),
            (field("cut"), Some("cut")),
            ("no form at all".to_owned(), None),
            (String::new(), None),
        ];
        for (body, expected) in rows {
            // Without its end, the last value is not known to be whole.
            let expected = expected.filter(|_| body.contains("--B--"));
            for piece in [body.len().max(1), 7, 1] {
                let mut form = Form::new("B");
                body.as_bytes().chunks(piece).for_each(|piece| form.push(piece));
                assert_eq!(form.model().map(|(model, _)| model.as_str()), expected, "{body}");
                assert_eq!(form.bytes(), body.len() as u64);
                if let Some((model, span)) = form.model() {
                    assert_eq!(&body.as_bytes()[span.start as usize..span.end as usize], model.as_bytes());
                }
            }
        }
    }

    #[test]
    fn boundaries() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("Multipart/Form-Data; charset=utf-8; Boundary=\"a b\"", Some("a b")),
            ("multipart/mixed; boundary=abc", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data", None),
            ("application/json", None),
        ] {
            assert_eq!(boundary(content_type), expected, "{content_type}");
        }
    }
}
