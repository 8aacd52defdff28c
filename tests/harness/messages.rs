//! What scenarios send, and what they get.

use routebalance_instance::Received;
use serde_json::Value;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::http::{self, Answer, End};
use routebalance_core::fleet::InstanceId;

/// A request to the gateway.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Send the body in chunks of this many bytes, its length unsaid.
    pub(crate) chunk: Option<usize>,
}

impl Request {
    pub(crate) fn post(path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { method: "POST", path: path.to_owned(), headers: Vec::new(), body: body.into(), chunk: None }
    }

    pub(crate) fn get(path: &str) -> Self {
        Self { method: "GET", ..Self::post(path, "") }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn chunked(mut self, bytes: usize) -> Self {
        self.chunk = Some(bytes);
        self
    }

    /// A short chat request.
    pub(crate) fn chat(model: &str) -> Self {
        Self::post(
            "/v1/chat/completions",
            format!(
                r#"{{"model":"{model}","messages":[{{"role":"user","content":"Why is the sky blue?"}}],"max_tokens":8}}"#
            ),
        )
    }

    /// A chat request whose answer streams for seconds, whatever the model would say.
    pub(crate) fn long_stream(model: &str) -> Self {
        Self::post(
            "/v1/chat/completions",
            format!(
                r#"{{"model":"{model}","messages":[{{"role":"user","content":"Count."}}],"max_tokens":6000,"ignore_eos":true,"stream":true}}"#
            ),
        )
    }

    /// Writes it to a connection.
    pub(crate) async fn write(&self, tcp: &mut (impl AsyncWrite + Unpin)) {
        let mut headers: Vec<(&str, &str)> = self.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let Some(size) = self.chunk else {
            return http::send(tcp, self.method, &self.path, &headers, &self.body).await;
        };
        headers.push(("transfer-encoding", "chunked"));
        let fields: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!(
            "{} {} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n{fields}\r\n",
            self.method, self.path
        );
        tcp.write_all(head.as_bytes()).await.expect("the head is sent");
        for piece in self.body.chunks(size) {
            let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
            tcp.write_all(&chunk).await.expect("a chunk is sent");
        }
        tcp.write_all(b"0\r\n\r\n").await.expect("the last chunk is sent");
    }
}

/// What became of a request.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) answer: Answer,
    /// The instances that it reached, by their index, each with what it received.
    pub(crate) arrivals: Vec<(InstanceId, Received)>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (answer, body) = (&self.answer, String::from_utf8_lossy(&self.answer.body));
        let reached: Vec<InstanceId> = self.arrivals.iter().map(|(instance, _)| *instance).collect();
        write!(
            f,
            "{} {:?}, instances {reached:?}, headers {:?}, body {body}",
            answer.status, answer.end, answer.headers
        )
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.answer, name)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.answer.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The only instance that it reached, and what that received.
    pub(crate) fn arrival(&self) -> &(InstanceId, Received) {
        assert_eq!(self.arrivals.len(), 1, "one instance receives the request: {self:?}");
        &self.arrivals[0]
    }

    /// Checks that it was served in full.
    pub(crate) fn ok(self) -> Self {
        assert_eq!((self.status, self.answer.end), (200, End::Complete), "{self:?}");
        self
    }
}

/// A header of an answer.
pub(crate) fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// An answer's status code; 0 if there was none.
pub(crate) fn status(answer: &Answer) -> u16 {
    answer.status.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}
