//! Routes, and what all answers share: model names, headers, faults, the log of requests.

mod generating;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::{ALLOW, CONTENT_TYPE, SERVER, VARY};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Map, Value};
use tokio::time::Instant;

use self::generating::Kind;
use super::chat::Api;
use super::driver::Driver;
use super::guard::Guard;
use super::metrics::HttpStats;
use super::request::{ApiError, Shape, flag, parse, quote, validate};
use super::responses::Store;
use super::text::Prompt;
use super::{Fault, Handshake, InstanceOptions, Tally, messages, metrics, observe};
use routebalance_core::fleet::{LatencyProfile, ModelKind};

/// Largest body that is read.
const BODY_LIMIT: usize = 256 << 20;
/// Requests kept in the log; the oldest go first.
const LOGGED: usize = 20_000;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// When its body was complete.
    pub at: Instant,
    /// `GET`, `POST` ...
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    /// How the connection was secured, if it was.
    pub tls: Option<Handshake>,
    /// `model` in the body.
    pub model: Option<String>,
    /// The body as it came.
    pub body: Bytes,
}

impl Received {
    /// The first header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    Alive,
    Version,
    Load,
    Models,
    Metrics,
    Generate(Kind),
    StoredResponse(String),
    CountTokens,
    Tokenize,
    Embeddings,
}

/// One instance's HTTP side.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) options: InstanceOptions,
    pub(super) driver: Arc<Driver>,
    /// All served names, the answering one first.
    names: Vec<String>,
    fault: Mutex<Fault>,
    /// The page that a stale `/metrics` shows.
    stale: Mutex<String>,
    pub(super) in_flight: Arc<AtomicUsize>,
    store: Arc<Store>,
    guard: Guard,
    tally: Mutex<Tally>,
    log: Mutex<VecDeque<Received>>,
    http: Mutex<HttpStats>,
    created: SystemTime,
}

impl Server {
    pub(super) fn new(options: InstanceOptions) -> anyhow::Result<Self> {
        let (profile, scale) = (options.pool.profile, options.time_scale);
        let scaled = LatencyProfile {
            tpot_ms: profile.tpot_ms / scale,
            prefill_tokens_per_second: profile.prefill_tokens_per_second * scale,
            overhead_ms: profile.overhead_ms / scale,
            ..profile
        };
        let names = std::iter::once(&options.pool.served_model).chain(&options.aliases).chain(&options.adapters);
        let names = names.cloned().collect();
        Ok(Self {
            driver: Arc::new(Driver::new(scaled, options.pool.limits)),
            names,
            fault: Mutex::default(),
            stale: Mutex::default(),
            in_flight: Arc::default(),
            store: Arc::default(),
            guard: Guard::new(&options)?,
            tally: Mutex::default(),
            log: Mutex::default(),
            http: Mutex::default(),
            created: SystemTime::now(),
            options,
        })
    }

    pub(super) fn set_fault(&self, fault: Fault) {
        if fault == Fault::MetricsStale {
            *lock(&self.stale) = self.page();
        }
        self.driver.pause(matches!(fault, Fault::Stall | Fault::Hang));
        *lock(&self.fault) = fault;
    }

    pub(super) fn requests_that(&self, is_wanted: impl Fn(&Received) -> bool) -> Vec<Received> {
        lock(&self.log).iter().filter(|request| is_wanted(request)).cloned().collect()
    }

    pub(super) fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    pub(super) fn forget_requests(&self) {
        lock(&self.log).clear();
    }

    /// Answers one request. `cut` breaks its connection off inside the next write.
    pub(super) async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
        handshake: Option<Handshake>,
        cut: Arc<AtomicBool>,
    ) -> Response<Body> {
        let started = Instant::now();
        let fault = *lock(&self.fault);
        let (parts, body) = request.into_parts();
        let body = to_bytes(Body::new(body), BODY_LIMIT).await.unwrap_or_default();
        self.log(&parts, handshake, &body);
        if fault == Fault::Stall {
            std::future::pending::<()>().await;
        }
        // As in vLLM, the keys are asked for before anything is counted or says what origins it is for.
        let mut response = if self.guard.lets_in(&parts.method, parts.uri.path(), &parts.headers) {
            let (handler, mut response) = self.respond(&parts, &body, fault, &cut).await;
            response.headers_mut().insert(VARY, HeaderValue::from_static("Origin"));
            lock(&self.http).count(handler, &parts.method, &response, body.len(), started.elapsed());
            response
        } else {
            json(StatusCode::UNAUTHORIZED, r#"{"error":"Unauthorized"}"#.into())
        };
        let headers = response.headers_mut();
        headers.insert(SERVER, HeaderValue::from_static("uvicorn"));
        if self.options.switches.request_id_headers {
            let id = parts.headers.get("x-request-id").cloned();
            let id = id.or_else(|| HeaderValue::from_str(&format!("{:032x}", rand::random::<u128>())).ok());
            headers.extend(id.map(|id| (axum::http::HeaderName::from_static("x-request-id"), id)));
        }
        response
    }

    /// Answers a request that was let in, and says as which handler.
    async fn respond(
        &self,
        parts: &Parts,
        body: &[u8],
        fault: Fault,
        cut: &Arc<AtomicBool>,
    ) -> (&'static str, Response<Body>) {
        let path = self.guard.base_path.in_v1(parts.uri.path());
        let Some((template, method, route)) = path.as_deref().and_then(|path| self.route(path)) else {
            return ("none", not_found());
        };
        let is_ping = template == "/ping" && parts.method == Method::POST;
        if parts.method == method || is_ping {
            return (template, self.answer(route, &parts.headers, body, fault, cut).await);
        }
        let mut response = json(StatusCode::METHOD_NOT_ALLOWED, r#"{"detail":"Method Not Allowed"}"#.into());
        let allowed = HeaderValue::from_static(if method == Method::GET { "GET" } else { "POST" });
        response.headers_mut().insert(ALLOW, allowed);
        ("none", response)
    }

    fn log(&self, parts: &Parts, tls: Option<Handshake>, body: &Bytes) {
        let model =
            serde_json::from_slice::<Value>(body).ok().and_then(|body| Some(body.get("model")?.as_str()?.to_owned()));
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let received = Received {
            at: Instant::now(),
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            headers: parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            tls,
            model,
            body: body.clone(),
        };
        lock(&self.tally).count(&received.path, received.header("authorization"));
        let mut log = lock(&self.log);
        if log.len() >= LOGGED {
            log.pop_front();
        }
        log.push_back(received);
    }

    /// A path's template, method and destination.
    fn route(&self, path: &str) -> Option<(&'static str, Method, Route)> {
        let generates = self.options.pool.kind == ModelKind::Generate;
        let (template, method, route) = match path {
            "/health" => ("/health", Method::GET, Route::Alive),
            "/ping" => ("/ping", Method::GET, Route::Alive),
            "/version" => ("/version", Method::GET, Route::Version),
            "/load" => ("/load", Method::GET, Route::Load),
            "/metrics" if self.options.has_metrics => ("/metrics", Method::GET, Route::Metrics),
            "/v1/models" => ("/v1/models", Method::GET, Route::Models),
            "/tokenize" => ("/tokenize", Method::POST, Route::Tokenize),
            "/v1/embeddings" if !generates => ("/v1/embeddings", Method::POST, Route::Embeddings),
            "/v1/chat/completions" if generates => {
                ("/v1/chat/completions", Method::POST, Route::Generate(Kind::Openai(Api::Chat)))
            }
            "/v1/completions" if generates => {
                ("/v1/completions", Method::POST, Route::Generate(Kind::Openai(Api::Completions)))
            }
            "/v1/responses" if generates => ("/v1/responses", Method::POST, Route::Generate(Kind::Responses)),
            "/v1/messages" if generates => ("/v1/messages", Method::POST, Route::Generate(Kind::Messages)),
            "/v1/messages/count_tokens" if generates => ("/v1/messages/count_tokens", Method::POST, Route::CountTokens),
            _ => {
                let id = path
                    .strip_prefix("/v1/responses/")
                    .filter(|id| generates && !id.is_empty() && !id.contains('/'))?;
                ("/v1/responses/{response_id}", Method::GET, Route::StoredResponse(id.to_owned()))
            }
        };
        Some((template, method, route))
    }

    async fn answer(
        &self,
        route: Route,
        headers: &HeaderMap,
        body: &[u8],
        fault: Fault,
        cut: &Arc<AtomicBool>,
    ) -> Response<Body> {
        let shape = match route {
            Route::Generate(Kind::Messages) | Route::CountTokens => Shape::Anthropic,
            _ => Shape::OpenAi,
        };
        let is_work = matches!(route, Route::Generate(_) | Route::CountTokens | Route::Embeddings);
        if is_work && let Err(limited) = self.guard.admit() {
            return limited.response(&self.options.pool.served_model, shape);
        }
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let result = match route {
            Route::Alive => return Response::new(Body::empty()),
            Route::Version => Ok(json(StatusCode::OK, r#"{"version":"0.32.0"}"#.into())),
            Route::Load => {
                Ok(json(StatusCode::OK, format!(r#"{{"server_load":{}}}"#, self.in_flight.load(Ordering::Relaxed))))
            }
            Route::Models => Ok(json(StatusCode::OK, self.models())),
            Route::Metrics => return self.metrics(fault).await,
            Route::StoredResponse(id) => self
                .store
                .get(&id)
                .map(|stored| json(StatusCode::OK, stored.body))
                .ok_or_else(|| ApiError::unknown_response(&id)),
            Route::CountTokens => parse(content_type, body).and_then(|object| self.count_tokens(&object)),
            Route::Tokenize => parse(content_type, body).and_then(|object| self.tokenize(&object)),
            Route::Embeddings => match parse(content_type, body) {
                Ok(object) => self.embeddings(&object, fault).await,
                Err(error) => Err(error),
            },
            Route::Generate(kind) => match parse(content_type, body) {
                Ok(object) => self.generate(kind, &object, headers, fault, cut).await,
                Err(error) => Err(error),
            },
        };
        result.unwrap_or_else(|error| json(error.status, error.body(shape)))
    }

    /// Checks the name that the client gives; without one the request is served.
    pub(super) fn check_model(&self, body: &Map<String, Value>) -> Result<(), ApiError> {
        match body.get("model").and_then(Value::as_str) {
            Some(name) if !name.is_empty() && !self.names.iter().any(|served| served == name) => {
                Err(ApiError::unknown_model(name, &self.names))
            }
            _ => Ok(()),
        }
    }

    /// What stands between a good request and the engine.
    pub(super) fn check_engine(&self, fault: Fault, stream: bool) -> Result<(), ApiError> {
        if fault == Fault::Error500 || (!stream && matches!(fault, Fault::StreamError { .. })) {
            return Err(ApiError::engine_dead());
        }
        if fault == Fault::Drain {
            return Err(ApiError::draining());
        }
        if self.options.max_queued.is_some_and(|limit| self.driver.outstanding() >= limit as usize) {
            lock(&self.http).rejected += 1;
            return Err(ApiError::busy());
        }
        Ok(())
    }

    /// The load header, when the client asks for it in a format that vLLM knows.
    fn orca(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let format = headers.get("endpoint-load-metrics-format")?.to_str().ok()?.to_ascii_uppercase();
        let gauges = self.driver.gauges();
        let (waiting, kv) = (gauges.waiting as f64, gauges.kv_usage);
        let value = match format.as_str() {
            "TEXT" => {
                format!("TEXT named_metrics.num_requests_waiting={waiting:?}, named_metrics.kv_cache_usage_perc={kv:?}")
            }
            "JSON" => format!(
                r#"JSON {{"named_metrics": {{"num_requests_waiting": {waiting:?}, "kv_cache_usage_perc": {kv:?}}}}}"#
            ),
            _ => return None,
        };
        HeaderValue::from_str(&value).ok()
    }

    fn models(&self) -> String {
        let created = unix_seconds();
        let root = quote(&self.options.pool.model_name);
        let max_model_len = self.options.pool.limits.max_model_len;
        let data: Vec<String> = self
            .names
            .iter()
            .map(|name| {
                let (parent, max_model_len) = if self.options.adapters.contains(name) {
                    (quote(&self.options.pool.served_model), "null".to_owned())
                } else {
                    ("null".to_owned(), max_model_len.to_string())
                };
                format!(
                    r#"{{"id":{},"object":"model","created":{created},"owned_by":"vllm","root":{root},"parent":{parent},"max_model_len":{max_model_len},"permission":[{{"id":"modelperm-{:016x}","object":"model_permission","created":{created},"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}}]}}"#,
                    quote(name),
                    rand::random::<u64>()
                )
            })
            .collect();
        format!(r#"{{"object":"list","data":[{}]}}"#, data.join(","))
    }

    fn page(&self) -> String {
        metrics::page(
            &self.options.pool.served_model,
            &self.options.pool.limits,
            &self.driver.snapshot(),
            &lock(&self.http),
            self.created.duration_since(UNIX_EPOCH).unwrap_or_default(),
        )
    }

    async fn metrics(&self, fault: Fault) -> Response<Body> {
        let page = match fault {
            Fault::MetricsAbsent => return not_found(),
            Fault::MetricsStale => lock(&self.stale).clone(),
            Fault::MetricsZero => observe::with_gauges(&self.page(), "0.0"),
            Fault::MetricsNan => observe::with_gauges(&self.page(), "NaN"),
            Fault::MetricsAbsurd => observe::with_gauges(&self.page(), "1e+300"),
            Fault::MetricsBroken => {
                "<html><body>vllm:num_requests_running{ is not a number\u{0}</body></html>\n".into()
            }
            Fault::MetricsSlow { delay } => {
                tokio::time::sleep(delay).await;
                self.page()
            }
            _ => self.page(),
        };
        let mut response = Response::new(Body::from(page));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=1.0.0; charset=utf-8"));
        response
    }

    fn count_tokens(&self, body: &Map<String, Value>) -> Result<Response<Body>, ApiError> {
        validate(body, &["messages"])?;
        self.check_model(body)?;
        let tokens = messages::prompt(body).tokens;
        let text = format!(r#"{{"input_tokens":{tokens},"context_management":{{"original_input_tokens":{tokens}}}}}"#);
        Ok(json(StatusCode::OK, text))
    }

    fn tokenize(&self, body: &Map<String, Value>) -> Result<Response<Body>, ApiError> {
        validate(body, &[])?;
        self.check_model(body)?;
        let prompt = match (body.get("prompt").and_then(Value::as_str), body.get("messages").and_then(Value::as_array))
        {
            (Some(prompt), _) => Prompt::plain(prompt),
            (None, Some(messages)) => Prompt::chat(&[], messages),
            (None, None) => {
                validate(body, &["prompt"])?;
                Prompt::default()
            }
        };
        let ids: Vec<String> = (0..prompt.tokens).map(|number| number.to_string()).collect();
        let strings = if flag(body, "return_token_strs") {
            format!("[{}]", ids.iter().map(|id| quote(id)).collect::<Vec<_>>().join(","))
        } else {
            "null".into()
        };
        let max_model_len = self.options.pool.limits.max_model_len;
        let (count, ids) = (prompt.tokens, ids.join(","));
        Ok(json(
            StatusCode::OK,
            format!(r#"{{"count":{count},"max_model_len":{max_model_len},"tokens":[{ids}],"token_strs":{strings}}}"#),
        ))
    }
}

/// The prompts of `/v1/completions` or inputs of `/v1/embeddings`: a text, token ids, or a batch of either.
pub(super) fn completion_prompts(prompt: &Value) -> Vec<Prompt> {
    match prompt {
        Value::String(text) => vec![Prompt::plain(text)],
        Value::Array(items) if items.first().is_some_and(Value::is_number) => vec![Prompt::ids(items)],
        Value::Array(items) => items.iter().flat_map(completion_prompts).collect(),
        _ => vec![Prompt::plain("")],
    }
}

pub(super) fn json(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn not_found() -> Response<Body> {
    json(StatusCode::NOT_FOUND, r#"{"detail":"Not Found"}"#.into())
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
