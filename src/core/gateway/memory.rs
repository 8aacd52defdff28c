//! A host in memory: requests as somebody gives them, and what the gateway has made of them.
//!
//! Unit tests, scenarios in virtual time and fuzzing use the same one, so a habit of Envoy is acted out in one place. The module never
//! names it, so the linker leaves it out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::values::listed;
use super::{Body, Host, Map};
use crate::shared::{Board, Bytes, Key, Version};

/// Names and values in their order.
pub type Headers = Vec<(String, String)>;

/// The number of the root context.
pub const ROOT: u32 = 1;

/// An answer of the gateway's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalAnswer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub body: Vec<u8>,
}

/// One request, and what has become of it.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// The request's headers.
    pub request: Headers,
    /// What is held back of the request's body.
    pub body: Vec<u8>,
    /// The response's headers.
    pub response: Headers,
    /// What of the response's body is in the buffer.
    pub response_body: Vec<u8>,
    /// Properties as text, by their paths with dots.
    pub properties: BTreeMap<String, String>,
    /// The number of its connection; `None` where the host tells none.
    pub connection: Option<u64>,
    /// How often the host has sent it.
    pub attempts: u64,
    /// Its filter state.
    pub states: BTreeMap<String, String>,
    /// How often its route was to be matched again.
    pub routes_cleared: usize,
    /// What the gateway has answered itself.
    pub answered: Option<LocalAnswer>,
    /// How often it was let go on.
    pub resumed: usize,
}

/// A call that the gateway has made.
#[derive(Clone, Debug)]
pub struct HostCall {
    /// The number by which the gateway knows it.
    pub number: u32,
    /// Envoy's cluster.
    pub cluster: String,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub body: Vec<u8>,
    /// Time after which there is no answer.
    pub timeout: Duration,
}

/// The host of one VM. Several share what is on their board.
#[derive(Clone, Debug, Default)]
pub struct MemoryHost<B = Bytes> {
    /// What VMs share.
    pub board: B,
    /// The time that the gateway is told.
    pub time: Duration,
    /// The time since the epoch that the gateway is told.
    pub time_of_day: Duration,
    /// Requests by the numbers of their contexts.
    pub exchanges: BTreeMap<u32, Exchange>,
    /// The context whose callback this is.
    pub current: u32,
    /// Calls that nobody has answered.
    pub calls: Vec<HostCall>,
    /// How many calls were made.
    pub calls_made: u32,
    /// The answer to the call whose callback this is.
    pub call_response: (Headers, Vec<u8>),
    /// Requests that the gateway has answered or let go on, in that order, until somebody takes them.
    pub woken: Vec<u32>,
}

/// The first header of a name.
pub fn header_of<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
}

/// Headers that outlive what they were made of.
pub fn owned(headers: &[(&str, &str)]) -> Headers {
    headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

impl<B> MemoryHost<B> {
    /// A host that has seen nothing yet.
    pub fn new(board: B) -> MemoryHost<B> {
        MemoryHost {
            board,
            time: Duration::ZERO,
            time_of_day: Duration::ZERO,
            exchanges: BTreeMap::new(),
            current: ROOT,
            calls: Vec::new(),
            calls_made: 0,
            call_response: (Vec::new(), Vec::new()),
            woken: Vec::new(),
        }
    }

    /// The request whose callback this is.
    pub fn exchange_here(&self) -> Option<&Exchange> {
        self.exchanges.get(&self.current)
    }

    fn exchange_mut(&mut self) -> Option<&mut Exchange> {
        self.exchanges.get_mut(&self.current)
    }

    fn map(&self, map: Map) -> &[(String, String)] {
        match map {
            Map::Request => self.exchange_here().map_or(&[], |exchange| &exchange.request),
            Map::Response => self.exchange_here().map_or(&[], |exchange| &exchange.response),
            Map::CallResponse => &self.call_response.0,
        }
    }
}

impl<B: Board> Board for MemoryHost<B> {
    fn read(&self, key: Key) -> (Option<Vec<u8>>, Option<Version>) {
        self.board.read(key)
    }

    fn news(&self, key: Key, seen: Option<Version>) -> Option<(Option<Vec<u8>>, Option<Version>)> {
        self.board.news(key, seen)
    }

    fn write(&mut self, key: Key, bytes: &[u8], version: Option<Version>) -> bool {
        self.board.write(key, bytes, version)
    }
}

impl<B: Board> Host for MemoryHost<B> {
    fn now(&self) -> Duration {
        self.time
    }

    fn wall_clock(&self) -> Duration {
        self.time_of_day
    }

    fn header(&self, map: Map, name: &str) -> Option<String> {
        header_of(self.map(map), name).map(str::to_owned)
    }

    fn headers(&self, map: Map) -> Headers {
        self.map(map).to_vec()
    }

    /// A value with the replacement character stands for one that was no text.
    fn text_headers(&self, map: Map, is_wanted: impl Fn(&str) -> bool) -> Headers {
        let wanted = self.map(map).iter().filter(|(name, _)| is_wanted(name));
        wanted.filter(|(_, value)| !value.contains(char::REPLACEMENT_CHARACTER)).cloned().collect()
    }

    fn set_header(&mut self, map: Map, name: &str, value: Option<&str>) {
        let Some(exchange) = self.exchange_mut() else { return };
        let headers = match map {
            Map::Request => &mut exchange.request,
            Map::Response => &mut exchange.response,
            Map::CallResponse => return,
        };
        headers.retain(|(other, _)| other != name);
        headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    fn body(&self, body: Body, start: usize, size: usize) -> Vec<u8> {
        let all: &[u8] = match body {
            Body::Request => self.exchange_here().map_or(&[], |exchange| &exchange.body),
            Body::Response => self.exchange_here().map_or(&[], |exchange| &exchange.response_body),
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
        let exchange = self.exchange_here()?;
        if let [state] = path {
            return exchange.states.get(*state).cloned();
        }
        exchange.properties.get(&path.join(".")).cloned()
    }

    fn number(&self, path: &[&str]) -> Option<u64> {
        let exchange = self.exchange_here()?;
        match path {
            ["upstream", "request_attempt_count"] => Some(exchange.attempts),
            ["connection", "id"] => exchange.connection,
            _ => None,
        }
    }

    fn list(&self, path: &[&str]) -> Option<Vec<String>> {
        self.property(path).map(|text| listed(text.as_bytes()))
    }

    fn fields(&self, path: &[&str]) -> Option<Vec<(String, Vec<u8>)>> {
        let at = format!("{}.", path.join("."));
        let properties = self.exchange_here()?.properties.iter();
        let field =
            |(name, value): (&String, &String)| Some((name.strip_prefix(&at)?.to_owned(), value.clone().into_bytes()));
        let fields: Vec<_> = properties.filter_map(field).collect();
        (!fields.is_empty()).then_some(fields)
    }

    fn set_state(&mut self, key: &str, value: &str) {
        if let Some(exchange) = self.exchange_mut() {
            exchange.states.insert(key.to_owned(), value.to_owned());
        }
    }

    fn clear_route_cache(&mut self) {
        if let Some(exchange) = self.exchange_mut() {
            exchange.routes_cleared = exchange.routes_cleared.saturating_add(1);
        }
    }

    fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        let current = self.current;
        if let Some(exchange) = self.exchange_mut() {
            exchange.answered = Some(LocalAnswer { status, headers: owned(headers), body: body.to_vec() });
            self.woken.push(current);
        }
    }

    fn call(&mut self, cluster: &str, headers: &[(&str, &str)], body: &[u8], timeout: Duration) -> Option<u32> {
        self.calls_made = self.calls_made.wrapping_add(1);
        let (number, cluster, headers, body) = (self.calls_made, cluster.to_owned(), owned(headers), body.to_vec());
        self.calls.push(HostCall { number, cluster, headers, body, timeout });
        Some(number)
    }

    fn enter(&mut self, context: u32) -> bool {
        self.current = context;
        context == ROOT || self.exchanges.contains_key(&context)
    }

    fn resume(&mut self) {
        let current = self.current;
        if let Some(exchange) = self.exchange_mut() {
            exchange.resumed = exchange.resumed.saturating_add(1);
            self.woken.push(current);
        }
    }
}
