//! What a request shows of the instances that it meets.

use std::time::Duration;

use super::attempt::AttemptPlan;
use super::{Host, Map};
use crate::fleet::InstanceId;
use crate::health::{self, AnswerOutcome, Attempts, Event, Failure};
use crate::names;
use crate::openai::{Observed, Prompt};
use crate::router::Decision;
use crate::worker::Worker;

/// What one request shows of the instances that it meets.
pub(super) struct Checkup {
    /// The instance that serves, as far as is known.
    instance: InstanceId,
    /// Those that have failed before it.
    earlier: Vec<InstanceId>,
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
            instance: decision.to.instance,
            earlier: Vec::new(),
            attempts: Attempts { count: 1 },
            is_rerun: false,
            sent,
            status: 0,
            retry_after: None,
            readable: false,
            bytes: 0,
            common,
            names_ours: decision.to.adapter.is_none() && prompt.previous_response_id.is_none(),
            began: false,
            settled: false,
        }
    }

    /// The answer is one that the filter has asked this instance for: what stood still before it is known.
    pub(super) fn rerun(&mut self, instance: InstanceId, sent: Duration) {
        (self.instance, self.sent, self.is_rerun) = (instance, sent, true);
    }

    /// The filter has ended the request itself: nobody's answer is judged.
    pub(super) fn ended_here(&mut self) {
        (self.settled, self.is_rerun) = (true, true);
    }

    /// The response's headers are here; `served_by` is the instance that Envoy names, `details` are its words on where they come from.
    /// `plan` knows the further attempts, and whether the request was ended before it reached that one.
    pub(super) fn head(
        &mut self,
        host: &mut impl Host,
        worker: &mut Worker,
        decision: &Decision,
        served_by: Option<InstanceId>,
        (status, content_type, details): (u16, &str, &str),
        plan: &AttemptPlan,
    ) {
        self.status = status;
        self.readable = host.header(Map::Response, "content-encoding").is_none_or(|e| e == "identity")
            && (content_type.starts_with("text/event-stream") || content_type.starts_with("application/json"));
        let seconds = host.header(Map::Response, names::RETRY_AFTER_HEADER);
        self.retry_after = seconds.as_deref().and_then(health::retry_after);
        if self.is_rerun {
            return;
        }
        let now = host.now();
        // Where the chosen instance has answered, nobody has failed before.
        if !plan.is_first() || served_by != Some(decision.to.instance) || !(200..300).contains(&status) {
            self.attempts.count = host.number(&["upstream", "request_attempt_count"]).unwrap_or(1);
        }
        // Envoy skips endpoints of the list that its cluster does not have: what has passed is known better.
        let (passed, given_up) = (plan.passed(), plan.given_up_after());
        let further = if passed.is_empty() { decision.to.fallbacks.clone() } else { passed };
        let order: Vec<InstanceId> = std::iter::once(decision.to.instance).chain(further).collect();
        let failed = given_up.unwrap_or_else(|| self.attempts.failed(order.len()));
        self.earlier = order.iter().take(failed).copied().collect();
        self.instance = served_by.or_else(|| order.get(failed).copied()).unwrap_or(decision.to.instance);
        if given_up.is_none() {
            self.earlier.retain(|instance| *instance != self.instance);
        }
        if failed == 0 && self.instance != decision.to.instance {
            // Envoy holds the chosen one for dead and has not tried it, or balances by itself.
            worker.saw(host, decision.to.instance, Event::Unjudged, self.sent, now);
            worker.unhonoured();
        }
        if given_up.is_some() {
            self.judge_earlier(host, worker, Event::Suspected(Failure::Unanswered));
            self.settle(host, worker, Event::Unjudged);
        } else if !details.is_empty() && !details.starts_with(names::VIA_UPSTREAM) {
            self.settle(host, worker, health::of_silence(details));
        } else if (200..300).contains(&status) {
            self.judge_earlier(host, worker, Event::Began);
        }
        if failed > 0 {
            self.sent = now;
        }
    }

    /// Whether Envoy has sent the first attempt to another instance than the chosen one.
    pub(super) fn is_unhonoured(&self, decision: &Decision) -> bool {
        !self.is_rerun && self.attempts.count == 1 && self.instance != decision.to.instance
    }

    /// What the attempts before the last one show, now that it is known what that one does.
    fn judge_earlier(&mut self, host: &mut impl Host, worker: &mut Worker, last: Event) {
        let now = host.now();
        for instance in std::mem::take(&mut self.earlier) {
            worker.saw(host, instance, self.attempts.earlier(last), self.sent, now);
        }
    }

    /// So many more bytes of the answer have come.
    pub(super) fn read(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// The first piece of an answer has come.
    pub(super) fn began(&mut self, host: &mut impl Host, worker: &mut Worker) {
        if !self.settled && self.status < 300 && !std::mem::replace(&mut self.began, true) {
            let now = host.now();
            worker.saw(host, self.instance, Event::Began, self.sent, now);
        }
    }

    /// The response has ended by itself.
    pub(super) fn ended(&mut self, host: &mut impl Host, worker: &mut Worker, seen: &Observed) {
        let Checkup { status, retry_after, bytes, readable, common, names_ours, .. } = *self;
        let event =
            health::of_answer(&AnswerOutcome { status, retry_after, seen, bytes, readable, common, names_ours });
        self.settle(host, worker, event);
    }

    /// The request is over, however.
    pub(super) fn over(&mut self, host: &mut impl Host, worker: &mut Worker) {
        if !self.settled {
            let details = host.property(&["response", "code_details"]).unwrap_or_default();
            self.settle(host, worker, health::of_interruption(&details));
        }
    }

    fn settle(&mut self, host: &mut impl Host, worker: &mut Worker, event: Event) {
        if !std::mem::replace(&mut self.settled, true) {
            self.judge_earlier(host, worker, event);
            let now = host.now();
            worker.saw(host, self.instance, event, self.sent, now);
        }
    }
}
