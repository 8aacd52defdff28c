//! From a read body to a request on its way: the question to the router, and the carrying out of its decision.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{Action, BufferType, MapType};

use crate::affinity::{Keys, Recall};
use crate::config::RETRIES;
use crate::filter::access_log::{Entry, Timing};
use crate::filter::attempt::{Plan, Planned};
use crate::filter::health::Checkup;
use crate::filter::host;
use crate::filter::serving::Serving;
use crate::filter::stream::{PIECE, Phase, Stream};
use crate::filter::worker::{Envoy, Worker};
use crate::fleet::Constraints;
use crate::names;
use crate::openai::{Api, Patch, Prompt, RequestScan};
use crate::router::{Ask, Decision, Packed, Refusal, Verdict, packed};

/// A request whose body comes.
pub(super) struct Reading {
    pub(super) api: Api,
    pub(super) policy: usize,
    /// The model that the path names.
    deployment: Option<String>,
    packed: Packed,
    pub(super) scan: RequestScan,
    pub(super) scanned: usize,
    pub(super) started: Duration,
    pub(super) scan_time: Duration,
    pub(super) content_length: Option<u64>,
    /// What the session header says.
    pub(super) session: Option<String>,
    /// Under which names what it leaves behind is remembered.
    pub(super) keys: Keys,
    /// What the request insists on by its headers.
    constraints: Option<Constraints>,
}

/// A request that has been read as far as it is going to be.
pub(super) struct Pending {
    pub(super) reading: Reading,
    pub(super) prompt: Prompt,
    /// Bytes of the body that are in the host's buffer.
    buffered: usize,
    /// Whether they are all.
    complete: bool,
    /// What instances have kept of what it needs.
    recall: Recall,
    /// What models cost now; `None` for what its policy says.
    prices: Option<Vec<f64>>,
}

impl Pending {
    /// Looks up what instances have kept of what the request needs, and what models cost.
    pub(super) fn recall(&mut self, worker: &Worker, now: Duration) {
        let Pending { reading, prompt, .. } = self;
        self.prices = worker.prices.of(reading.policy).map(<[f64]>::to_vec);
        reading.keys = worker.router.keys(reading.api, prompt, reading.session.as_deref());
        self.recall = worker.router.recall(&worker.placements.memory, &reading.keys, prompt, now);
    }

    /// The question to the router. `sequence` is how many requests were sent before.
    pub(super) fn ask(&self, worker: &mut Worker, sequence: u64) -> Ask<'_> {
        let Pending { reading, prompt, .. } = self;
        let holder = prompt.previous_response_id.as_deref().and_then(|id| worker.holder(&Envoy, id));
        Ask {
            api: reading.api,
            prompt,
            policy: reading.policy,
            holder,
            held: self.recall.held(),
            sequence,
            draw: worker.learner.draw(),
            constraints: reading.constraints,
            prices: self.prices.as_deref(),
        }
    }
}

impl Stream {
    /// The policy of the request's route: its metadata, its name, or the default.
    pub(super) fn policy(worker: &Worker) -> usize {
        let config = worker.router.config();
        let metadata = ["xds", "route_metadata", "filter_metadata", names::METADATA_NAMESPACE, names::METADATA_POLICY];
        host::property(&metadata)
            .and_then(|name| config.policy_named(&name))
            .or_else(|| host::property(&["xds", "route_name"]).and_then(|name| config.policy_of_route(&name)))
            .unwrap_or(config.default_policy)
    }

    /// A request to be decided begins; its path may name the model.
    pub(super) fn begin(&mut self, api: Api, deployment: Option<String>, end_of_stream: bool) -> Action {
        let encoding = host::header(MapType::HttpRequestHeaders, "content-encoding").unwrap_or_default();
        let said = host::header(MapType::HttpRequestHeaders, names::ENCODING_HEADER).unwrap_or_default();
        if !said.is_empty() {
            host::set_header(MapType::HttpRequestHeaders, names::ENCODING_HEADER, None);
        }
        let packed = packed(&said, &encoding);
        match packed {
            Packed::Unreadable if api.is_guessed() || !self.refuses_unread() => return self.leave(api, "encoded_body"),
            Packed::Unreadable | Packed::Broken => {
                let encoding = if said.is_empty() { encoding } else { said };
                let message = format!("A body in the encoding `{encoding}` cannot be read.");
                return self.refuse(Some(api), &Refusal::new(415, "encoded_body", message));
            }
            Packed::Never | Packed::Unpacked => {}
        }
        let policy = self.worker.with(|w| Stream::policy(w)).unwrap_or_default();
        let mut headers = Headers::default();
        let constraints = self.worker.with(|w| w.router.header_constraints(policy, |name| headers.take(name)));
        let constraints = match constraints {
            Some(Err(refusal)) => return self.refuse(Some(api), &refusal),
            Some(Ok(constraints)) => constraints,
            None => None,
        };
        let content_length =
            host::header(MapType::HttpRequestHeaders, "content-length").and_then(|v| v.trim().parse().ok());
        let session = self.worker.with(|w| {
            let header = w.router.config().affinity.session_header.as_deref()?;
            host::header(MapType::HttpRequestHeaders, header)
        });
        let scan = if api == Api::Named {
            let content_type = host::header(MapType::HttpRequestHeaders, "content-type").unwrap_or_default();
            RequestScan::of_type(api, &content_type)
        } else {
            RequestScan::new(api)
        };
        let reading = Reading {
            api,
            policy,
            deployment,
            packed,
            scan,
            scanned: 0,
            started: host::now(),
            scan_time: Duration::ZERO,
            content_length,
            session: session.flatten(),
            keys: Keys::default(),
            constraints,
        };
        if end_of_stream {
            return self.decide(reading, true, 0);
        }
        self.phase = Phase::Reading(Box::new(reading));
        Action::Pause
    }

    pub(super) fn decide(&mut self, mut reading: Reading, whole: bool, buffered: usize) -> Action {
        let api = reading.api;
        let mut prompt = if whole {
            match reading.scan.finish() {
                Ok(prompt) => prompt,
                Err(_) if api.is_guessed() => return self.leave(api, "other_path"),
                Err(error) => {
                    let unpacked =
                        if reading.packed == Packed::Unpacked { " It was read as Envoy has unpacked it." } else { "" };
                    return self.refuse(Some(api), &Refusal::new(400, "body", format!("{error}{unpacked}")));
                }
            }
        } else {
            let prompt = reading.scan.so_far();
            let names_model = prompt.model.is_some() || reading.deployment.is_some();
            let refused = self.worker.with(|w| {
                let Reading { policy, constraints, packed, .. } = &reading;
                w.router.too_large(*policy, constraints.as_ref(), names_model, *packed)
            });
            match refused.flatten() {
                Some(_) if api.is_guessed() => return self.leave(api, "other_path"),
                Some(refusal) => return self.refuse(Some(api), &refusal),
                None => prompt,
            }
        };
        if let Some(model) = reading.deployment.take() {
            prompt.deploy(model);
        }
        let mut pending =
            Some(Pending { reading, prompt, buffered, complete: whole, recall: Recall::default(), prices: None });
        if whole && let Some(action) = self.wait(&mut pending) {
            return action;
        }
        let Some(mut pending) = pending else { return self.leave(api, "busy") };
        match self.worker.with(|w| route(w, &mut pending)) {
            None => self.leave(api, "busy"),
            Some((verdict, timing)) => self.act(pending, verdict, timing),
        }
    }

    /// Does what the verdict says.
    pub(super) fn act(&mut self, pending: Pending, verdict: Verdict, timing: Timing) -> Action {
        match verdict {
            Verdict::Untouched(reason) => self.leave(pending.reading.api, reason),
            Verdict::Pooled { pool, max_tokens } => {
                self.worker.with(|w| pass_to_pool(w, pool, max_tokens, &pending));
                self.leave(pending.reading.api, "no_instance")
            }
            Verdict::Refused(refusal) => self.refuse(Some(pending.reading.api), &refusal),
            Verdict::Decided(decision) => {
                let worker = self.worker.clone();
                worker.with(|w| self.dispatch(w, pending, *decision, timing));
                Action::Continue
            }
        }
    }

    /// Carries a decision out.
    fn dispatch(&mut self, worker: &mut Worker, pending: Pending, decision: Decision, mut timing: Timing) {
        let Pending { reading, prompt, buffered, complete, .. } = pending;
        let now = host::now();
        let config = worker.router.config();
        let address = |i: &usize| config.fleet.instances.get(*i).map(|i| i.address.as_str());
        let Some(pool) = config.fleet.pools.get(decision.pool) else { return };
        let endpoints: Vec<&str> =
            std::iter::once(&decision.instance).chain(&decision.fallbacks).filter_map(address).collect();
        let served_model = decision.adapter.as_ref().unwrap_or(&pool.served_model);
        let patches = prompt.patches(reading.api, served_model, decision.max_tokens);
        let patched = patch_body(&patches, buffered);
        set_length(reading.content_length, buffered, patched);
        let dispatch = Rc::new(Cell::new(Some(decision.dispatch())));
        let done = (patches.as_slice(), Rc::clone(&dispatch));
        let plan = Plan::new(self.worker.clone(), config, reading.api, &prompt, &decision, done);
        let planned = Planned::new(self.id, plan);
        direct(&pool.cluster, Some(&endpoints.join(",")), prompt.stream, Some(self.id));
        let least = config.health.answer_limit;
        let knows_length = !prompt.stream && reading.api != Api::Named;
        if let Some(limit) = decision.answer_limit(least).filter(|_| knows_length) {
            host::set_header(MapType::HttpRequestHeaders, names::TIMEOUT_HEADER, Some(&limit.as_millis().to_string()));
        }
        let asks_load = config.telemetry.orca && ask_for_load();
        let counter = format!("decisions.{}.{}", pool.name, decision.rung.name());
        timing.patch = host::now().saturating_sub(now);
        let mut entry = Entry::new(reading.api, config, reading.policy, &prompt, &decision, timing);
        let decision_id = worker.learner.decision_id().filter(|_| decision.generates());
        entry.decision_id.clone_from(&decision_id);
        entry.publish(&self.request_id);
        if let Some(id) = &decision_id {
            worker.remember_decision(&mut Envoy, id, &decision);
        }
        worker.statistics.count(&counter);
        let decision_us = u64::try_from(timing.decision.as_micros()).unwrap_or(u64::MAX);
        worker.statistics.observe("decision_us", decision_us);
        worker.dispatch(&mut Envoy, &decision.dispatch(), now);
        if let Some(placement) = decision.placement(&reading.keys, now) {
            worker.place(placement);
        }
        let is_common = worker.router.config().names_no_model(prompt.model.as_deref());
        let checkup = Checkup::new(&decision, &prompt, is_common, host::now());
        let size = Some(patched.unwrap_or(buffered)).filter(|_| complete && knows_length);
        let rerun = size.map(|size| worker.keep_for_rerun(self.id, reading.api, &decision, size, &dispatch));
        let serving = Serving::new(
            reading,
            decision,
            (entry, decision_id),
            decision_us,
            asks_load,
            checkup,
            (planned, rerun.unwrap_or_default(), dispatch),
        );
        self.phase = Phase::Serving(Box::new(serving));
    }
}

/// How often a request is decided anew because another worker probes the instance that was chosen.
const CLAIM_ATTEMPTS: usize = 4;

/// Asks the router, and says how long it took.
fn route(worker: &mut Worker, pending: &mut Pending) -> (Verdict, Timing) {
    let asked_at = host::now();
    pending.recall(worker, asked_at);
    let verdict = decide(worker, pending, asked_at);
    let verdict = claimed(worker, pending, verdict, asked_at);
    let decision = host::now().saturating_sub(asked_at);
    let timing = Timing { scan: pending.reading.scan_time, decision, ..Timing::default() };
    (verdict, timing)
}

fn decide(worker: &mut Worker, pending: &Pending, now: Duration) -> Verdict {
    let load_draw = worker.learner.draw();
    let (loads, sequence) = worker.loads(&Envoy, now, load_draw);
    let ask = pending.ask(worker, sequence);
    worker.router.route(&ask, loads.as_deref(), worker.learner.learned())
}

/// A verdict whose instance, if it is to be probed, is this worker's to probe. Each turn that is lost takes one half-open instance out
/// of the choice.
pub(super) fn claimed(worker: &mut Worker, pending: &Pending, mut verdict: Verdict, now: Duration) -> Verdict {
    for _ in 0..CLAIM_ATTEMPTS {
        let Verdict::Decided(decision) = &verdict else { break };
        if !decision.probe || worker.claim(&mut Envoy, decision.instance, now) {
            break;
        }
        verdict = decide(worker, pending, now);
    }
    verdict
}

/// Makes Envoy send the request to a pool, wherever it likes to.
fn pass_to_pool(worker: &Worker, pool: usize, max_tokens: Option<u32>, pending: &Pending) {
    let Some(pool) = worker.router.config().fleet.pools.get(pool) else { return };
    let Pending { reading, prompt, buffered, .. } = pending;
    let patches = prompt.patches(reading.api, &pool.served_model, max_tokens);
    set_length(reading.content_length, *buffered, patch_body(&patches, *buffered));
    direct(&pool.cluster, None, prompt.stream, None);
}

/// Makes Envoy send the request to an endpoint of a cluster, or to any. `context` has a plan for further attempts.
pub(super) fn direct(cluster: &str, endpoints: Option<&str>, stream: bool, context: Option<u32>) {
    host::set_header(MapType::HttpRequestHeaders, names::POOL_HEADER, Some(cluster));
    host::set_header(MapType::HttpRequestHeaders, names::ENDPOINT_HEADER, endpoints);
    // Beyond the list, Envoy would choose by itself: an instance that does not hold what the request needs, or one that has failed.
    let others = endpoints.map_or(usize::MAX, |named| named.matches(',').count());
    if others < *RETRIES.end() {
        host::set_header(MapType::HttpRequestHeaders, names::MAX_RETRIES_HEADER, Some(&others.to_string()));
    }
    let kind = if stream { names::ROUTED_AS_STREAM } else { names::ROUTED_AS_WHOLE };
    match context {
        Some(context) => host::set_filter_state(names::ROUTED_STATE, &format!("{kind} {context}")),
        None => host::set_filter_state(names::ROUTED_STATE, kind),
    }
    host::clear_route_cache();
}

/// Asks the instance for its load, unless the client does so itself: then the answer is the client's, and read on the way.
fn ask_for_load() -> bool {
    let asks = host::header(MapType::HttpRequestHeaders, names::LOAD_FORMAT_HEADER).is_none();
    if asks {
        host::set_header(MapType::HttpRequestHeaders, names::LOAD_FORMAT_HEADER, Some("JSON"));
    }
    asks
}

/// The request's headers, read when the first one is asked for.
#[derive(Default)]
pub(super) struct Headers(Option<Vec<(String, String)>>);

impl Headers {
    /// All values of a header.
    pub(super) fn values(&mut self, name: &str) -> Vec<String> {
        let all = self.0.get_or_insert_with(|| host::headers_lossy(MapType::HttpRequestHeaders));
        all.iter().filter(|(other, _)| other == name).map(|(_, value)| value.clone()).collect()
    }

    /// The same; one that only this filter reads is removed.
    fn take(&mut self, name: &str) -> Vec<String> {
        let values = self.values(name);
        if !values.is_empty() && name.starts_with(names::OWN_HEADERS) {
            host::set_header(MapType::HttpRequestHeaders, name, None);
        }
        values
    }
}

/// Applies patches, which come in the body's order, to a body of `buffered` bytes; its length afterwards, or `None` where it stays as
/// it is. The host replaces a buffer's beginning only, so what stands before the last patch is written again with it.
pub(super) fn patch_body(patches: &[Patch], buffered: usize) -> Option<usize> {
    let last = patches.last().and_then(|patch| usize::try_from(patch.replace.end).ok())?;
    let mut beginning = Vec::with_capacity(last.min(buffered));
    let mut done = 0;
    for patch in patches {
        let (start, end) = (usize::try_from(patch.replace.start).ok()?, usize::try_from(patch.replace.end).ok()?);
        if start < done || end < start || end > buffered {
            return None;
        }
        while done < start {
            // A body may be large, and the VM's memory never shrinks: one copy is enough.
            let kept = host::buffer(BufferType::HttpRequestBody, done, PIECE.min(start - done));
            if kept.is_empty() {
                return None;
            }
            beginning.extend_from_slice(&kept);
            done = done.saturating_add(kept.len());
        }
        beginning.extend_from_slice(patch.with.as_bytes());
        done = end;
    }
    hostcalls::set_buffer(BufferType::HttpRequestBody, 0, done, &beginning).ok()?;
    Some(buffered.saturating_add(beginning.len()).saturating_sub(done))
}

/// Makes the length that the client has said true again: of `buffered` bytes, `patched` were made.
fn set_length(content_length: Option<u64>, buffered: usize, patched: Option<usize>) {
    if let Some((length, patched)) = content_length.zip(patched) {
        let length = length.saturating_add(patched as u64).saturating_sub(buffered as u64);
        host::set_header(MapType::HttpRequestHeaders, "content-length", Some(&length.to_string()));
    }
}
