//! What a response says of the instance that sent it, or did not.

use std::time::Duration;

use super::{Event, Failure};
use crate::openai::{ErrorCause, Observed};

/// Statuses of a server that has too much to do; 529 is Anthropic's.
const BUSY: [u16; 3] = [429, 503, 529];
/// Statuses of 5xx that speak of the request: it asks for what is not there.
const NOT_IMPLEMENTED: [u16; 2] = [501, 505];
/// Statuses of 4xx that speak of neither side's fault: too slow, or gone.
const UNDECIDED: [u16; 2] = [408, 499];

/// How an answer has ended that came from an instance.
#[derive(Clone, Copy, Debug)]
pub struct AnswerOutcome<'a> {
    /// Its status.
    pub status: u16,
    /// What `Retry-After` says.
    pub retry_after: Option<Duration>,
    /// What its body has told.
    pub seen: &'a Observed,
    /// Bytes of its body.
    pub bytes: u64,
    /// False where the body could not be read, and nothing is known of its end.
    pub readable: bool,
    /// Whether another pool could have answered the request: it left the model to the filter.
    pub common: bool,
    /// Whether the filter has written the model's name, and nothing else in the request names what may not be there.
    pub names_ours: bool,
}

/// What `Retry-After` says: seconds, with a fraction or not. A date would need a clock that agrees with the server's.
pub fn retry_after(value: &str) -> Option<Duration> {
    value.trim().parse().ok().and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok())
}

/// Whose fault the earlier attempts of a request were. Envoy hides why it has tried again; what became of the last attempt tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// How many there were.
    pub count: u64,
}

impl Attempts {
    /// How many endpoints in their order have failed before the one that answered: Envoy tries each once, the first one first.
    pub fn failed(self, endpoints: usize) -> usize {
        usize::try_from(self.count.saturating_sub(1)).unwrap_or(usize::MAX).min(endpoints)
    }

    /// What the earlier attempts show, given what the last one does. A peer that serves the request leaves no doubt; one that fails
    /// alike makes the request the suspect.
    pub fn earlier(self, last: Event) -> Event {
        match last {
            Event::Succeeded | Event::Began | Event::Busy(_) | Event::Limited(_) | Event::Failed(_) => {
                Event::Failed(Failure::Unanswered)
            }
            Event::Suspected(_) => Event::Suspected(Failure::Unanswered),
            Event::Refused { .. } | Event::Resumed | Event::Unjudged => Event::Unjudged,
        }
    }
}

/// A request that instances fail at, each in turn. Where two have, it is the suspect, and no third one is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspect {
    /// Instances, after the first one, that had the request and have answered with an error or broken it off.
    failures: u32,
}

impl Suspect {
    /// Statuses that Envoy tries again at another instance.
    pub const STATUSES: [u16; 2] = [500, 502];

    /// One more instance that had the request has failed.
    pub fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// Whether no other instance is to be asked. `first_is_silent` says that the first attempt, whose end nobody has seen, met an instance
    /// that answers nobody at the moment: else it has failed like the others.
    pub fn is_certain(self, first_is_silent: bool) -> bool {
        self.failures > 0 && self.failures.saturating_add(u32::from(!first_is_silent)) >= 2
    }
}

/// What an answer shows that has ended by itself.
pub fn of_answer(outcome: &AnswerOutcome<'_>) -> Event {
    let AnswerOutcome { status, retry_after, seen, .. } = *outcome;
    let cause = seen.error_cause;
    match status {
        200..=299 => of_success(outcome),
        _ if BUSY.contains(&status) || (status >= 400 && cause == Some(ErrorCause::Busy)) => Event::Busy(retry_after),
        _ if NOT_IMPLEMENTED.contains(&status) || UNDECIDED.contains(&status) => Event::Unjudged,
        404 if outcome.names_ours => Event::Refused { common: true },
        400..=499 => Event::Refused { common: outcome.common },
        500..=599 if cause == Some(ErrorCause::Client) => Event::Unjudged,
        500..=599 => Event::Suspected(Failure::Status),
        _ => Event::Unjudged,
    }
}

fn of_success(outcome: &AnswerOutcome<'_>) -> Event {
    let AnswerOutcome { status, retry_after, seen, bytes, readable, .. } = *outcome;
    if seen.error_event {
        return match seen.error_cause {
            Some(ErrorCause::Busy) => Event::Busy(retry_after),
            Some(ErrorCause::Client) => Event::Unjudged,
            Some(ErrorCause::Server) | None => Event::Suspected(Failure::ErrorEvent),
        };
    }
    let is_cut = readable && !seen.ended;
    if status == 200 && (is_cut || bytes == 0) { Event::Suspected(Failure::Truncated) } else { Event::Succeeded }
}

/// What Envoy's own answer shows, by its words (`response.code_details`), where no instance has answered.
pub fn of_silence(details: &str) -> Event {
    // Nothing was sent where its limits or its list of hosts stood in the way.
    if !details.starts_with("upstream_") || details.contains("overflow") {
        return Event::Unjudged;
    }
    if is_refused_connection(details) {
        Event::Failed(Failure::Unanswered)
    } else {
        Event::Suspected(Failure::Unanswered)
    }
}

/// Whether Envoy's words say that there was no connection, which no request can bring about.
fn is_refused_connection(details: &str) -> bool {
    ["connection_failure", "connection_timeout"].iter().any(|words| details.contains(words))
}

/// What a response shows that was broken off: Envoy's words tell whether the client or the instance did it.
pub fn of_interruption(details: &str) -> Event {
    if details.starts_with("upstream_") { Event::Suspected(Failure::Truncated) } else { Event::Unjudged }
}
