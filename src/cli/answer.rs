//! A streamed chat answer as the client sees it: first token, usage, errors, end.

use serde::Deserialize;

/// Tokens of one request, as the instance counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
}

/// Reads server-sent events from chunks that may cut lines anywhere.
#[derive(Debug, Default)]
pub struct AnswerStream {
    line: Vec<u8>,
    pieces: usize,
    usage: Option<Usage>,
    error: Option<String>,
    done: bool,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
}

/// A reasoning model's first tokens are no content; servers have two names for them.
#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning: Option<String>,
    reasoning_content: Option<String>,
}

impl Delta {
    fn has_text(&self) -> bool {
        [&self.content, &self.reasoning, &self.reasoning_content].into_iter().flatten().any(|text| !text.is_empty())
    }
}

impl AnswerStream {
    /// Takes the next bytes of the body.
    pub fn push(&mut self, chunk: &[u8]) {
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            self.line.extend_from_slice(rest.get(..end).unwrap_or_default());
            rest = rest.get(end + 1..).unwrap_or_default();
            let line = std::mem::take(&mut self.line);
            self.take_line(&line);
        }
        self.line.extend_from_slice(rest);
    }

    fn take_line(&mut self, line: &[u8]) {
        let Some(data) = line.strip_prefix(b"data:") else { return };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.done = true;
            return;
        }
        match serde_json::from_slice::<Event>(data) {
            Ok(event) => {
                let has_text = |choice: &Choice| choice.delta.as_ref().is_some_and(Delta::has_text);
                self.pieces += usize::from(event.choices.iter().any(has_text));
                self.usage = event.usage.or(self.usage);
                self.error = self.error.take().or_else(|| event.error.map(|e| error_text(&e)));
            }
            Err(e) => self.error = self.error.take().or_else(|| Some(format!("an event is not JSON: {e}"))),
        }
    }

    /// Whether any text has come.
    pub fn has_content(&self) -> bool {
        self.pieces > 0
    }

    /// Events with text that have come: one per token, or per few tokens.
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// The usage event, if it has come.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Called when the body has ended: why the answer is not complete, if it is not.
    pub fn end(&self) -> Result<(), String> {
        match (&self.error, self.done, self.has_content()) {
            (Some(error), _, _) => Err(format!("error inside the stream: {error}")),
            (None, false, _) => Err("the stream ended early: no [DONE]".to_owned()),
            (None, true, false) => Err("the answer has no text".to_owned()),
            (None, true, true) if self.usage.is_none() => Err("the stream has no usage".to_owned()),
            (None, true, true) => Ok(()),
        }
    }
}

fn error_text(error: &serde_json::Value) -> String {
    error.get("message").and_then(|m| m.as_str()).map_or_else(|| error.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = r#"data: {"choices":[{"index":0,"delta":{"content":"a"}}]}"#;
    const ROLE: &str = r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":null}"#;
    const USAGE: &str = r#"data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3}}"#;
    const ERROR: &str = r#"data: {"error":{"message":"boom","type":"InternalServerError","code":500}}"#;
    const DONE: &str = "data: [DONE]";

    #[test]
    fn streams_end_as_they_should_or_say_why() {
        let rows: [(&[&str], Result<(), &str>); 8] = [
            (&[ROLE, TOKEN, USAGE, DONE], Ok(())),
            (&[": ping", ROLE, TOKEN, USAGE, DONE], Ok(())),
            (&[ROLE, TOKEN, USAGE], Err("the stream ended early: no [DONE]")),
            (&[ROLE, USAGE, DONE], Err("the answer has no text")),
            (&[ROLE, TOKEN, DONE], Err("the stream has no usage")),
            (&[ROLE, TOKEN, ERROR, DONE], Err("error inside the stream: boom")),
            (&["data: {broken", TOKEN, USAGE, DONE], Err("error inside the stream: an event is not JSON")),
            (&[], Err("the stream ended early: no [DONE]")),
        ];
        for (events, expected) in rows {
            let body: String = events.iter().map(|e| format!("{e}\r\n\r\n")).collect();
            // However the network cuts the body, the result is the same.
            for cut in [1, 7, body.len().max(1)] {
                let mut stream = AnswerStream::default();
                body.as_bytes().chunks(cut).for_each(|chunk| stream.push(chunk));
                match (stream.end(), expected) {
                    (Ok(()), Ok(())) => {}
                    (Err(got), Err(wanted)) => assert!(got.starts_with(wanted), "{got}"),
                    (got, wanted) => panic!("{events:?} by {cut}: {got:?}, expected {wanted:?}"),
                }
            }
        }
    }

    #[test]
    fn pieces_are_events_with_text() {
        let mut stream = AnswerStream::default();
        let thought = |field: &str| format!(r#"data: {{"choices":[{{"delta":{{"{field}":"hm","content":null}}}}]}}"#);
        for (event, pieces) in [
            (ROLE, 0),
            (thought("reasoning").as_str(), 1),
            (thought("reasoning_content").as_str(), 2),
            (TOKEN, 3),
            (USAGE, 3),
        ] {
            stream.push(format!("{event}\n\n").as_bytes());
            assert_eq!((stream.pieces(), stream.has_content()), (pieces, pieces > 0), "{event}");
        }
    }
}
