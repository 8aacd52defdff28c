//! Instances that answer at once and always alike: one server on every loopback address of a port.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::stream::{self, BoxStream, StreamExt};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Time between two events of a stream.
const EVENT_EVERY: Duration = Duration::from_millis(2);

type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// A running server; dropping it ends it.
pub(in super::super) struct Backend {
    port: u16,
    task: JoinHandle<()>,
}

impl Backend {
    /// Starts it. Requests that ask for a stream get so many events.
    pub(in super::super) async fn start(events: usize) -> Result<Backend> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.context("no port for the instances")?;
        let port = listener.local_addr()?.port();
        let answers = Arc::new(Answers::new(events));
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let answers = Arc::clone(&answers);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let answers = Arc::clone(&answers);
                        async move { Ok::<_, Infallible>(answers.to(request).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Ok(Backend { port, task })
    }

    /// The address of an instance. All are this server.
    pub(in super::super) fn address(&self, instance: usize) -> SocketAddr {
        let [high, low] = u16::try_from(instance).unwrap_or(u16::MAX).to_be_bytes();
        SocketAddr::from((Ipv4Addr::new(127, 1, high, low), self.port))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Answers {
    whole: Bytes,
    metrics: Bytes,
    models: Bytes,
    events: Vec<Bytes>,
}

impl Answers {
    fn new(events: usize) -> Answers {
        let id = r#""id":"chatcmpl-0123456789abcdef","created":1764460800,"model":"m""#;
        let usage = r#""usage":{"prompt_tokens":250,"completion_tokens":40,"total_tokens":290}"#;
        let text = "It works because apples fall, and they fall because the earth pulls them. ".repeat(3);
        let whole = format!(
            r#"{{{id},"object":"chat.completion","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],{usage}}}"#
        );
        let chunk = |delta: &str, finish: &str| {
            format!(
                "data: {{{id},\"object\":\"chat.completion.chunk\",\"choices\":[{{\"index\":0,\"delta\":{{{delta}}},\"finish_reason\":{finish}}}]}}\n\n"
            )
        };
        let last = [
            chunk("", "\"stop\""),
            format!("data: {{{id},\"choices\":[],{usage}}}\n\n"),
            "data: [DONE]\n\n".to_owned(),
        ];
        let pieces = (last.len()..events).map(|_| chunk(r#""content":" word""#, "null")).chain(last);
        let metrics = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"]
            .map(|name| format!("# TYPE vllm:{name} gauge\nvllm:{name}{{engine=\"0\",model_name=\"m\"}} 0.0\n"))
            .concat();
        let models = Bytes::from_static(MODELS.as_bytes());
        Answers { whole: whole.into(), metrics: metrics.into(), models, events: pieces.map(Bytes::from).collect() }
    }

    async fn to(&self, request: Request<Incoming>) -> Response<Body> {
        let is_get = request.method() == hyper::Method::GET;
        let is_about_models = request.uri().path() == "/v1/models";
        let mut asks_stream = false;
        let mut body = http_body_util::BodyStream::new(request.into_body());
        while let Some(Ok(frame)) = body.next().await {
            // The client asks for a stream at the beginning of its body.
            let beginning = frame.data_ref().and_then(|data| data.get(..data.len().min(STREAM.len())));
            asks_stream |= beginning == Some(STREAM.as_bytes());
        }
        let (kind, body, length) = match (is_get, asks_stream) {
            (true, _) if is_about_models => ("application/json", one(self.models.clone()), Some(MODELS.len())),
            (true, _) => ("text/plain", one(self.metrics.clone()), Some(self.metrics.len())),
            (_, false) => ("application/json", one(self.whole.clone()), Some(self.whole.len())),
            (_, true) => ("text/event-stream", spaced(self.events.clone()), None),
        };
        let mut response = Response::new(StreamBody::new(body));
        response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
        if let Some(length) = length {
            response.headers_mut().insert("content-length", length.into());
        }
        response
    }
}

/// What an instance says that it serves: the model that the client names, since other gateways look for it.
const MODELS: &str =
    r#"{"object":"list","data":[{"id":"auto","object":"model","owned_by":"vllm","max_model_len":8192}]}"#;

/// How the body of a request for a stream begins.
pub(in super::super) const STREAM: &str = r#"{"stream":true,"#;

fn one(bytes: Bytes) -> BoxStream<'static, Result<Frame<Bytes>, Infallible>> {
    stream::once(async move { Ok(Frame::data(bytes)) }).boxed()
}

fn spaced(events: Vec<Bytes>) -> BoxStream<'static, Result<Frame<Bytes>, Infallible>> {
    let clock = tokio::time::interval(EVENT_EVERY);
    stream::unfold((events.into_iter(), clock), |(mut events, mut clock)| async move {
        let event = events.next()?;
        clock.tick().await;
        Some((Ok(Frame::data(event)), (events, clock)))
    })
    .boxed()
}
