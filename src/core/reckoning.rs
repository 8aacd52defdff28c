//! Dead reckoning of load between reports: load now = last report + what was sent since - what has finished since.
//!
//! Every worker keeps monotonic counters per instance and is the only writer of its own. The sum over all workers of
//! `dispatched - finished` is what this gateway has outstanding; the change of that sum since a report was asked for is what the
//! report cannot know. Nothing is mutated by a read, so the load can be asked for at any time.

mod glimpse;
mod now;
mod report;
mod standing;

use std::borrow::Cow;
use std::time::Duration;

use crate::fleet::InstanceId;

pub use glimpse::Glimpse;
pub use now::{LoadNow, load_now};
pub use report::{InstanceReport, Reports, trust};
pub use standing::Standing;

/// What one worker has sent to one instance and seen finished. Every field but the last only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceCounters {
    /// Requests sent.
    pub dispatched_requests: u64,
    /// Requests whose stream has ended, however.
    pub finished_requests: u64,
    /// Prompt tokens sent (estimated).
    pub dispatched_prompt_tokens: u64,
    /// Prompt tokens whose prefill is over: their request's first byte came, or it ended.
    pub finished_prompt_tokens: u64,
    /// Output tokens predicted for what was sent.
    pub dispatched_output_tokens: u64,
    /// Of those, the ones that were streamed or will never come.
    pub finished_output_tokens: u64,
    /// When the last request was sent; zero if none was.
    pub last_dispatch: Duration,
}

/// A request on its way, as much as the counters know of it. Whoever dispatches keeps it and gives it back once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// The instance.
    pub instance: InstanceId,
    /// Estimated prompt tokens that still wait for prefill.
    pub prompt_tokens: u64,
    /// Predicted output tokens that have not been streamed yet.
    pub output_tokens: u64,
}

/// One worker's counters, in the order of [`Fleet::instances`](crate::fleet::Fleet::instances).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(pub Vec<InstanceCounters>);

impl Counters {
    /// Counters of a worker that has sent nothing.
    pub fn new(instances: usize) -> Counters {
        Counters(vec![InstanceCounters::default(); instances])
    }

    /// The counters of an instance.
    #[inline]
    pub fn get(&self, instance: InstanceId) -> Option<&InstanceCounters> {
        self.0.get(instance.index())
    }

    /// The counters of an instance, to be changed.
    #[inline]
    pub fn get_mut(&mut self, instance: InstanceId) -> Option<&mut InstanceCounters> {
        self.0.get_mut(instance.index())
    }

    /// Records that a request was sent.
    pub fn dispatch(&mut self, dispatch: &Dispatch, now: Duration) {
        if let Some(c) = self.get_mut(dispatch.instance) {
            c.dispatched_requests = c.dispatched_requests.saturating_add(1);
            c.dispatched_prompt_tokens = c.dispatched_prompt_tokens.saturating_add(dispatch.prompt_tokens);
            c.dispatched_output_tokens = c.dispatched_output_tokens.saturating_add(dispatch.output_tokens);
            c.last_dispatch = now;
        }
    }

    /// Records that a request's prefill is over.
    pub fn prefilled(&mut self, dispatch: &mut Dispatch) {
        if let Some(c) = self.get_mut(dispatch.instance) {
            c.finished_prompt_tokens = c.finished_prompt_tokens.saturating_add(dispatch.prompt_tokens);
            dispatch.prompt_tokens = 0;
        }
    }

    /// Records that `tokens` more output tokens were streamed; tokens beyond the predicted ones were never counted.
    pub fn streamed(&mut self, dispatch: &mut Dispatch, tokens: u64) {
        if let Some(c) = self.get_mut(dispatch.instance) {
            c.streamed(dispatch.stream(tokens));
        }
    }

    /// Records that a request has ended and returns what it still held. Taking the dispatch makes a second call impossible.
    pub fn finish(&mut self, mut dispatch: Dispatch) {
        self.prefilled(&mut dispatch);
        let rest = dispatch.output_tokens;
        self.streamed(&mut dispatch, rest);
        if let Some(c) = self.get_mut(dispatch.instance) {
            c.finished_requests = c.finished_requests.saturating_add(1);
        }
    }

    /// Moves a request to the instance that really serves it (Envoy has retried elsewhere).
    pub fn move_to(&mut self, dispatch: &mut Dispatch, instance: InstanceId, now: Duration) {
        if dispatch.instance != instance && instance.index() < self.0.len() {
            self.finish(*dispatch);
            dispatch.instance = instance;
            self.dispatch(dispatch, now);
        }
    }

    /// Forgets what a dead worker had outstanding: its streams have died with it.
    pub fn retire(&mut self) {
        self.0.iter_mut().for_each(InstanceCounters::retire);
    }

    /// Adds another worker's counters; the last dispatch is the later one.
    pub fn add(&mut self, other: &Counters) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, c)| sum.add(c));
    }

    /// The same where some instances are one server, each group of them: what one was sent is what all hold.
    pub fn server_sums(&self, shared: &[Vec<InstanceId>]) -> Cow<'_, Counters> {
        let mut all = Cow::Borrowed(self);
        for instances in shared {
            let mut sum = InstanceCounters::default();
            instances.iter().filter_map(|i| self.get(*i)).for_each(|counters| sum.add(counters));
            for instance in instances {
                if let Some(counters) = all.to_mut().get_mut(*instance) {
                    *counters = sum;
                }
            }
        }
        all
    }

    /// Requests sent to the whole fleet so far.
    pub fn dispatched_requests(&self) -> u64 {
        self.0.iter().fold(0, |sum, c| sum.saturating_add(c.dispatched_requests))
    }
}

impl Dispatch {
    /// So many more output tokens were streamed; returns how many of them were predicted.
    pub fn stream(&mut self, tokens: u64) -> u64 {
        let tokens = tokens.min(self.output_tokens);
        self.output_tokens = self.output_tokens.saturating_sub(tokens);
        tokens
    }
}

impl InstanceCounters {
    /// Adds another worker's counters; the last dispatch is the later one.
    #[inline]
    pub fn add(&mut self, c: &InstanceCounters) {
        self.dispatched_requests = self.dispatched_requests.saturating_add(c.dispatched_requests);
        self.finished_requests = self.finished_requests.saturating_add(c.finished_requests);
        self.dispatched_prompt_tokens = self.dispatched_prompt_tokens.saturating_add(c.dispatched_prompt_tokens);
        self.finished_prompt_tokens = self.finished_prompt_tokens.saturating_add(c.finished_prompt_tokens);
        self.dispatched_output_tokens = self.dispatched_output_tokens.saturating_add(c.dispatched_output_tokens);
        self.finished_output_tokens = self.finished_output_tokens.saturating_add(c.finished_output_tokens);
        self.last_dispatch = self.last_dispatch.max(c.last_dispatch);
    }

    /// Records that so many of the predicted output tokens were streamed.
    pub fn streamed(&mut self, tokens: u64) {
        self.finished_output_tokens = self.finished_output_tokens.saturating_add(tokens);
    }

    /// Forgets what is outstanding.
    pub fn retire(&mut self) {
        self.finished_requests = self.dispatched_requests;
        self.finished_prompt_tokens = self.dispatched_prompt_tokens;
        self.finished_output_tokens = self.dispatched_output_tokens;
    }

    /// In this sum over workers, one worker's counters change from `before` to `after`.
    pub fn change(&mut self, before: &InstanceCounters, after: &InstanceCounters) {
        let grow = |sum: &mut u64, before: u64, after: u64| *sum = sum.saturating_add(after.saturating_sub(before));
        grow(&mut self.dispatched_requests, before.dispatched_requests, after.dispatched_requests);
        grow(&mut self.finished_requests, before.finished_requests, after.finished_requests);
        grow(&mut self.dispatched_prompt_tokens, before.dispatched_prompt_tokens, after.dispatched_prompt_tokens);
        grow(&mut self.finished_prompt_tokens, before.finished_prompt_tokens, after.finished_prompt_tokens);
        grow(&mut self.dispatched_output_tokens, before.dispatched_output_tokens, after.dispatched_output_tokens);
        grow(&mut self.finished_output_tokens, before.finished_output_tokens, after.finished_output_tokens);
        self.last_dispatch = self.last_dispatch.max(after.last_dispatch);
    }

    /// Requests sent and not finished.
    pub fn outstanding_requests(&self) -> u64 {
        self.dispatched_requests.saturating_sub(self.finished_requests)
    }

    /// Prompt tokens that still wait for prefill.
    pub fn outstanding_prompt_tokens(&self) -> u64 {
        self.dispatched_prompt_tokens.saturating_sub(self.finished_prompt_tokens)
    }

    /// Predicted output tokens that have not come yet.
    pub fn outstanding_output_tokens(&self) -> u64 {
        self.dispatched_output_tokens.saturating_sub(self.finished_output_tokens)
    }
}

#[cfg(test)]
mod tests;
