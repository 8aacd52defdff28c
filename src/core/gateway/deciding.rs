//! From a read body to a request on its way: the question to the router, and the carrying out of its decision.

use std::time::Duration;

use super::access_log::{DecisionTiming, LogEntry};
use super::attempt::AttemptPlan;
use super::checkup::Checkup;
use super::serving::{Sent, Serving};
use super::wishes::Wishes;
use super::{Body, Flow, Gateway, Host, Map, PIECE, Phase};
use crate::affinity::{Keys, Recall};
use crate::config::RETRIES;
use crate::fleet::{Constraints, InstanceId, Metrics, PolicyId, PoolId, PoolKind, Weights};
use crate::names;
use crate::openai::{self, Api, Patch, Prompt, RequestScan};
use crate::router::{Ask, Decision, Packed, Refusal, RefusalReason, UntouchedReason, Verdict, packed};
use crate::shared::Board;
use crate::worker::{Counter, Histogram, Worker};

/// A request whose body comes.
pub(super) struct RequestReading {
    pub(super) api: Api,
    /// The policy of its route, whose limits hold whatever policy the request names.
    route_policy: PolicyId,
    pub(super) policy: PolicyId,
    /// Weights in the place of the policy's.
    pub(super) weights: Option<Weights>,
    /// The model that the path names.
    deployment: Option<String>,
    packed: Packed,
    pub(super) scan: RequestScan,
    pub(super) scanned: usize,
    /// All that was scanned, as long as it is small.
    kept: Vec<u8>,
    pub(super) started: Duration,
    pub(super) scan_time: Duration,
    content_length: Option<u64>,
    /// What the session header says.
    session: Option<String>,
    /// Under which names what it leaves behind is remembered.
    pub(super) keys: Keys,
    /// What the request insists on by its headers.
    constraints: Option<Constraints>,
    /// The only instances that may serve, in their order; `None` for all.
    pub(super) subset: Option<Vec<InstanceId>>,
}

impl RequestReading {
    /// Scans what is new of the body, of which so many bytes are in the host's buffer.
    pub(super) fn read(&mut self, host: &impl Host, size: usize) {
        if self.scanned >= size {
            return;
        }
        let before = host.now();
        while self.scanned < size {
            let piece = host.body(Body::Request, self.scanned, PIECE.min(size - self.scanned));
            if piece.is_empty() {
                break;
            }
            self.scan.push(&piece);
            self.keep(piece);
        }
        self.scan_time = self.scan_time.saturating_add(host.clock().saturating_sub(before));
    }

    /// Keeps a piece if all that has come is kept and stays small: to ask the host for it again costs more.
    fn keep(&mut self, piece: Vec<u8>) {
        let is_whole = self.kept.len() == self.scanned;
        self.scanned = self.scanned.saturating_add(piece.len());
        if !is_whole || self.scanned > PIECE {
            self.kept = Vec::new();
        } else if self.kept.is_empty() {
            self.kept = piece;
        } else {
            self.kept.extend_from_slice(&piece);
        }
    }

    /// The body, of which so many bytes are in the host's buffer, if it was kept.
    fn kept(&self, buffered: usize) -> Option<&[u8]> {
        (buffered > 0 && self.kept.len() == buffered).then_some(&self.kept)
    }
}

/// A request that has been read as far as it is going to be.
pub(super) struct Pending {
    pub(super) reading: RequestReading,
    pub(super) prompt: Prompt,
    /// Bytes of the body that are in the host's buffer.
    buffered: usize,
    /// Whether they are all.
    complete: bool,
    /// What instances have kept of what it needs.
    recall: Recall,
    /// What models cost now; `None` for what its policy says.
    prices: Option<Vec<f64>>,
    /// Where it falls among shares of traffic.
    lot: Option<u64>,
}

impl Pending {
    /// Looks up what instances have kept of what the request needs, and what models cost.
    pub(super) fn recall(&mut self, worker: &mut Worker, now: Duration) {
        let Pending { reading, prompt, .. } = self;
        let Worker { router, learner, .. } = worker;
        self.lot = router.lot(reading.session.as_deref(), || learner.draw());
        self.prices = worker.prices.of_policy(reading.policy).map(<[f64]>::to_vec);
        reading.keys = worker.router.keys(reading.api, prompt, reading.session.as_deref());
        self.recall = worker.router.recall(&worker.placements.memory, &reading.keys, prompt, now);
    }

    /// The question to the router. `sequence` is how many requests were sent before.
    pub(super) fn ask(&self, board: &impl Board, worker: &mut Worker, sequence: u64) -> Ask<'_> {
        let Pending { reading, prompt, .. } = self;
        let holder = prompt.previous_response_id.as_deref().and_then(|id| worker.holder(board, id));
        Ask {
            api: reading.api,
            prompt,
            policy: reading.policy,
            weights: reading.weights,
            holder,
            subset: reading.subset.as_deref(),
            held: self.recall.held(),
            sequence,
            draw: worker.learner.draw(),
            lot: self.lot,
            constraints: reading.constraints,
            prices: self.prices.as_deref(),
        }
    }
}

impl Gateway {
    /// A request to be decided begins; its path may name the model.
    pub(super) fn begin(
        &mut self,
        host: &mut impl Host,
        id: u32,
        api: Api,
        deployment: Option<String>,
        end_of_stream: bool,
    ) -> Flow {
        let encoding = host.header(Map::Request, "content-encoding").unwrap_or_default();
        let said = host.header(Map::Request, names::ENCODING_HEADER).unwrap_or_default();
        if !said.is_empty() {
            host.set_header(Map::Request, names::ENCODING_HEADER, None);
        }
        let packed = packed(&said, &encoding);
        match packed {
            Packed::Unreadable if api.is_guessed() || !self.refuses_unread(host) => {
                return self.leave(host, id, api, UntouchedReason::EncodedBody);
            }
            Packed::Unreadable | Packed::Broken => {
                let encoding = if said.is_empty() { encoding } else { said };
                let message = format!("A body in the encoding `{encoding}` cannot be read.");
                return self.refuse(host, id, Some(api), &Refusal::new(415, RefusalReason::EncodedBody, message));
            }
            Packed::Never | Packed::Unpacked => {}
        }
        let mut route = self.route_wishes(host);
        self.note_unread(host, &mut route);
        let subset = match self.subset(host, route.policy) {
            Err(refusal) => return self.refuse(host, id, Some(api), &refusal),
            Ok(Some(subset)) if subset.is_empty() => return self.refuse(host, id, Some(api), &Refusal::subset()),
            Ok(subset) => subset,
        };
        let mut headers = RequestHeaders::default();
        let Wishes { policy, weights, constraints } = match self.wishes(host, &mut headers, &route) {
            Err(refusal) => return self.refuse(host, id, Some(api), &refusal),
            Ok(wishes) => wishes,
        };
        let content_length = host.header(Map::Request, "content-length").and_then(|v| v.trim().parse().ok());
        let session_header = self.worker.router.config().affinity.session_header.as_deref();
        let session = session_header.and_then(|header| host.header(Map::Request, header));
        let scan = if api == Api::Named {
            let content_type = host.header(Map::Request, "content-type").unwrap_or_default();
            RequestScan::of_type(api, &content_type)
        } else {
            RequestScan::new(api)
        };
        let reading = RequestReading {
            api,
            route_policy: route.policy,
            policy,
            weights,
            deployment,
            packed,
            scan,
            scanned: 0,
            kept: Vec::new(),
            started: host.now(),
            scan_time: Duration::ZERO,
            content_length,
            session,
            keys: Keys::default(),
            constraints,
            subset,
        };
        if end_of_stream {
            return self.decide(host, id, reading, true, 0);
        }
        self.set_phase(id, Phase::Reading(Box::new(reading)));
        Flow::Pause
    }

    /// A request has been read as far as it is going to be: its end or its limit is reached.
    pub(super) fn decide(
        &mut self,
        host: &mut impl Host,
        id: u32,
        mut reading: RequestReading,
        whole: bool,
        buffered: usize,
    ) -> Flow {
        let api = reading.api;
        let may_pass = api.is_guessed() && reading.subset.is_none();
        let mut prompt = if whole {
            match reading.scan.finish() {
                Ok(prompt) => prompt,
                Err(_) if may_pass => return self.leave(host, id, api, UntouchedReason::OtherPath),
                Err(error) => {
                    let unpacked =
                        if reading.packed == Packed::Unpacked { " It was read as Envoy has unpacked it." } else { "" };
                    let refusal = Refusal::new(400, RefusalReason::Body, format!("{error}{unpacked}"));
                    return self.refuse(host, id, Some(api), &refusal);
                }
            }
        } else {
            let prompt = reading.scan.so_far();
            let names_model = prompt.model.is_some() || reading.deployment.is_some();
            let RequestReading { route_policy, policy, constraints, packed, .. } = &reading;
            let policies = (*route_policy, *policy);
            match self.worker.router.too_large(policies, constraints.as_ref(), names_model, *packed) {
                Some(_) if may_pass => return self.leave(host, id, api, UntouchedReason::OtherPath),
                Some(refusal) => return self.refuse(host, id, Some(api), &refusal),
                None => prompt,
            }
        };
        if let Some(model) = reading.deployment.take() {
            prompt.deploy(model);
        }
        let pending =
            Pending { reading, prompt, buffered, complete: whole, recall: Recall::default(), prices: None, lot: None };
        match if whole { self.wait(host, id, pending) } else { Err(pending) } {
            Ok(flow) => flow,
            Err(mut pending) => {
                let (verdict, timing) = self.route(host, &mut pending);
                self.act(host, id, pending, verdict, timing)
            }
        }
    }

    /// Does what the verdict says.
    pub(super) fn act(
        &mut self,
        host: &mut impl Host,
        id: u32,
        pending: Pending,
        verdict: Verdict,
        timing: DecisionTiming,
    ) -> Flow {
        match verdict {
            Verdict::Untouched(_) | Verdict::Pooled { .. } if pending.reading.subset.is_some() => {
                self.refuse(host, id, Some(pending.reading.api), &Refusal::subset())
            }
            Verdict::Untouched(reason) => self.leave(host, id, pending.reading.api, reason),
            Verdict::Pooled { pool, max_tokens } => {
                self.pass_to_pool(host, pool, max_tokens, &pending);
                self.leave(host, id, pending.reading.api, UntouchedReason::NoInstance)
            }
            Verdict::Refused(refusal) => self.refuse(host, id, Some(pending.reading.api), &refusal),
            Verdict::Decided(decision) => {
                self.dispatch(host, id, pending, *decision, timing);
                Flow::Continue
            }
        }
    }

    /// Carries a decision out.
    fn dispatch(
        &mut self,
        host: &mut impl Host,
        id: u32,
        pending: Pending,
        decision: Decision,
        mut timing: DecisionTiming,
    ) {
        let Pending { reading, prompt, buffered, complete, .. } = pending;
        let now = host.now();
        let began = timing.decided_at.unwrap_or_else(|| host.clock());
        let config = self.worker.router.config();
        let address = |i: &InstanceId| config.fleet.instance(*i).map(|i| i.address.as_str());
        let Some(pool) = config.fleet.pool(decision.to.pool) else { return };
        let endpoints: Vec<&str> =
            std::iter::once(&decision.to.instance).chain(&decision.to.fallbacks).filter_map(address).collect();
        // Which server of a provider answers is not this gateway's affair.
        let endpoints = (pool.kind == PoolKind::Own).then(|| endpoints.join(","));
        let served_model = decision.to.adapter.as_ref().unwrap_or(&pool.served_model);
        let places = prompt.patch_places();
        let patches = places.patches(reading.api, served_model, decision.because.max_tokens);
        let patched = patch_body(host, &patches, buffered, reading.kept(buffered));
        set_length(host, reading.content_length, buffered, patched);
        direct(host, &pool.cluster, endpoints.as_deref(), prompt.stream, Some(id));
        let least = config.health.answer_limit;
        let knows_length = !prompt.stream && reading.api != Api::Named;
        if let Some(limit) = decision.answer_limit(least, pool.kind == PoolKind::Hosted).filter(|_| knows_length) {
            host.set_header(Map::Request, names::TIMEOUT_HEADER, Some(&limit.as_millis().to_string()));
        }
        let asks_load = config.telemetry.orca && pool.metrics != Metrics::Off && ask_for_load(host);
        self.worker.statistics.count(Counter::Decisions { pool: &pool.name, rung: decision.because.rung });
        let is_common = config.names_no_model(prompt.model.as_deref());
        timing.patch = host.clock().saturating_sub(began);
        let mut entry =
            LogEntry::new(reading.api, config, (reading.policy, reading.weights), &prompt, &decision, timing);
        let decision_id = self.worker.learner.decision_id().filter(|_| decision.generates());
        entry.decision_id.clone_from(&decision_id);
        let worker = &mut self.worker;
        if let Some(id) = &decision_id {
            worker.remember_decision(host, id, &decision);
        }
        let decision_us = u64::try_from(timing.decision.as_micros()).unwrap_or(u64::MAX);
        worker.statistics.observe(Histogram::DecisionUs, decision_us);
        worker.dispatch(host, &decision.dispatch(), now);
        if let Some(placement) = decision.placement(&reading.keys, now) {
            worker.place(placement);
        }
        let checkup = Checkup::new(&decision, &prompt, is_common, host.now());
        let size = Some(patched.unwrap_or(buffered)).filter(|_| complete && knows_length);
        let as_sent = || openai::patched(&patches, reading.kept(buffered)?);
        let whole = size.and_then(|size| self.keep_for_rerun(host, reading.api, &decision, size, as_sent));
        let plan = AttemptPlan::new(reading.api, &decision, places, patches);
        let sent = Sent { checkup, plan, whole, entry, decision_id, decision_us, asks_load };
        self.set_phase(id, Phase::Serving(Box::new(Serving::new(reading, decision, sent, host.now()))));
    }

    /// Asks the router, and says how long it took.
    fn route(&mut self, host: &mut impl Host, pending: &mut Pending) -> (Verdict, DecisionTiming) {
        let asked_at = host.clock();
        let worker = &mut self.worker;
        pending.recall(worker, asked_at);
        let verdict = ask_router(host, worker, pending, asked_at);
        let verdict = claimed(host, worker, pending, verdict, asked_at);
        let decided_at = host.clock();
        let (scan, decision) = (pending.reading.scan_time, decided_at.saturating_sub(asked_at));
        (verdict, DecisionTiming { scan, decision, decided_at: Some(decided_at), ..DecisionTiming::default() })
    }

    /// Makes Envoy send the request to a pool, wherever it likes to.
    fn pass_to_pool(&self, host: &mut impl Host, pool: PoolId, max_tokens: Option<u32>, pending: &Pending) {
        let Some(pool) = self.worker.router.config().fleet.pool(pool) else { return };
        let Pending { reading, prompt, buffered, .. } = pending;
        let patches = prompt.patch_places().patches(reading.api, &pool.served_model, max_tokens);
        let patched = patch_body(host, &patches, *buffered, reading.kept(*buffered));
        set_length(host, reading.content_length, *buffered, patched);
        direct(host, &pool.cluster, None, prompt.stream, None);
    }
}

/// How often a request is decided anew because another worker probes the instance that was chosen.
const CLAIM_ATTEMPTS: usize = 4;

fn ask_router(board: &impl Board, worker: &mut Worker, pending: &Pending, now: Duration) -> Verdict {
    let load_draw = worker.learner.draw();
    let (loads, sequence) = worker.loads(board, now, load_draw);
    let ask = pending.ask(board, worker, sequence);
    worker.router.route(&ask, loads.as_deref(), worker.learner.learned())
}

/// A verdict whose instance, if it is to be probed, is this worker's to probe. Each turn that is lost takes one half-open instance out
/// of the choice.
pub(super) fn claimed(
    board: &mut impl Board,
    worker: &mut Worker,
    pending: &Pending,
    mut verdict: Verdict,
    now: Duration,
) -> Verdict {
    for _ in 0..CLAIM_ATTEMPTS {
        let Verdict::Decided(decision) = &verdict else { break };
        if !decision.to.probe || worker.claim(board, decision.to.instance, now) {
            break;
        }
        verdict = ask_router(board, worker, pending, now);
    }
    verdict
}

/// Makes Envoy send the request to an endpoint of a cluster, or to any. `context` has a plan for further attempts.
pub(super) fn direct(host: &mut impl Host, cluster: &str, endpoints: Option<&str>, stream: bool, context: Option<u32>) {
    host.set_header(Map::Request, names::POOL_HEADER, Some(cluster));
    host.set_header(Map::Request, names::ENDPOINT_HEADER, endpoints);
    // Beyond the list, Envoy would choose by itself: an instance that does not hold what the request needs, or one that has failed.
    let others = endpoints.map_or(usize::MAX, |named| named.matches(',').count());
    if others < *RETRIES.end() {
        host.set_header(Map::Request, names::MAX_RETRIES_HEADER, Some(&others.to_string()));
    }
    let kind = if stream { names::ROUTED_AS_STREAM } else { names::ROUTED_AS_WHOLE };
    match context {
        Some(context) => host.set_state(names::ROUTED_STATE, &format!("{kind} {context}")),
        None => host.set_state(names::ROUTED_STATE, kind),
    }
    host.clear_route_cache();
}

/// Asks the instance for its load, unless the client does so itself: then the answer is the client's, and read on the way.
fn ask_for_load(host: &mut impl Host) -> bool {
    let asks = host.header(Map::Request, names::LOAD_FORMAT_HEADER).is_none();
    if asks {
        host.set_header(Map::Request, names::LOAD_FORMAT_HEADER, Some("JSON"));
    }
    asks
}

/// The request's headers, read when the first one is asked for.
#[derive(Default)]
pub(super) struct RequestHeaders(Option<Vec<(String, String)>>);

impl RequestHeaders {
    /// All values of a header.
    pub(super) fn values(&mut self, host: &impl Host, name: &str) -> Vec<String> {
        let all = self.0.get_or_insert_with(|| host.headers(Map::Request));
        all.iter().filter(|(other, _)| other == name).map(|(_, value)| value.clone()).collect()
    }

    /// The same; one that only the gateway reads is removed.
    pub(super) fn take(&mut self, host: &mut impl Host, name: &str) -> Vec<String> {
        let values = self.values(host, name);
        if !values.is_empty() && name.starts_with(names::OWN_HEADERS) {
            host.set_header(Map::Request, name, None);
        }
        values
    }
}

/// Applies patches, which come in the body's order, to a body of `buffered` bytes; its length afterwards, or `None` where it stays as
/// it is. The host replaces a buffer's beginning only, so what stands before the last patch is written again with it; `kept` is the body,
/// if it need not be read again.
pub(super) fn patch_body(
    host: &mut impl Host,
    patches: &[Patch],
    buffered: usize,
    kept: Option<&[u8]>,
) -> Option<usize> {
    let last = patches.last().and_then(|patch| usize::try_from(patch.replace.end).ok())?;
    let mut beginning = Vec::with_capacity(last.min(buffered));
    let mut done = 0;
    for patch in patches {
        let (start, end) = (usize::try_from(patch.replace.start).ok()?, usize::try_from(patch.replace.end).ok()?);
        if start < done || end < start || end > buffered {
            return None;
        }
        if let Some(unchanged) = kept.and_then(|body| body.get(done..start)) {
            beginning.extend_from_slice(unchanged);
            done = start;
        }
        while done < start {
            // A body may be large, and the VM's memory never shrinks: one copy is enough.
            let kept = host.body(Body::Request, done, PIECE.min(start - done));
            if kept.is_empty() {
                return None;
            }
            beginning.extend_from_slice(&kept);
            done = done.saturating_add(kept.len());
        }
        beginning.extend_from_slice(patch.with.as_bytes());
        done = end;
    }
    let is_replaced = host.replace_body(done, &beginning);
    is_replaced.then(|| buffered.saturating_add(beginning.len()).saturating_sub(done))
}

/// Makes the length that the client has said true again: of `buffered` bytes, `patched` were made.
fn set_length(host: &mut impl Host, content_length: Option<u64>, buffered: usize, patched: Option<usize>) {
    if let Some((length, patched)) = content_length.zip(patched) {
        let length = length.saturating_add(patched as u64).saturating_sub(buffered as u64);
        host.set_header(Map::Request, "content-length", Some(&length.to_string()));
    }
}
