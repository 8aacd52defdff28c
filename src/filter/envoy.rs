//! Envoy as the gateway's host.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{Action, BufferType, MapType};

use crate::{ahead, host};
use routebalance_core::gateway::{Body, Flow, Host, Map, listed, pairs};
use routebalance_core::health::Records;
use routebalance_core::reckoning::{Counters, Reports};
use routebalance_core::shared::{Board, Index, Key, ReadCache, RowsRead, Sources, Version, decode_health};

/// Envoy in one callback. It keeps the state; what it has said once in this callback it is not asked again, since each question
/// is a crossing, and each answer one more for its memory.
#[derive(Default)]
pub(super) struct Envoy {
    /// The request whose callback this is, or that was entered.
    context: u32,
    now: Cell<Option<Duration>>,
    request: Cell<Option<Headers>>,
    response: Cell<Option<Headers>>,
}

/// Names and values in their order.
pub(super) type Headers = Vec<(String, Vec<u8>)>;

impl Envoy {
    /// Envoy in a callback of this request.
    pub(super) fn in_callback_of(context: u32) -> Envoy {
        Envoy { context, ..Envoy::default() }
    }

    /// The same with the headers that an earlier callback has read: while a request is held, nobody else changes them.
    pub(super) fn with_request(context: u32, headers: &Cell<Option<Headers>>) -> Envoy {
        Envoy { request: Cell::new(headers.take()), ..Envoy::in_callback_of(context) }
    }

    /// What the callback has read, for the next one.
    pub(super) fn into_request(self) -> Option<Headers> {
        self.request.into_inner()
    }

    fn cell(&self, map: Map) -> Option<&Cell<Option<Headers>>> {
        match map {
            Map::Request => Some(&self.request),
            Map::Response => Some(&self.response),
            Map::CallResponse => None,
        }
    }

    /// Runs `f` on all headers.
    fn on_headers<R>(&self, map: Map, f: impl FnOnce(&mut Headers) -> R) -> R {
        if map == Map::Request
            && let Some(mut all) = ahead::visit(self.context, |ahead| std::mem::take(&mut ahead.headers))
        {
            let result = f(&mut all);
            ahead::visit(self.context, |ahead| ahead.headers = all);
            return result;
        }
        let cell = self.cell(map);
        let mut all = cell.and_then(Cell::take).unwrap_or_else(|| host::headers(map_type(map)));
        let result = f(&mut all);
        if let Some(cell) = cell {
            cell.set(Some(all));
        }
        result
    }
}

thread_local! {
    /// What was made of records, and which versions were seen.
    static CACHE: RefCell<ReadCache> = RefCell::default();
    /// Other workers' counters and reports where fleets are large.
    static ROWS: RefCell<RowsRead> = RefCell::default();
}

fn on_cache<R>(f: impl FnOnce(&mut ReadCache) -> R) -> Option<R> {
    CACHE.try_with(|cache| cache.try_borrow_mut().ok().map(|mut cache| f(&mut cache))).ok().flatten()
}

fn on_rows<R>(f: impl FnOnce(&mut RowsRead) -> R) -> Option<R> {
    ROWS.try_with(|rows| rows.try_borrow_mut().ok().map(|mut rows| f(&mut rows))).ok().flatten()
}

impl Envoy {
    /// Envoy at a tick: from now on, records are read anew if any has been announced.
    pub(super) fn at_tick() -> Envoy {
        let pulse = host::shared(&Key::Pulse.to_string()).1;
        on_cache(|cache| cache.tick(pulse));
        Envoy::default()
    }
}

impl Board for Envoy {
    #[inline(never)]
    fn read(&self, key: Key) -> (Option<Vec<u8>>, Option<Version>) {
        host::shared(&key.to_string())
    }

    fn news(&self, key: Key, seen: Option<Version>) -> Option<(Option<Vec<u8>>, Option<Version>)> {
        if on_cache(|cache| cache.is_same(key, seen)) == Some(true) {
            return None;
        }
        let (bytes, version) = self.read(key);
        on_cache(|cache| cache.note(key, version));
        (version != seen).then_some((bytes, version))
    }

    fn add_counters(&self, slot: usize, owner: u64, index: &Index, sum: &mut Counters) -> bool {
        let Some(bytes) = self.read(Key::Counters(slot)).0 else { return false };
        let row = |row| self.read(Key::CountersRow(slot, row)).0;
        on_rows(|rows| rows.add_counters((slot, owner, &bytes), index, sum, row)).unwrap_or_default()
    }

    fn reports(&self, place: usize, identity: u64, index: &Index) -> Option<(Arc<Reports>, Sources)> {
        on_cache(|cache| cache.reports(place, identity, index)).flatten().unwrap_or_else(|| {
            let row = |row| self.read(Key::ReportRow(place, row)).0;
            let bytes = self.read(Key::Reports(place)).0;
            let read = |bytes: Vec<u8>| on_rows(|rows| rows.reports((place, identity, &bytes), index, row)).flatten();
            let decoded = bytes.and_then(read);
            on_cache(|cache| cache.keep_reports(place, identity, index, decoded.clone()));
            decoded
        })
    }

    fn records(&self) -> (Arc<Records>, Option<Version>) {
        on_cache(|cache| cache.records()).flatten().unwrap_or_else(|| {
            let (bytes, version) = self.read(Key::Health);
            let decoded = (Arc::new(bytes.map(|bytes| decode_health(&bytes)).unwrap_or_default()), version);
            on_cache(|cache| cache.keep_records(decoded.clone()));
            decoded
        })
    }

    #[inline(never)]
    fn write(&mut self, key: Key, bytes: &[u8], version: Option<Version>) -> bool {
        on_cache(|cache| cache.forget(key));
        let is_written = host::set_shared(&key.to_string(), bytes, version);
        if is_written && key.is_announced() {
            host::set_shared(&Key::Pulse.to_string(), &[], None);
        }
        is_written
    }
}

fn map_type(map: Map) -> MapType {
    match map {
        Map::Request => MapType::HttpRequestHeaders,
        Map::Response => MapType::HttpResponseHeaders,
        Map::CallResponse => MapType::HttpCallResponseHeaders,
    }
}

impl Host for Envoy {
    fn now(&self) -> Duration {
        let now = self.now.get().unwrap_or_else(host::now);
        self.now.set(Some(now));
        now
    }

    fn clock(&self) -> Duration {
        let clock = host::now();
        if self.now.get().is_none() {
            self.now.set(Some(clock));
        }
        clock
    }

    fn wall_clock(&self) -> Duration {
        host::wall_clock()
    }

    #[inline(never)]
    fn header(&self, map: Map, name: &str) -> Option<String> {
        if map == Map::CallResponse {
            return host::header(map_type(map), name);
        }
        self.on_headers(map, |all| {
            let mut values = all.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_slice());
            let first = values.next()?;
            // Several of one name count as one list, as Envoy has it.
            let joined = values.fold(first.to_vec(), |joined, value| [&joined[..], value].join(&b","[..]));
            Some(lossy(joined))
        })
    }

    fn headers(&self, map: Map) -> Vec<(String, String)> {
        self.on_headers(map, |all| all.iter().map(|(name, value)| (name.clone(), lossy(value.clone()))).collect())
    }

    fn text_headers(&self, map: Map, is_wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        let text = |(name, value): &(String, Vec<u8>)| Some((name.clone(), str::from_utf8(value).ok()?.to_owned()));
        self.on_headers(map, |all| all.iter().filter(|(name, _)| is_wanted(name)).filter_map(text).collect())
    }

    #[inline(never)]
    fn set_header(&mut self, map: Map, name: &str, value: Option<&str>) {
        let is_there = value.is_some() || self.on_headers(map, |all| all.iter().any(|(other, _)| other == name));
        if !is_there || (map == Map::Request && ahead::visit(self.context, |ahead| ahead.write(name, value)).is_some())
        {
            return;
        }
        host::set_header(map_type(map), name, value);
        if let Some(cell) = self.cell(map)
            && let Some(mut all) = cell.take()
        {
            all.retain(|(other, _)| other != name);
            all.extend(value.map(|value| (name.to_owned(), value.as_bytes().to_vec())));
            cell.set(Some(all));
        }
    }

    fn body(&self, body: Body, start: usize, size: usize) -> Vec<u8> {
        let kind = match body {
            Body::Request => BufferType::HttpRequestBody,
            Body::Response => BufferType::HttpResponseBody,
            Body::CallResponse => BufferType::HttpCallResponseBody,
        };
        host::buffer(kind, start, size)
    }

    #[inline(never)]
    fn replace_body(&mut self, size: usize, with: &[u8]) -> bool {
        hostcalls::set_buffer(BufferType::HttpRequestBody, 0, size, with).is_ok()
    }

    fn property(&self, path: &[&str]) -> Option<String> {
        host::property(path)
    }

    fn number(&self, path: &[&str]) -> Option<u64> {
        host::number(path)
    }

    fn list(&self, path: &[&str]) -> Option<Vec<String>> {
        host::raw_property(path).map(|bytes| listed(&bytes))
    }

    fn fields(&self, path: &[&str]) -> Option<Vec<(String, Vec<u8>)>> {
        host::raw_property(path).and_then(|bytes| pairs(&bytes))
    }

    fn set_state(&mut self, key: &str, value: &str) {
        host::set_filter_state(key, value);
    }

    fn clear_route_cache(&mut self) {
        host::clear_route_cache();
    }

    #[inline(never)]
    fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        let _ = hostcalls::send_http_response(u32::from(status), headers.to_vec(), Some(body));
    }

    #[inline(never)]
    fn call(&mut self, cluster: &str, headers: &[(&str, &str)], body: &[u8], timeout: Duration) -> Option<u32> {
        let body = Some(body).filter(|body| !body.is_empty());
        hostcalls::dispatch_http_call(cluster, headers.to_vec(), body, vec![], timeout).ok()
    }

    fn enter(&mut self, context: u32) -> bool {
        // Headers of one request are not those of another.
        (self.request, self.response) = Default::default();
        self.context = context;
        hostcalls::set_effective_context(context).is_ok()
    }

    fn resume(&mut self) {
        ahead::end(self.context);
        let _ = hostcalls::resume_http_request();
    }
}

/// Text; bytes that are not UTF-8 are replaced.
fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// What a callback answers the host.
pub(super) fn action(flow: Flow) -> Action {
    match flow {
        Flow::Continue => Action::Continue,
        Flow::Pause => Action::Pause,
    }
}
