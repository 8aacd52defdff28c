//! What the VM that leads asks for: load reports of instances, and the hosts of Envoy's clusters.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Counter, Worker, is_due};
use crate::discovery::{self, ANSWER_BYTES_MAX};
use crate::fleet::{InstanceId, Metrics, Presence};
use crate::reckoning::{Counters, InstanceCounters};
use crate::shared::Board;
use crate::telemetry::{self, Adapters, IN_FLIGHT_MAX, Load, Page, Rounds, Schedule};

/// A GET that is to be sent: [`Worker::question`] says where to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fetch {
    /// Time after which there is no answer.
    pub timeout: Duration,
    /// What it is for: to be given back with the answer.
    pub purpose: Purpose,
}

/// Where a GET goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Question<'a> {
    /// Envoy's cluster.
    pub cluster: Cow<'a, str>,
    /// The path.
    pub path: &'a str,
    /// The host that is asked for.
    pub authority: Cow<'a, str>,
    /// The endpoint, where the cluster has several.
    pub endpoint: Option<Cow<'a, str>>,
}

/// What an answer is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Purpose {
    /// A load report.
    Scrape(Scrape),
    /// The hosts of Envoy's clusters.
    Hosts,
}

/// A question to an instance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scrape {
    /// The instance.
    pub instance: InstanceId,
    /// Tells whether the id still means the same instance when the answer comes.
    key: u32,
    asked_at: Duration,
    /// The counters of all workers for the instance when it was asked.
    own: InstanceCounters,
}

/// What came of a scrape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScrapeAnswer {
    /// A page that shows this load.
    Page(Load),
    /// Nobody is there.
    NobodyThere,
    /// Nothing, in time.
    Nothing,
}

/// Scrapes of one VM.
#[derive(Clone, Debug, Default)]
pub(super) struct Scraper {
    rounds: Rounds,
    schedule: Schedule,
    /// The instances that are being asked.
    asked: BTreeSet<InstanceId>,
    /// The instances whose last scrape had no answer, and when that was asked for.
    silent: BTreeMap<InstanceId, Duration>,
}

/// Scrapes of silent instances under way at once: each takes a whole time-out, and the others must not wait for that.
const SILENT_IN_FLIGHT_MAX: usize = IN_FLIGHT_MAX / 4;

/// Questions to Envoy's admin listener, one at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Asker {
    is_asking: bool,
    /// When the next one is due, and how long that was from the last one.
    next_at: Duration,
    pause: Duration,
}

impl Worker {
    /// The scrapes that are due, of instances that no newer configuration covers.
    pub(super) fn scrape(&mut self, counters: &Counters, covered: &[bool], now: Duration) -> Vec<Fetch> {
        let sums = counters.server_sums(self.index.shared());
        let config = self.router.config();
        if !config.telemetry.enabled {
            return Vec::new();
        }
        let Scraper { rounds, schedule, asked, silent } = &mut self.scraper;
        let fleet = &config.fleet;
        let is_there = |i: InstanceId| fleet.instance(i).is_some_and(|i| i.presence != Presence::Gone);
        silent.retain(|i, _| is_there(*i));
        // Where nobody is, no page is parsed. One that is late counts: to ask more often would make it later.
        let answers = |i: InstanceId| is_there(i) && self.reports.get(i).is_none_or(|report| !report.is_unreachable());
        let there = fleet.instances_by_id().filter(|(i, _)| answers(*i)).count();
        let period = schedule.period(&config.telemetry, there);
        let room = IN_FLIGHT_MAX.saturating_sub(asked.len());
        let mut fetches = Vec::new();
        for turn in rounds.turns(now, period, fleet.instances.len(), room) {
            let Some(i) = next_of(InstanceId::new(turn), asked, silent) else { continue };
            let (Some((_, pool)), Some(instance)) = (fleet.pool_of(i), fleet.instance(i)) else { continue };
            let is_covered = covered.get(i.index()).copied().unwrap_or(false);
            if pool.metrics == Metrics::Off || !is_there(i) || is_covered || asked.contains(&i) {
                continue;
            }
            let own = sums.get(i).copied().unwrap_or_default();
            asked.insert(i);
            fetches.push(Fetch {
                timeout: config.telemetry.scrape_timeout,
                purpose: Purpose::Scrape(Scrape { instance: i, key: instance.key, asked_at: now, own }),
            });
        }
        self.set_period(period);
        fetches
    }

    /// Which instances another configuration asks that speaks for them, and has reports of that are fresh also by these settings: they are not
    /// asked twice.
    pub(super) fn covered(&self, board: &impl Board, now: Duration) -> Vec<bool> {
        let mut covered = vec![false; self.index.len()];
        let telemetry = &self.router.config().telemetry;
        let fresh = telemetry.scrape_period.saturating_mul(FRESH_PERIODS).max(telemetry.fresh);
        for other in self.neighbours.iter().filter(|neighbour| neighbour.speaks) {
            let Some((reports, _)) = board.reports(other.place, other.identity, &self.index) else { continue };
            for (covered, report) in covered.iter_mut().zip(&reports.0) {
                let is_fresh = report.at.is_some_and(|at| now.saturating_sub(at) <= fresh);
                *covered |= is_fresh && report.load.running.is_some();
            }
        }
        covered
    }

    /// The question for Envoy's hosts, if it is due.
    pub(super) fn ask_for_hosts(&mut self, now: Duration) -> Option<Fetch> {
        let discovery = self.router.config().discovery.as_ref()?;
        if self.asker.is_asking || !is_due(self.asker.next_at, self.asker.pause, now) {
            return None;
        }
        self.asker = Asker { is_asking: true, next_at: now.saturating_add(discovery.period), pause: discovery.period };
        Some(Fetch { timeout: discovery.timeout, purpose: Purpose::Hosts })
    }

    /// Where a call goes, in the tick that asks for it; `None` for one that nobody has asked for.
    pub fn question(&self, purpose: &Purpose) -> Option<Question<'_>> {
        let config = self.router.config();
        match purpose {
            Purpose::Scrape(scrape) => {
                let (_, pool) = config.fleet.pool_of(scrape.instance)?;
                let address = config.fleet.instance(scrape.instance)?.address.as_str();
                let place = match &pool.metrics {
                    Metrics::Apart(place) => Some(place),
                    Metrics::Shared | Metrics::Off => None,
                };
                let own_path = place.and_then(|place| place.path.as_deref());
                let endpoint = match (place.and_then(|place| place.port), address.rsplit_once(':')) {
                    (Some(port), Some((ip, _))) => Cow::Owned(format!("{ip}:{port}")),
                    _ => Cow::Borrowed(address),
                };
                Some(Question {
                    cluster: pool.metrics_cluster(),
                    path: own_path.unwrap_or(&config.telemetry.metrics_path),
                    authority: endpoint.clone(),
                    endpoint: Some(endpoint),
                })
            }
            Purpose::Hosts => {
                let discovery = config.discovery.as_ref()?;
                let cluster = discovery.cluster.as_str();
                Some(Question {
                    cluster: Cow::Borrowed(cluster),
                    path: &discovery.path,
                    authority: Cow::Borrowed(cluster),
                    endpoint: None,
                })
            }
        }
    }

    /// A call could not be sent.
    pub fn not_fetched(&mut self, purpose: &Purpose) {
        match purpose {
            Purpose::Scrape(scrape) => drop(self.scraper.asked.remove(&scrape.instance)),
            Purpose::Hosts => self.asker.is_asking = false,
        }
    }

    /// A call was answered with this status and body; without a status, it was not.
    pub fn fetched(
        &mut self,
        board: &mut impl Board,
        purpose: &Purpose,
        status: Option<u16>,
        body: &[u8],
        now: Duration,
    ) {
        match purpose {
            Purpose::Scrape(scrape) => self.scraped(scrape, status, body, now),
            Purpose::Hosts => self.told_hosts(board, status, body, now),
        }
    }

    fn scraped(&mut self, scrape: &Scrape, status: Option<u16>, page: &[u8], now: Duration) {
        // Envoy answers for an instance that it cannot reach: with nothing at all after a time-out, else with a 503 of its own.
        let answer = match status {
            None => ScrapeAnswer::Nothing,
            Some(502..=504) => ScrapeAnswer::NobodyThere,
            // Nobody reads the page.
            Some(_) if !self.waits_for(scrape) => ScrapeAnswer::Nothing,
            Some(_) => {
                let Page { load, adapters } = telemetry::parse_metrics(page);
                self.scraper.schedule.parsed(page.len());
                if let Some(adapters) = adapters {
                    self.loaded(scrape.instance, &adapters, now);
                }
                ScrapeAnswer::Page(load)
            }
        };
        self.reported(scrape, answer);
    }

    /// Whether an answer would be of use: this VM leads, and the id means the instance that was asked.
    fn waits_for(&self, scrape: &Scrape) -> bool {
        let instance = self.router.config().fleet.instance(scrape.instance);
        self.leads && instance.is_some_and(|instance| instance.key == scrape.key)
    }

    /// This came of a scrape: what [`Worker::fetched`] does once it has read the page.
    pub fn reported(&mut self, scrape: &Scrape, answer: ScrapeAnswer) {
        self.scraper.asked.remove(&scrape.instance);
        if !self.waits_for(scrape) {
            return;
        }
        let Some(report) = self.reports.get_mut(scrape.instance) else { return };
        self.unwritten_reports.changed(scrape.instance, self.index.len());
        let outcome = match answer {
            ScrapeAnswer::Nothing => Counter::ScrapesFailed,
            ScrapeAnswer::NobodyThere => {
                report.nobody_there();
                Counter::ScrapesFailed
            }
            ScrapeAnswer::Page(load) => {
                report.answered(scrape.asked_at, load, scrape.own);
                if load.running.is_some() { Counter::ScrapesOk } else { Counter::ScrapesUnusable }
            }
        };
        if outcome == Counter::ScrapesFailed {
            self.scraper.silent.insert(scrape.instance, scrape.asked_at);
        } else {
            self.scraper.silent.remove(&scrape.instance);
        }
        self.statistics.count(outcome);
    }

    /// Of the adapters that an instance reports, running or about to, remembers those that clients may ask for.
    fn loaded(&mut self, instance: InstanceId, adapters: &Adapters, now: Duration) {
        let Worker { router, placements, index, .. } = self;
        let fleet = &router.config().fleet;
        let Some(model) = fleet.pool_of(instance).and_then(|(_, pool)| fleet.model_of(pool)) else { return };
        let known = |adapter: &&String| model.adapters.contains(adapter);
        for adapter in adapters.running.iter().chain(&adapters.waiting).filter(known) {
            placements.loaded(adapter, index, instance, now);
        }
    }

    fn told_hosts(&mut self, board: &mut impl Board, status: Option<u16>, answer: &[u8], now: Duration) {
        self.asker.is_asking = false;
        let is_readable = status == Some(200) && answer.len() <= ANSWER_BYTES_MAX;
        match discovery::parse(if is_readable { answer } else { &[] }) {
            Some(clusters) => {
                self.statistics.count(Counter::DiscoveriesOk);
                if self.leads {
                    self.discovered(board, &clusters, now);
                }
            }
            None => self.statistics.count(Counter::DiscoveriesFailed),
        }
        if let Some(discovery) = self.router.config().discovery.as_ref() {
            let bytes = if is_readable { answer.len() } else { 0 };
            self.asker.pause = discovery::period(discovery.period, bytes);
            self.asker.next_at = now.saturating_add(self.asker.pause);
        }
    }
}

/// Who is asked in an instance's turn: itself, or, if it is silent, whichever silent one was asked longest ago, while there is room.
fn next_of(
    turn: InstanceId,
    asked: &BTreeSet<InstanceId>,
    silent: &BTreeMap<InstanceId, Duration>,
) -> Option<InstanceId> {
    if !silent.contains_key(&turn) {
        return Some(turn);
    }
    let under_way = silent.keys().filter(|i| asked.contains(i)).count();
    let waiting = silent.iter().filter(|(i, _)| under_way < SILENT_IN_FLIGHT_MAX && !asked.contains(i));
    waiting.min_by_key(|(_, asked_at)| **asked_at).map(|(i, _)| *i)
}

/// A report is fresh for so many periods at least: nobody is blind for longer if whoever fetches them ceases to.
const FRESH_PERIODS: u32 = 2;
