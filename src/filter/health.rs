//! What a request shows of the instances that it meets, and the watch over those that hang.

use std::time::Duration;

use proxy_wasm::types::MapType;

use crate::filter::attempt::Planned;
use crate::filter::host;
use crate::filter::worker::{SWAP_ATTEMPTS, Worker};
use crate::health::{self, Attempts, Event, Failure, Outcome, Records, Sight, Watch};
use crate::names;
use crate::openai::{Observed, Prompt};
use crate::reckoning::{Counters, Standing};
use crate::router::Decision;
use crate::shared;

/// Time between two looks for instances that hang.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// What one request shows of the instances that it meets.
pub(super) struct Checkup {
    /// The instance that serves, as far as is known.
    instance: usize,
    /// Those that have failed before it.
    earlier: Vec<usize>,
    attempts: Attempts,
    /// Whether the filter has asked it itself, because the one before stood still.
    is_rerun: bool,
    /// When it was sent there, at the latest.
    sent: Duration,
    status: u16,
    retry_after: Option<Duration>,
    /// Whether the end of the body can be told.
    readable: bool,
    bytes: u64,
    /// Whether another pool could have answered, and whether only names of ours can be unknown to an instance.
    common: bool,
    names_ours: bool,
    began: bool,
    /// Whether everything is said of this instance.
    settled: bool,
}

impl Checkup {
    pub(super) fn new(decision: &Decision, prompt: &Prompt, common: bool, sent: Duration) -> Checkup {
        Checkup {
            instance: decision.instance,
            earlier: Vec::new(),
            attempts: Attempts { count: 1 },
            is_rerun: false,
            sent,
            status: 0,
            retry_after: None,
            readable: false,
            bytes: 0,
            common,
            names_ours: decision.adapter.is_none() && prompt.previous_response_id.is_none(),
            began: false,
            settled: false,
        }
    }

    /// The answer is one that the filter has asked this instance for: what stood still before it is known.
    pub(super) fn rerun(&mut self, instance: usize, sent: Duration) {
        (self.instance, self.sent, self.is_rerun) = (instance, sent, true);
    }

    /// The filter has ended the request itself: nobody's answer is judged.
    pub(super) fn ended_here(&mut self) {
        (self.settled, self.is_rerun) = (true, true);
    }

    /// The response's headers are here; `served_by` is the instance that Envoy names, `details` are its words on where they come from.
    /// `planned` knows the further attempts, and whether the request was ended before it reached that one.
    pub(super) fn head(
        &mut self,
        worker: &mut Worker,
        decision: &Decision,
        served_by: Option<usize>,
        (status, content_type, details): (u16, &str, &str),
        planned: &Planned,
    ) {
        self.status = status;
        self.readable = host::header(MapType::HttpResponseHeaders, "content-encoding").is_none_or(|e| e == "identity")
            && (content_type.starts_with("text/event-stream") || content_type.starts_with("application/json"));
        let seconds = host::header(MapType::HttpResponseHeaders, names::RETRY_AFTER_HEADER);
        self.retry_after = seconds.as_deref().and_then(health::retry_after);
        if self.is_rerun {
            return;
        }
        let now = host::now();
        self.attempts.count = host::number(&["upstream", "request_attempt_count"]).unwrap_or(1);
        // Envoy skips endpoints of the list that its cluster does not have: what has passed is known better.
        let (passed, given_up) = (planned.passed(), planned.given_up_after());
        let further = if passed.is_empty() { decision.fallbacks.clone() } else { passed };
        let order: Vec<usize> = std::iter::once(decision.instance).chain(further).collect();
        let failed = given_up.unwrap_or_else(|| self.attempts.failed(order.len()));
        self.earlier = order.iter().take(failed).copied().collect();
        self.instance = served_by.or_else(|| order.get(failed).copied()).unwrap_or(decision.instance);
        if given_up.is_none() {
            self.earlier.retain(|instance| *instance != self.instance);
        }
        if failed == 0 && self.instance != decision.instance {
            // Envoy holds the chosen one for dead and has not tried it, or balances by itself.
            worker.saw(decision.instance, Event::Unjudged, self.sent, now);
            worker.unhonoured();
        }
        if given_up.is_some() {
            self.judge_earlier(worker, Event::Suspected(Failure::Unanswered));
            self.settle(worker, Event::Unjudged);
        } else if !details.is_empty() && !details.starts_with("via_upstream") {
            self.settle(worker, health::of_silence(details));
        } else if (200..300).contains(&status) {
            self.judge_earlier(worker, Event::Began);
        }
        if failed > 0 {
            self.sent = now;
        }
    }

    /// Whether Envoy has sent the first attempt to another instance than the chosen one.
    pub(super) fn is_unhonoured(&self, decision: &Decision) -> bool {
        !self.is_rerun && self.attempts.count == 1 && self.instance != decision.instance
    }

    /// What the attempts before the last one show, now that it is known what that one does.
    fn judge_earlier(&mut self, worker: &mut Worker, last: Event) {
        let now = host::now();
        for instance in std::mem::take(&mut self.earlier) {
            worker.saw(instance, self.attempts.earlier(last), self.sent, now);
        }
    }

    /// So many more bytes of the answer have come.
    pub(super) fn read(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// The first piece of an answer has come.
    pub(super) fn began(&mut self, worker: &mut Worker) {
        if !self.settled && self.status < 300 && !std::mem::replace(&mut self.began, true) {
            worker.saw(self.instance, Event::Began, self.sent, host::now());
        }
    }

    /// The response has ended by itself.
    pub(super) fn ended(&mut self, worker: &mut Worker, seen: &Observed) {
        let Checkup { status, retry_after, bytes, readable, common, names_ours, .. } = *self;
        let event = health::of_answer(&Outcome { status, retry_after, seen, bytes, readable, common, names_ours });
        self.settle(worker, event);
    }

    /// The request is over, however.
    pub(super) fn over(&mut self, worker: &mut Worker) {
        if !self.settled {
            let details = host::property(&["response", "code_details"]).unwrap_or_default();
            self.settle(worker, health::of_interruption(&details));
        }
    }

    fn settle(&mut self, worker: &mut Worker, event: Event) {
        if !std::mem::replace(&mut self.settled, true) {
            self.judge_earlier(worker, event);
            worker.saw(self.instance, event, self.sent, host::now());
        }
    }
}

/// Endpoints that Envoy has not honoured until that is said in its log.
const UNHONOURED_TO_LOG: u64 = 3;

impl Worker {
    /// Envoy has not sent a request to the chosen endpoint. Where it keeps doing so, its cluster balances by itself.
    fn unhonoured(&mut self) {
        self.metrics.count("routebalance.endpoint_unhonoured");
        self.unhonoured = self.unhonoured.saturating_add(1);
        if self.unhonoured == UNHONOURED_TO_LOG {
            log::warn!(
                "routebalance: Envoy does not send requests to the endpoints that are chosen; does every pool's cluster have the load \
                 balancing policy `override_host` with the header `{}`?",
                names::ENDPOINT_HEADER
            );
        }
    }

    fn key_of(&self, instance: usize) -> Option<u32> {
        Some(self.router.config().fleet.instances.get(instance)?.key)
    }

    /// What speaks against instances, as all workers have seen it.
    pub(super) fn records(&self) -> Records {
        host::shared(shared::HEALTH_KEY).0.map(|bytes| shared::decode_health(&bytes)).unwrap_or_default()
    }

    /// Changes the records against the other workers; whether `change` has.
    fn swap_records(&mut self, change: impl Fn(&mut Records) -> bool) -> bool {
        for _ in 0..SWAP_ATTEMPTS {
            let (bytes, cas) = host::shared(shared::HEALTH_KEY);
            let mut records = bytes.map(|bytes| shared::decode_health(&bytes)).unwrap_or_default();
            if !change(&mut records) {
                return false;
            }
            if host::set_shared(shared::HEALTH_KEY, &shared::encode_health(&records), cas) {
                return true;
            }
        }
        false
    }

    /// Something was seen of an instance; all workers know it from now on.
    pub(super) fn saw(&mut self, instance: usize, event: Event, sent: Duration, now: Duration) {
        if let Some(failure) = event.failure() {
            self.metrics.count(&format!("routebalance.failures.{}", failure.name()));
        }
        self.note(instance, event, sent, now);
    }

    fn note(&mut self, instance: usize, event: Event, sent: Duration, now: Duration) {
        let (Some(key), settings) = (self.key_of(instance), self.router.config().health.clone()) else { return };
        if !settings.enabled {
            return;
        }
        let fleet = &self.router.config().fleet;
        let peers: Vec<u32> = fleet
            .pool_of(instance)
            .map(|(_, pool)| pool.instances.iter().filter_map(|i| Some(fleet.instances.get(*i)?.key)).collect())
            .unwrap_or_default();
        self.swap_records(|records| records.apply(key, event, (sent, now), |other| peers.contains(&other), &settings));
    }

    /// Claims a half-open instance for a probe; false if another worker was faster.
    pub(super) fn claim(&mut self, instance: usize, now: Duration) -> bool {
        let (Some(key), settings) = (self.key_of(instance), self.router.config().health.clone()) else { return false };
        self.swap_records(|records| records.claim(key, now, &settings))
    }
}

/// The watch over instances that hang. One VM keeps it for all.
#[derive(Default)]
pub(super) struct Watches {
    instances: Vec<Watch>,
    next: Duration,
}

impl Watches {
    /// Looks at every instance that something was sent to, and shows how many are ejected.
    pub(super) fn look(&mut self, worker: &mut Worker, counters: &Counters, now: Duration) {
        if now < self.next {
            return;
        }
        self.next = now.saturating_add(LOOK_PERIOD);
        let config = worker.router.config();
        self.instances.resize(config.fleet.instances.len(), Watch::default());
        let mut sights = Vec::new();
        let watched = self.instances.iter_mut().zip(&counters.0).zip(&worker.reports.0).zip(&config.fleet.instances);
        for (i, (((watch, counters), report), instance)) in watched.enumerate() {
            let Some(pool) = config.fleet.pools.get(instance.pool) else { continue };
            let allowed = health::quiet_allowed(pool, counters, &config.health);
            sights.extend(watch.look(counters, report, allowed, &config.telemetry, now).map(|sight| (i, sight)));
        }
        for (instance, sight) in sights {
            match sight {
                Sight::Stalled { first: true } => worker.saw(instance, Event::Failed(Failure::Stalled), now, now),
                Sight::Stalled { first: false } => worker.note(instance, Event::Failed(Failure::Stalled), now, now),
                Sight::Resumed => worker.saw(instance, Event::Resumed, now, now),
            }
        }
        worker.show_ejected(now);
    }
}

impl Worker {
    fn show_ejected(&mut self, now: Duration) {
        let records = self.records();
        let Worker { router, metrics, .. } = self;
        let config = router.config();
        for pool in &config.fleet.pools {
            let of_pool = pool.instances.iter().filter_map(|i| config.fleet.instances.get(*i));
            let ejected = of_pool.filter(|i| records.standing(i.key, now, &config.health) == Standing::Ejected).count();
            metrics.set(&format!("routebalance.ejected_instances.{}", pool.name), ejected as u64);
        }
    }
}
