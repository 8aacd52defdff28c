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

use std::collections::VecDeque;
use std::time::Duration;

use crate::fleet::{LatencyProfile, Limits};

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
    /// Something left since the step began, so that its end must look at the queue again.
    disturbed: bool,
    arriving: VecDeque<Sequence>,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    kv_used: u64,
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
            counters: Counters::default(),
        }
    }

    /// Accepts a job; it joins the queue after the profile's overhead. What happened up to `now` must have been fetched with
    /// [`Engine::advance`] before, else it is reported as if the job had been there in time.
    pub fn submit(&mut self, now: Duration, job: Job) -> Result<(), TooLong> {
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
        self.queue_arrivals(self.now_ns);
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
            if !sequence.started {
                sequence.started = true;
                events.push(Event { at, id: sequence.id, kind: EventKind::Started });
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
            sequence.chunk = 0;
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
mod tests {
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use std::collections::BTreeMap;

    use super::*;

    const PROFILE: LatencyProfile = LatencyProfile {
        tpot_ms: 10.0,
        tpot_growth_per_running: 0.015,
        prefill_tokens_per_second: 10_000.0,
        overhead_ms: 7.0,
    };
    const LIMITS: Limits = Limits { max_running: 4, kv_tokens: 1000, max_model_len: 600 };

    fn ms(value: f64) -> Duration {
        Duration::from_nanos(nanoseconds(value * 1e6))
    }

    fn job(id: u64, prompt_tokens: u32, output_tokens: u32, max_tokens: u32) -> Job {
        Job { id, prompt_tokens, output_tokens, max_tokens }
    }

    /// Runs to the end from event to event.
    fn drain(engine: &mut Engine) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(next) = engine.next_event() {
            engine.advance_into(next, &mut events);
        }
        events
    }

    #[test]
    fn a_lone_request_takes_overhead_prefill_and_its_tokens() {
        use FinishReason::{Length, Stop};
        for (prompt, output, max, kv_tokens, tokens, reason) in [
            (100, 5, 100, 1000, 5, Stop),
            (100, 5, 5, 1000, 5, Stop),
            (100, u32::MAX, 5, 1000, 5, Length),
            (599, 50, 100, 1000, 1, Length),
            (100, 50, 100, 120, 20, Length),
            (100, 0, 0, 1000, 0, Stop),
            (1, 1, 1, 1000, 1, Stop),
        ] {
            for detail in [Detail::EveryToken, Detail::Milestones] {
                let mut engine = Engine::new(PROFILE, Limits { kv_tokens, ..LIMITS }, detail);
                engine.submit(ms(1000.0), job(1, prompt, output, max)).unwrap();
                let events = drain(&mut engine);
                let end = ms(1000.0 + 7.0 + f64::from(prompt) / 10.0 + 10.0 * f64::from(tokens));
                assert_eq!(events.last(), Some(&Event { at: end, id: 1, kind: EventKind::Finished(reason) }));
                assert_eq!(events.first(), Some(&Event { at: ms(1007.0), id: 1, kind: EventKind::Started }));
                if tokens > 0 {
                    let first = ms(1000.0 + 7.0 + f64::from(prompt) / 10.0 + 10.0);
                    assert!(events.contains(&Event { at: first, id: 1, kind: EventKind::FirstToken }));
                }
                assert_eq!(engine.counters().generated_tokens, u64::from(tokens));
            }
        }
    }

    #[test]
    fn a_prompt_longer_than_a_step_is_prefilled_in_pieces_without_loss() {
        let limits = Limits { max_running: 4, kv_tokens: 100_000, max_model_len: 50_000 };
        let mut engine = Engine::new(PROFILE, limits, Detail::EveryToken);
        engine.submit(Duration::ZERO, job(1, 10_001, 3, 100)).unwrap();
        assert_eq!(drain(&mut engine).last().unwrap().at, ms(7.0 + 1000.1 + 30.0));
        assert_eq!(engine.counters().steps, 5 + 2);
    }

    #[test]
    fn what_cannot_fit_is_refused() {
        let mut engine = Engine::new(PROFILE, LIMITS, Detail::EveryToken);
        for (prompt, output, ok) in
            [(600, 1, false), (599, 1, true), (600, 0, true), (601, 0, false), (u32::MAX, 1, false)]
        {
            assert_eq!(engine.submit(Duration::ZERO, job(1, prompt, output, 10)).is_ok(), ok, "{prompt} {output}");
        }
    }

    #[test]
    fn steps_grow_with_the_batch() {
        let mut engine = Engine::new(PROFILE, LIMITS, Detail::EveryToken);
        engine.submit(Duration::ZERO, job(1, 100, 9, 9)).unwrap();
        engine.submit(Duration::ZERO, job(2, 100, 9, 9)).unwrap();
        // One step prefills both prompts (20 ms), then nine tokens each at 10.15 ms.
        assert_eq!(drain(&mut engine).last().unwrap().at, ms(7.0 + 20.0 + 9.0 * 10.15));
    }

    #[test]
    fn the_youngest_is_preempted_and_finishes_later() {
        let limits = Limits { max_running: 4, kv_tokens: 60, max_model_len: 60 };
        let mut engine = Engine::new(PROFILE, limits, Detail::EveryToken);
        engine.submit(Duration::ZERO, job(1, 20, 25, 25)).unwrap();
        engine.submit(Duration::ZERO, job(2, 20, 25, 25)).unwrap();
        let events = drain(&mut engine);
        let of = |kind: EventKind| events.iter().filter(|e| e.kind == kind).map(|e| e.id).collect::<Vec<_>>();
        assert_eq!(of(EventKind::Preempted), [2]);
        assert_eq!(of(EventKind::Started), [1, 2]);
        assert_eq!(of(EventKind::Finished(FinishReason::Stop)), [1, 2]);
        assert_eq!(of(EventKind::FirstToken).len() + of(EventKind::Token).len(), 50);
        // 10 tokens each fill the cache; the second request prefills 20 + 10 again.
        assert_eq!(engine.counters().prompt_tokens, 20 + 20 + 30);
    }

    #[test]
    fn a_cancelled_request_frees_its_place() {
        let mut engine = Engine::new(PROFILE, Limits { max_running: 1, ..LIMITS }, Detail::Milestones);
        for id in 1..=3 {
            engine.submit(Duration::ZERO, job(id, 100, 400, 400)).unwrap();
        }
        engine.advance(ms(100.0));
        assert_eq!((engine.running(), engine.waiting()), (1, 2));
        assert!(engine.cancel(1) && engine.cancel(2) && !engine.cancel(1));
        assert_eq!((engine.running(), engine.waiting(), engine.kv_used_tokens()), (0, 1, 0));
        let events = drain(&mut engine);
        // The step of the first request (27 + n * 10 ms) ends before the third one starts.
        assert_eq!(events.first(), Some(&Event { at: ms(107.0), id: 3, kind: EventKind::Started }));
        assert_eq!(events.last().unwrap().at, ms(107.0 + 10.0 + 4000.0));
        assert!(engine.is_empty() && engine.next_event().is_none());
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % bound
        }
    }

    struct Run {
        events: Vec<Event>,
        cancelled: Vec<u64>,
        jobs: Vec<Job>,
        engine: Engine,
    }

    /// A random workload; checks the limits at every event. `late` makes the clock overshoot events.
    fn run(seed: u64, detail: Detail, late: bool, cancels: bool) -> Run {
        let mut chance = Chance(seed);
        let limits = Limits {
            max_running: 1 + chance.below(8) as u32,
            kv_tokens: 200 + chance.below(2000),
            max_model_len: 100 + chance.below(400) as u32,
        };
        let mut engine = Engine::new(PROFILE, limits, detail);
        let (mut events, mut cancelled, mut jobs) = (Vec::new(), Vec::new(), Vec::new());
        let mut now = Duration::ZERO;
        let check = |engine: &Engine| {
            assert!(engine.running() <= limits.max_running as usize);
            assert!(engine.kv_used_tokens() <= limits.kv_tokens, "seed {seed}");
        };
        for id in 0..60 {
            now += Duration::from_micros(chance.below(60_000));
            while let Some(next) = engine.next_event().filter(|next| *next <= now) {
                engine.advance_into(if late { now } else { next }, &mut events);
                check(&engine);
            }
            engine.advance_into(now, &mut events);
            if cancels && chance.below(5) == 0 {
                let victim = chance.below(id + 1);
                if engine.cancel(victim) {
                    cancelled.push(victim);
                }
                check(&engine);
            }
            let job = job(id, 1 + chance.below(300) as u32, 1 + chance.below(200) as u32, 1 + chance.below(200) as u32);
            if engine.submit(now, job).is_ok() {
                jobs.push(Job { max_tokens: job.max_tokens.min(limits.max_model_len - job.prompt_tokens), ..job });
            }
        }
        while let Some(next) = engine.next_event() {
            engine.advance_into(next, &mut events);
            check(&engine);
        }
        Run { events, cancelled, jobs, engine }
    }

    #[test]
    fn tokens_are_conserved_and_order_kept_whatever_comes() {
        for seed in 0..200 {
            let Run { events, cancelled, jobs, engine } = run(seed, Detail::EveryToken, seed % 2 == 0, seed % 3 == 0);
            assert!(events.is_sorted_by_key(|e| e.at), "seed {seed}");
            let mut tokens = BTreeMap::<u64, u32>::new();
            let mut started = Vec::new();
            let mut finished = BTreeMap::new();
            for event in &events {
                match event.kind {
                    EventKind::Started => started.push(event.id),
                    EventKind::FirstToken => assert_eq!(tokens.insert(event.id, 1), None),
                    EventKind::Token => *tokens.get_mut(&event.id).unwrap() += 1,
                    EventKind::Preempted => {}
                    EventKind::Finished(reason) => assert_eq!(finished.insert(event.id, reason), None),
                }
            }
            assert!(started.is_sorted(), "FIFO, seed {seed}");
            for job in jobs.iter().filter(|j| !cancelled.contains(&j.id)) {
                let wanted = job.output_tokens.min(job.max_tokens);
                // The KV cache may be smaller than the context.
                let got = tokens.get(&job.id).copied().unwrap_or(0);
                assert!(
                    got == wanted || (got < wanted && finished[&job.id] == FinishReason::Length),
                    "seed {seed} {job:?} {got}"
                );
                assert_eq!(finished[&job.id] == FinishReason::Stop, got == job.output_tokens, "seed {seed}");
            }
            assert_eq!(engine.counters().generated_tokens, tokens.values().map(|t| u64::from(*t)).sum::<u64>());
            assert!(engine.is_empty());
            assert_eq!((engine.running(), engine.waiting(), engine.kv_used_tokens()), (0, 0, 0), "seed {seed}");
        }
    }

    #[test]
    fn taking_equal_steps_at_once_changes_nothing() {
        let mut preemptions = 0;
        for seed in 0..200 {
            let cancels = seed % 3 == 0;
            let slow = run(seed, Detail::EveryToken, false, cancels);
            let fast = run(seed, Detail::Milestones, seed % 2 == 0, cancels);
            let milestones: Vec<_> = slow.events.into_iter().filter(|e| e.kind != EventKind::Token).collect();
            assert_eq!(milestones, fast.events, "seed {seed}");
            assert_eq!(slow.engine.counters(), fast.engine.counters(), "seed {seed}");
            preemptions += fast.engine.counters().preemptions;
        }
        assert!(preemptions > 0, "no seed reaches preemption");
    }
}
