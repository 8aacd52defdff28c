//! A continuous-batching engine of one instance, as vLLM's scheduler works, driven by an outside clock.
//!
//! Work happens in steps. A step gives one token to every running sequence whose prompt is prefilled and spends what is
//! left of [`MAX_BATCHED_TOKENS`] on prompts, in pieces (chunked prefill). It lasts
//!
//! `prefilled tokens / prefill_tokens_per_second + tpot_ms * (1 + tpot_growth_per_running * (running - 1))`
//!
//! where the second term is absent when no sequence gets a token. The step that ends a prompt also yields its first token,
//! so a request that is alone takes `overhead + prompt / prefill rate + tokens * tpot`.
//!
//! The queue is FIFO. A request is admitted when its prompt and one token fit into the KV cache; when decoding fills the
//! cache, the youngest running sequence is preempted: it gives its KV back, waits at the head of the queue, and prefills
//! prompt and generated tokens again (vLLM's recompute). In a step that preempts, nothing is admitted.
//!
//! A job that comes with the hashes of its prompt's blocks prefills only what follows those that are still cached.

mod prefix;

use std::collections::VecDeque;
use std::time::Duration;

use crate::fleet::{LatencyProfile, Limits};

use prefix::PrefixCache;
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

#[derive(Clone, Debug)]
struct Sequence {
    id: u64,
    arrives_ns: u64,
    /// Tokens to prefill: the prompt, after a preemption also what was generated.
    target: u32,
    prefilled: u32,
    /// Hashes of the prompt's blocks.
    blocks: Vec<u64>,
    generated: u32,
    /// Tokens after which it ends.
    last: u32,
    reason: FinishReason,
    started: bool,
    /// KV tokens it holds.
    held: u64,
    /// Prompt tokens that the current step prefills.
    chunk: u32,
    /// Whether the current step gives it a token.
    decodes: bool,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    start_ns: u64,
    length_ns: u64,
    /// No prompt is prefilled: the next step is alike unless something arrives, ends or runs out of KV.
    decode_only: bool,
    /// Sequences that get a token.
    decoding: u64,
    /// Prompt tokens.
    prefilling: u64,
}

impl Step {
    fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.length_ns)
    }
}

/// One emulated instance. Time never runs backwards: an earlier `now` counts as the latest one seen.
#[derive(Clone, Debug)]
pub struct Engine {
    profile: LatencyProfile,
    limits: Limits,
    detail: Detail,
    overhead_ns: u64,
    now_ns: u64,
    /// The end of the last step.
    boundary_ns: u64,
    step: Option<Step>,
    /// Something left, or came to an empty queue, since the step began: its end must look at the queue again.
    disturbed: bool,
    arriving: VecDeque<Sequence>,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    kv_used: u64,
    prefix: PrefixCache,
    counters: Counters,
}

impl Engine {
    /// An idle engine at time zero.
    pub fn new(profile: LatencyProfile, limits: Limits, detail: Detail) -> Self {
        Self {
            profile,
            limits: Limits { max_running: limits.max_running.max(1), ..limits },
            detail,
            overhead_ns: nanoseconds(profile.overhead_ms * 1e6),
            now_ns: 0,
            boundary_ns: 0,
            step: None,
            disturbed: false,
            arriving: VecDeque::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            kv_used: 0,
            prefix: PrefixCache::new(limits.kv_tokens),
            counters: Counters::default(),
        }
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
        let capacity = u32::try_from(self.limits.kv_tokens).unwrap_or(u32::MAX).min(self.limits.max_model_len);
        let prompt = job.prompt_tokens.max(1);
        let wanted = job.output_tokens.min(job.max_tokens);
        if prompt.saturating_add(wanted.min(1)) > capacity {
            return Err(TooLong);
        }
        let last = wanted.min(capacity.saturating_sub(prompt));
        self.now_ns = self.now_ns.max(duration_ns(now));
        self.arriving.push_back(Sequence {
            id: job.id,
            arrives_ns: self.now_ns.saturating_add(self.overhead_ns),
            target: prompt,
            prefilled: 0,
            blocks,
            generated: 0,
            last,
            reason: if job.output_tokens <= last { FinishReason::Stop } else { FinishReason::Length },
            started: false,
            held: 0,
            chunk: 0,
            decodes: false,
        });
        Ok(())
    }

    /// Drops a job, wherever it is; false when it is not (or no longer) there. Its step runs on without it.
    pub fn cancel(&mut self, id: u64) -> bool {
        let before = self.len();
        self.arriving.retain(|s| s.id != id);
        self.waiting.retain(|s| s.id != id);
        let kv_used = &mut self.kv_used;
        self.running.retain(|s| {
            if s.id == id {
                *kv_used = kv_used.saturating_sub(s.held);
            }
            s.id != id
        });
        self.disturbed |= self.len() < before;
        self.len() < before
    }

    /// When [`Engine::advance`] will next have something to do; `None` when idle.
    pub fn next_event(&self) -> Option<Duration> {
        let at_ns = match &self.step {
            Some(step) => step.start_ns.saturating_add(self.equal_steps(step).saturating_mul(step.length_ns)),
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
                    self.boundary_ns = self.boundary_ns.max(next.arrives_ns);
                }
                self.queue_arrivals(self.boundary_ns);
                self.begin_step(events);
                continue;
            };
            if step.end_ns() > self.now_ns {
                break;
            }
            let passed = (self.now_ns.saturating_sub(step.start_ns)).checked_div(step.length_ns).unwrap_or(1);
            self.end_steps(&step, self.equal_steps(&step).min(passed).max(1), events);
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

    /// KV tokens held.
    pub fn kv_used_tokens(&self) -> u64 {
        self.kv_used
    }

    /// KV tokens held, as a share of all in [0, 1].
    pub fn kv_usage(&self) -> f64 {
        if self.limits.kv_tokens == 0 { 0.0 } else { self.kv_used as f64 / self.limits.kv_tokens as f64 }
    }

    /// Work done so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Tokens that every running sequence has been given by `now`, without advancing: exact if nothing is to happen before.
    pub fn generated(&self, now: Duration) -> impl Iterator<Item = (u64, u32)> + '_ {
        let ended = self.step.map_or(0, |step| {
            let passed = duration_ns(now).saturating_sub(step.start_ns).checked_div(step.length_ns).unwrap_or(0);
            u32::try_from(passed.min(self.equal_steps(&step))).unwrap_or(u32::MAX)
        });
        self.running.iter().map(move |s| (s.id, s.generated.saturating_add(if s.decodes { ended } else { 0 })))
    }

    fn queue_arrivals(&mut self, by_ns: u64) {
        while self.arriving.front().is_some_and(|s| s.arrives_ns <= by_ns) {
            self.waiting.extend(self.arriving.pop_front());
        }
    }

    /// Decides who takes part in the step that starts at the boundary.
    fn begin_step(&mut self, events: &mut Vec<Event>) {
        let at = Duration::from_nanos(self.boundary_ns);
        self.disturbed = false;

        let mut budget = MAX_BATCHED_TOKENS;
        for sequence in &mut self.running {
            sequence.plan(&mut budget);
        }
        let mut decoding = count_decoding(&self.running);
        let mut preempted = false;
        while self.running.len() > 1 && self.kv_used.saturating_add(decoding) > self.limits.kv_tokens {
            let Some(mut youngest) = self.running.pop() else { break };
            self.kv_used = self.kv_used.saturating_sub(youngest.held);
            decoding = decoding.saturating_sub(u64::from(youngest.decodes));
            youngest.lose_kv();
            events.push(Event { at, id: youngest.id, kind: EventKind::Preempted });
            self.counters.preemptions = self.counters.preemptions.saturating_add(1);
            self.waiting.push_front(youngest);
            preempted = true;
        }

        while !preempted && budget > 0 && self.running.len() < self.limits.max_running as usize {
            let free = self.limits.kv_tokens.saturating_sub(self.kv_used.saturating_add(decoding));
            // A sequence that ends with its prompt (embeddings) needs no room for a token.
            let fits = |s: &Sequence| u64::from(s.target).saturating_add(u64::from(s.last > 0)) <= free;
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
            sequence.held = u64::from(sequence.target);
            self.kv_used = self.kv_used.saturating_add(sequence.held);
            sequence.plan(&mut budget);
            decoding = decoding.saturating_add(u64::from(sequence.decodes));
            self.running.push(sequence);
        }

        let mut prefilling = 0_u64;
        let mut prefill_ns = 0_u64;
        for sequence in &mut self.running {
            sequence.held = sequence.held.saturating_add(u64::from(sequence.decodes));
            prefilling = prefilling.saturating_add(u64::from(sequence.chunk));
            if sequence.chunk > 0 {
                // The difference of two roundings: the pieces of a prompt add up to exactly its time.
                let end = prefill_time_ns(&self.profile, sequence.prefilled.saturating_add(sequence.chunk));
                prefill_ns =
                    prefill_ns.saturating_add(end.saturating_sub(prefill_time_ns(&self.profile, sequence.prefilled)));
            }
        }
        self.kv_used = self.kv_used.saturating_add(decoding);
        let decode_ns = if decoding > 0 { decode_time_ns(&self.profile, self.running.len()) } else { 0 };
        self.step = Some(Step {
            start_ns: self.boundary_ns,
            length_ns: prefill_ns.saturating_add(decode_ns).max(1),
            decode_only: prefilling == 0,
            decoding,
            prefilling,
        });
    }

    /// How many steps like this one follow each other before somebody ends, arrives, or needs KV that is not there.
    fn equal_steps(&self, step: &Step) -> u64 {
        if self.detail == Detail::EveryToken || !step.decode_only || self.disturbed {
            return 1;
        }
        let to_finish = self.running.iter().map(|s| u64::from(s.last.saturating_sub(s.generated))).min().unwrap_or(1);
        let free = self.limits.kv_tokens.saturating_sub(self.kv_used);
        let to_full = free.checked_div(step.decoding).unwrap_or(0).saturating_add(1);
        // Behind a head that does not fit, an arrival changes nothing: KV only grows until somebody ends.
        let to_arrival = match self.arriving.front() {
            Some(next) if self.waiting.is_empty() => {
                next.arrives_ns.saturating_sub(step.start_ns).div_ceil(step.length_ns)
            }
            _ => u64::MAX,
        };
        to_finish.min(to_full).min(to_arrival).max(1)
    }

    /// Ends `steps` equal steps; more than one only when `step.decode_only`.
    fn end_steps(&mut self, step: &Step, steps: u64, events: &mut Vec<Event>) {
        let tokens = u32::try_from(steps).unwrap_or(u32::MAX);
        let further = steps.saturating_sub(1);
        let further_kv = further.saturating_mul(step.decoding);
        self.boundary_ns = step.start_ns.saturating_add(steps.saturating_mul(step.length_ns));
        self.step = None;
        self.kv_used = self.kv_used.saturating_add(further_kv);
        self.counters.count(step, steps);

        let at = Duration::from_nanos(self.boundary_ns);
        let mut finished = false;
        for sequence in &mut self.running {
            sequence.prefilled = sequence.prefilled.saturating_add(sequence.chunk);
            if std::mem::take(&mut sequence.chunk) > 0 && sequence.prefilled >= sequence.target {
                self.prefix.store(&sequence.blocks);
            }
            if sequence.decodes {
                let first = sequence.generated == 0;
                sequence.held = sequence.held.saturating_add(further);
                sequence.generated = sequence.generated.saturating_add(tokens);
                self.counters.generated_tokens = self.counters.generated_tokens.saturating_add(steps);
                if first {
                    events.push(Event { at, id: sequence.id, kind: EventKind::FirstToken });
                } else if self.detail == Detail::EveryToken {
                    events.push(Event { at, id: sequence.id, kind: EventKind::Token });
                }
            }
            if sequence.is_done() {
                finished = true;
                self.prefix.fill(sequence.generated);
                events.push(Event { at, id: sequence.id, kind: EventKind::Finished(sequence.reason) });
                self.kv_used = self.kv_used.saturating_sub(sequence.held);
                let counter = match sequence.reason {
                    FinishReason::Stop => &mut self.counters.finished_stop,
                    FinishReason::Length => &mut self.counters.finished_length,
                };
                *counter = counter.saturating_add(1);
            }
        }
        if finished {
            self.running.retain(|s| !s.is_done());
        }
    }
}

impl Sequence {
    /// Its part in the next step: a token if its prompt is done by then, and a piece of the prompt within the budget.
    fn plan(&mut self, budget: &mut u32) {
        self.chunk = self.target.saturating_sub(self.prefilled).min(*budget);
        let prompt_done = self.prefilled.saturating_add(self.chunk) >= self.target;
        self.decodes = prompt_done && self.generated < self.last;
        let used = if self.chunk > 0 { self.chunk } else { u32::from(self.decodes) };
        *budget = budget.saturating_sub(used);
    }

    fn lose_kv(&mut self) {
        self.target = u32::try_from(self.held).unwrap_or(u32::MAX);
        self.prefilled = 0;
        self.held = 0;
        self.chunk = 0;
        self.decodes = false;
    }

    fn is_done(&self) -> bool {
        self.prefilled >= self.target && self.generated >= self.last
    }
}

impl Counters {
    fn count(&mut self, step: &Step, steps: u64) {
        self.steps = self.steps.saturating_add(steps);
        self.prompt_tokens = self.prompt_tokens.saturating_add(step.prefilling);
        let tokens = step.prefilling.saturating_add(step.decoding);
        let bucket = STEP_TOKEN_BUCKETS.iter().position(|&bound| tokens <= bound).unwrap_or(0);
        if let Some(count) = self.step_tokens.get_mut(bucket) {
            *count = count.saturating_add(steps);
        }
    }
}

/// Time per output token with `running` sequences, nanoseconds.
fn decode_time_ns(profile: &LatencyProfile, running: usize) -> u64 {
    let others = running.saturating_sub(1) as f64;
    nanoseconds(profile.tpot_ms * 1e6 * (1.0 + profile.tpot_growth_per_running * others))
}

/// Time to prefill the first `tokens` of a prompt, nanoseconds.
fn prefill_time_ns(profile: &LatencyProfile, tokens: u32) -> u64 {
    nanoseconds(f64::from(tokens) * 1e9 / profile.prefill_tokens_per_second)
}

fn count_decoding(running: &[Sequence]) -> u64 {
    running.iter().filter(|s| s.decodes).count() as u64
}

/// Rounds; what is not a finite positive number is 0, and an hour bounds what a broken profile can do.
fn nanoseconds(value: f64) -> u64 {
    const HOUR_NS: f64 = 3600.0 * 1e9;
    if value.is_finite() { value.clamp(0.0, HOUR_NS).round() as u64 } else { 0 }
}

fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
