//! A client that sees what is on the wire: heads, chunk framing, how a connection ends.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As HTTP wants it.
    Complete,
    /// The connection closed in order, too early.
    Closed,
    /// The connection was reset.
    Reset,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// `HTTP/1.1 200 OK`
    pub(crate) status: String,
    /// Lower-case names, sorted.
    pub(crate) headers: Vec<(String, String)>,
    /// The body without chunk framing.
    pub(crate) body: Vec<u8>,
    /// One entry per chunk.
    pub(crate) chunks: Vec<Vec<u8>>,
    pub(crate) end: End,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body in UTF-8")
    }
}

/// Status line and sorted headers of a head.
pub(crate) fn parse_head(head: &str) -> (String, Vec<(String, String)>) {
    let mut lines = head.trim_end().lines();
    let status = lines.next().unwrap_or_default().to_owned();
    let mut headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    headers.sort();
    (status, headers)
}

/// The chunks of a chunked body, and whether the last one (of size 0) was there.
pub(crate) fn parse_chunks(mut raw: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut chunks = Vec::new();
    while let Some(line_end) = raw.windows(2).position(|pair| pair == b"\r\n") {
        let size = std::str::from_utf8(&raw[..line_end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let size = size.unwrap_or_else(|| panic!("no chunk size: {:?}", String::from_utf8_lossy(&raw[..line_end])));
        let start = line_end + 2;
        if raw.len() < start + size + 2 {
            break;
        }
        assert_eq!(&raw[start + size..start + size + 2], b"\r\n", "a chunk ends with its size");
        if size == 0 {
            return (chunks, true);
        }
        chunks.push(raw[start..start + size].to_vec());
        raw = &raw[start + size + 2..];
    }
    (chunks, false)
}

pub(crate) async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}

/// Sends a request; a body is JSON unless `headers` say otherwise.
pub(crate) async fn send(
    connection: &mut (impl AsyncWrite + Unpin),
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: instance\r\n");
    if method == "POST" {
        request += &format!("content-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request += "content-type: application/json\r\n";
        }
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "\r\n";
    connection.write_all(&[request.as_bytes(), body].concat()).await.expect("the request is sent");
}

/// Reads one answer from a connection that stays open.
pub(crate) async fn receive(connection: &mut (impl AsyncRead + Unpin)) -> Answer {
    let mut seen = Vec::new();
    let mut end = None;
    loop {
        if let Some(answer) = parse(&seen, end) {
            return answer;
        }
        let mut buffer = [0; 65536];
        let read = tokio::time::timeout(Duration::from_secs(30), connection.read(&mut buffer));
        match read.await.expect("an answer within 30 s") {
            Ok(0) => end = Some(End::Closed),
            Ok(n) => seen.extend_from_slice(&buffer[..n]),
            Err(_) => end = Some(End::Reset),
        }
    }
}

/// The answer if it is complete, or if nothing more will come.
fn parse(seen: &[u8], end: Option<End>) -> Option<Answer> {
    let Some(head_end) = seen.windows(4).position(|four| four == b"\r\n\r\n") else {
        let none = Answer { status: String::new(), headers: vec![], body: vec![], chunks: vec![], end: end? };
        return Some(none);
    };
    let (status, headers) = parse_head(std::str::from_utf8(&seen[..head_end]).expect("a head in UTF-8"));
    let rest = &seen[head_end + 4..];
    let value = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let (body, chunks, complete) = if value("transfer-encoding") == Some("chunked") {
        let (chunks, complete) = parse_chunks(rest);
        (chunks.concat(), chunks, complete)
    } else {
        let length: usize = value("content-length").and_then(|length| length.parse().ok()).expect("a length");
        (rest[..length.min(rest.len())].to_vec(), vec![], rest.len() >= length)
    };
    let end = if complete { End::Complete } else { end? };
    Some(Answer { status, headers, body, chunks, end })
}

/// One request on its own connection.
pub(crate) async fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut tcp = connect(address).await;
    send(&mut tcp, method, path, headers, body).await;
    receive(&mut tcp).await
}
