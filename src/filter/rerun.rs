//! Whole answers whose instance is found dead or stalled: Envoy sees nothing of that, since they are silent until their end, so the filter
//! asks the next instance itself and gives the client the answer that comes first.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{BufferType, MapType};

use crate::filter::attempt;
use crate::filter::host;
use crate::filter::worker::{Envoy, Shared, Worker};
use crate::health::{self, Event, Failure, Outcome, Records};
use crate::names;
use crate::openai::{self, Api, Observed};
use crate::reckoning::{Dispatch, Reports};
use crate::router::Decision;
use crate::shared::Board;

/// Time between two looks for requests whose instance is stuck.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// The largest body that is kept for another instance: this and the next bound the VM's memory.
const BODY_BYTES_MAX: usize = 256 << 10;
/// Bytes of all bodies that are kept.
const BODIES_BYTES_MAX: usize = 32 << 20;
/// How long an instance may take that was asked here. Where it stalls as well, its reports say so before.
const CALL_TIMEOUT: Duration = Duration::from_secs(3_600);
/// Headers that belong to a connection, or that Envoy writes itself.
const NOT_COPIED: [&str; 6] = ["connection", "transfer-encoding", "content-length", "te", "upgrade", "expect"];

/// Whose answer a stream gets that Envoy has not brought.
#[derive(Clone, Copy, Debug)]
pub(super) enum Served {
    /// This instance's, which was asked at this time.
    By(usize, Duration),
    /// Nobody's: the filter has ended the request.
    ByNobody,
}

/// Says to a stream whose answer it gets.
pub(super) type ServedBy = Rc<Cell<Option<Served>>>;

/// An instance that has the request.
#[derive(Clone, Copy)]
struct Asked {
    instance: usize,
    at: Duration,
    /// The call by which the filter asks it; `None` for Envoy's own attempt.
    call: Option<u32>,
}

/// A request for a whole answer, as another instance may be asked for it.
struct Whole {
    api: Api,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Envoy's own attempt, then the instances that the filter has asked.
    asked: Vec<Asked>,
    /// The instances that may still be asked, best first.
    next: VecDeque<usize>,
    dispatch: Rc<Cell<Option<Dispatch>>>,
    served_by: ServedBy,
}

/// This worker's requests for whole answers that have none yet, by the context of each.
#[derive(Default)]
pub(super) struct Reruns {
    waiting: BTreeMap<u32, Whole>,
    bytes: usize,
    looked_at: Duration,
}

impl Reruns {
    /// The answer has begun, or nobody waits for it.
    pub(super) fn remove(&mut self, context: u32) {
        if let Some(whole) = self.waiting.remove(&context) {
            self.bytes = self.bytes.saturating_sub(whole.body.len());
        }
    }

    /// Envoy has sent a request to another instance.
    pub(super) fn moved(&mut self, context: u32, instance: usize, now: Duration) {
        let Some(whole) = self.waiting.get_mut(&context) else { return };
        if let Some(own) = whole.asked.first_mut() {
            (own.instance, own.at) = (instance, now);
        }
        whole.next.retain(|other| *other != instance);
    }
}

impl Worker {
    /// Keeps what another instance needs to be asked for a whole answer. `size` bytes of the body, which is complete, are in the host's
    /// buffer, as they go out. A response that an instance stores is not made twice.
    pub(super) fn keep_for_rerun(
        &mut self,
        context: u32,
        api: Api,
        decision: &Decision,
        size: usize,
        dispatch: &Rc<Cell<Option<Dispatch>>>,
    ) -> ServedBy {
        let served_by = ServedBy::default();
        let is_small = size <= BODY_BYTES_MAX && self.reruns.bytes.saturating_add(size) <= BODIES_BYTES_MAX;
        let may = is_small && api != Api::Responses && self.router.config().health.enabled;
        if decision.fallbacks.is_empty() || !may {
            return served_by;
        }
        let Some(headers) = self.headers_as_sent() else { return served_by };
        let body = host::buffer(BufferType::HttpRequestBody, 0, size);
        self.reruns.bytes = self.reruns.bytes.saturating_add(body.len());
        let whole = Whole {
            api,
            headers,
            body,
            asked: vec![Asked { instance: decision.instance, at: host::now(), call: None }],
            next: decision.fallbacks.iter().copied().collect(),
            dispatch: Rc::clone(dispatch),
            served_by: Rc::clone(&served_by),
        };
        self.reruns.waiting.insert(context, whole);
        served_by
    }

    /// The request's headers as another instance may get them: none of a connection's, none of Envoy's own, and the path as the route
    /// rewrites it; `None` where nobody here knows how it does.
    fn headers_as_sent(&self) -> Option<Vec<(String, String)>> {
        let is_copied = |name: &str| {
            !NOT_COPIED.contains(&name)
                && !name.starts_with("x-envoy-")
                && ![names::POOL_HEADER, names::ENDPOINT_HEADER].contains(&name)
        };
        let kept = host::headers(MapType::HttpRequestHeaders).into_iter().filter(|(name, _)| is_copied(name));
        kept.map(|(name, value)| Some(if name == ":path" { (name, self.path_as_sent(value)?) } else { (name, value) }))
            .collect()
    }

    fn path_as_sent(&self, path: String) -> Option<String> {
        if openai::path_of_call(&path) == path {
            return Some(path);
        }
        let name = host::property(&["xds", "route_name"])?;
        let route = self.router.config().routes.iter().find(|route| route.name == name)?;
        let rest = path.strip_prefix(&route.prefix)?;
        Some(route.prefix_rewrite.as_ref().map_or(path.clone(), |rewrite| format!("{rewrite}{rest}")))
    }

    /// Whether nothing is to be expected of what an instance was asked, by what its reports show since.
    fn is_stuck(&self, asked: &Asked, reports: &Reports, records: &Records) -> bool {
        let key = self.router.config().fleet.instances.get(asked.instance).map(|instance| instance.key);
        key.is_some_and(|key| records.is_stuck(key, reports.0.get(asked.instance), asked.at))
    }

    /// Asks the next instance for every answer whose instance is stuck; those for which nobody is left and whose time is over.
    fn rerun(&mut self, now: Duration) -> Vec<(u32, Api)> {
        if self.reruns.waiting.is_empty() || now < self.reruns.looked_at.saturating_add(LOOK_PERIOD) {
            return Vec::new();
        }
        self.reruns.looked_at = now;
        let records = Envoy.records().0.into_owned();
        let reports = self.known_reports(&Envoy).unwrap_or_default();
        let all_are_stuck = |whole: &Whole| whole.asked.iter().all(|asked| self.is_stuck(asked, &reports, &records));
        let stuck = self.reruns.waiting.iter().filter(|(_, whole)| all_are_stuck(whole));
        let stuck: Vec<u32> = stuck.map(|(context, _)| *context).collect();
        stuck.into_iter().filter_map(|context| self.ask_next(context, now, &reports, &records)).collect()
    }

    /// Asks the next instance that is not stuck itself. Where there is none, the one that has the request may still go on: the request
    /// is given back once its time is over.
    fn ask_next(&mut self, context: u32, now: Duration, reports: &Reports, records: &Records) -> Option<(u32, Api)> {
        let mut whole = self.reruns.waiting.remove(&context)?;
        let works = |i: &usize| {
            let asked = Asked { instance: *i, at: Duration::ZERO, call: None };
            !self.is_stuck(&asked, reports, records)
        };
        let at = whole.next.iter().position(works);
        let asked = at.and_then(|at| whole.next.remove(at)).and_then(|instance| {
            let call = self.call(context, &whole, instance)?;
            Some(Asked { instance, at: now, call: Some(call) })
        });
        if let Some(asked) = asked {
            self.statistics.count("reruns");
            self.carry(&whole.dispatch, asked.instance, now);
            whole.asked.push(asked);
        }
        let first_at = whole.asked.first().map_or(now, |asked| asked.at);
        let is_over = asked.is_none() && now.saturating_sub(first_at) > self.router.config().health.answer_limit;
        let api = whole.api;
        self.reruns.waiting.insert(context, whole);
        is_over.then_some((context, api))
    }

    /// The load of a request goes with it.
    pub(super) fn carry(&mut self, dispatch: &Cell<Option<Dispatch>>, instance: usize, now: Duration) {
        if let Some(mut moved) = dispatch.get().filter(|dispatch| dispatch.instance != instance) {
            self.move_to(&mut Envoy, &mut moved, instance, now);
            dispatch.set(Some(moved));
            self.statistics.count("moves");
        }
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

    /// The instance of a call has failed: another one is asked at the next look, unless Envoy's own attempt goes on.
    fn call_failed(&mut self, context: u32, asked: Asked, event: Event) {
        self.saw(&mut Envoy, asked.instance, event, asked.at, host::now());
        if let Some(whole) = self.reruns.waiting.get_mut(&context) {
            whole.asked.retain(|other| other.call != asked.call);
        }
    }
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
    let served_by = shared.with(|worker| {
        let served_by = worker.reruns.waiting.get(&context).map(|whole| Rc::clone(&whole.served_by));
        worker.reruns.remove(context);
        served_by
    });
    if let Some(served_by) = served_by.flatten() {
        served_by.set(Some(Served::ByNobody));
    }
    if hostcalls::set_effective_context(context).is_err() {
        return;
    }
    let body = openai::error_body(Some(api), 504, "The instance has not answered, and no other one could be asked.");
    let headers = vec![("content-type", "application/json")];
    let _ = hostcalls::send_http_response(504, headers, Some(body.as_bytes()));
}

/// What the status of an answer says against its instance, if another one is to be asked. 0 means that there was no answer.
fn failure(status: u16, headers: &[(String, String)]) -> Option<Event> {
    if status == 0 {
        return Some(Event::Suspected(Failure::Unanswered));
    }
    let retry_after = headers.iter().find(|(name, _)| name == names::RETRY_AFTER_HEADER);
    let retry_after = retry_after.and_then(|(_, seconds)| health::retry_after(seconds));
    let seen = Observed::default();
    let outcome =
        Outcome { status, retry_after, seen: &seen, bytes: 1, readable: false, common: false, names_ours: false };
    Some(health::of_answer(&outcome)).filter(|event| matches!(event, Event::Busy(_) | Event::Suspected(_)))
}

/// A call was answered, or not; whether it was one for a whole answer. `root` is the context to which the host returns.
pub(super) fn answered(shared: &Shared, root: u32, token: u32, headers: usize, body_size: usize) -> bool {
    let found = shared.with(|worker| {
        let is_this = |asked: &&Asked| asked.call == Some(token);
        worker.reruns.waiting.iter().find_map(|(context, whole)| {
            Some((*context, *whole.asked.iter().find(is_this)?, Rc::clone(&whole.served_by)))
        })
    });
    let Some((context, asked, served_by)) = found.flatten() else { return false };
    let all = if headers > 0 { host::headers(MapType::HttpCallResponseHeaders) } else { Vec::new() };
    let status = all.iter().find(|(name, _)| name == ":status").and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    if let Some(event) = failure(status, &all) {
        shared.with(|worker| worker.call_failed(context, asked, event));
        return true;
    }
    let body = host::buffer(BufferType::HttpCallResponseBody, 0, body_size);
    shared.with(|worker| {
        if let Some(whole) = worker.reruns.waiting.get(&context) {
            let dispatch = Rc::clone(&whole.dispatch);
            worker.carry(&dispatch, asked.instance, host::now());
        }
        worker.reruns.remove(context);
    });
    served_by.set(Some(Served::By(asked.instance, asked.at)));
    if hostcalls::set_effective_context(context).is_ok() {
        let is_sent =
            |name: &str| !name.starts_with(':') && !NOT_COPIED.contains(&name) && !name.starts_with("x-envoy-");
        let headers = all.iter().filter(|(name, _)| is_sent(name)).map(|(name, value)| (name.as_str(), value.as_str()));
        let _ = hostcalls::send_http_response(u32::from(status), headers.collect(), Some(&body));
    }
    let _ = hostcalls::set_effective_context(root);
    true
}
