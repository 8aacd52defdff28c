//! The host in memory, with an eye on what the gateway does to it.

use std::time::Duration;

use routebalance_core::gateway::memory::MemoryHost;
use routebalance_core::gateway::{Body, Host, Map};
use routebalance_core::names;
use routebalance_core::shared::{Board, Key, Version};
use serde::de::IgnoredAny;

use super::board::SharedBoard;
use crate::novelty::see;

/// The host of one VM.
pub(super) struct Watched {
    pub(super) memory: MemoryHost<SharedBoard>,
    /// Whether calls cannot be made.
    pub(super) refuses_calls: bool,
    /// Calls of the host in this callback.
    pub(super) calls: std::cell::Cell<u64>,
}

impl Watched {
    pub(super) fn new(board: SharedBoard) -> Watched {
        Watched { memory: MemoryHost::new(board), refuses_calls: false, calls: std::cell::Cell::new(0) }
    }

    fn count(&self) {
        self.calls.set(self.calls.get() + 1);
    }
}

/// Bytes that end a header line are in no header.
fn check_header(name: &str, value: &str) {
    let is_token = |byte: u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase();
    assert!(!name.is_empty() && name.bytes().all(is_token), "header {name:?}");
    assert!(!value.contains(['\r', '\n', '\0']), "{name}: {value:?}");
}

impl Board for Watched {
    fn read(&self, key: Key) -> (Option<Vec<u8>>, Option<Version>) {
        self.memory.read(key)
    }

    fn news(&self, key: Key, seen: Option<Version>) -> Option<(Option<Vec<u8>>, Option<Version>)> {
        self.memory.news(key, seen)
    }

    fn write(&mut self, key: Key, bytes: &[u8], version: Option<Version>) -> bool {
        see((std::mem::discriminant(&key), crate::novelty::magnitude(bytes.len() as u64)));
        self.memory.write(key, bytes, version)
    }
}

impl Host for Watched {
    fn now(&self) -> Duration {
        self.count();
        self.memory.now()
    }

    fn wall_clock(&self) -> Duration {
        self.count();
        self.memory.wall_clock()
    }

    fn header(&self, map: Map, name: &str) -> Option<String> {
        self.count();
        self.memory.header(map, name)
    }

    fn headers(&self, map: Map) -> Vec<(String, String)> {
        self.count();
        self.memory.headers(map)
    }

    fn text_headers(&self, map: Map, is_wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        self.count();
        self.memory.text_headers(map, is_wanted)
    }

    fn set_header(&mut self, map: Map, name: &str, value: Option<&str>) {
        self.count();
        check_header(name, value.unwrap_or_default());
        see((name, value.is_some()));
        self.memory.set_header(map, name, value);
    }

    fn body(&self, body: Body, start: usize, size: usize) -> Vec<u8> {
        self.count();
        self.memory.body(body, start, size)
    }

    fn replace_body(&mut self, size: usize, with: &[u8]) -> bool {
        self.count();
        let held = self.memory.exchange_here().map_or(0, |exchange| exchange.body.len());
        assert!(size <= held, "{size} of {held} bytes are replaced");
        self.memory.replace_body(size, with)
    }

    fn property(&self, path: &[&str]) -> Option<String> {
        self.count();
        self.memory.property(path)
    }

    fn list(&self, path: &[&str]) -> Option<Vec<String>> {
        self.count();
        self.memory.list(path)
    }

    fn fields(&self, path: &[&str]) -> Option<Vec<(String, Vec<u8>)>> {
        self.count();
        self.memory.fields(path)
    }

    fn number(&self, path: &[&str]) -> Option<u64> {
        self.count();
        self.memory.number(path)
    }

    fn set_state(&mut self, key: &str, value: &str) {
        self.count();
        if key == names::DECISION_STATE {
            let line = format!("{{\"time\":0{value}}}");
            assert!(serde_json::from_str::<IgnoredAny>(&line).is_ok(), "the log's line is no JSON: {line}");
            assert!(line.len() < 8_192, "the log's line has {} bytes", line.len());
        }
        self.memory.set_state(key, value);
    }

    fn clear_route_cache(&mut self) {
        self.count();
        self.memory.clear_route_cache();
    }

    fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        self.count();
        assert!((200..600).contains(&status), "the status {status}");
        headers.iter().for_each(|(name, value)| check_header(name, value));
        see(("respond", status));
        let id = self.memory.current;
        let exchange = self.memory.exchange_here();
        assert!(exchange.is_some(), "{id} is answered, and is over");
        assert!(exchange.is_none_or(|exchange| exchange.answered.is_none()), "{id} is answered twice");
        self.memory.respond(status, headers, body);
    }

    fn call(&mut self, cluster: &str, headers: &[(&str, &str)], body: &[u8], timeout: Duration) -> Option<u32> {
        self.count();
        headers.iter().for_each(|(name, value)| check_header(name, value));
        let has = |name: &str| headers.iter().filter(|(other, _)| *other == name).count();
        assert!([":method", ":path", ":authority"].iter().all(|name| has(name) == 1), "Envoy refuses {headers:?}");
        assert!(!timeout.is_zero(), "a call without time");
        see(("call", cluster));
        if self.refuses_calls {
            return None;
        }
        self.memory.call(cluster, headers, body, timeout)
    }

    fn enter(&mut self, context: u32) -> bool {
        self.count();
        self.memory.enter(context)
    }

    fn resume(&mut self) {
        self.count();
        see("resume");
        self.memory.resume();
    }
}
