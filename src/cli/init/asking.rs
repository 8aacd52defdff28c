//! HTTP to a stranger's server: whatever it answers, there is one sentence about it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;

use super::fitting::Timing;
use crate::answer::AnswerStream;
use crate::load::root_cause;

/// More than any list of models or metrics page has.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Of an error's body, what stands in a sentence.
const CITED_CHARACTERS: usize = 200;
/// Idle connections end before a server closes them, so that no request meets a closing connection.
const IDLE: Duration = Duration::from_secs(2);
/// An answer to a chat request takes longer than a list.
const CHAT_LIMITS: u32 = 12;

/// Asks servers.
pub(super) struct Asker {
    http: reqwest::Client,
    has_key: bool,
    /// How long a list may take.
    pub(super) limit: Duration,
}

/// A chat request that was refused, or whose answer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Whether it was for a field that the server does not know.
    pub(super) by_validation: bool,
    /// The end of a sentence that begins with the server.
    pub(super) problem: String,
}

impl Refusal {
    fn other(problem: String) -> Refusal {
        Refusal { by_validation: false, problem }
    }
}

impl Asker {
    /// An asker that sends a key, if there is one.
    ///
    /// # Errors
    /// The key's file.
    pub(super) fn new(limit: Duration, key_file: Option<&Path>) -> Result<Asker> {
        let mut headers = HeaderMap::new();
        if let Some(file) = key_file {
            headers.insert(AUTHORIZATION, bearer(file)?);
        }
        // A server that sends its callers elsewhere is none of a fleet, and nobody else gets the key.
        let builder = reqwest::Client::builder().no_proxy().redirect(Policy::none()).pool_idle_timeout(IDLE);
        Ok(Asker { http: builder.default_headers(headers).build()?, has_key: key_file.is_some(), limit })
    }

    /// The body of a page.
    ///
    /// # Errors
    /// The end of a sentence that begins with the server.
    pub(super) async fn get(&self, address: SocketAddr, path: &str) -> Result<Vec<u8>, String> {
        let received = async {
            let sent = self.http.get(format!("http://{address}{path}")).send().await;
            let response = sent.map_err(|e| unanswered(&e))?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.locked(path, response.status())),
                StatusCode::NOT_FOUND => return Err(format!("has no {path} (404)")),
                status => return Err(format!("answers {path} with status {}", status.as_u16())),
            }
            let mut body = Vec::new();
            let mut chunks = response.bytes_stream();
            while let Some(chunk) = chunks.next().await {
                body.extend_from_slice(&chunk.map_err(|e| format!("breaks off {path}: {}", root_cause(&e)))?);
                if body.len() > BODY_BYTES_MAX {
                    return Err(format!("answers {path} with more than {} MiB", BODY_BYTES_MAX >> 20));
                }
            }
            Ok(body)
        };
        let late = |_| Err(format!("does not answer {path} within {} ms", self.limit.as_millis()));
        tokio::time::timeout(self.limit, received).await.unwrap_or_else(late)
    }

    fn locked(&self, path: &str, status: StatusCode) -> String {
        let status = status.as_u16();
        if self.has_key {
            format!("refuses the key of --api-key-file at {path} ({status})")
        } else {
            format!("answers {path} with status {status}: give its key with --api-key-file")
        }
    }

    /// Sends a request for a streamed answer and notes when each piece of it comes, since `start`.
    pub(super) async fn chat(&self, address: SocketAddr, body: String, start: Instant) -> Result<Timing, Refusal> {
        let limit = self.limit * CHAT_LIMITS;
        let late = |_| Err(Refusal::other(format!("has no complete answer within {} s", limit.as_secs())));
        tokio::time::timeout(limit, self.answered(address, body, start)).await.unwrap_or_else(late)
    }

    async fn answered(&self, address: SocketAddr, body: String, start: Instant) -> Result<Timing, Refusal> {
        let url = format!("http://{address}/v1/chat/completions");
        let request = self.http.post(url).header(CONTENT_TYPE, "application/json").body(body);
        let sent = start.elapsed();
        let response = request.send().await.map_err(|e| Refusal::other(unanswered(&e)))?;
        let status = response.status();
        if status != StatusCode::OK {
            let text = response.text().await.unwrap_or_default();
            let cited: String = text.chars().filter(|c| !c.is_control()).take(CITED_CHARACTERS).collect();
            let by_validation = matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY);
            let problem = format!("refuses a chat request with status {}: {cited}", status.as_u16());
            return Err(Refusal { by_validation, problem });
        }
        let (mut answer, mut pieces) = (AnswerStream::default(), Vec::new());
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|e| Refusal::other(format!("breaks off its answer: {}", root_cause(&e))))?;
            answer.push(&chunk);
            pieces.resize(answer.pieces(), start.elapsed());
        }
        answer.end().map_err(|reason| Refusal::other(format!("has no answer that can be measured: {reason}")))?;
        let usage = answer.usage().ok_or_else(|| Refusal::other("counts no tokens".to_owned()))?;
        Ok(Timing { sent, pieces, prompt_tokens: usage.prompt_tokens, output_tokens: usage.completion_tokens })
    }
}

/// The header that carries the key of a file.
fn bearer(file: &Path) -> Result<HeaderValue> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let key = text.trim();
    let is_plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_graphic());
    ensure!(is_plain, "{} must hold one key: visible ASCII characters without spaces", file.display());
    let mut value = HeaderValue::from_str(&format!("Bearer {key}"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn unanswered(error: &reqwest::Error) -> String {
    let what = if error.is_connect() { "takes no connection" } else { "answers no HTTP" };
    format!("{what}: {}", root_cause(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_word() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        for (text, header) in
            [("sk-1\n", Some("Bearer sk-1")), ("", None), (" \n", None), ("a b", None), ("a\nb", None), ("ü", None)]
        {
            std::fs::write(&file, text).unwrap();
            let found = bearer(&file);
            assert_eq!(found.as_ref().ok().map(|value| value.to_str().unwrap()), header, "{text:?}");
            assert!(found.is_ok_and(|value| value.is_sensitive()) == header.is_some());
        }
        assert!(bearer(&folder.path().join("none")).unwrap_err().to_string().contains("cannot be read"));
    }
}
