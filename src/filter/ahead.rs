//! Requests whose headers have gone on to the next filter before they are decided: what they were, what the decision has written into
//! them, and the second instance of the module that writes it there.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, MapType};

use crate::envoy::Headers;
use crate::host;
use routebalance_core::names;

/// One such request.
pub(super) struct Ahead {
    /// Its headers as they are to be.
    pub(super) headers: Headers,
    /// What is to be written, in its order; `None` for what is to be removed.
    changes: Vec<(String, Option<String>)>,
    /// Whether the router was asked for.
    is_looked_at: bool,
}

impl Ahead {
    /// Writes or removes a header, there and in what is to be written.
    pub(super) fn write(&mut self, name: &str, value: Option<&str>) {
        self.headers.retain(|(other, _)| other != name);
        self.headers.extend(value.map(|value| (name.to_owned(), value.as_bytes().to_vec())));
        self.changes.retain(|(other, _)| other != name);
        self.changes.push((name.to_owned(), value.map(str::to_owned)));
    }
}

thread_local! {
    /// Such requests by the numbers of their contexts.
    static AHEAD: RefCell<BTreeMap<u32, Ahead>> = const { RefCell::new(BTreeMap::new()) };
    /// Whether somebody behind the buffer filter writes headers.
    static HAS_WRITER: Cell<bool> = const { Cell::new(false) };
}

fn on_all<R>(f: impl FnOnce(&mut BTreeMap<u32, Ahead>) -> R) -> Option<R> {
    AHEAD.try_with(|all| all.try_borrow_mut().ok().map(|mut all| f(&mut all))).ok().flatten()
}

/// Runs `f` on what is kept of a request whose headers have gone on; `None` for any other.
pub(super) fn visit<R>(id: u32, f: impl FnOnce(&mut Ahead) -> R) -> Option<R> {
    on_all(|all| all.get_mut(&id).map(f)).flatten()
}

/// The headers of the current request go on. Its length is not true any more when its body is written: the buffer filter says it anew.
pub(super) fn begin(id: u32, headers: Headers) {
    host::set_header(MapType::HttpRequestHeaders, "content-length", None);
    host::set_filter_state(names::HELD_STATE, names::HELD);
    on_all(|all| all.insert(id, Ahead { headers, changes: Vec::new(), is_looked_at: false }));
}

/// Whether a decision about the current request would come too late, or reach nobody. Asked once.
pub(super) fn is_too_late(id: u32) -> bool {
    let is_new = visit(id, |ahead| !std::mem::replace(&mut ahead.is_looked_at, true)) == Some(true);
    is_new
        && (!has_writer() || host::number(&["upstream", "request_attempt_count"]).is_some_and(|attempts| attempts > 0))
}

/// The body of the current request goes on, too: what is to be written into its headers goes with it.
pub(super) fn end(id: u32) {
    let Some(Some(ahead)) = on_all(|all| all.remove(&id)) else { return };
    if ahead.changes.is_empty() {
        return;
    }
    let mut lines = String::new();
    for (name, value) in &ahead.changes {
        lines.push_str(name);
        if let Some(value) = value {
            lines.push(' ');
            lines.push_str(value);
        }
        lines.push('\n');
    }
    host::set_filter_state(names::HEADERS_STATE, &lines);
}

/// The request is over.
pub(super) fn forget(id: u32) {
    on_all(|all| all.remove(&id));
}

/// Shared data, since the second instance may have a VM of its own.
const WRITER_KEY: &str = "routebalance/headers";

/// This is the second instance: decisions may count on it.
pub(super) fn announce_writer() {
    host::set_shared(WRITER_KEY, &[1], None);
}

/// Whether the second instance is there.
pub(super) fn has_writer() -> bool {
    HAS_WRITER
        .try_with(|has_writer| {
            if !has_writer.get() {
                has_writer.set(host::shared(WRITER_KEY).0.is_some());
            }
            has_writer.get()
        })
        .unwrap_or_default()
}

/// The second instance's context of one request.
pub(super) struct HeadersContext;

impl Context for HeadersContext {}

impl HttpContext for HeadersContext {
    fn on_http_request_headers(&mut self, _headers: usize, _end_of_stream: bool) -> Action {
        let Some(lines) = host::property(&[names::HEADERS_STATE]) else { return Action::Continue };
        for line in lines.lines() {
            let (name, value) = line.split_once(' ').map_or((line, None), |(name, value)| (name, Some(value)));
            host::set_header(MapType::HttpRequestHeaders, name, value);
        }
        host::clear_route_cache();
        Action::Continue
    }
}
