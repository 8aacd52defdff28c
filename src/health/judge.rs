//! What a response says of the instance that sent it, or did not.

use super::{Event, Failure};
use crate::openai::Observed;

/// Statuses of a server that has too much to do.
const BUSY: [u16; 2] = [429, 503];

/// What the head of a response shows: its status, and in Envoy's words (`response.code_details`) who wrote it. `None` is not yet a
/// success.
pub fn of_head(status: u16, details: &str) -> Option<Failure> {
    if details.is_empty() || details.starts_with("via_upstream") {
        return match status {
            status if BUSY.contains(&status) => Some(Failure::Busy),
            500..=599 => Some(Failure::Status),
            _ => None,
        };
    }
    // Envoy's own answer. Nothing was sent where its limits or its list of hosts stood in the way.
    (details.starts_with("upstream_") && !details.contains("overflow")).then_some(Failure::Unanswered)
}

/// How many endpoints in their order have failed before the one that answered: Envoy tries each once, the first one first.
pub fn failed_attempts(attempts: u64, endpoints: usize) -> usize {
    usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX).min(endpoints)
}

/// What a response of this status shows that has ended by itself. `readable` is false where its body could not be read, and nothing
/// is known of its end.
pub fn of_answer(status: u16, seen: &Observed, readable: bool) -> Event {
    if status != 200 {
        return Event::Unjudged;
    }
    if seen.error_event {
        return match seen.error_code {
            Some(code) if BUSY.contains(&code) => Event::Failed(Failure::Busy),
            Some(400..=499) => Event::Unjudged,
            _ => Event::Failed(Failure::ErrorEvent),
        };
    }
    if readable && !seen.ended { Event::Failed(Failure::Truncated) } else { Event::Succeeded }
}

/// What a response shows that was broken off: Envoy's words tell whether the client or the instance did it.
pub fn of_interruption(details: &str) -> Event {
    if details.starts_with("upstream_") { Event::Failed(Failure::Truncated) } else { Event::Unjudged }
}
