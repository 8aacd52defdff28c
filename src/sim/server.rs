//! One emulated instance: an engine that can die, hang, lie and refuse.

use std::time::Duration;

use crate::engine::{Detail, Engine, Event, Job, TooLong};
use crate::fault::{Answering, Reply, Reporting};
use crate::workload::Manner;
use routebalance_core::fleet::Pool;
use routebalance_core::telemetry::Load;

/// How an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It works.
    Up,
    /// It accepts and keeps everything, and does nothing.
    Hung,
    /// Nobody is there.
    Down,
}

/// One emulated instance.
#[derive(Clone, Debug)]
pub struct Server {
    engine: Engine,
    fresh: Engine,
    health: Health,
    /// Since when it is as it is.
    since: Duration,
    reporting: Reporting,
    answering: Answering,
    is_listed: bool,
    /// What it said last, or when its report was frozen.
    frozen: Load,
    /// Jobs that a hung instance was sent.
    swallowed: Vec<u64>,
}

/// Nobody accepts the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl Server {
    /// An idle instance of a pool at time zero.
    pub fn new(pool: &Pool) -> Server {
        let engine = Engine::new(pool.profile, pool.limits, Detail::Milestones);
        Server {
            fresh: engine.clone(),
            engine,
            health: Health::Up,
            since: Duration::ZERO,
            reporting: Reporting::Honest,
            answering: Answering::Served,
            is_listed: true,
            frozen: Load::default(),
            swallowed: Vec::new(),
        }
    }

    /// How it is.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Whether it has worked all the time from `start` to now.
    pub fn worked_since(&self, start: Duration) -> bool {
        self.health == Health::Up && self.since <= start
    }

    /// Its engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether it has a step under way.
    pub fn is_at_work(&self) -> bool {
        self.health == Health::Up && self.engine.is_at_work()
    }

    /// Slows its steps down from now on; [`Server::advance_into`] has been called for what happened before.
    pub fn set_slow_down(&mut self, factor: f64) {
        self.engine.set_slow_down(factor);
    }

    /// Requests it holds, wherever they are.
    pub fn holds(&self) -> usize {
        self.engine.len().saturating_add(self.swallowed.len())
    }

    /// What has happened by `now`; nothing does on an instance that hangs.
    pub fn advance_into(&mut self, now: Duration, events: &mut Vec<Event>) {
        if self.health == Health::Up {
            self.engine.advance_into(now, events);
        }
    }

    /// When something happens next by itself.
    pub fn next_event(&self) -> Option<Duration> {
        if self.health == Health::Up { self.engine.next_event() } else { None }
    }

    /// Sends it a job, with the hashes of its prompt's blocks.
    ///
    /// # Errors
    /// Nobody accepts the connection.
    pub fn submit(&mut self, now: Duration, job: Job, blocks: &[u64]) -> Result<Result<(), TooLong>, Refused> {
        match self.health {
            Health::Up => Ok(self.engine.submit_blocks(now, job, blocks.to_vec())),
            Health::Hung => {
                self.swallowed.push(job.id);
                Ok(Ok(()))
            }
            Health::Down => Err(Refused),
        }
    }

    /// What it says to a request at once instead of serving it. Who hangs says nothing, and nobody is there to speak for the dead.
    pub fn reply(&self, manner: &Manner) -> Option<Reply> {
        if self.health != Health::Up {
            return None;
        }
        manner.poison.or(match self.answering {
            Answering::Served => None,
            Answering::Replying(reply) => Some(reply),
            Answering::Limiting { client, reply } => Some(reply).filter(|_| client == manner.client),
            Answering::Bounded { waiting, reply } => Some(reply).filter(|_| self.engine.waiting() >= waiting),
        })
    }

    /// Answers otherwise from now on.
    pub fn answer_as(&mut self, answering: Answering) {
        self.answering = answering;
    }

    /// Whether Envoy's cluster has it.
    pub fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// From now on Envoy's cluster has it, or not.
    pub fn list(&mut self, is_listed: bool) {
        self.is_listed = is_listed;
    }

    /// The client of a job is gone.
    pub fn cancel(&mut self, id: u64) {
        self.engine.cancel(id);
        self.swallowed.retain(|job| *job != id);
    }

    /// Dies.
    pub fn kill(&mut self, now: Duration) {
        self.engine = self.fresh.clone();
        self.swallowed.clear();
        self.health = Health::Down;
        self.since = now;
    }

    /// Starts empty, if it does not run already.
    pub fn start(&mut self, now: Duration) {
        if self.health != Health::Up {
            self.kill(now);
            // An engine's time begins at zero.
            self.engine.advance(now);
            self.health = Health::Up;
        }
    }

    /// Stops working.
    pub fn hang(&mut self, now: Duration) {
        if self.health == Health::Up {
            self.frozen = self.load();
            self.health = Health::Hung;
            self.since = now;
        }
    }

    /// Reports otherwise from now on.
    pub fn report_as(&mut self, reporting: Reporting) {
        self.frozen = self.load();
        self.reporting = reporting;
    }

    /// The true load, as its metrics would show it.
    pub fn load(&self) -> Load {
        Load {
            running: Some(self.engine.running() as f64),
            waiting: Some(self.engine.waiting() as f64),
            kv_use: Some(self.engine.kv_usage()),
            progress_tokens: Some(self.progress()),
            ..Load::default()
        }
    }

    /// Tokens that it has worked off since its start.
    fn progress(&self) -> f64 {
        let counters = self.engine.counters();
        counters.prompt_tokens.saturating_add(counters.generated_tokens) as f64
    }

    /// What it answers to a scrape: `None` if no answer comes before the time-out.
    ///
    /// # Errors
    /// Nobody accepts the connection.
    pub fn scraped(&self) -> Result<Option<Load>, Refused> {
        match (self.health, self.reporting) {
            (Health::Down, _) => Err(Refused),
            (_, Reporting::Silent) => Ok(None),
            (_, Reporting::Constant(load)) => Ok(Some(load)),
            (_, Reporting::Empty) => Ok(Some(Load::default())),
            (Health::Hung, Reporting::Honest) | (_, Reporting::Frozen) => Ok(Some(self.frozen)),
            (Health::Up, Reporting::Honest) => Ok(Some(self.load())),
        }
    }
}
