//! Whole answers whose instance is found dead or stalled: Envoy sees nothing of that, since they are silent until their end, so the gateway
//! asks the next instance itself and gives the client the answer that comes first.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Body, Gateway, Host, Map, Phase};
use crate::fleet::InstanceId;
use crate::health::{self, Asking, Records};
use crate::names;
use crate::openai::{self, Api};
use crate::reckoning::Reports;
use crate::router::Decision;
use crate::worker::Counter;

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
    By(InstanceId, Duration),
    /// Nobody's: the gateway has ended the request.
    ByNobody,
}

/// A request for a whole answer, as another instance may be asked for it.
pub(super) struct Whole {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Who has it, by the calls of the gateway.
    asking: Asking<u32>,
}

/// Requests for whole answers that have none yet.
#[derive(Default)]
pub(super) struct Reruns {
    /// How many there are, and the bytes of their bodies.
    waiting: usize,
    bytes: usize,
    looked_at: Duration,
    /// Calls under way, with the request of each.
    calls: BTreeMap<u32, u32>,
}

impl Reruns {
    /// How many wait and the bytes of their bodies, and how many calls are under way.
    pub(super) fn held(&self) -> ((usize, usize), usize) {
        ((self.waiting, self.bytes), self.calls.len())
    }
}

impl Gateway {
    /// The answer has begun, or nobody waits for it.
    pub(super) fn forget_rerun(&mut self, id: u32) {
        if let Some(whole) = self.serving(id).and_then(|serving| serving.sent.whole.take()) {
            self.reruns.bytes = self.reruns.bytes.saturating_sub(whole.body.len());
            self.reruns.waiting = self.reruns.waiting.saturating_sub(1);
        }
    }

    /// Envoy has sent a request to another instance.
    pub(super) fn moved(&mut self, host: &mut impl Host, id: u32, instance: InstanceId, now: Duration) {
        if let Some(whole) = self.serving(id).and_then(|serving| serving.sent.whole.as_mut()) {
            whole.asking.moved(instance, now);
        }
        self.carry(host, id, instance, now);
    }

    /// The load of a request goes with it.
    fn carry(&mut self, host: &mut impl Host, id: u32, instance: InstanceId, now: Duration) {
        if let Some(Phase::Serving(serving)) = self.streams.get_mut(&id).map(|stream| &mut stream.phase) {
            serving.carry(host, &mut self.worker, instance, now);
        }
    }

    /// Keeps what another instance needs to be asked for a whole answer. `size` bytes of the body, which is complete, are in the host's
    /// buffer, as they go out; `as_sent` may know them. A response that an instance stores is not made twice.
    pub(super) fn keep_for_rerun(
        &mut self,
        host: &impl Host,
        api: Api,
        decision: &Decision,
        size: usize,
        as_sent: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Option<Whole> {
        let is_small = size <= BODY_BYTES_MAX && self.reruns.bytes.saturating_add(size) <= BODIES_BYTES_MAX;
        let may = is_small && api != Api::Responses && self.worker.router.config().health.enabled;
        if decision.to.fallbacks.is_empty() || !may {
            return None;
        }
        let headers = self.headers_as_sent(host)?;
        let known = as_sent().filter(|body| body.len() == size);
        let body = known.unwrap_or_else(|| host.body(Body::Request, 0, size));
        self.reruns.bytes = self.reruns.bytes.saturating_add(body.len());
        self.reruns.waiting = self.reruns.waiting.saturating_add(1);
        Some(Whole { headers, body, asking: Asking::new(decision.to.instance, host.now(), &decision.to.fallbacks) })
    }

    /// The request's headers as another instance may get them: none of a connection's, none of Envoy's own, and the path as the route
    /// rewrites it; `None` where nobody here knows how it does.
    fn headers_as_sent(&self, host: &impl Host) -> Option<Vec<(String, String)>> {
        let is_copied = |name: &str| {
            !NOT_COPIED.contains(&name)
                && !name.starts_with("x-envoy-")
                && ![names::POOL_HEADER, names::ENDPOINT_HEADER].contains(&name)
        };
        let kept = host.text_headers(Map::Request, is_copied).into_iter();
        kept.map(|(name, value)| {
            Some(if name == ":path" { (name, self.path_as_sent(host, value)?) } else { (name, value) })
        })
        .collect()
    }

    fn path_as_sent(&self, host: &impl Host, path: String) -> Option<String> {
        if openai::path_of_call(&path) == path {
            return Some(path);
        }
        let name = host.property(&["xds", "route_name"])?;
        let route = self.worker.router.config().routes.iter().find(|route| route.name == name)?;
        let rest = path.strip_prefix(&route.prefix)?;
        Some(route.prefix_rewrite.as_ref().map_or(path.clone(), |rewrite| format!("{rewrite}{rest}")))
    }

    /// Whether nothing is to be expected of what an instance was asked at this time, by what its reports show since.
    fn is_stuck(&self, instance: InstanceId, at: Duration, reports: &Reports, records: &Records) -> bool {
        let key = self.worker.router.config().fleet.instance(instance).map(|instance| instance.key);
        key.is_some_and(|key| records.is_stuck(key, reports.get(instance), at))
    }

    /// Looks for requests whose instance is stuck: the next one is asked for their answers, and those for which nobody is left and whose
    /// time is over are ended. `root` is the context to which the host returns.
    pub(super) fn look_for_stuck(&mut self, host: &mut impl Host, root: u32, now: Duration) {
        if self.reruns.waiting == 0 || now < self.reruns.looked_at.saturating_add(LOOK_PERIOD) {
            return;
        }
        self.reruns.looked_at = now;
        let records = host.records().0;
        let reports = self.worker.known_reports(host).unwrap_or_default();
        let are_stuck = |stream: &super::Stream| match &stream.phase {
            Phase::Serving(serving) => serving.sent.whole.as_ref().is_some_and(|whole| {
                whole.asking.is_stuck(|instance, at| self.is_stuck(instance, at, &reports, &records))
            }),
            _ => false,
        };
        let stuck: Vec<u32> = self.streams.iter().filter(|(_, s)| are_stuck(s)).map(|(id, _)| *id).collect();
        let mut has_ended = false;
        for id in stuck {
            if self.ask_next(host, id, now, &reports, &records) {
                has_ended = true;
                self.end_stuck(host, id);
            }
        }
        if has_ended {
            host.enter(root);
        }
    }

    /// Asks the next instance that is not stuck itself. Where there is none, the one that has the request may still go on: whether the
    /// request's time is over.
    fn ask_next(&mut self, host: &mut impl Host, id: u32, now: Duration, reports: &Reports, records: &Records) -> bool {
        let Some(mut whole) = self.serving(id).and_then(|serving| serving.sent.whole.take()) else { return false };
        let next = whole.asking.next(|instance, at| self.is_stuck(instance, at, reports, records));
        let asked = next.and_then(|instance| Some((instance, self.call(host, id, &whole, instance)?)));
        if let Some((instance, call)) = asked {
            self.worker.statistics.count(Counter::Reruns);
            self.carry(host, id, instance, now);
            whole.asking.ask(instance, now, call);
        }
        let is_over = asked.is_none() && whole.asking.is_over(self.worker.router.config().health.answer_limit, now);
        if let Some(serving) = self.serving(id) {
            serving.sent.whole = Some(whole);
        }
        is_over
    }

    fn call(&mut self, host: &mut impl Host, id: u32, whole: &Whole, instance: InstanceId) -> Option<u32> {
        let fleet = &self.worker.router.config().fleet;
        let address = fleet.instance(instance)?.address.clone();
        let cluster = fleet.pool_of(instance)?.1.cluster.clone();
        let copied = whole.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut headers: Vec<(&str, &str)> = copied.collect();
        headers.push((names::ENDPOINT_HEADER, &address));
        let body = self.served(id)?.sent.plan.body_at(fleet, &address, &whole.body);
        let call = host.call(&cluster, &headers, &body, CALL_TIMEOUT)?;
        self.reruns.calls.insert(call, id);
        Some(call)
    }

    /// No instance is left: the client hears of it.
    fn end_stuck(&mut self, host: &mut impl Host, id: u32) {
        self.forget_rerun(id);
        let Some(serving) = self.serving(id) else { return };
        serving.served = Some(Served::ByNobody);
        let api = serving.api();
        if !host.enter(id) {
            return;
        }
        let sentence = "The instance has not answered, and no other one could be asked.";
        let body = openai::error_body(Some(api), 504, sentence);
        host.respond(504, &[("content-type", "application/json")], body.as_bytes());
    }

    /// A call for a whole answer was answered, or not. `root` is the context to which the host returns.
    pub(super) fn call_answered(&mut self, host: &mut impl Host, root: u32, call: u32, has_headers: bool, size: usize) {
        let Some(id) = self.reruns.calls.remove(&call) else { return };
        let whole = self.serving(id).and_then(|serving| serving.sent.whole.as_mut());
        let found = whole.and_then(|whole| whole.asking.ended(call));
        // Envoy's own attempt may have brought the answer meanwhile.
        let Some(asked) = found else { return };
        let all = if has_headers { host.text_headers(Map::CallResponse, |_| true) } else { Vec::new() };
        let status = all.iter().find(|(name, _)| name == ":status").and_then(|(_, value)| value.parse().ok());
        let status = status.unwrap_or(0);
        let now = host.now();
        let retry_after = all.iter().find(|(name, _)| name == names::RETRY_AFTER_HEADER);
        let retry_after = retry_after.and_then(|(_, seconds)| health::retry_after(seconds));
        if let Some(event) = health::of_call(status, retry_after) {
            // Another one is asked at the next look, unless Envoy's own attempt goes on.
            return self.worker.saw(host, asked.instance, event, asked.at, now);
        }
        let body = host.body(Body::CallResponse, 0, size);
        self.carry(host, id, asked.instance, now);
        self.forget_rerun(id);
        if let Some(serving) = self.serving(id) {
            serving.served = Some(Served::By(asked.instance, asked.at));
        }
        if host.enter(id) {
            let is_sent =
                |name: &str| !name.starts_with(':') && !NOT_COPIED.contains(&name) && !name.starts_with("x-envoy-");
            let sent = all.iter().filter(|(name, _)| is_sent(name));
            let headers: Vec<(&str, &str)> = sent.map(|(name, value)| (name.as_str(), value.as_str())).collect();
            host.respond(status, &headers, &body);
        }
        host.enter(root);
    }
}
