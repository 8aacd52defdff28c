//! What attempts show of their instances, where gateways look: failures and successes, and loads in response headers.

use super::{News, Simulation};
use crate::fault::Reply;
use crate::server::Server;
use routebalance_core::health::{self, Attempts, Event, Failure};
use routebalance_core::openai::{ErrorCause, Observed};
use routebalance_core::telemetry::Load;

impl Simulation<'_> {
    /// The current attempt of a request shows this of its instance, and with it of those that have failed before.
    pub(super) fn saw(&mut self, index: usize, event: Event) {
        if !self.options.health {
            return;
        }
        let now = self.now;
        let Some(flight) = self.flights.get_mut(index).and_then(Option::as_mut) else { return };
        let (Some(gateway), Some(target)) = (self.gateways.get_mut(flight.gateway), flight.target()) else { return };
        let failed = std::mem::take(&mut flight.route.failed);
        let attempts = Attempts { count: failed.len().saturating_add(1) as u64 };
        for earlier in failed.iter().filter(|earlier| **earlier != target) {
            gateway.saw(flight.worker, *earlier, attempts.earlier(event), flight.route.sent, now);
        }
        if !failed.is_empty() {
            // Nobody tells when the last attempt began.
            flight.route.sent = now;
        }
        gateway.saw(flight.worker, target, event, flight.route.sent, now);
    }

    /// The header of a whole answer shows what vLLM says in it: who waits, and the use of the KV cache.
    pub(super) fn glimpse(&mut self, index: usize) {
        if !self.options.header_loads {
            return;
        }
        let Some(flight) = self.flights.get(index).and_then(Option::as_ref) else { return };
        let server = flight.target().and_then(|target| self.servers.get(target.index()));
        let (Some(dispatch), Some(Ok(Some(load)))) = (flight.dispatch, server.map(Server::scraped)) else { return };
        let shown = Load { waiting: load.waiting, kv_use: load.kv_use, ..Load::default() };
        if let Some(gateway) = self.gateways.get_mut(flight.gateway) {
            gateway.glimpse(flight.worker, &dispatch, &shown, self.now);
        }
    }
}

/// What the end of an attempt says against its instance, where no further one is made.
pub(super) fn of_loss(news: News, began: bool) -> Event {
    match news {
        News::NobodyThere => Event::Failed(Failure::Unanswered),
        News::Replied(reply) => of_reply(reply, false),
        _ if began => Event::Suspected(Failure::Truncated),
        _ => Event::Suspected(Failure::Unanswered),
    }
}

/// What a reply says against its instance; `common` if other pools could have answered, too.
pub(super) fn of_reply(reply: Reply, common: bool) -> Event {
    let Some(status) = reply.status() else { return Event::Suspected(Failure::Unanswered) };
    let retry_after = match reply {
        Reply::Error { retry_after, .. } => retry_after,
        Reply::Empty | Reply::ErrorEvent | Reply::Reset => None,
    };
    let is_empty = reply == Reply::Empty;
    let cause = (!is_empty).then_some(ErrorCause::Server);
    let seen = Observed { error_event: !is_empty, error_cause: cause, ended: !is_empty, ..Observed::default() };
    let bytes = u64::from(!is_empty);
    health::of_answer(&health::AnswerOutcome {
        status,
        retry_after,
        seen: &seen,
        bytes,
        readable: true,
        common,
        names_ours: true,
    })
}
