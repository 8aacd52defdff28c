//! Attempts that come to nothing, as the gateway sees them: replies that are no answers, requests that are the suspect, limits of time.

use super::{News, Simulation, judging};
use crate::fault::Reply;
use crate::outcome::End;
use routebalance_core::fleet::InstanceId;
use routebalance_core::health::{self, Suspect};

/// Envoy's words where the time of a whole answer is over.
const OVER: &str = "response_timeout";
/// The status of an answer whose time is over.
const GATEWAY_TIMEOUT: u16 = 504;
/// The status of a request that two instances have broken off.
const BAD_GATEWAY: u16 = 502;

impl Simulation<'_> {
    /// What an instance says to a request at once, if it does.
    pub(super) fn reply(&self, index: usize, instance: InstanceId) -> Option<Reply> {
        let arrival = self.workload.arrivals.get(index)?;
        self.servers.get(instance.index())?.reply(&arrival.manner)
    }

    /// The current attempt has got a reply: Envoy tries another instance where the status makes it do so, and else it is the client's.
    pub(super) fn replied(&mut self, index: usize, reply: Reply) {
        match reply.status() {
            None => self.lose(index, News::Lost),
            Some(status) if Suspect::STATUSES.contains(&status) => self.lose(index, News::Replied(reply)),
            Some(status) => {
                self.saw(index, judging::of_reply(reply, self.names_no_model(index)));
                self.end(index, End::Failed { status });
            }
        }
    }

    /// Whether a request leaves its model to the router.
    fn names_no_model(&self, index: usize) -> bool {
        let template = self.outcomes.get(index).and_then(|outcome| self.workload.templates.get(outcome.template));
        template.is_some_and(|template| self.router.config().names_no_model(template.prompt.model.as_deref()))
    }

    /// The current attempt was lost: whether the request is the reason, by all that the gateway has seen of its attempts. It does not
    /// see the first one, and who had no connection has not had the request.
    pub(super) fn is_suspect(&mut self, index: usize, news: News) -> bool {
        let is_seen = self.options.sees_attempts;
        let Some(flight) = self.flight(index).filter(|_| is_seen) else { return false };
        if flight.attempt > 0 && news != News::NobodyThere {
            flight.route.suspect.failed();
        }
        flight.route.suspect.is_certain(flight.route.first_is_silent)
    }

    /// How a request ends whose last attempt was lost like this.
    pub(super) fn end_of_loss(&self, index: usize, news: News, is_suspect: bool) -> End {
        match news {
            News::Replied(reply) => End::Failed { status: reply.status().unwrap_or(BAD_GATEWAY) },
            _ if is_suspect => End::Failed { status: BAD_GATEWAY },
            _ => End::Unserved { healthy_peer: self.has_healthy_peer(index) },
        }
    }

    /// Another attempt of a request begins.
    pub(super) fn see_attempt(&mut self, index: usize) {
        let now = self.now;
        let Some(flight) = self.flights.get_mut(index).and_then(Option::as_mut) else { return };
        let (Some(gateway), Some(target)) = (self.gateways.get_mut(flight.gateway), flight.target()) else { return };
        if let Some(asking) = &mut flight.route.asking {
            asking.moved(target, now);
        }
        if !self.options.sees_attempts {
            return;
        }
        if let (1, Some(first)) = (flight.attempt, flight.route.targets.first()) {
            flight.route.first_is_silent = gateway.is_silent(flight.worker, *first, now);
        }
        if let Some(dispatch) = flight.dispatch.as_mut() {
            gateway.move_to(flight.worker, dispatch, target, now);
        }
    }

    /// The time of a whole answer is over, of whose instance no report says that it works.
    pub(super) fn expire(&mut self, index: usize) {
        self.saw(index, health::of_silence(OVER));
        self.end(index, End::Failed { status: GATEWAY_TIMEOUT });
    }

    /// Nobody is left to be asked for a whole answer, and its time is over: nobody's answer is judged.
    pub(super) fn end_stuck(&mut self, index: usize) {
        self.end(index, End::Failed { status: GATEWAY_TIMEOUT });
    }
}
