//! Feedback: the score of an answer, sent by whoever can judge it.

use serde::Serialize;
use serde_json::{Map, Value};

/// Largest body of a feedback, bytes.
pub const BODY_BYTES_MAX: usize = 4 << 10;

/// A score for the answer to an earlier request.
#[derive(Clone, Debug, PartialEq)]
pub struct Feedback {
    /// The filter's own name of that request's decision; the ids that clients give say nothing.
    pub id: String,
    /// How good its answer was, 0 to 1.
    pub score: f64,
}

impl Feedback {
    /// Parses a body.
    ///
    /// # Errors
    /// One sentence for the client.
    pub fn parse(body: &[u8]) -> Result<Feedback, String> {
        let fields: Map<String, Value> =
            serde_json::from_slice(body).map_err(|_| "The request body is not a JSON object.".to_owned())?;
        let id = fields.get("id").and_then(Value::as_str).filter(|id| !id.is_empty());
        let Some(id) = id else {
            return Err("`id` must be the x-routebalance-decision-id of an earlier response.".to_owned());
        };
        let score = fields.get("score").and_then(Value::as_f64).filter(|score| (0.0..=1.0).contains(score));
        let Some(score) = score else {
            return Err("`score` must be a number between 0 and 1.".to_owned());
        };
        Ok(Feedback { id: id.to_owned(), score })
    }

    /// The body that accepts it; `model` is the one whose answer was scored.
    pub fn accepted(&self, model: &str) -> String {
        let body = Accepted { object: "routebalance.feedback", id: &self.id, model, score: self.score };
        serde_json::to_string(&body).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct Accepted<'a> {
    object: &'a str,
    id: &'a str,
    model: &'a str,
    score: f64,
}

/// What an `authorization: Bearer` header carries.
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn bodies() {
        type Row<'a> = (&'a str, Result<(&'a str, f64), &'a str>);
        let rows: &[Row<'_>] = &[
            (r#"{"id":"a","score":1}"#, Ok(("a", 1.0))),
            (r#"{"score":0.25,"id":"a b","comment":"good"}"#, Ok(("a b", 0.25))),
            (r#"{"id":"a","score":1.01}"#, Err("`score`")),
            (r#"{"id":"a","score":-0.1}"#, Err("`score`")),
            (r#"{"id":"a","score":"1"}"#, Err("`score`")),
            (r#"{"id":"a"}"#, Err("`score`")),
            (r#"{"score":1}"#, Err("`id`")),
            (r#"{"id":"","score":1}"#, Err("`id`")),
            (r#"{"id":7,"score":1}"#, Err("`id`")),
            (r#"{"id":"a","score":NaN}"#, Err("JSON")),
            (r#"{"id":"a","score":1e999}"#, Err("JSON")),
            (r#"["a",1]"#, Err("JSON")),
            ("", Err("JSON")),
            ("\u{0}", Err("JSON")),
        ];
        for (body, expected) in rows {
            match (Feedback::parse(body.as_bytes()), expected) {
                (Ok(feedback), Ok((id, score))) => {
                    assert_eq!((feedback.id.as_str(), feedback.score), (*id, *score), "{body}");
                }
                (Err(sentence), Err(part)) => assert!(sentence.contains(part), "{body}: {sentence}"),
                (got, _) => panic!("{body}: {got:?}"),
            }
        }
        assert!(Feedback::parse(b"\xff{}").is_err());
        let feedback = Feedback { id: "a\"b".to_owned(), score: 0.5 };
        let expected = r#"{"object":"routebalance.feedback","id":"a\"b","model":"m","score":0.5}"#;
        assert_eq!(feedback.accepted("m"), expected);
    }

    #[test]
    fn bearers() {
        let rows = [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("abc", None),
            ("", None),
        ];
        for (header, expected) in rows {
            assert_eq!(bearer(header), expected, "{header}");
        }
    }
}
