//! The load of every instance at a time.
//!
//! An instance holds what this gateway has open there, which it knows, and what others have sent, which only reports show:
//! `load now = own open requests + foreign ones`, where the foreign ones are what the last report said less what was open here when
//! it was asked for. So a request counts from the moment it is sent to the moment it ends, whatever reports say, and the error is
//! what others did since the report and what was on its way during the scrape.
//!
//! Where a report is too old to be trusted, or cannot be true, the instance is taken to hold as many foreign requests as the
//! other instances of its pool. To count none there would make a liar, or whoever was not heard of, look idle beside its peers.

use std::time::Duration;

use crate::fleet::{Fleet, Instance, InstanceId, Pool, PoolKind, Presence};
use crate::reckoning::{Counters, Dispatch, InstanceCounters, InstanceReport, Reports, Standing};
use crate::telemetry;

mod unseen;

/// The load of one instance at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadNow {
    /// Sequences that decode or prefill.
    pub running: f64,
    /// Requests in the instance's queue.
    pub waiting: f64,
    /// Output tokens still to be generated for what it holds.
    pub pending_output_tokens: f64,
    /// Prompt tokens still to be prefilled for what this gateway has sent.
    pub pending_prompt_tokens: f64,
    /// KV cache in use, 0 to 1, if reported.
    pub kv_use: Option<f64>,
    /// KV that the prompts in the queue want besides what is in use, as a share of the cache: together above 1 where they have to
    /// wait for it. If reported.
    pub kv_wanted: Option<f64>,
    /// How far the report is trusted, 0 to 1; 0 is "own counters and what peers report".
    pub trust: f64,
    /// Whether scrapes in a row have found nobody there, or a server that sleeps.
    pub unreachable: bool,
    /// When the last request was sent to it; zero if none was.
    pub last_dispatch: Duration,
    /// What its responses speak for.
    pub standing: Standing,
}

impl LoadNow {
    /// Requests that the instance holds.
    pub fn in_flight(&self) -> f64 {
        self.running + self.waiting
    }

    /// The load once another request has been sent, to an instance that runs so many at once: a queue grows if there is one,
    /// else the batch while it has room.
    pub fn after(&self, dispatch: &Dispatch, max_running: f64, now: Duration) -> LoadNow {
        let room = if self.waiting > 0.0 { 0.0 } else { (max_running - self.running).clamp(0.0, 1.0) };
        LoadNow {
            running: self.running + room,
            waiting: self.waiting + (1.0 - room),
            pending_output_tokens: self.pending_output_tokens + dispatch.output_tokens as f64,
            pending_prompt_tokens: self.pending_prompt_tokens + dispatch.prompt_tokens as f64,
            last_dispatch: now,
            // One request at a time probes.
            standing: if self.standing == Standing::HalfOpen { Standing::Ejected } else { self.standing },
            ..*self
        }
    }
}

/// Weight of what the rest of the fleet suggests of a pool, in fully trusted reports of the pool itself.
const FLEET_WEIGHT: f64 = 0.05;
/// Time after which an instance that only its report keeps empty is sent a request, to see.
const TRIAL_AFTER: Duration = Duration::from_secs(10);
/// An instance is kept empty by its report if it claims this many times the load of its peers, and this many requests more.
const OUTLIER_FACTOR: f64 = 2.0;
const OUTLIER_REQUESTS: f64 = 4.0;

/// One instance, as far as it can be told alone.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Requests that are open here.
    own: f64,
    trust: f64,
    /// Reported requests, running and waiting; zeros without trust.
    running: f64,
    waiting: f64,
    /// Requests of others by the report.
    foreign: f64,
    /// Age of the report, seconds.
    age_seconds: f64,
    unreachable: bool,
}

/// Sums over the instances of a pool, or of the fleet.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    instances: f64,
    own: f64,
    own_output_tokens: f64,
    trust: f64,
    /// Weighted by trust.
    trusted_own: f64,
    trusted_foreign: f64,
}

impl Sums {
    fn add(&mut self, seen: &Seen, own_output_tokens: f64) {
        self.instances += 1.0;
        self.own += seen.own;
        self.own_output_tokens += own_output_tokens;
        self.trust += seen.trust;
        self.trusted_own += seen.trust * seen.own;
        self.trusted_foreign += seen.trust * seen.foreign;
    }

    /// Foreign requests for each own one, where reports are trusted.
    fn foreign_per_own(&self) -> f64 {
        if self.trusted_own > 0.0 { self.trusted_foreign / self.trusted_own } else { 0.0 }
    }
}

/// The load of every instance at `now`, in the order of [`Fleet::instances`].
///
/// `counters` is the sum over all workers. What other gateways have sent since the reports is taken by lot from what is likely
/// ([`unseen`]), and `draw`, uniform in 0 to 1, is the lot.
pub fn load_now(
    fleet: &Fleet,
    counters: &Counters,
    reports: Option<&Reports>,
    now: Duration,
    telemetry: &telemetry::TelemetrySettings,
    draw: f64,
) -> Vec<LoadNow> {
    let none = InstanceReport::default();
    let idle = InstanceCounters::default();
    let own_of = |i: InstanceId| counters.get(i).unwrap_or(&idle);
    let report_of = |i: InstanceId| reports.and_then(|r| r.get(i)).unwrap_or(&none);

    let mut pools = vec![Sums::default(); fleet.pools.len()];
    let mut all = Sums::default();
    let seen: Vec<Seen> = fleet
        .instances_by_id()
        .map(|(id, instance)| {
            let seen = see(own_of(id), report_of(id), max_running(fleet.pool(instance.pool)), now, telemetry);
            let own_output_tokens = own_of(id).outstanding_output_tokens() as f64;
            // Who has gone is nobody's peer, and a provider's engines are its own affair.
            if instance.presence == Presence::Gone || is_hosted(fleet, instance) {
                return seen;
            }
            all.add(&seen, own_output_tokens);
            if let Some(pool) = pools.get_mut(instance.pool.index()) {
                pool.add(&seen, own_output_tokens);
            }
            seen
        })
        .collect();
    let places: Vec<Surroundings<'_>> = pools
        .iter()
        .enumerate()
        .map(|(i, sums)| {
            let pool = fleet.pools.get(i);
            let tokens_prior = pool.and_then(|p| fleet.model_of(p)).map_or(1.0, |m| m.output_tokens_prior);
            Surroundings::new(pool, *sums, all.foreign_per_own(), tokens_prior)
        })
        .collect();
    let place_of = |instance: &Instance| places.get(instance.pool.index());
    let mut foreign: Vec<f64> = fleet
        .instances_by_id()
        .zip(&seen)
        .map(|((id, instance), seen)| {
            place_of(instance).map_or(0.0, |p| p.foreign(seen, own_of(id).last_dispatch, now))
        })
        .collect();
    for (place, pool) in places.iter().zip(&fleet.pools) {
        if pool.instances.len() > 1 && place.sums.trusted_foreign > 0.0 {
            unseen::turn_over(&pool.instances, &seen, &mut foreign, |seen| place.share_left(seen), draw);
        }
    }
    let instances = fleet.instances_by_id().zip(&seen).zip(&foreign);
    instances
        .map(|(((id, instance), seen), foreign)| {
            let own = own_of(id);
            if is_hosted(fleet, instance) {
                return LoadNow { trust: 1.0, last_dispatch: own.last_dispatch, ..LoadNow::default() };
            }
            let load = place_of(instance).map_or(LoadNow::default(), |p| p.reckon(seen, *foreign, own, report_of(id)));
            LoadNow { standing: started(instance, fleet.pool(instance.pool), now), ..load }
        })
        .collect()
}

/// Whether an instance is a provider: it has no queue, so nothing that is open there is in the way of another request.
fn is_hosted(fleet: &Fleet, instance: &Instance) -> bool {
    fleet.pool(instance.pool).is_some_and(|pool| pool.kind == PoolKind::Hosted)
}

/// Least weight of an instance that has just come, as Envoy's slow start has it.
const START_WEIGHT_MIN: f64 = 0.1;

/// How an instance stands that may have just come: its caches are empty and its kernels not compiled.
fn started(instance: &Instance, pool: Option<&Pool>, now: Duration) -> Standing {
    let window = pool.map_or(Duration::ZERO, |pool| pool.slow_start);
    let there = now.saturating_sub(instance.since);
    if window.is_zero() || instance.since.is_zero() || there >= window {
        return Standing::Healthy;
    }
    Standing::Degraded((there.as_secs_f64() / window.as_secs_f64()).max(START_WEIGHT_MIN))
}

fn max_running(pool: Option<&Pool>) -> f64 {
    pool.map_or(f64::MAX, |p| f64::from(p.limits.max_running))
}

#[inline]
fn see(
    own: &InstanceCounters,
    report: &InstanceReport,
    max_running: f64,
    now: Duration,
    telemetry: &telemetry::TelemetrySettings,
) -> Seen {
    let unreachable = report.is_unreachable() || report.load.awake == Some(false);
    let alone = Seen { own: own.outstanding_requests() as f64, unreachable, ..Seen::default() };
    let trust = report.trust_at(now, telemetry);
    match report.requests(max_running).filter(|_| trust > 0.0) {
        Some((running, waiting)) => {
            let foreign = (running + waiting - report.own.outstanding_requests() as f64).max(0.0);
            let age_seconds = report.at.map_or(0.0, |at| now.saturating_sub(at).as_secs_f64());
            Seen { trust, running, waiting, foreign, age_seconds, ..alone }
        }
        None => alone,
    }
}

/// What an instance is among.
struct Surroundings<'a> {
    pool: Option<&'a Pool>,
    sums: Sums,
    tokens_prior: f64,
    /// Requests of others on an instance of which nothing is known.
    typical_foreign: f64,
    /// Output tokens left of a request of others: it is as far from its end as what this gateway has sent.
    left_each: f64,
}

impl<'a> Surroundings<'a> {
    /// In a fleet with so many foreign requests for each own one.
    fn new(pool: Option<&'a Pool>, sums: Sums, foreign_per_own: f64, tokens_prior: f64) -> Surroundings<'a> {
        let own_mean = sums.own / sums.instances.max(1.0);
        let typical_foreign =
            (sums.trusted_foreign + FLEET_WEIGHT * foreign_per_own * own_mean) / (sums.trust + FLEET_WEIGHT);
        let left_each = if sums.own > 0.0 { sums.own_output_tokens / sums.own } else { 0.5 * tokens_prior };
        Surroundings { pool, sums, tokens_prior, typical_foreign, left_each }
    }

    /// Requests of others as far as reports tell.
    #[inline]
    fn foreign(&self, seen: &Seen, last_dispatch: Duration, now: Duration) -> f64 {
        let foreign = seen.trust * seen.foreign + (1.0 - seen.trust) * self.typical_foreign;
        if self.is_due_for_trial(seen, foreign, last_dispatch, now) { 0.0 } else { foreign }
    }

    /// Share of the requests in a report that have not ended since: a running one ends after the model's usual answer.
    fn share_left(&self, seen: &Seen) -> f64 {
        let Some(pool) = self.pool else { return 1.0 };
        let profile = &pool.profile;
        let tpot = profile.tpot_ms / 1e3 * (1.0 + profile.tpot_growth_per_running * seen.running);
        let running_share = seen.running / (seen.running + seen.waiting).max(1.0);
        (1.0 - seen.age_seconds * running_share / (self.tokens_prior * tpot)).clamp(0.0, 1.0)
    }

    #[inline]
    fn reckon(&self, seen: &Seen, foreign: f64, own: &InstanceCounters, report: &InstanceReport) -> LoadNow {
        let requests = seen.own + foreign;

        // Where somebody waits, the batch is as large as the KV cache allows.
        let max_running = max_running(self.pool);
        let reported_batch = if seen.waiting >= 0.5 { seen.running } else { seen.running.max(max_running) };
        let batch = seen.trust * reported_batch + (1.0 - seen.trust) * max_running;
        let running = requests.min(batch.max(1.0));
        let waiting = requests - running;

        let kv = if seen.trust > 0.0 { self.kv_of_all(own, report, seen.running) } else { None };
        LoadNow {
            running,
            waiting,
            pending_output_tokens: own.outstanding_output_tokens() as f64 + foreign * self.left_each,
            pending_prompt_tokens: own.outstanding_prompt_tokens() as f64,
            kv_use: kv.map(|kv| kv.clamp(0.0, 1.0)),
            kv_wanted: kv.map(|kv| self.kv_wanted(kv, own, seen)),
            trust: seen.trust,
            unreachable: seen.unreachable,
            last_dispatch: own.last_dispatch,
            standing: Standing::Healthy,
        }
    }

    /// What of the KV use does not fit, and the prompts that waited when the report was made.
    fn kv_wanted(&self, kv: f64, own: &InstanceCounters, seen: &Seen) -> f64 {
        let beyond = (kv - 1.0).max(0.0);
        let prompt = own.dispatched_prompt_tokens as f64 / (own.dispatched_requests as f64).max(1.0);
        beyond + seen.waiting * prompt / self.kv_tokens()
    }

    /// The reported KV use, with the prompts sent since and without what has ended since, whether it fits or not. Tokens decoded
    /// since are left out: less than a percent in the time between two reports.
    #[inline]
    fn kv_of_all(&self, own: &InstanceCounters, report: &InstanceReport, reported_running: f64) -> Option<f64> {
        let reported = report.load.kv_use.filter(|kv| kv.is_finite())?;
        let sent = own.dispatched_prompt_tokens.saturating_sub(report.own.dispatched_prompt_tokens) as f64;
        let ended = own.finished_requests.saturating_sub(report.own.finished_requests) as f64;
        Some(reported + sent / self.kv_tokens() - ended * reported / reported_running.max(ended).max(1.0))
    }

    fn kv_tokens(&self) -> f64 {
        self.pool.map_or(f64::INFINITY, |p| p.limits.kv_tokens as f64).max(1.0)
    }

    /// Whether nobody but its report says that the instance is far busier than its peers, for so long that it is worth a request
    /// to see. The dispatch then sets the clock back, for all workers.
    fn is_due_for_trial(&self, seen: &Seen, foreign: f64, last_dispatch: Duration, now: Duration) -> bool {
        if seen.own > 0.0 || now.saturating_sub(last_dispatch) < TRIAL_AFTER {
            return false;
        }
        let peers = self.sums.instances - 1.0;
        let peer_load = if peers > 0.0 {
            (self.sums.own + self.sums.trusted_foreign - seen.trust * seen.foreign) / peers
        } else {
            0.5 * max_running(self.pool)
        };
        foreign > OUTLIER_FACTOR * peer_load + OUTLIER_REQUESTS
    }
}
