//! The engine driven by the runtime's clock: jobs in, pieces of answers out as they fall due.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::observe::{Finished, Observations};
use routebalance_core::fleet::{LatencyProfile, Limits};
use routebalance_sim::engine::{Counters, Detail, Engine, Event, EventKind, FinishReason, Job, TooLong};

/// One sequence to generate.
#[derive(Clone, Debug, Default)]
pub(super) struct Sequence {
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
    pub(super) max_tokens: u32,
    /// Hashes of the prompt's blocks, by which the prefix cache finds them.
    pub(super) blocks: Vec<u64>,
}

/// One piece of an answer: a token, the end, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Which of the request's sequences.
    pub(super) choice: usize,
    /// Whether it brings a token.
    pub(super) token: bool,
    /// Why the sequence ends with it.
    pub(super) finish: Option<FinishReason>,
    /// Tokens of the prompt that were cached.
    pub(super) cached_tokens: u32,
}

/// The load that `/metrics` and ORCA report.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Gauges {
    /// Sequences that hold KV.
    pub running: usize,
    /// Sequences in the queue.
    pub waiting: usize,
    /// KV tokens held, a share in [0, 1].
    pub kv_usage: f64,
}

/// What `/metrics` shows of the engine.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) gauges: Gauges,
    pub(super) counters: Counters,
    pub(super) observations: Observations,
}

/// The running engine.
#[derive(Debug)]
pub(super) struct Driver {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug)]
struct State {
    engine: Engine,
    epoch: Instant,
    /// Time stands still here while the instance hangs.
    paused: Option<Duration>,
    flights: BTreeMap<u64, Flight>,
    observations: Observations,
    next_id: u64,
    events: Vec<Event>,
}

#[derive(Debug)]
struct Flight {
    out: UnboundedSender<Piece>,
    choice: usize,
    submitted: Duration,
    times: Finished,
    last_token: Duration,
    cached_tokens: u32,
}

/// A request that is being answered. Dropping it aborts the work.
#[derive(Debug)]
pub(super) struct Generation {
    pieces: UnboundedReceiver<Piece>,
    ids: Vec<u64>,
    unfinished: usize,
    /// Tokens of the prompt that were cached, as far as it is known.
    pub(super) cached_tokens: u32,
    driver: Arc<Driver>,
}

impl Generation {
    /// The next piece; `None` when all sequences have ended.
    pub(super) async fn next(&mut self) -> Option<Piece> {
        if self.unfinished == 0 {
            return None;
        }
        let piece = self.pieces.recv().await?;
        self.unfinished -= usize::from(piece.finish.is_some());
        self.cached_tokens = self.cached_tokens.max(piece.cached_tokens);
        Some(piece)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.unfinished > 0 {
            self.driver.cancel(&self.ids);
        }
    }
}

impl Driver {
    pub(super) fn new(profile: LatencyProfile, limits: Limits) -> Self {
        Self {
            state: Mutex::new(State {
                engine: Engine::new(profile, limits, Detail::EveryToken),
                epoch: Instant::now(),
                paused: None,
                flights: BTreeMap::new(),
                observations: Observations::new(limits.max_model_len),
                next_id: 0,
                events: Vec::new(),
            }),
            wake: Notify::new(),
        }
    }

    /// Delivers events when they fall due. Runs until it is aborted.
    pub(super) async fn run(&self) {
        loop {
            let due = self.lock().pump();
            // An absolute deadline: a late timer delays one event, never the ones after it.
            match due {
                Some(due) => tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = self.wake.notified() => {}
                },
                None => self.wake.notified().await,
            }
        }
    }

    /// Queues the sequences of one request.
    pub(super) fn submit(self: &Arc<Self>, sequences: Vec<Sequence>) -> Result<Generation, TooLong> {
        let mut state = self.lock();
        state.pump();
        let now = state.now();
        let (out, pieces) = unbounded_channel();
        let mut ids = Vec::new();
        let longest = sequences.iter().map(|s| s.max_tokens).max().unwrap_or(0);
        let count = sequences.len();
        for (choice, sequence) in sequences.into_iter().enumerate() {
            let Sequence { prompt_tokens, output_tokens, max_tokens, blocks } = sequence;
            let id = state.next_id;
            state.next_id += 1;
            let job = Job { id, prompt_tokens, output_tokens, max_tokens };
            if let Err(too_long) = state.engine.submit_blocks(now, job, blocks) {
                state.forget(&ids);
                return Err(too_long);
            }
            let times = Finished { prompt_tokens, max_tokens, ..Finished::default() };
            let out = out.clone();
            state.flights.insert(id, Flight { out, choice, submitted: now, times, last_token: now, cached_tokens: 0 });
            ids.push(id);
        }
        state.observations.request(count, longest);
        drop(state);
        self.wake.notify_one();
        Ok(Generation { pieces, unfinished: ids.len(), ids, cached_tokens: 0, driver: Arc::clone(self) })
    }

    /// Stops (and later continues) the engine's clock, as a hung process does.
    pub(super) fn pause(&self, pause: bool) {
        let mut state = self.lock();
        state.pump();
        match (pause, state.paused) {
            (true, None) => state.paused = Some(state.now()),
            (false, Some(at)) => {
                state.paused = None;
                state.epoch = Instant::now().checked_sub(at).unwrap_or_else(Instant::now);
            }
            _ => {}
        }
        drop(state);
        self.wake.notify_one();
    }

    pub(super) fn gauges(&self) -> Gauges {
        let mut state = self.lock();
        state.pump();
        state.gauges()
    }

    /// Sequences anywhere in the engine, those in their overhead included.
    pub(super) fn outstanding(&self) -> usize {
        let mut state = self.lock();
        state.pump();
        state.engine.len()
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut state = self.lock();
        state.pump();
        Snapshot {
            gauges: state.gauges(),
            counters: *state.engine.counters(),
            observations: state.observations.clone(),
        }
    }

    fn cancel(&self, ids: &[u64]) {
        let mut state = self.lock();
        state.pump();
        state.forget(ids);
        drop(state);
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn now(&self) -> Duration {
        self.paused.unwrap_or_else(|| self.epoch.elapsed())
    }

    fn gauges(&self) -> Gauges {
        Gauges { running: self.engine.running(), waiting: self.engine.waiting(), kv_usage: self.engine.kv_usage() }
    }

    fn forget(&mut self, ids: &[u64]) {
        for id in ids {
            self.engine.cancel(*id);
            self.flights.remove(id);
        }
    }

    /// Delivers what is due and says when to come back.
    fn pump(&mut self) -> Option<Instant> {
        let now = self.now();
        let mut events = std::mem::take(&mut self.events);
        self.engine.advance_into(now, &mut events);
        let mut rest = events.iter().peekable();
        while let Some(event) = rest.next() {
            // The last token and the end are one piece, as they are one event of a stream.
            let finish = rest.next_if(|next| next.id == event.id && matches!(next.kind, EventKind::Finished(_)));
            self.deliver(event, finish);
        }
        events.clear();
        self.events = events;
        if self.paused.is_some() { None } else { self.engine.next_event().map(|at| self.epoch + at) }
    }

    fn deliver(&mut self, event: &Event, finish: Option<&Event>) {
        let Some(flight) = self.flights.get_mut(&event.id) else { return };
        let since = event.at.saturating_sub(flight.submitted);
        let mut token = false;
        match event.kind {
            EventKind::Started => flight.times.queued = Some(since),
            EventKind::CacheHit(tokens) => flight.cached_tokens = tokens,
            EventKind::FirstToken => {
                token = true;
                flight.times.first_token = Some(since);
                self.observations.first_token(since);
            }
            EventKind::Token => {
                token = true;
                self.observations.further_token(event.at.saturating_sub(flight.last_token));
            }
            EventKind::Preempted => flight.times.preemptions += 1,
            EventKind::Finished(_) => {}
        }
        if token {
            flight.times.tokens += 1;
            flight.last_token = event.at;
        }
        let finish = match (event.kind, finish.map(|f| f.kind)) {
            (EventKind::Finished(reason), _) | (_, Some(EventKind::Finished(reason))) => Some(reason),
            _ => None,
        };
        if token || finish.is_some() {
            // A receiver that is gone cancels by itself.
            let _ =
                flight.out.send(Piece { choice: flight.choice, token, finish, cached_tokens: flight.cached_tokens });
        }
        if finish.is_some() {
            let times = Finished { e2e: since, ..flight.times };
            self.observations.finished(&times);
            self.flights.remove(&event.id);
        }
    }
}
