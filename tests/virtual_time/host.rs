//! One worker's memory as the gateway's host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routebalance_core::gateway::{Body, Host, Map};
use routebalance_core::shared::{Board, Bytes, Key, Version};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Names and values in their order.
pub(super) type Headers = Vec<(String, String)>;

/// The number of the root context.
pub(super) const ROOT: u32 = 1;

/// The first header of a name.
pub(super) fn value<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
}

/// An answer that no instance has given.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) status: u16,
    pub(super) headers: Headers,
    pub(super) body: Vec<u8>,
    /// Envoy's words on where it comes from; the filter has none.
    pub(super) details: &'static str,
}

/// One request, as the gateway sees it.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    pub(super) request: Headers,
    /// What is held back of the request's body.
    pub(super) body: Vec<u8>,
    pub(super) response: Headers,
    /// The piece of the response's body that passes.
    pub(super) piece: Vec<u8>,
    pub(super) properties: BTreeMap<&'static str, String>,
    pub(super) connection: u64,
    pub(super) attempts: u64,
    pub(super) states: BTreeMap<String, String>,
    /// What the gateway has answered.
    pub(super) answered: Option<Local>,
    pub(super) is_resumed: bool,
    /// Tells of the two above.
    pub(super) wake: Arc<Notify>,
}

/// A call that the gateway has made.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) token: u32,
    pub(super) cluster: String,
    pub(super) headers: Headers,
    pub(super) body: Vec<u8>,
    pub(super) timeout: Duration,
}

/// What the workers share, and when it began.
#[derive(Clone, Debug)]
pub(super) struct Process {
    board: Arc<Mutex<Bytes>>,
    began: Instant,
}

impl Process {
    pub(super) fn new() -> Process {
        Process { board: Arc::default(), began: Instant::now() }
    }

    fn board(&self) -> MutexGuard<'_, Bytes> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host of one worker.
#[derive(Debug)]
pub(super) struct Memory {
    process: Process,
    pub(super) exchanges: BTreeMap<u32, Exchange>,
    pub(super) current: u32,
    pub(super) calls: Vec<Call>,
    tokens: u32,
    /// The answer to the call whose callback this is.
    pub(super) call_response: (Headers, Vec<u8>),
}

fn owned(headers: &[(&str, &str)]) -> Headers {
    headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

impl Memory {
    pub(super) fn new(process: Process) -> Memory {
        Memory {
            process,
            exchanges: BTreeMap::new(),
            current: ROOT,
            calls: Vec::new(),
            tokens: 0,
            call_response: (Vec::new(), Vec::new()),
        }
    }

    fn exchange(&self) -> Option<&Exchange> {
        self.exchanges.get(&self.current)
    }

    fn exchange_mut(&mut self) -> Option<&mut Exchange> {
        self.exchanges.get_mut(&self.current)
    }

    fn map(&self, map: Map) -> &[(String, String)] {
        match map {
            Map::Request => self.exchange().map_or(&[], |exchange| &exchange.request),
            Map::Response => self.exchange().map_or(&[], |exchange| &exchange.response),
            Map::CallResponse => &self.call_response.0,
        }
    }
}

impl Board for Memory {
    fn read(&self, key: Key) -> (Option<Vec<u8>>, Option<Version>) {
        self.process.board().read(key)
    }

    fn write(&mut self, key: Key, bytes: &[u8], version: Option<Version>) -> bool {
        self.process.board().write(key, bytes, version)
    }
}

impl Host for Memory {
    fn now(&self) -> Duration {
        // Not from 0: what has never happened is long ago.
        Duration::from_secs(100_000) + self.process.began.elapsed()
    }

    fn wall_clock(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.process.began.elapsed()
    }

    fn header(&self, map: Map, name: &str) -> Option<String> {
        self.map(map).iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    }

    fn headers(&self, map: Map) -> Headers {
        self.map(map).to_vec()
    }

    fn text_headers(&self, map: Map) -> Headers {
        self.map(map).to_vec()
    }

    fn set_header(&mut self, map: Map, name: &str, value: Option<&str>) {
        let Some(exchange) = self.exchange_mut() else { return };
        let headers = if map == Map::Request { &mut exchange.request } else { &mut exchange.response };
        headers.retain(|(other, _)| other != name);
        headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    fn body(&self, body: Body, start: usize, size: usize) -> Vec<u8> {
        let all: &[u8] = match body {
            Body::Request => self.exchange().map_or(&[], |exchange| &exchange.body),
            Body::Response => self.exchange().map_or(&[], |exchange| &exchange.piece),
            Body::CallResponse => &self.call_response.1,
        };
        let end = start.saturating_add(size).min(all.len());
        all.get(start..end).unwrap_or_default().to_vec()
    }

    fn replace_body(&mut self, size: usize, with: &[u8]) -> bool {
        let Some(exchange) = self.exchange_mut() else { return false };
        let size = size.min(exchange.body.len());
        drop(exchange.body.splice(..size, with.iter().copied()));
        true
    }

    fn property(&self, path: &[&str]) -> Option<String> {
        let exchange = self.exchange()?;
        if let [state] = path {
            return exchange.states.get(*state).cloned();
        }
        exchange.properties.get(path.join(".").as_str()).cloned()
    }

    fn number(&self, path: &[&str]) -> Option<u64> {
        let exchange = self.exchange()?;
        match path {
            ["upstream", "request_attempt_count"] => Some(exchange.attempts),
            ["connection", "id"] => Some(exchange.connection),
            _ => None,
        }
    }

    fn set_state(&mut self, key: &str, value: &str) {
        if let Some(exchange) = self.exchange_mut() {
            exchange.states.insert(key.to_owned(), value.to_owned());
        }
    }

    /// Routes are matched when a request goes on, by what is known then.
    fn clear_route_cache(&mut self) {}

    fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        if let Some(exchange) = self.exchange_mut() {
            exchange.answered = Some(Local { status, headers: owned(headers), body: body.to_vec(), details: "" });
            exchange.wake.notify_one();
        }
    }

    fn call(&mut self, cluster: &str, headers: &[(&str, &str)], body: &[u8], timeout: Duration) -> Option<u32> {
        self.tokens += 1;
        let (cluster, headers, body) = (cluster.to_owned(), owned(headers), body.to_vec());
        self.calls.push(Call { token: self.tokens, cluster, headers, body, timeout });
        Some(self.tokens)
    }

    fn enter(&mut self, context: u32) -> bool {
        self.current = context;
        context == ROOT || self.exchanges.contains_key(&context)
    }

    fn resume(&mut self) {
        if let Some(exchange) = self.exchange_mut() {
            exchange.is_resumed = true;
            exchange.wake.notify_one();
        }
    }
}
