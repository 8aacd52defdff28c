//! A host in memory: requests as a test gives them, and what the gateway has made of them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::gateway::{Body, Host, Map};
use crate::shared::{Board, Bytes, Key, Version};

/// Status, headers and body.
type Answer = (u16, Vec<(String, String)>, Vec<u8>);

/// One request, and what has become of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Exchange {
    pub(super) request: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) response: Vec<(String, String)>,
    pub(super) response_body: Vec<u8>,
    pub(super) properties: BTreeMap<String, String>,
    pub(super) attempts: u64,
    pub(super) states: BTreeMap<String, String>,
    pub(super) routes_cleared: usize,
    /// What it was answered with here.
    pub(super) answered: Option<Answer>,
    pub(super) resumed: usize,
}

/// A call that the gateway has made.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) cluster: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Scene {
    board: Bytes,
    pub(super) time: Duration,
    pub(super) exchanges: BTreeMap<u32, Exchange>,
    pub(super) current: u32,
    pub(super) calls: Vec<Call>,
    calls_made: u32,
    /// The answer to the call whose callback this is.
    pub(super) call_response: (Vec<(String, String)>, Vec<u8>),
}

fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

impl Scene {
    /// A request has come.
    pub(super) fn request(&mut self, id: u32, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let length = body.len().to_string();
        let all = [(":method", "POST"), (":path", path), ("content-length", &length), ("x-request-id", "r-1")];
        let request = owned(&[&all[..], headers].concat());
        self.exchanges.insert(id, Exchange { request, body: body.to_vec(), attempts: 1, ..Exchange::default() });
        self.current = id;
    }

    /// Its instance answers.
    pub(super) fn respond_from(&mut self, id: u32, address: &str, status: &str, content_type: &str, body: &[u8]) {
        let exchange = self.exchanges.get_mut(&id).unwrap();
        exchange.response = owned(&[(":status", status), ("content-type", content_type)]);
        exchange.response_body = body.to_vec();
        exchange.properties.insert("upstream.address".to_owned(), address.to_owned());
        exchange.properties.insert("response.code_details".to_owned(), "via_upstream".to_owned());
        self.current = id;
    }

    pub(super) fn exchange(&self, id: u32) -> &Exchange {
        &self.exchanges[&id]
    }

    pub(super) fn request_header(&self, id: u32, name: &str) -> Option<&str> {
        let of = self.exchange(id).request.iter().find(|(other, _)| other == name);
        of.map(|(_, value)| value.as_str())
    }

    fn map(&self, map: Map) -> &[(String, String)] {
        let current = self.exchanges.get(&self.current);
        match map {
            Map::Request => current.map_or(&[], |exchange| &exchange.request),
            Map::Response => current.map_or(&[], |exchange| &exchange.response),
            Map::CallResponse => &self.call_response.0,
        }
    }
}

impl Board for Scene {
    fn read(&self, key: Key) -> (Option<Vec<u8>>, Option<Version>) {
        self.board.read(key)
    }

    fn write(&mut self, key: Key, bytes: &[u8], version: Option<Version>) -> bool {
        self.board.write(key, bytes, version)
    }
}

impl Host for Scene {
    fn now(&self) -> Duration {
        self.time
    }

    fn wall_clock(&self) -> Duration {
        self.time
    }

    fn header(&self, map: Map, name: &str) -> Option<String> {
        self.map(map).iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    }

    fn headers(&self, map: Map) -> Vec<(String, String)> {
        self.map(map).to_vec()
    }

    fn text_headers(&self, map: Map) -> Vec<(String, String)> {
        self.map(map).to_vec()
    }

    fn set_header(&mut self, map: Map, name: &str, value: Option<&str>) {
        let Some(exchange) = self.exchanges.get_mut(&self.current) else { return };
        let headers = if map == Map::Request { &mut exchange.request } else { &mut exchange.response };
        headers.retain(|(other, _)| other != name);
        headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    fn body(&self, body: Body, start: usize, size: usize) -> Vec<u8> {
        let current = self.exchanges.get(&self.current);
        let all: &[u8] = match body {
            Body::Request => current.map_or(&[], |exchange| &exchange.body),
            Body::Response => current.map_or(&[], |exchange| &exchange.response_body),
            Body::CallResponse => &self.call_response.1,
        };
        let end = start.saturating_add(size).min(all.len());
        all.get(start..end).unwrap_or_default().to_vec()
    }

    fn replace_body(&mut self, size: usize, with: &[u8]) -> bool {
        let Some(exchange) = self.exchanges.get_mut(&self.current) else { return false };
        let size = size.min(exchange.body.len());
        drop(exchange.body.splice(..size, with.iter().copied()));
        true
    }

    fn property(&self, path: &[&str]) -> Option<String> {
        let exchange = self.exchanges.get(&self.current)?;
        if let [state] = path {
            return exchange.states.get(*state).cloned();
        }
        exchange.properties.get(&path.join(".")).cloned()
    }

    fn number(&self, path: &[&str]) -> Option<u64> {
        let exchange = self.exchanges.get(&self.current)?;
        (path == ["upstream", "request_attempt_count"]).then_some(exchange.attempts)
    }

    fn set_state(&mut self, key: &str, value: &str) {
        if let Some(exchange) = self.exchanges.get_mut(&self.current) {
            exchange.states.insert(key.to_owned(), value.to_owned());
        }
    }

    fn clear_route_cache(&mut self) {
        if let Some(exchange) = self.exchanges.get_mut(&self.current) {
            exchange.routes_cleared += 1;
        }
    }

    fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        if let Some(exchange) = self.exchanges.get_mut(&self.current) {
            exchange.answered = Some((status, owned(headers), body.to_vec()));
        }
    }

    fn call(&mut self, cluster: &str, headers: &[(&str, &str)], body: &[u8], _timeout: Duration) -> Option<u32> {
        self.calls_made += 1;
        let number = self.calls_made;
        self.calls.push(Call { number, cluster: cluster.to_owned(), headers: owned(headers), body: body.to_vec() });
        Some(number)
    }

    fn enter(&mut self, context: u32) -> bool {
        self.current = context;
        context == ROOT || self.exchanges.contains_key(&context)
    }

    fn resume(&mut self) {
        if let Some(exchange) = self.exchanges.get_mut(&self.current) {
            exchange.resumed += 1;
        }
    }
}

/// The number of the root context.
pub(super) const ROOT: u32 = 1;
