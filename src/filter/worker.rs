//! What all streams of one VM share: the router, this worker's counters, and its place in shared data.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;
use std::time::Duration;

use crate::assign::Batcher;
use crate::config::Drill;
use crate::discovery::Roster;
use crate::filter::affinity::Placements;
use crate::filter::batching::Held;
use crate::filter::host;
use crate::filter::learner::{Learner, Scored};
use crate::filter::prices::Prices;
use crate::filter::rerun::Reruns;
use crate::fleet::ModelKind;
use crate::learning::feedback::Feedback;
use crate::reckoning::{self, Counters, Dispatch, Glimpse, InstanceCounters, LoadNow, Reports};
use crate::router::{Decision, Router};
use crate::shared::{self, Responses, Slots};
use crate::telemetry;

/// State of one VM.
pub(super) struct Worker {
    pub(super) router: Router,
    pub(super) metrics: host::Metrics,
    pub(super) learner: Learner,
    /// The configuration's, as it was written.
    pub(super) fingerprint: u64,
    pub(super) group: usize,
    pub(super) placements: Placements,
    pub(super) prices: Prices,
    /// Random, so that VMs can tell each other apart.
    owner: u64,
    pub(super) slot: Option<usize>,
    pub(super) slots_in_use: usize,
    /// Whether this VM holds the lease: it alone scrapes and writes the gauges.
    pub(super) leads: bool,
    pub(super) counters: Counters,
    /// Whether the counters have changed since they were written.
    pub(super) unwritten: bool,
    responses: Responses,
    /// The reports as this VM last wrote them while it scraped.
    pub(super) reports: Reports,
    /// Whether the reports have changed since they were written.
    pub(super) unwritten_reports: bool,
    /// How reports are trusted, at the period in which they come.
    pub(super) telemetry: telemetry::Settings,
    /// Time between two reports of an instance.
    pub(super) period: Duration,
    /// What response headers have shown this VM, the latest of each instance, until the leader must have read it.
    pub(super) glimpses: BTreeMap<usize, Glimpse>,
    pub(super) unwritten_glimpses: bool,
    /// The fleet's instances as this VM has them.
    pub(super) roster: Roster,
    /// Version of the shared roster that this VM has applied.
    pub(super) roster_version: Option<u32>,
    /// Requests that wait, by policy; `None` where a policy does not batch.
    pub(super) batchers: Vec<Option<Batcher<Held>>>,
    /// Workers that serve requests, this one included.
    pub(super) serving_workers: usize,
    /// Requests that another instance may be asked for.
    pub(super) reruns: Reruns,
    /// Endpoints that were chosen here and that Envoy has not honoured.
    pub(super) unhonoured: u64,
}

/// The worker as streams hold it. One thread, and no host call calls back, so it is never borrowed twice.
#[derive(Clone)]
pub(super) struct Shared(Rc<RefCell<Worker>>);

impl Shared {
    pub(super) fn new(worker: Worker) -> Shared {
        Shared(Rc::new(RefCell::new(worker)))
    }

    /// Runs `f` on the worker; `None` if it is in use, which would be a defect but must not trap.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut Worker) -> R) -> Option<R> {
        let mut worker = self.0.try_borrow_mut().ok()?;
        Some(f(&mut worker))
    }
}

/// A worker that has sent nothing for so long does not share in batches.
const IDLE_AFTER: Duration = Duration::from_secs(10);

/// Attempts to win a compare-and-swap against the other workers.
pub(super) const SWAP_ATTEMPTS: usize = 8;

impl Worker {
    pub(super) fn new(router: Router) -> Worker {
        let instances = router.config().fleet.instances.len();
        let fingerprint = shared::fingerprint(&router.config().fleet);
        let telemetry = router.config().telemetry.clone();
        let roster = Roster::of(&router.config().fleet, Duration::ZERO);
        let owner = RandomState::new().build_hasher().finish().max(1);
        let batchers = router.config().policies.iter().map(|p| p.batching.map(Batcher::new)).collect();
        Worker {
            learner: Learner::new(&router, owner),
            placements: Placements::new(&router),
            prices: Prices::new(router.config()),
            router,
            metrics: host::Metrics::default(),
            group: shared::group(fingerprint),
            fingerprint,
            owner,
            slot: None,
            slots_in_use: 0,
            leads: false,
            counters: Counters::new(instances),
            unwritten: false,
            responses: Responses::default(),
            reports: Reports(vec![Default::default(); instances]),
            unwritten_reports: false,
            period: telemetry.scrape_period,
            telemetry,
            glimpses: BTreeMap::new(),
            unwritten_glimpses: false,
            roster,
            roster_version: None,
            batchers,
            serving_workers: 1,
            reruns: Reruns::default(),
            unhonoured: 0,
        }
    }

    /// Whether any policy batches.
    pub(super) fn batches(&self) -> bool {
        self.batchers.iter().any(Option::is_some)
    }

    /// Counts the workers that have sent a request lately: the one on Envoy's main thread never does.
    fn count_workers(&mut self, now: Duration) {
        let others = (0..self.slots_in_use).filter(|s| Some(*s) != self.slot);
        let last_dispatch = |slot| self.read_counters(slot)?.0.iter().map(|c| c.last_dispatch).max();
        let serving = others.filter_map(last_dispatch).filter(|at| now.saturating_sub(*at) < IDLE_AFTER).count();
        self.serving_workers = serving.saturating_add(1);
    }

    /// Keeps this VM's slot and the lease alive, and cleans up after VMs that have died.
    pub(super) fn heartbeat(&mut self, now: Duration) {
        let lease = self.router.config().telemetry.lease;
        for _ in 0..SWAP_ATTEMPTS {
            let (bytes, cas) = host::shared(shared::SLOTS_KEY);
            let mut slots = Slots::decode(&bytes.unwrap_or_default());
            let orphans = slots.orphans(now);
            let slot = slots.keep(self.owner, now);
            let leads = slots.lead(self.owner, self.group, now, lease);
            for orphan in orphans.iter().filter(|o| Some(**o) != slot) {
                slots.release(*orphan);
            }
            if !host::set_shared(shared::SLOTS_KEY, &slots.encode(), cas) {
                continue;
            }
            for orphan in orphans {
                self.retire(orphan);
            }
            self.slots_in_use = slots.in_use();
            if leads
                && !self.leads
                && let Some((reports, _)) = self.read_reports()
            {
                self.reports = reports;
            }
            self.leads = leads;
            if slot != self.slot {
                self.slot = slot;
                self.unwritten = true;
                self.learner.settle(slot);
                self.placements.settle(slot);
            }
            break;
        }
        if self.batches() {
            self.count_workers(now);
        }
        self.write_counters();
    }

    /// Forgets what a dead VM had outstanding.
    fn retire(&mut self, slot: usize) {
        let key = shared::counters_key(slot);
        if let Some(mut counters) = self.read_counters(slot) {
            counters.retire();
            host::set_shared(&key, &shared::encode_counters(&counters, &self.router.config().fleet), None);
        }
    }

    fn read_counters(&self, slot: usize) -> Option<Counters> {
        shared::decode_counters(&host::shared(&shared::counters_key(slot)).0?, &self.router.config().fleet)
    }

    pub(super) fn read_reports(&self) -> Option<(Reports, Duration)> {
        shared::decode_reports(&host::shared(&shared::reports_key(self.group)).0?, &self.router.config().fleet)
    }

    /// The counters of all workers together.
    pub(super) fn all_counters(&self) -> Counters {
        let mut sum = self.counters.clone();
        for slot in (0..self.slots_in_use).filter(|s| Some(*s) != self.slot) {
            if let Some(other) = self.read_counters(slot) {
                sum.add(&other);
            }
        }
        sum
    }

    /// The load of every instance now, and how many requests were sent before; no load if shared data cannot be read.
    pub(super) fn loads(&self, now: Duration, draw: f64) -> (Option<Vec<LoadNow>>, u64) {
        let config = self.router.config();
        if config.drills(Drill::SharedData) {
            return (None, self.counters.dispatched_requests());
        }
        let counters = self.all_counters();
        (Some(self.loads_by(&counters, now, draw)), counters.dispatched_requests())
    }

    /// The load of every instance now, by the counters of all workers.
    pub(super) fn loads_by(&self, counters: &Counters, now: Duration, draw: f64) -> Vec<LoadNow> {
        let config = self.router.config();
        let reports = self.read_reports().map(|(reports, _)| reports).filter(|_| !config.drills(Drill::Reports));
        let mut loads = reckoning::load_now(&config.fleet, counters, reports.as_ref(), now, &self.telemetry, draw);
        self.records().stand(&mut loads, &config.fleet, now, &config.health);
        loads
    }

    /// Exchanges what was learnt, and what was placed where, with the other workers.
    pub(super) fn exchange_learnt(&mut self) {
        self.learner.exchange(self.slots_in_use);
        self.placements.exchange(self.slots_in_use);
    }

    /// A request that its client may score: remembers what a feedback needs to know of the decision.
    pub(super) fn remember_decision(&self, id: &str, decision: &Decision) {
        self.learner.remember(id, decision);
    }

    /// Scores the answer to an earlier request, whichever worker has served it.
    pub(super) fn score(&mut self, feedback: &Feedback) -> Scored {
        self.learner.score(feedback, self.slots_in_use)
    }

    /// Writes the counters if they have changed. Progress of streams is written here, from the tick, not per chunk.
    pub(super) fn write_counters(&mut self) {
        if let Some(slot) = self.slot.filter(|_| self.unwritten) {
            let bytes = shared::encode_counters(&self.counters, &self.router.config().fleet);
            self.unwritten = !host::set_shared(&shared::counters_key(slot), &bytes, None);
        }
    }

    /// Shows what all workers have outstanding on each pool, as decisions see it. One VM does it for all.
    pub(super) fn write_gauges(&mut self, counters: &Counters) {
        type Gauge = (&'static str, fn(&InstanceCounters) -> u64);
        let Worker { router, metrics, .. } = self;
        for pool in &router.config().fleet.pools {
            let of_pool = || pool.instances.iter().filter_map(|i| counters.0.get(*i));
            let gauges: [Gauge; 4] = [
                ("outstanding_requests", InstanceCounters::outstanding_requests),
                ("outstanding_prompt_tokens", InstanceCounters::outstanding_prompt_tokens),
                ("outstanding_output_tokens", InstanceCounters::outstanding_output_tokens),
                // Last: where it shows a dispatch, the others show it too.
                ("dispatched_requests", |c| c.dispatched_requests),
            ];
            for (name, read) in gauges {
                let sum = of_pool().map(read).fold(0, u64::saturating_add);
                metrics.set(&format!("routebalance.{name}.{}", pool.name), sum);
            }
        }
        for (i, pool) in self.router.config().fleet.pools.iter().enumerate() {
            let Some(speed) = self.learner.learned().speed(i) else { continue };
            for (name, factor) in [("ttft", speed.ttft_factor), ("tpot", speed.tpot_factor)] {
                let milli = (factor * 1e3).round() as u64;
                self.metrics.set(&format!("routebalance.{name}_correction_milli.{}", pool.name), milli);
            }
        }
        if self.router.config().learning.output_tokens {
            for (i, model) in self.router.config().fleet.models.iter().enumerate() {
                if model.kind == ModelKind::Generate {
                    let milli = (self.learner.learned().correction(i) * 1e3).round() as u64;
                    self.metrics.set(&format!("routebalance.output_tokens_correction_milli.{}", model.name), milli);
                }
            }
        }
    }

    /// A request goes out: all workers know it from now on.
    pub(super) fn dispatch(&mut self, dispatch: &Dispatch, now: Duration) {
        self.counters.dispatch(dispatch, now);
        self.unwritten = true;
        self.write_counters();
    }

    /// A request has ended: all workers know it from now on.
    pub(super) fn finish(&mut self, dispatch: Dispatch) {
        self.counters.finish(dispatch);
        self.unwritten = true;
        self.write_counters();
    }

    /// A request's prefill is over.
    pub(super) fn prefilled(&mut self, dispatch: &mut Dispatch) {
        self.counters.prefilled(dispatch);
        self.unwritten = true;
    }

    /// A request's stream has brought more tokens.
    pub(super) fn streamed(&mut self, dispatch: &mut Dispatch, tokens: u64) {
        self.counters.streamed(dispatch, tokens);
        self.unwritten = true;
    }

    /// Envoy has sent a request to another instance than the chosen one.
    pub(super) fn move_to(&mut self, dispatch: &mut Dispatch, instance: usize, now: Duration) {
        self.counters.move_to(dispatch, instance, now);
        self.unwritten = true;
        self.write_counters();
    }

    /// Remembers which instance holds a response.
    pub(super) fn remember_response(&mut self, id: &str, instance: usize) {
        let Some(instance) = self.router.config().fleet.instances.get(instance) else { return };
        self.responses.insert(id, instance.key);
        if let Some(slot) = self.slot {
            host::set_shared(&shared::responses_key(slot), &self.responses.encode(), None);
        }
    }

    /// The instance that holds a response, whichever worker saw it created.
    pub(super) fn holder(&self, id: &str) -> Option<usize> {
        let elsewhere = || {
            (0..self.slots_in_use).filter(|s| Some(*s) != self.slot).find_map(|slot| {
                let bytes = host::shared(&shared::responses_key(slot)).0?;
                Responses::decode(&bytes).holder(id)
            })
        };
        let key = self.responses.holder(id).or_else(elsewhere)?;
        self.router.config().fleet.instance_with_key(key)
    }
}
