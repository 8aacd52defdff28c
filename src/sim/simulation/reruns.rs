//! Whole answers that another instance is asked for because theirs is stuck: the gateway's part, by the rules of [`routebalance_core::health`].

use std::sync::Arc;
use std::time::Duration;

use super::{ATTEMPTS, Flight, Happening, News, Simulation, job_id};
use crate::engine::Job;
use crate::outcome::End;
use routebalance_core::fleet::InstanceId;
use routebalance_core::health::{self, Event, Records};
use routebalance_core::reckoning::Reports;

impl Simulation<'_> {
    /// Whether nothing is to be expected of what an instance was asked at this time.
    fn is_stuck(&self, instance: InstanceId, at: Duration, (reports, records): &(Arc<Reports>, Arc<Records>)) -> bool {
        let key = self.router.config().fleet.instance(instance).map(|instance| instance.key);
        key.is_some_and(|key| records.is_stuck(key, reports.get(instance), at))
    }

    /// Looks for whole answers whose instances are stuck, as every worker does for its own requests.
    pub(super) fn look_for_stuck(&mut self) {
        let waiting = self.open_where(|flight| flight.route.asking.is_some());
        for index in waiting {
            let Some(flight) = self.flights.get(index).and_then(Option::as_ref) else { continue };
            let known = self.gateways.get(flight.gateway).and_then(|gateway| gateway.stuck(flight.worker));
            let (Some(known), Some(asking)) = (known, &flight.route.asking) else { continue };
            if asking.is_stuck(|instance, at| self.is_stuck(instance, at, &known)) {
                self.ask_next(index, &known);
            }
        }
    }

    /// Asks the next instance that is not stuck itself; where there is none and the request has had its time, it ends.
    fn ask_next(&mut self, index: usize, known: &(Arc<Reports>, Arc<Records>)) {
        let now = self.now;
        let limit = self.router.config().health.answer_limit;
        let Some(mut asking) = self.flight(index).and_then(|flight| flight.route.asking.take()) else { return };
        let next = asking.next(|instance, at| self.is_stuck(instance, at, known));
        let is_over = next.is_none() && asking.is_over(limit, now);
        if let Some(instance) = next {
            let reruns = self.outcomes.get_mut(index).map_or(0, |outcome| {
                outcome.reruns = outcome.reruns.saturating_add(1);
                outcome.reruns
            });
            // Envoy counts its own attempts from below.
            let attempt = (ATTEMPTS as usize).saturating_sub(reruns);
            asking.ask(instance, now, attempt);
            self.carry(index, instance);
            self.after_network(Happening::Rerun { flight: index, attempt, instance });
        }
        if let Some(flight) = self.flight(index) {
            flight.route.asking = Some(asking);
        }
        if is_over {
            self.end_stuck(index);
        }
    }

    /// A call of the gateway is at its instance, and asks for that one's model.
    pub(super) fn reach_by_call(&mut self, index: usize, attempt: usize, instance: InstanceId) {
        let model = self.router.config().fleet.pool_of(instance).map(|(_, pool)| pool.model);
        let template = self.outcomes.get(index).and_then(|outcome| self.workload.templates.get(outcome.template));
        let output_tokens = template.zip(model).and_then(|(t, m)| t.output_tokens.get(m.index())).copied();
        let Some(flight) = self.flights.get(index).and_then(Option::as_ref) else { return };
        let output_tokens = output_tokens.unwrap_or(flight.route.job.output_tokens);
        let job = Job { id: job_id(index, attempt), output_tokens, ..flight.route.job };
        self.deliver((index, attempt), instance, job);
    }

    /// The calls to an instance break off.
    pub(super) fn break_calls_off(&mut self, instance: InstanceId) {
        if !self.options.reruns {
            return;
        }
        for index in self.open_where(|flight| flight.route.asking.is_some()) {
            let asking = self.flight(index).and_then(|flight| flight.route.asking.as_ref());
            let to_it = asking.and_then(|asking| asking.asked().iter().find(|asked| asked.instance == instance)?.call);
            if let Some(attempt) = to_it {
                self.after_network(Happening::Hear { flight: index, attempt, news: News::Lost });
            }
        }
    }

    /// The load of a request goes with it.
    fn carry(&mut self, index: usize, instance: InstanceId) {
        let now = self.now;
        let Some(flight) = self.flights.get_mut(index).and_then(Option::as_mut) else { return };
        if let (Some(gateway), Some(dispatch)) = (self.gateways.get_mut(flight.gateway), flight.dispatch.as_mut()) {
            gateway.move_to(flight.worker, dispatch, instance, now);
        }
    }

    /// News of an attempt that is not Envoy's current one: of one that the gateway has made, or of one that is over.
    pub(super) fn hear_of_rerun(&mut self, index: usize, attempt: usize, news: News) {
        let (gateway, worker, asked) = {
            let Some(flight) = self.flight(index) else { return };
            let Some(asking) = flight.route.asking.as_mut().filter(|_| news != News::FirstToken) else { return };
            let Some(asked) = asking.ended(attempt) else { return };
            (flight.gateway, flight.worker, asked)
        };
        let now = self.now;
        let event = match news {
            News::Finished => None,
            News::Replied(reply) => health::of_call(reply.status().unwrap_or(0), None),
            News::TooLong => Some(Event::Refused { common: true }),
            News::FirstToken | News::NobodyThere | News::Lost => health::of_call(0, None),
        };
        if let Some(event) = event {
            // Another one is asked at the next look, unless Envoy's own attempt goes on.
            if let Some(gateway) = self.gateways.get_mut(gateway) {
                gateway.saw(worker, asked.instance, event, asked.at, now);
            }
            return;
        }
        // Envoy gives its own attempt up. What stood still before is known.
        self.withdraw(index);
        self.carry(index, asked.instance);
        let Some(flight) = self.flight(index) else { return };
        served_by(flight, asked.instance, asked.at);
        self.ask_model_of(index, Some(asked.instance));
        let end = match news {
            News::Replied(reply) => End::Failed { status: reply.status().unwrap_or(0) },
            _ => {
                self.saw(index, Event::Began);
                self.saw(index, Event::Succeeded);
                End::Answered
            }
        };
        self.end(index, end);
    }
}

/// The answer is one that the gateway has asked this instance for.
fn served_by(flight: &mut Flight, instance: InstanceId, at: Duration) {
    flight.route.failed.clear();
    flight.route.sent = at;
    flight.route.targets = vec![instance];
}
