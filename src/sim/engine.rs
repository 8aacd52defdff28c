//! A continuous-batching engine of one instance, as vLLM's scheduler works, driven by an outside clock.
//!
//! Work happens in steps. A step gives one token to every running sequence whose prompt is prefilled and spends what is
//! left of [`MAX_BATCHED_TOKENS`] on prompts, in pieces (chunked prefill). It lasts
//!
//! `prefilled tokens / prefill_tokens_per_second + tpot_ms * (1 + tpot_growth_per_running * (running - 1)
//! + tpot_growth_per_thousand_context_tokens * KV tokens / 1000)`
//!
//! where the second term is absent when no sequence gets a token, and the KV tokens are those of all running sequences, this
//! step's included. The step that ends a prompt also yields its first token,
//! so a request that is alone takes `overhead + prompt / prefill rate + tokens * tpot`, and what its context costs.
//!
//! The KV cache comes in blocks of [`BLOCK_TOKENS`]. The queue is FIFO. A request is admitted when its prompt and one token fit
//! into the cache; when decoding fills it, the youngest running sequence is preempted: it gives its KV back, waits at the head of
//! the queue, and prefills prompt and generated tokens again (vLLM's recompute). In a step that preempts, nothing is admitted.
//!
//! A job that comes with the hashes of its prompt's blocks prefills only what follows those that are still cached.
//!
//! An engine that shares its GPUs may be slowed down: steps that begin then last as many times longer.

mod kv;
mod prefix;
mod sequence;
mod step;

use std::collections::VecDeque;
use std::time::Duration;

use routebalance_core::fleet::{LatencyProfile, Limits};

use kv::Kv;
use prefix::PrefixCache;
use sequence::Sequence;
use step::{Durations, Moment, Step, duration_ns};

pub use prefix::{BLOCK_TOKENS, blocks_of};

/// Tokens of one step, prompts and decodes together (vLLM's `--max-num-batched-tokens` default for online serving).
pub const MAX_BATCHED_TOKENS: u32 = 2048;

/// Upper bounds of [`Counters::step_tokens`], as in vLLM's `iteration_tokens_total`; the last one is its `+Inf`.
pub const STEP_TOKEN_BUCKETS: [u64; 14] = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, u64::MAX];

/// One sequence to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// The caller's name for it, unique among the jobs in the engine.
    pub id: u64,
    /// Tokens to prefill.
    pub prompt_tokens: u32,
    /// Tokens after which the model stops by itself; `u32::MAX` for never (`ignore_eos`), 0 for prefill only (embeddings).
    pub output_tokens: u32,
    /// Tokens after which the client wants it cut.
    pub max_tokens: u32,
}

/// The prompt leaves no room for a single token in the context or in the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model had said everything.
    Stop,
    /// `max_tokens`, the context or the KV cache was full.
    Length,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Left the queue for the first time.
    Started,
    /// So many tokens of the prompt were cached; follows `Started`, if any were.
    CacheHit(u32),
    /// The first token.
    FirstToken,
    /// A further token; only with [`Detail::EveryToken`].
    Token,
    /// Lost its KV and waits again.
    Preempted,
    /// Left the engine.
    Finished(FinishReason),
}

/// Something that happened to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, exactly: the end of its step, for `Started` and `Preempted` the start.
    pub at: Duration,
    /// The job.
    pub id: u64,
    /// What.
    pub kind: EventKind,
}

/// How much [`Engine::advance`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Every token has its event.
    EveryToken,
    /// Tokens after the first have none, and decoding runs of equal steps are taken in one.
    Milestones,
}

/// What the engine has done since it exists; all grow only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    /// Prompt tokens prefilled, recomputation included.
    pub prompt_tokens: u64,
    /// Prompt tokens that were looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Prompt tokens that were found there.
    pub prefix_hits: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Sequences preempted.
    pub preemptions: u64,
    /// Sequences finished by themselves.
    pub finished_stop: u64,
    /// Sequences cut.
    pub finished_length: u64,
    /// Steps.
    pub steps: u64,
    /// Steps by their number of tokens, bounds in [`STEP_TOKEN_BUCKETS`]; not cumulative.
    pub step_tokens: [u64; STEP_TOKEN_BUCKETS.len()],
}

/// One emulated instance. Time never runs backwards: an earlier `now` counts as the latest one seen.
#[derive(Clone, Debug)]
pub struct Engine {
    durations: Durations,
    limits: Limits,
    detail: Detail,
    now_ns: u64,
    /// The end of the last step.
    boundary: Moment,
    /// The step under way; there is one whenever somebody runs.
    step: Option<Step>,
    /// Something left, or came to an empty queue, since the step began: its end must look at the queue again.
    disturbed: bool,
    arriving: VecDeque<Sequence>,
    waiting: VecDeque<Sequence>,
    /// In the order of admission: first those that decode, then those whose prompt the step under way prefills.
    running: Vec<Sequence>,
    /// How many of them decoded before the step under way.
    decoders: usize,
    /// The number of the step after which the first of all that decode has ended.
    first_end: u64,
    kv: Kv,
    prefix: PrefixCache,
    counters: Counters,
    /// By which steps that begin now are longer.
    slow_down: f64,
    /// The sum of all steps that have ended.
    worked_ns: u64,
}

impl Engine {
    /// An idle engine at time zero.
    pub fn new(profile: LatencyProfile, limits: Limits, detail: Detail) -> Self {
        let kv = Kv::new(limits.kv_tokens);
        Self {
            durations: Durations::from_profile(profile),
            limits: Limits { max_running: limits.max_running.max(1), ..limits },
            detail,
            now_ns: 0,
            boundary: Moment::default(),
            step: None,
            disturbed: false,
            arriving: VecDeque::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            decoders: 0,
            first_end: u64::MAX,
            prefix: PrefixCache::new(kv.total_blocks()),
            kv,
            counters: Counters::default(),
            slow_down: 1.0,
            worked_ns: 0,
        }
    }

    /// Slows steps that begin from now on by this factor, at least 1. What happened before must have been fetched with
    /// [`Engine::advance`]; the step under way keeps its length.
    pub fn set_slow_down(&mut self, factor: f64) {
        let factor = if factor.is_finite() { factor.max(1.0) } else { 1.0 };
        if factor != self.slow_down {
            self.slow_down = factor;
            self.disturbed = true;
        }
    }

    /// Whether a step is under way.
    pub fn is_at_work(&self) -> bool {
        self.step.is_some()
    }

    /// How long all steps that have ended took together.
    pub fn worked(&self) -> Duration {
        Duration::from_nanos(self.worked_ns)
    }

    /// Accepts a job; it joins the queue after the profile's overhead. What happened up to `now` must have been fetched with
    /// [`Engine::advance`] before, else it is reported as if the job had been there in time.
    ///
    /// # Errors
    /// The prompt leaves no room for a token.
    pub fn submit(&mut self, now: Duration, job: Job) -> Result<(), TooLong> {
        self.submit_blocks(now, job, Vec::new())
    }

    /// [`Engine::submit`], with a hash for each whole block of [`BLOCK_TOKENS`] prompt tokens that covers all up to its end.
    ///
    /// # Errors
    /// The prompt leaves no room for a token.
    pub fn submit_blocks(&mut self, now: Duration, job: Job, blocks: Vec<u64>) -> Result<(), TooLong> {
        let kv_tokens = self.kv.total_blocks().saturating_mul(u64::from(BLOCK_TOKENS));
        let capacity = u32::try_from(kv_tokens).unwrap_or(u32::MAX).min(self.limits.max_model_len);
        let prompt = job.prompt_tokens.max(1);
        let wanted = job.output_tokens.min(job.max_tokens);
        if prompt.saturating_add(wanted.min(1)) > capacity {
            return Err(TooLong);
        }
        let last = wanted.min(capacity.saturating_sub(prompt));
        self.now_ns = self.now_ns.max(duration_ns(now));
        self.arriving.push_back(Sequence {
            id: job.id,
            arrives_ns: self.now_ns.saturating_add(self.durations.overhead_ns),
            target: prompt,
            prefilled: 0,
            blocks,
            before: 0,
            last,
            reason: if job.output_tokens <= last { FinishReason::Stop } else { FinishReason::Length },
            started: false,
            chunk: 0,
            decoding: None,
        });
        Ok(())
    }

    /// Drops a job, wherever it is; false when it is not (or no longer) there. Its step runs on without it.
    pub fn cancel(&mut self, id: u64) -> bool {
        let named = |s: &Sequence| s.id == id;
        if let Some(at) = self.running.iter().position(named) {
            let sequence = self.running.remove(at);
            // The step under way has given it room for its token.
            let token = u32::from(sequence.decoding.is_some());
            self.leaves(&sequence, token);
            self.decoders = if at < self.decoders { self.decoders.saturating_sub(1) } else { self.decoders };
        } else if let Some(at) = self.waiting.iter().position(named) {
            self.waiting.remove(at);
        } else if let Some(at) = self.arriving.iter().position(named) {
            self.arriving.remove(at);
        } else {
            return false;
        }
        self.disturbed = true;
        true
    }

    /// When [`Engine::advance`] will next have something to do; `None` when idle.
    pub fn next_event(&self) -> Option<Duration> {
        let at_ns = match &self.step {
            Some(step) => step.end(self.equal_steps(step)).ns,
            None => self.arriving.front()?.arrives_ns,
        };
        Some(Duration::from_nanos(at_ns))
    }

    /// Everything that has happened by `now` and was not reported yet, in order of time.
    pub fn advance(&mut self, now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        self.advance_into(now, &mut events);
        events
    }

    /// [`Engine::advance`] into a vector that the caller reuses.
    pub fn advance_into(&mut self, now: Duration, events: &mut Vec<Event>) {
        self.now_ns = self.now_ns.max(duration_ns(now));
        loop {
            let Some(step) = self.step else {
                let idle = self.running.is_empty() && self.waiting.is_empty();
                if idle {
                    let Some(next) = self.arriving.front() else { break };
                    if next.arrives_ns > self.now_ns {
                        break;
                    }
                    if next.arrives_ns > self.boundary.ns {
                        self.boundary = Moment::from_ns(next.arrives_ns);
                    }
                }
                self.queue_arrivals(self.boundary.ns);
                self.begin_step(events);
                continue;
            };
            if step.end(1).ns > self.now_ns {
                break;
            }
            let equal = self.equal_steps(&step);
            let steps = if step.end(equal).ns <= self.now_ns { equal } else { step.ended_by(self.now_ns) };
            self.end_steps(&step, steps.clamp(1, equal), events);
        }
        let queue_was_empty = self.waiting.is_empty();
        self.queue_arrivals(self.now_ns);
        self.disturbed |= queue_was_empty && !self.waiting.is_empty();
    }

    /// Sequences that hold KV.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences in the queue; those still in their overhead are not.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences anywhere in the engine.
    pub fn len(&self) -> usize {
        self.arriving.len().saturating_add(self.waiting.len()).saturating_add(self.running.len())
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// KV tokens in the blocks that sequences hold.
    pub fn kv_used_tokens(&self) -> u64 {
        self.kv.used_blocks().saturating_mul(u64::from(BLOCK_TOKENS))
    }

    /// KV blocks that sequences hold, as a share of all in [0, 1].
    pub fn kv_usage(&self) -> f64 {
        self.kv.used_blocks() as f64 / self.kv.total_blocks() as f64
    }

    /// Work done so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Tokens that every running sequence has been given by `now`, without advancing: exact if nothing is to happen before.
    pub fn generated(&self, now: Duration) -> impl Iterator<Item = (u64, u32)> + '_ {
        let ended = self.step.map_or(0, |step| step.ended_by(duration_ns(now)).min(self.equal_steps(&step)));
        let steps = self.counters.steps.saturating_add(ended);
        self.running.iter().map(move |s| (s.id, s.generated(steps)))
    }

    fn queue_arrivals(&mut self, by_ns: u64) {
        while self.arriving.front().is_some_and(|s| s.arrives_ns <= by_ns) {
            self.waiting.extend(self.arriving.pop_front());
        }
    }

    /// The number of the step under way, or of the next one.
    fn number(&self) -> u64 {
        self.counters.steps
    }

    /// A sequence that was running gives back what it holds, with `tokens` that the step under way has given it room for.
    fn leaves(&mut self, sequence: &Sequence, tokens: u32) {
        let number = self.number();
        let held = sequence.held(number);
        self.kv.give(held.saturating_add(tokens));
        if let Some(decoding) = sequence.decoding {
            self.kv.leave(held, number);
            if decoding.until == self.first_end {
                self.first_end = first_end(&self.running);
            }
        }
    }

    /// What a sequence that takes part by its prompt does in the step that begins.
    fn plan(&mut self, sequence: &mut Sequence, budget: &mut u32) {
        let number = self.number();
        sequence.plan(number, budget);
        if let Some(decoding) = sequence.decoding {
            self.kv.join(sequence.target, number);
            self.first_end = self.first_end.min(decoding.until);
        }
    }

    /// Decides who takes part in the step that starts at the boundary.
    fn begin_step(&mut self, events: &mut Vec<Event>) {
        let at = Duration::from_nanos(self.boundary.ns);
        let number = self.number();
        self.disturbed = false;

        self.decoders = self.running.len();
        let mut budget = MAX_BATCHED_TOKENS.saturating_sub(u32::try_from(self.kv.decoding()).unwrap_or(u32::MAX));
        // Who takes the rest of a step's budget is the last one admitted: nobody else can have a part of a prompt left.
        if self.running.last().is_some_and(|s| s.decoding.is_none())
            && let Some(mut sequence) = self.running.pop()
        {
            self.decoders = self.running.len();
            self.plan(&mut sequence, &mut budget);
            self.running.push(sequence);
        }
        let mut preempted = false;
        while self.running.len() > 1 && self.kv.wanted(number) > self.kv.free_blocks() {
            let Some(mut youngest) = self.running.pop() else { break };
            self.leaves(&youngest, 0);
            youngest.lose_kv(number);
            events.push(Event { at, id: youngest.id, kind: EventKind::Preempted });
            self.counters.preemptions = self.counters.preemptions.saturating_add(1);
            self.waiting.push_front(youngest);
            preempted = true;
        }
        self.decoders = self.decoders.min(self.running.len());

        while !preempted && budget > 0 && self.running.len() < self.limits.max_running as usize {
            let free = self.kv.free_blocks().saturating_sub(self.kv.wanted(number));
            // A sequence that ends with its prompt (embeddings) needs no room for a token.
            let fits = |s: &Sequence| kv::blocks(s.target.saturating_add(u32::from(s.last > 0))) <= free;
            if !self.waiting.front().is_some_and(fits) {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            sequence.prefilled = self.prefix.hit(&sequence.blocks, sequence.target);
            if !sequence.started {
                sequence.started = true;
                events.push(Event { at, id: sequence.id, kind: EventKind::Started });
                if sequence.prefilled > 0 {
                    events.push(Event { at, id: sequence.id, kind: EventKind::CacheHit(sequence.prefilled) });
                }
                let Counters { prefix_queries, prefix_hits, .. } = &mut self.counters;
                *prefix_queries = prefix_queries.saturating_add(u64::from(sequence.target));
                *prefix_hits = prefix_hits.saturating_add(u64::from(sequence.prefilled));
            }
            self.kv.take(sequence.target);
            self.plan(&mut sequence, &mut budget);
            self.running.push(sequence);
        }

        let (mut prefilling, mut fixed_ns) = (0_u64, 0_u64);
        for sequence in self.running.get(self.decoders..).unwrap_or_default() {
            prefilling = prefilling.saturating_add(u64::from(sequence.chunk));
            fixed_ns = fixed_ns.saturating_add(self.durations.prefill_ns(sequence.prefilled, sequence.chunk));
        }
        self.kv.grow(number, 1);
        let decoding = self.kv.decoding();
        if decoding > 0 {
            fixed_ns = fixed_ns.saturating_add(self.durations.decode_ns(self.running.len()));
        }
        let step = Step::new(&self.durations, self.boundary, fixed_ns, decoding, prefilling, self.kv.tokens());
        self.step = Some(if self.slow_down > 1.0 { step.slowed(self.slow_down) } else { step });
    }

    /// How many steps like this one follow each other before somebody ends, arrives, or needs KV that is not there.
    fn equal_steps(&self, step: &Step) -> u64 {
        if self.detail == Detail::EveryToken || !step.decode_only() || self.disturbed {
            return 1;
        }
        let to_finish = self.first_end.saturating_sub(self.number());
        let to_full = self.kv.steps_until_full(self.number().saturating_add(1)).saturating_add(1);
        // Behind a head that does not fit, an arrival changes nothing: KV only grows until somebody ends.
        let to_arrival = match self.arriving.front() {
            Some(next) if self.waiting.is_empty() => step.ended_by(next.arrives_ns.saturating_sub(1)).saturating_add(1),
            _ => u64::MAX,
        };
        to_finish.min(to_full).min(to_arrival).max(1)
    }

    /// Ends `steps` equal steps; more than one only when `step.decode_only`.
    fn end_steps(&mut self, step: &Step, steps: u64, events: &mut Vec<Event>) {
        self.boundary = step.end(steps);
        self.worked_ns = self.worked_ns.saturating_add(step.nanoseconds_until(self.boundary));
        self.step = None;
        self.kv.grow(self.number().saturating_add(1), steps.saturating_sub(1));
        self.counters.count(step, steps, self.kv.decoding());

        let (at, number) = (Duration::from_nanos(self.boundary.ns), self.number());
        let mut finished = false;
        let every_token = self.detail == Detail::EveryToken;
        let quiet = if every_token || self.first_end <= number { 0 } else { self.decoders };
        for (i, sequence) in self.running.iter_mut().enumerate().skip(quiet) {
            let mut tell = |kind| events.push(Event { at, id: sequence.id, kind });
            if i >= self.decoders {
                sequence.prefilled = sequence.prefilled.saturating_add(sequence.chunk);
                if std::mem::take(&mut sequence.chunk) > 0 && sequence.prefilled >= sequence.target {
                    self.prefix.store(&sequence.blocks);
                }
            }
            if sequence.decoding.is_some() {
                if sequence.generated(number) == 1 && i >= self.decoders {
                    tell(EventKind::FirstToken);
                } else if every_token {
                    tell(EventKind::Token);
                }
            }
            if sequence.is_done(number) {
                finished = true;
                tell(EventKind::Finished(sequence.reason));
                self.prefix.fill(sequence.generated(number));
                let held = sequence.held(number);
                self.kv.give(held);
                if sequence.decoding.is_some() {
                    self.kv.leave(held, number);
                }
                let counter = match sequence.reason {
                    FinishReason::Stop => &mut self.counters.finished_stop,
                    FinishReason::Length => &mut self.counters.finished_length,
                };
                *counter = counter.saturating_add(1);
            }
        }
        if finished {
            self.running.retain(|s| !s.is_done(number));
            self.first_end = first_end(&self.running);
        }
    }
}

impl Counters {
    fn count(&mut self, step: &Step, steps: u64, decoding: u64) {
        self.steps = self.steps.saturating_add(steps);
        self.prompt_tokens = self.prompt_tokens.saturating_add(step.prefilling);
        self.generated_tokens = self.generated_tokens.saturating_add(steps.saturating_mul(decoding));
        let tokens = step.prefilling.saturating_add(step.decoding);
        let bucket = STEP_TOKEN_BUCKETS.iter().position(|&bound| tokens <= bound).unwrap_or(0);
        if let Some(count) = self.step_tokens.get_mut(bucket) {
            *count = count.saturating_add(steps);
        }
    }
}

/// The number of the step after which the first of them has ended.
fn first_end(running: &[Sequence]) -> u64 {
    running.iter().filter_map(|s| Some(s.decoding?.until)).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
