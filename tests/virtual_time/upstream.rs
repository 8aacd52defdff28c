//! The way to an instance and back.

use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use routebalance_instance::network::Network;

use super::host::{Headers, value};
use super::{Task, status};

/// What belongs to a connection.
const OF_CONNECTION: [&str; 6] = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// Why an attempt has brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody listens.
    Refused,
    /// The connection has ended.
    Reset,
    /// Silence for too long.
    Silent,
}

/// An answer that has begun. Dropping it closes the connection.
pub(super) struct Answer {
    pub(super) headers: Headers,
    body: Incoming,
    idle_timeout: Option<Duration>,
    _connection: Task,
}

/// What comes next of an answer.
pub(super) enum Next {
    Data(Bytes),
    Trailers,
    End,
    Failed(Failure),
}

async fn in_time<T>(limit: Option<Duration>, work: impl Future<Output = T>) -> Result<T, Failure> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, work).await.map_err(|_| Failure::Silent),
        None => Ok(work.await),
    }
}

/// The headers of a message without what belongs to its connection, and those that HTTP/2 writes with a colon.
pub(super) fn of_message(headers: &Headers) -> impl Iterator<Item = (&str, &str)> {
    let is_passed = |name: &str| !name.starts_with(':') && !OF_CONNECTION.contains(&name);
    headers.iter().filter(move |(name, _)| is_passed(name)).map(|(name, value)| (name.as_str(), value.as_str()))
}

/// Sends a request to a host. `connected` is called when there is a connection.
pub(super) async fn send(
    network: &Network,
    host: &str,
    headers: &Headers,
    body: Vec<u8>,
    idle_timeout: Option<Duration>,
    connected: impl FnOnce(),
) -> Result<Answer, Failure> {
    let address = host.parse().map_err(|_| Failure::Refused)?;
    let connection = network.connect(address).await.map_err(|_| Failure::Refused)?;
    connected();
    let (mut sender, connection) = http1::handshake(TokioIo::new(connection)).await.map_err(|_| Failure::Reset)?;
    let task = Task(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let value_of = |name| value(headers, name).unwrap_or_default();
    let mut request =
        Request::builder().method(value_of(":method")).uri(value_of(":path")).header("host", value_of(":authority"));
    for (name, value) in of_message(headers) {
        request = request.header(name, value);
    }
    // Of a body in chunks nobody has said how long it is.
    let is_chunked = !body.is_empty() && value(headers, "content-length").is_none();
    let body = if is_chunked {
        Body::from_stream(futures::stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from(body))]))
    } else {
        Body::from(body)
    };
    let request = request.body(body).map_err(|_| Failure::Reset)?;
    let response = in_time(idle_timeout, sender.send_request(request)).await?.map_err(|_| Failure::Reset)?;
    Ok(Answer::new(response, idle_timeout, task))
}

impl Answer {
    fn new(response: Response<Incoming>, idle_timeout: Option<Duration>, connection: Task) -> Answer {
        let (parts, body) = response.into_parts();
        let fields = parts
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        let headers = status(parts.status.as_u16()).into_iter().chain(fields).collect();
        Answer { headers, body, idle_timeout, _connection: connection }
    }

    pub(super) fn status(&self) -> u16 {
        value(&self.headers, ":status").and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// Whether nothing more will come.
    pub(super) fn is_over(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) async fn next(&mut self) -> Next {
        let body = &mut self.body;
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
        match in_time(self.idle_timeout, frame).await {
            Err(failure) => Next::Failed(failure),
            Ok(None) => Next::End,
            Ok(Some(Err(_))) => Next::Failed(Failure::Reset),
            Ok(Some(Ok(frame))) => frame.into_data().map_or_else(|_: Frame<Bytes>| Next::Trailers, Next::Data),
        }
    }
}

/// A whole exchange: headers and body of the answer, if there is one.
pub(super) async fn exchange(
    network: &Network,
    host: &str,
    headers: &Headers,
    body: Vec<u8>,
) -> Option<(Headers, Vec<u8>)> {
    let length = (!body.is_empty()).then(|| ("content-length".to_owned(), body.len().to_string()));
    let headers: Headers = headers.iter().cloned().chain(length).collect();
    let mut answer = send(network, host, &headers, body, None, || {}).await.ok()?;
    let mut whole = Vec::new();
    loop {
        match answer.next().await {
            Next::Data(piece) => whole.extend_from_slice(&piece),
            Next::Trailers => {}
            Next::End => return Some((answer.headers, whole)),
            Next::Failed(_) => return None,
        }
    }
}
