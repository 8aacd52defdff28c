//! The life of one request, from its client to an instance and back.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use routebalance_core::gateway::{Attempt, Flow, Gateway, context_of};
use routebalance_core::names;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use super::host::{Exchange, Headers, Local, Memory, value};
use super::rendered::{Retries, Route, Target};
use super::upstream::{Answer, Failure, Next, of_message, send};
use super::{Proxy, lock, status};

type Piece = Result<Bytes, io::Error>;
/// Takes what the client gets: headers, then pieces.
type Client = oneshot::Sender<(Headers, UnboundedReceiver<Piece>)>;

/// Serves one request of a connection; whoever drops this is a client that leaves.
pub(super) async fn serve(proxy: Arc<Proxy>, connection: u64, request: Request<Incoming>) -> Response<Body> {
    let (client, told) = oneshot::channel();
    let (presence, gone) = oneshot::channel::<()>();
    tokio::spawn(live(proxy, connection, request, client, gone));
    // Whoever has left hears nothing.
    let Ok((headers, pieces)) = told.await else { return Response::default() };
    let body = futures::stream::unfold((pieces, presence), async |(mut pieces, presence)| {
        let piece: Piece = pieces.recv().await?;
        Some((piece, (pieces, presence)))
    });
    let mut response = Response::builder().status(value(&headers, ":status").expect("a status"));
    for (name, value) in of_message(&headers) {
        response = response.header(name, value);
    }
    response.body(Body::from_stream(body)).expect("headers")
}

async fn live(
    proxy: Arc<Proxy>,
    connection: u64,
    request: Request<Incoming>,
    client: Client,
    gone: oneshot::Receiver<()>,
) {
    proxy.requests.fetch_add(1, Ordering::Relaxed);
    proxy.active.fetch_add(1, Ordering::Relaxed);
    let worker = connection as usize % proxy.workers.len();
    let (parts, body) = request.into_parts();
    let life = Life::begin(proxy, worker, connection, &parts);
    tokio::select! {
        biased;
        () = life.run(body, client) => {}
        _ = gone => life.set("response.code_details", "downstream_remote_disconnect"),
    }
    life.end();
}

/// Why a request goes no further.
enum Stop {
    Answered(Local),
    /// Its client has left.
    Left,
}

impl From<Local> for Stop {
    fn from(local: Local) -> Stop {
        Stop::Answered(local)
    }
}

struct Life {
    proxy: Arc<Proxy>,
    worker: usize,
    /// The number of its context.
    id: u32,
    began: Instant,
}

/// What the client's headers are where the filter sees them.
fn received(parts: &Parts, number: u64) -> Headers {
    let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let host = parts.headers.get("host").map(text).unwrap_or_default();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let of_http = [(":method", parts.method.as_str()), (":path", path), (":authority", &host), (":scheme", "http")];
    let mut all: Headers = of_http.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let removed = ["host", names::POOL_HEADER, names::ENDPOINT_HEADER, names::ENCODING_HEADER, "transfer-encoding"];
    let fields = parts.headers.iter().filter(|(name, _)| !removed.contains(&name.as_str()));
    all.extend(fields.map(|(name, value)| (name.as_str().to_owned(), text(value))));
    if let Some(encoding) = parts.headers.get("content-encoding") {
        all.push((names::ENCODING_HEADER.to_owned(), text(encoding)));
    }
    if value(&all, names::REQUEST_ID_HEADER).is_none() {
        all.push((names::REQUEST_ID_HEADER.to_owned(), format!("request-{number}")));
    }
    all
}

fn local(status: u16, details: &'static str) -> Local {
    let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    Local { status, headers, body: br#"{"error":{"message":"Nobody has answered."}}"#.to_vec(), details }
}

impl Life {
    fn begin(proxy: Arc<Proxy>, worker: usize, connection: u64, parts: &Parts) -> Life {
        let request = received(parts, proxy.requests.load(Ordering::Relaxed));
        let id = {
            let mut worker = lock(&proxy.workers[worker]);
            worker.context += 1;
            let id = worker.context + 1;
            worker.wakes.0.insert(id, Arc::default());
            let connection = Some(connection);
            worker.host.exchanges.insert(id, Exchange { request, connection, ..Exchange::default() });
            id
        };
        Life { proxy, worker, id, began: Instant::now() }
    }

    fn gateway<R>(&self, f: impl FnOnce(&mut Gateway, &mut Memory, u32) -> R) -> R {
        self.proxy.enter(self.worker, self.id, |gateway, host| f(gateway, host, self.id))
    }

    fn exchange<R>(&self, f: impl FnOnce(&mut Exchange) -> R) -> R {
        let mut worker = lock(&self.proxy.workers[self.worker]);
        f(worker.host.exchanges.get_mut(&self.id).expect("it lives"))
    }

    fn set(&self, property: &'static str, value: &str) {
        self.exchange(|exchange| drop(exchange.properties.insert(property.to_owned(), value.to_owned())));
    }

    /// Tells that the gateway has answered the request, or lets it go on.
    fn wake(&self) -> Arc<Notify> {
        lock(&self.proxy.workers[self.worker]).wakes.0.get(&self.id).map(Arc::clone).expect("it lives")
    }

    async fn run(&self, body: Incoming, client: Client) {
        let answer = match self.receive(body).await {
            Ok(body) => self.find_answer(body).await.map_err(Stop::Answered),
            Err(stop) => Err(stop),
        };
        match answer {
            Ok(answer) => self.relay(answer, client).await,
            Err(Stop::Answered(local)) => self.reply(local, client),
            Err(Stop::Left) => self.set("response.code_details", "downstream_remote_disconnect"),
        }
    }

    // === from the client ===

    fn request(&self, name: &str) -> String {
        self.exchange(|exchange| value(&exchange.request, name).unwrap_or_default().to_owned())
    }

    /// The request's route by what is known now.
    fn route(&self) -> Option<Route> {
        let path = self.request(":path");
        let state = self.exchange(|exchange| exchange.states.get(names::ROUTED_STATE).cloned());
        let route = self.proxy.rendered.route(&path, state.as_deref())?.clone();
        self.set("xds.route_name", &route.name);
        if let Some(policy) = &route.policy {
            self.set("xds.route_metadata.filter_metadata.routebalance.policy", policy);
        }
        Some(route)
    }

    /// The body as it goes out.
    async fn receive(&self, mut body: Incoming) -> Result<Vec<u8>, Stop> {
        self.route();
        let deadline = self.began + self.proxy.rendered.request_timeout;
        let mut sent = Vec::new();
        let mut is_over = body.is_end_stream();
        let mut flow = self.gateway(|gateway, host, id| gateway.on_request_headers(host, id, is_over));
        self.goes_on(flow, &mut sent)?;
        while !is_over {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
            let frame = timeout_at(deadline, frame).await.map_err(|_| local(408, "request_overall_timeout"))?;
            let data = match frame {
                Some(Err(_)) => return Err(Stop::Left),
                Some(Ok(frame)) => frame.into_data(),
                None => Ok(Bytes::new()),
            };
            is_over = data.as_ref().map_or(true, Bytes::is_empty) || body.is_end_stream();
            let Ok(data) = data.map_err(|_: Frame<Bytes>| ()) else {
                flow = self.gateway(|gateway, host, id| gateway.on_request_trailers(host, id));
                self.goes_on(flow, &mut sent)?;
                break;
            };
            let mut left = data;
            loop {
                let piece = left.split_to(left.len().min(self.proxy.rendered.piece_bytes_max));
                flow = self.read(flow, &piece, is_over && left.is_empty())?;
                self.goes_on(flow, &mut sent)?;
                if left.is_empty() {
                    break;
                }
            }
        }
        if flow == Flow::Pause {
            self.resumed().await?;
            self.goes_on(Flow::Continue, &mut sent)?;
        }
        Ok(sent)
    }

    /// A piece of the body passes the filter, or is held back.
    fn read(&self, flow: Flow, piece: &[u8], is_over: bool) -> Result<Flow, Stop> {
        let size = self.exchange(|exchange| {
            exchange.body.extend_from_slice(piece);
            exchange.body.len()
        });
        if flow == Flow::Pause && size > self.proxy.rendered.body_bytes_max {
            return Err(local(413, "request_payload_too_large").into());
        }
        Ok(self.gateway(|gateway, host, id| gateway.on_request_body(host, id, size, is_over)))
    }

    /// After a callback: the request is answered, held back, or goes on.
    fn goes_on(&self, flow: Flow, sent: &mut Vec<u8>) -> Result<(), Stop> {
        self.exchange(|exchange| match exchange.answered.take() {
            Some(answer) => Err(Local::from(answer).into()),
            None => {
                if flow == Flow::Continue {
                    sent.append(&mut exchange.body);
                }
                Ok(())
            }
        })
    }

    /// Waits until the gateway lets the request go on.
    async fn resumed(&self) -> Result<(), Local> {
        let wake = self.wake();
        loop {
            if let Some(answer) = self.exchange(|exchange| exchange.answered.take()) {
                return Err(answer.into());
            }
            if self.exchange(|exchange| exchange.resumed > 0) {
                return Ok(());
            }
            wake.notified().await;
        }
    }

    /// Waits until the gateway answers by itself.
    async fn answered(&self) -> Local {
        let wake = self.wake();
        loop {
            if let Some(answer) = self.exchange(|exchange| exchange.answered.take()) {
                return answer.into();
            }
            wake.notified().await;
        }
    }

    // === to an instance ===

    async fn find_answer(&self, body: Vec<u8>) -> Result<Answer, Local> {
        let route = self.route().ok_or_else(|| local(404, "route_not_found"))?;
        let cluster = match &route.target {
            Target::Cluster(cluster) => cluster.clone(),
            Target::Header(header) => self.request(header),
        };
        if !lock(&self.proxy.clusters).contains_key(&cluster) {
            return Err(local(503, "cluster_not_found"));
        }
        let limit = self.request(names::TIMEOUT_HEADER).parse().ok().filter(|ms| *ms > 0).map(Duration::from_millis);
        let limit = async { if let Some(limit) = limit { sleep(limit).await } else { std::future::pending().await } };
        tokio::select! {
            biased;
            answer = self.answered() => Err(answer),
            answer = self.attempts(&route, &cluster, body) => answer,
            () = limit => Err(local(504, "response_timeout")),
        }
    }

    async fn attempts(&self, route: &Route, cluster: &str, body: Vec<u8>) -> Result<Answer, Local> {
        let listed = self.request(names::ENDPOINT_HEADER);
        let named: Vec<String> = listed.split(',').filter(|a| !a.is_empty()).map(|a| a.trim().to_owned()).collect();
        let mut named = named.into_iter();
        let mut tried: Vec<String> = Vec::new();
        let retries = self.request(names::MAX_RETRIES_HEADER).parse().unwrap_or(route.retries.count);
        loop {
            let host = self.proxy.choose(cluster, &mut named, &tried);
            let host = host.ok_or_else(|| local(503, "no_healthy_upstream"))?;
            tried.push(host.clone());
            let may_retry = (tried.len() as u64) <= retries;
            let result = self.attempt(route, &host, tried.len() as u64, &body).await?;
            let failed = match result {
                Ok((answer, is_final)) => {
                    if !may_retry || is_final || !route.retries.on_status(answer.status()) {
                        return Ok(answer);
                    }
                    None
                }
                Err(failure) => Some(failure),
            };
            if let Some(failure) = failed.filter(|failure| !may_retry || !is_followed(&route.retries, *failure)) {
                return Err(match failure {
                    Failure::Refused => local(503, "upstream_reset_before_response_started{remote_connection_failure}"),
                    Failure::Reset => local(503, "upstream_reset_before_response_started{connection_termination}"),
                    Failure::Silent => local(504, "upstream_per_try_idle_timeout"),
                });
            }
            sleep(route.retries.back_off).await;
        }
    }

    /// One attempt: an answer, and whether it is the client's whatever its status says; or what went wrong. The filter sees attempts after
    /// the first, and may end the request there.
    async fn attempt(
        &self,
        route: &Route,
        host: &str,
        count: u64,
        body: &[u8],
    ) -> Result<Result<(Answer, bool), Failure>, Local> {
        self.set("upstream.address", host);
        self.exchange(|exchange| {
            exchange.properties.remove("upstream.local_address");
            exchange.attempts = count;
            exchange.request.retain(|(name, _)| name != names::ATTEMPT_COUNT_HEADER);
            exchange.request.push((names::ATTEMPT_COUNT_HEADER.to_owned(), count.to_string()));
        });
        let mut seen =
            (count > 1).then(Attempt::default).filter(|_| self.gateway(|_, host, _| context_of(host)).is_some());
        let mut body = body.to_vec();
        if let Some(attempt) = &mut seen {
            body = self.begin_attempt(attempt, body)?;
        }
        let mut headers = self.exchange(|exchange| exchange.request.clone());
        headers.retain(|(name, _)| ![names::MAX_RETRIES_HEADER, names::TIMEOUT_HEADER].contains(&name.as_str()));
        for (name, value) in &mut headers {
            if name == ":path" {
                *value = route.rewrite(value);
            }
        }
        let connected = || self.set("upstream.local_address", "127.0.0.1:1");
        let sent = send(&self.proxy.network, host, &headers, body, route.retries.idle_timeout, connected).await;
        let mut is_final = false;
        if let Ok(answer) = &sent {
            self.exchange(|exchange| exchange.response.clone_from(&answer.headers));
        }
        if let (Some(attempt), Ok(_)) = (&mut seen, &sent) {
            self.gateway(|gateway, host, id| attempt.on_response_headers(host, Some(gateway), id));
            is_final =
                self.exchange(|exchange| value(&exchange.response, names::NO_RETRY_RESPONSE_HEADER) == Some("true"));
        }
        if let Some(attempt) = &mut seen {
            self.gateway(|gateway, host, id| attempt.on_done(host, Some(gateway), id));
        }
        Ok(sent.map(|answer| (answer, is_final)))
    }

    /// The body as the filter sends it with this attempt.
    fn begin_attempt(&self, attempt: &mut Attempt, body: Vec<u8>) -> Result<Vec<u8>, Local> {
        let (size, is_empty) = (body.len(), body.is_empty());
        self.exchange(|exchange| exchange.body = body);
        self.gateway(|gateway, host, id| attempt.on_request_headers(host, Some(gateway), id, is_empty));
        if let Some(answer) = self.exchange(|exchange| exchange.answered.take()) {
            self.gateway(|gateway, host, id| attempt.on_done(host, Some(gateway), id));
            return Err(answer.into());
        }
        if !is_empty {
            self.gateway(|_, host, _| attempt.on_request_body(host, size, true));
        }
        Ok(self.exchange(|exchange| std::mem::take(&mut exchange.body)))
    }

    // === to the client ===

    fn head(&self) -> Headers {
        let request_id = (names::REQUEST_ID_HEADER.to_owned(), self.request(names::REQUEST_ID_HEADER));
        let mut headers = self.exchange(|exchange| exchange.response.clone());
        if value(&headers, names::REQUEST_ID_HEADER).is_none() {
            headers.push(request_id);
        }
        headers
    }

    fn begin_answer(&self, client: Client) -> UnboundedSender<Piece> {
        let (pieces, taken) = unbounded_channel();
        let _ = client.send((self.head(), taken));
        pieces
    }

    /// An answer that no instance has given; the gateway may put it in its own words.
    fn reply(&self, mut answer: Local, client: Client) {
        for _ in 0..2 {
            let length = ("content-length".to_owned(), answer.body.len().to_string());
            let headers: Headers =
                status(answer.status).into_iter().chain(answer.headers.iter().cloned()).chain([length]).collect();
            self.exchange(|exchange| exchange.response = headers);
            self.set("response.code_details", answer.details);
            let is_over = answer.body.is_empty();
            self.gateway(|gateway, host, id| gateway.on_response_headers(host, id, is_over));
            match self.exchange(|exchange| exchange.answered.take()) {
                Some(other) => answer = Local { details: answer.details, ..other.into() },
                None => break,
            }
        }
        let pieces = self.begin_answer(client);
        if !answer.body.is_empty() {
            self.pass(Bytes::from(answer.body), true, &pieces);
        }
    }

    /// A piece of an answer passes the filter.
    fn pass(&self, piece: Bytes, is_over: bool, pieces: &UnboundedSender<Piece>) {
        self.exchange(|exchange| exchange.response_body = piece.to_vec());
        self.gateway(|gateway, host, id| gateway.on_response_body(host, id, piece.len(), is_over));
        let _ = pieces.send(Ok(piece));
    }

    async fn relay(&self, mut answer: Answer, client: Client) {
        self.set("response.code_details", "via_upstream");
        let is_over = answer.is_over();
        self.gateway(|gateway, host, id| gateway.on_response_headers(host, id, is_over));
        let pieces = self.begin_answer(client);
        while !answer.is_over() {
            match answer.next().await {
                Next::Data(piece) => self.pass(piece, answer.is_over(), &pieces),
                Next::Trailers => {
                    let _ = self.gateway(|gateway, host, id| gateway.on_response_trailers(host, id));
                    return;
                }
                Next::End => return self.pass(Bytes::new(), true, &pieces),
                Next::Failed(failure) => {
                    let silent = failure == Failure::Silent;
                    let broken = "upstream_reset_after_response_started{connection_termination}";
                    self.set("response.code_details", if silent { "upstream_per_try_idle_timeout" } else { broken });
                    let _ = pieces.send(Err(io::ErrorKind::ConnectionReset.into()));
                    return;
                }
            }
        }
    }

    /// The request is over, however.
    fn end(self) {
        self.gateway(|gateway, host, id| gateway.release(host, id));
        let line = self.log_line();
        lock(&self.proxy.access_log).push_str(&line);
        self.gateway(|gateway, host, id| gateway.on_end(host, id));
        let mut worker = lock(&self.proxy.workers[self.worker]);
        worker.host.exchanges.remove(&self.id);
        worker.wakes.0.remove(&self.id);
        drop(worker);
        self.proxy.active.fetch_sub(1, Ordering::Relaxed);
    }

    fn log_line(&self) -> String {
        let time = self.began.elapsed().as_millis().to_string();
        self.exchange(|exchange| {
            let value_of = |headers: &Headers, name: &str| value(headers, name).unwrap_or_default().to_owned();
            let state = exchange.states.get(names::DECISION_STATE).cloned().unwrap_or_default();
            let upstream = exchange.properties.get("upstream.address").cloned().unwrap_or_default();
            [
                ("%START_TIME%", String::new()),
                ("%REQ(:METHOD)%", value_of(&exchange.request, ":method")),
                (
                    "%RESPONSE_CODE%",
                    Some(value_of(&exchange.response, ":status")).filter(|s| !s.is_empty()).unwrap_or("0".into()),
                ),
                ("%RESPONSE_FLAGS%", String::new()),
                ("%DURATION%", time),
                ("%UPSTREAM_REQUEST_ATTEMPT_COUNT%", exchange.attempts.to_string()),
                ("%UPSTREAM_HOST%", upstream),
                ("%FILTER_STATE(wasm.routebalance_decision:PLAIN)%", state),
            ]
            .into_iter()
            .fold(self.proxy.rendered.log_format.clone(), |line, (name, value)| line.replace(name, &value))
        })
    }
}

/// Whether another attempt follows one that has brought no answer.
fn is_followed(retries: &Retries, failure: Failure) -> bool {
    retries.has_condition("reset") || (failure == Failure::Refused && retries.has_condition("connect-failure"))
}
