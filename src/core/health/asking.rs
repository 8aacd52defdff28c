//! The instances that are asked for one whole answer: the next one where all that have the request are stuck.

use std::collections::VecDeque;
use std::time::Duration;

use super::{AnswerOutcome, Event, Failure, of_answer};
use crate::fleet::InstanceId;
use crate::openai::Observed;

/// An instance that has the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<C> {
    /// The instance.
    pub instance: InstanceId,
    /// When it was asked.
    pub at: Duration,
    /// The call by which the gateway asks it; `None` for Envoy's own attempt.
    pub call: Option<C>,
}

/// The instances that have one request, and those that may still be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking<C> {
    /// Envoy's own attempt, then the instances that the gateway has asked.
    asked: Vec<Asked<C>>,
    /// Best first.
    next: VecDeque<InstanceId>,
}

impl<C: Copy + PartialEq> Asking<C> {
    /// Envoy has sent the request to this instance, and it may go to those.
    pub fn new(instance: InstanceId, at: Duration, next: &[InstanceId]) -> Asking<C> {
        Asking { asked: vec![Asked { instance, at, call: None }], next: next.iter().copied().collect() }
    }

    /// Envoy has sent the request to another instance.
    pub fn moved(&mut self, instance: InstanceId, at: Duration) {
        if let Some(own) = self.asked.first_mut() {
            (own.instance, own.at) = (instance, at);
        }
        self.next.retain(|other| *other != instance);
    }

    /// Who has it.
    pub fn asked(&self) -> &[Asked<C>] {
        &self.asked
    }

    /// Whether nothing is to be expected of anybody who has the request. `is_stuck` tells it of an instance that was asked at a time.
    pub fn is_stuck(&self, is_stuck: impl Fn(InstanceId, Duration) -> bool) -> bool {
        self.asked.iter().all(|asked| is_stuck(asked.instance, asked.at))
    }

    /// Takes out the next instance that is not stuck itself.
    pub fn next(&mut self, is_stuck: impl Fn(InstanceId, Duration) -> bool) -> Option<InstanceId> {
        let at = self.next.iter().position(|instance| !is_stuck(*instance, Duration::ZERO))?;
        self.next.remove(at)
    }

    /// The gateway has asked an instance.
    pub fn ask(&mut self, instance: InstanceId, at: Duration, call: C) {
        self.asked.push(Asked { instance, at, call: Some(call) });
    }

    /// A call has ended; who was asked by it.
    pub fn ended(&mut self, call: C) -> Option<Asked<C>> {
        let at = self.asked.iter().position(|asked| asked.call == Some(call))?;
        Some(self.asked.remove(at))
    }

    /// Whether the request has had its time, where nobody is left to be asked: whoever has it may go on until then.
    pub fn is_over(&self, limit: Duration, now: Duration) -> bool {
        self.asked.first().is_some_and(|own| now.saturating_sub(own.at) > limit)
    }
}

/// What the status of an answer to a call says against its instance, if another one is to be asked. 0 means that there was no answer.
pub fn of_call(status: u16, retry_after: Option<Duration>) -> Option<Event> {
    if status == 0 {
        return Some(Event::Suspected(Failure::Unanswered));
    }
    let seen = Observed::default();
    let outcome =
        AnswerOutcome { status, retry_after, seen: &seen, bytes: 1, readable: false, common: false, names_ours: false };
    Some(of_answer(&outcome)).filter(|event| matches!(event, Event::Busy(_) | Event::Suspected(_)))
}
