//! Whole answers whose instance is found dead or stalled: Envoy sees nothing of that, since they are silent until their end, so the filter
//! asks the next instance itself and gives the client its answer.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{BufferType, MapType};

use crate::filter::attempt;
use crate::filter::host;
use crate::filter::worker::{Shared, Worker};
use crate::health::{Records, Suspect};
use crate::names;
use crate::openai::{self, Api};
use crate::reckoning::{InstanceReport, Reports};
use crate::router::Decision;

/// Time between two looks for requests whose instance is stuck.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// The largest body that is kept for another instance: this and the next bound the VM's memory.
const BODY_BYTES_MAX: usize = 256 << 10;
/// Bytes of all bodies that are kept.
const BODIES_BYTES_MAX: usize = 32 << 20;
/// Headers that belong to a connection, or that Envoy writes itself.
const NOT_COPIED: [&str; 7] =
    ["connection", "transfer-encoding", "content-length", "te", "upgrade", "expect", names::TIMEOUT_HEADER];

/// A request for a whole answer, as another instance may be asked for it.
struct Whole {
    api: Api,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The instance that has it.
    instance: usize,
    /// The instances that may still be asked, best first.
    next: VecDeque<usize>,
    /// The call that asks the next instance.
    call: Option<u32>,
    /// Says to the stream whose answer it gets.
    served_by: Rc<Cell<Option<usize>>>,
}

/// This worker's requests for whole answers that have none yet, by the context of each.
#[derive(Default)]
pub(super) struct Reruns {
    waiting: BTreeMap<u32, Whole>,
    bytes: usize,
    looked_at: Duration,
}

impl Reruns {
    fn insert(&mut self, context: u32, whole: Whole) {
        self.bytes = self.bytes.saturating_add(whole.body.len());
        self.waiting.insert(context, whole);
    }

    /// The answer has begun, or nobody waits for it.
    pub(super) fn remove(&mut self, context: u32) {
        if let Some(whole) = self.waiting.remove(&context) {
            self.bytes = self.bytes.saturating_sub(whole.body.len());
        }
    }
}

impl Worker {
    /// Keeps what another instance needs to be asked for a whole answer. `buffered` bytes of the body, which is complete, are in the
    /// host's buffer, as they go out.
    pub(super) fn keep_for_rerun(
        &mut self,
        context: u32,
        api: Api,
        decision: &Decision,
        buffered: usize,
    ) -> Rc<Cell<Option<usize>>> {
        let served_by = Rc::new(Cell::new(None));
        let is_small = buffered <= BODY_BYTES_MAX && self.reruns.bytes.saturating_add(buffered) <= BODIES_BYTES_MAX;
        if decision.fallbacks.is_empty() || !is_small || !self.router.config().health.enabled {
            return served_by;
        }
        let body = host::buffer(BufferType::HttpRequestBody, 0, buffered);
        let next = decision.fallbacks.iter().copied().collect();
        let headers = copied(host::headers(MapType::HttpRequestHeaders));
        let (instance, call) = (decision.instance, None);
        let whole = Whole { api, headers, body, instance, next, call, served_by: Rc::clone(&served_by) };
        self.reruns.insert(context, whole);
        served_by
    }

    /// Whether nothing is to be expected of an instance any more, by what the reports show.
    fn is_stuck(&self, instance: usize, reports: &Reports, records: &Records) -> bool {
        let key = self.router.config().fleet.instances.get(instance).map(|instance| instance.key);
        key.is_some_and(|key| records.is_stalled(key))
            || reports.0.get(instance).is_some_and(InstanceReport::is_unreachable)
    }

    /// Asks the next instance for every answer whose instance is stuck.
    fn rerun(&mut self, now: Duration) -> Vec<(u32, Api)> {
        if self.reruns.waiting.is_empty() || now < self.reruns.looked_at.saturating_add(LOOK_PERIOD) {
            return Vec::new();
        }
        self.reruns.looked_at = now;
        let records = self.records();
        let reports = self.read_reports().map(|(reports, _)| reports).unwrap_or_default();
        let idle = self.reruns.waiting.iter().filter(|(_, whole)| whole.call.is_none());
        let stuck: Vec<u32> =
            idle.filter(|(_, whole)| self.is_stuck(whole.instance, &reports, &records)).map(|(id, _)| *id).collect();
        stuck.into_iter().filter_map(|context| self.ask_next(context, &reports, &records)).collect()
    }

    /// Asks the next instance that is not stuck itself; the request where there is none.
    fn ask_next(&mut self, context: u32, reports: &Reports, records: &Records) -> Option<(u32, Api)> {
        let mut whole = self.reruns.waiting.remove(&context)?;
        let api = whole.api;
        while let Some(instance) = whole.next.pop_front() {
            if self.is_stuck(instance, reports, records) {
                continue;
            }
            if let Some(token) = self.call(context, &whole, instance) {
                (whole.call, whole.instance) = (Some(token), instance);
                self.metrics.count("routebalance.reruns");
                break;
            }
        }
        let is_lost = whole.call.is_none();
        self.reruns.waiting.insert(context, whole);
        is_lost.then_some((context, api))
    }

    fn call(&self, context: u32, whole: &Whole, instance: usize) -> Option<u32> {
        let fleet = &self.router.config().fleet;
        let address = fleet.instances.get(instance)?.address.as_str();
        let (_, pool) = fleet.pool_of(instance)?;
        let copied = whole.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut headers: Vec<(&str, &str)> = copied.collect();
        headers.push((names::ENDPOINT_HEADER, address));
        let body = attempt::body_at(context, address, &whole.body);
        hostcalls::dispatch_http_call(&pool.cluster, headers, Some(&body), vec![], CALL_TIMEOUT).ok()
    }
}

/// Whoever stalls as well is found out by its reports.
const CALL_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Headers as another instance may get them: none of a connection's, none of Envoy's own, and the path without what routes rewrite.
fn copied(headers: Vec<(String, String)>) -> Vec<(String, String)> {
    let is_copied = |name: &str| {
        !NOT_COPIED.contains(&name)
            && !name.starts_with("x-envoy-")
            && ![names::POOL_HEADER, names::ENDPOINT_HEADER].contains(&name)
    };
    let kept = headers.into_iter().filter(|(name, _)| is_copied(name));
    kept.map(
        |(name, value)| if name == ":path" { (name, openai::path_of_call(&value).to_owned()) } else { (name, value) },
    )
    .collect()
}

/// Looks for requests whose instance is stuck; `root` is the context to which the host returns.
pub(super) fn look(shared: &Shared, root: u32, now: Duration) {
    let lost = shared.with(|worker| worker.rerun(now)).unwrap_or_default();
    if lost.is_empty() {
        return;
    }
    for (context, api) in lost {
        end(shared, context, api);
    }
    let _ = hostcalls::set_effective_context(root);
}

/// No instance is left: the client hears of it.
fn end(shared: &Shared, context: u32, api: Api) {
    shared.with(|worker| worker.reruns.remove(context));
    if hostcalls::set_effective_context(context).is_err() {
        return;
    }
    let body = openai::error_body(Some(api), 504, "The instance has not answered, and no other one could be asked.");
    let headers = vec![("content-type", "application/json")];
    let _ = hostcalls::send_http_response(504, headers, Some(body.as_bytes()));
}

/// A call was answered, or not; whether it was one for a whole answer. `root` is the context to which the host returns.
pub(super) fn answered(shared: &Shared, root: u32, token: u32, headers: usize, body_size: usize) -> bool {
    let found = shared.with(|worker| {
        let (context, whole) = worker.reruns.waiting.iter_mut().find(|(_, whole)| whole.call == Some(token))?;
        whole.call = None;
        Some((*context, whole.instance, Rc::clone(&whole.served_by)))
    });
    let Some((context, instance, served_by)) = found.flatten() else { return false };
    let all = if headers > 0 { host::headers(MapType::HttpCallResponseHeaders) } else { Vec::new() };
    let status = all.iter().find(|(name, _)| name == ":status").and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    let is_failure = status == 0 || status == 503 || Suspect::STATUSES.contains(&status);
    if is_failure {
        let left = shared.with(|worker| {
            let records = worker.records();
            let reports = worker.read_reports().map(|(reports, _)| reports).unwrap_or_default();
            worker.ask_next(context, &reports, &records)
        });
        if let Some((context, api)) = left.flatten() {
            end(shared, context, api);
            let _ = hostcalls::set_effective_context(root);
        }
        return true;
    }
    let body = host::buffer(BufferType::HttpCallResponseBody, 0, body_size);
    shared.with(|worker| worker.reruns.remove(context));
    served_by.set(Some(instance));
    if hostcalls::set_effective_context(context).is_ok() {
        let is_sent =
            |name: &str| !name.starts_with(':') && !NOT_COPIED.contains(&name) && !name.starts_with("x-envoy-");
        let headers = all.iter().filter(|(name, _)| is_sent(name)).map(|(name, value)| (name.as_str(), value.as_str()));
        let _ = hostcalls::send_http_response(u32::from(status), headers.collect(), Some(&body));
    }
    let _ = hostcalls::set_effective_context(root);
    true
}
