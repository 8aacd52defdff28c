//! What speaks against instances, as all workers know it together, and the watch over those that hang.

use std::sync::Arc;
use std::time::Duration;

use super::{Counter, Gauge, SWAP_ATTEMPTS, Worker, is_due};
use crate::fleet::{InstanceId, PoolKind};
use crate::health::{self, Event, Failure, Records, Sight, Watch};
use crate::names;
use crate::reckoning::{Counters, Standing};
use crate::shared::Board;

/// Time between two looks for instances that hang.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// Endpoints that Envoy has not honoured until that is said in its log.
const UNHONOURED_TO_LOG: u64 = 3;

/// The watch over instances that hang. One VM keeps it for all of its configuration.
#[derive(Clone, Debug, Default)]
pub(super) struct Watches {
    instances: Vec<Watch>,
    next: Duration,
}

impl Worker {
    /// Envoy has not sent a request to the chosen endpoint. Where it keeps doing so, its cluster balances by itself.
    pub fn unhonoured(&mut self) {
        self.statistics.count(Counter::EndpointUnhonoured);
        self.unhonoured = self.unhonoured.saturating_add(1);
        if self.unhonoured == UNHONOURED_TO_LOG {
            self.statistics.warn(&format!(
                "Envoy does not send requests to the endpoints that are chosen; does every pool's cluster have the load \
                 balancing policy `override_host` with the header `{}`?",
                names::ENDPOINT_HEADER
            ));
        }
    }

    /// Changes the records against the other workers; whether `change` has.
    fn swap_records(board: &mut impl Board, change: impl Fn(&mut Records) -> bool) -> bool {
        for _ in 0..SWAP_ATTEMPTS {
            let (records, version) = board.records();
            let mut records = Arc::unwrap_or_clone(records);
            if !change(&mut records) {
                return false;
            }
            if board.write_records(&records, version) {
                return true;
            }
        }
        false
    }

    /// Something was seen of an instance; all workers know it from now on. `sent` is when the request went out that shows it.
    pub fn saw(&mut self, board: &mut impl Board, instance: InstanceId, event: Event, sent: Duration, now: Duration) {
        if let Some(kind) = event.failure() {
            self.statistics.count(Counter::Failures { kind });
        }
        let event = match event {
            Event::Busy(retry_after) if self.speaks_of_own_account(instance) => Event::Limited(retry_after),
            other => other,
        };
        self.note(board, instance, event, sent, now);
    }

    /// Whether what an instance says of limits is about the gateway's own account, whoever's request it was.
    fn speaks_of_own_account(&self, instance: InstanceId) -> bool {
        let pool = self.router.config().fleet.pool_of(instance).map(|(_, pool)| pool);
        pool.is_some_and(|pool| pool.kind == PoolKind::Hosted && pool.upstream.credential.is_some())
    }

    fn note(&mut self, board: &mut impl Board, instance: InstanceId, event: Event, sent: Duration, now: Duration) {
        let settings = &self.router.config().health;
        let Some(key) = self.index.key(instance).filter(|_| settings.enabled) else { return };
        let fleet = &self.router.config().fleet;
        let peers = fleet.pool_of(instance).map_or(&[][..], |(_, pool)| &pool.instances);
        let is_peer = |other: u32| peers.iter().any(|i| self.index.key(*i) == Some(other));
        Worker::swap_records(board, |records| records.apply(key, event, (sent, now), is_peer, settings));
    }

    /// Claims a half-open instance for a probe; false if another worker was faster.
    pub fn claim(&mut self, board: &mut impl Board, instance: InstanceId, now: Duration) -> bool {
        let Some(key) = self.index.key(instance) else { return false };
        let settings = &self.router.config().health;
        Worker::swap_records(board, |records| records.claim(key, now, settings))
    }

    /// Whether an instance answers nobody at the moment, as far as is known.
    pub fn is_silent(&self, board: &impl Board, instance: InstanceId, now: Duration) -> bool {
        let Some(key) = self.index.key(instance) else { return false };
        let reports = self.known_reports(board);
        let report = reports.as_ref().and_then(|reports| reports.get(instance));
        board.records().0.is_silent(key, report, now, &self.router.config().health)
    }

    /// Looks at every instance that something was sent to and that no newer configuration watches, and shows how many are ejected.
    pub(super) fn watch(&mut self, board: &mut impl Board, counters: &Counters, covered: &[bool], now: Duration) {
        if !is_due(self.watches.next, LOOK_PERIOD, now) {
            return;
        }
        self.watches.next = now.saturating_add(LOOK_PERIOD);
        let config = self.router.config();
        self.watches.instances.resize(config.fleet.instances.len(), Watch::default());
        let mut sights = Vec::new();
        let watched = self.watches.instances.iter_mut().zip(&counters.0).zip(&self.reports.0);
        for (((watch, counters), report), (i, instance)) in watched.zip(config.fleet.instances_by_id()) {
            let Some(pool) = config.fleet.pool(instance.pool) else { continue };
            if covered.get(i.index()).copied().unwrap_or(false) {
                *watch = Watch::default();
                continue;
            }
            let allowed = health::quiet_allowed(pool, counters, &config.health);
            sights.extend(watch.look(counters, report, allowed, &config.telemetry, now).map(|sight| (i, sight)));
        }
        for (instance, sight) in sights {
            match sight {
                Sight::Stalled { first: true } => self.saw(board, instance, Event::Failed(Failure::Stalled), now, now),
                Sight::Stalled { first: false } => {
                    self.note(board, instance, Event::Failed(Failure::Stalled), now, now)
                }
                Sight::Resumed => self.saw(board, instance, Event::Resumed, now, now),
            }
        }
        self.show_ejected(&board.records().0, now);
    }

    fn show_ejected(&mut self, records: &Records, now: Duration) {
        if self.statistics.is_mute() {
            return;
        }
        let config = self.router.config();
        for pool in &config.fleet.pools {
            let of_pool = pool.instances.iter().filter_map(|i| config.fleet.instance(*i));
            let ejected = of_pool.filter(|i| records.standing(i.key, now, &config.health) == Standing::Ejected).count();
            self.statistics.set(Gauge::EjectedInstances { pool: &pool.name }, ejected as u64);
        }
    }
}
