//! Whether the host holds a request's headers while the gateway waits for the body.
//!
//! Envoy does where the plugin says `allow_on_headers_stop_iteration`. Elsewhere a pause at the headers stops the body as well, and the
//! request would wait for ever. There the headers go on, a buffer filter holds them behind this one, and what the decision writes into
//! them follows as filter state. Nobody tells a filter which of the two it has, so the first requests do: where the headers are held, the
//! body comes by itself; where they are not, it comes at once when the request is let go on.

use std::time::Duration;

use super::{Flow, Gateway, Host, Phase};
use crate::router::{Refusal, RefusalReason, UntouchedReason};

/// How long the first requests wait for their bodies.
const PATIENCE: Duration = Duration::from_millis(250);
/// A body that comes within this time of the headers' going on was kept back by the host.
const AT_ONCE: Duration = Duration::from_millis(20);
/// Time after which what was found out may be doubted.
const DOUBT_AFTER: Duration = Duration::from_secs(60);

/// What is known of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// Nothing yet.
    Unknown,
    /// It holds the headers.
    Held,
    /// It lets them go on, known since this time.
    GoOn(Duration),
}

/// What becomes of the headers of requests that wait for their bodies.
#[derive(Debug)]
pub struct Passage {
    finding: Finding,
    /// Whether the configuration says it.
    is_said: bool,
    /// Requests whose headers are held since these times, and which have no body yet.
    held: Vec<(u32, Duration)>,
    /// Those that were let go on at these times, and which have no body yet.
    let_go: Vec<(u32, Duration)>,
}

impl Passage {
    /// A host of which nothing is known, or of which the configuration says that headers go on.
    pub fn new(headers_go_on: bool) -> Passage {
        let finding = if headers_go_on { Finding::GoOn(Duration::ZERO) } else { Finding::Unknown };
        Passage { finding, is_said: headers_go_on, held: Vec::new(), let_go: Vec::new() }
    }

    /// A request waits for its body: whether its headers go on meanwhile.
    pub fn waits(&mut self, id: u32, now: Duration) -> bool {
        if self.finding == Finding::Unknown {
            self.held.push((id, now));
        }
        matches!(self.finding, Finding::GoOn(_))
    }

    /// A body comes.
    pub fn body_comes(&mut self, id: u32, now: impl FnOnce() -> Duration) {
        if self.finding == Finding::Unknown {
            if self.held.iter().any(|(other, _)| *other == id) {
                self.finding = Finding::Held;
                self.held.clear();
            } else if let Some((_, at)) = self.let_go.iter().find(|(other, _)| *other == id) {
                let (at, now) = (*at, now());
                let is_at_once = now.saturating_sub(at) <= AT_ONCE;
                self.finding = if is_at_once { Finding::GoOn(now) } else { Finding::Unknown };
            }
        }
    }

    /// Requests that have waited too long, while nobody knows for what: they are to be let go on, now.
    pub fn overdue(&mut self, now: Duration) -> Vec<u32> {
        if self.held.is_empty() {
            return Vec::new();
        }
        let is_known = self.headers_go_on();
        let is_overdue = |since: Duration| is_known || now.saturating_sub(since) >= PATIENCE;
        let (overdue, held): (Vec<_>, Vec<_>) = self.held.iter().partition(|(_, since)| is_overdue(*since));
        self.held = held;
        self.let_go.extend(overdue.iter().map(|(id, _)| (*id, now)));
        overdue.into_iter().map(|(id, _)| id).collect()
    }

    /// The headers of a request have gone on, and nobody has held them. Where that was found out and not said, it is found out anew.
    pub fn nobody_holds(&mut self, now: Duration) {
        if let Finding::GoOn(since) = self.finding
            && !self.is_said
            && now.saturating_sub(since) >= DOUBT_AFTER
        {
            self.finding = Finding::Unknown;
        }
    }

    /// A request is over.
    pub fn ends(&mut self, id: u32) {
        self.held.retain(|(other, _)| *other != id);
        self.let_go.retain(|(other, _)| *other != id);
    }

    /// Whether headers go on.
    pub fn headers_go_on(&self) -> bool {
        matches!(self.finding, Finding::GoOn(_))
    }
}

impl Gateway {
    /// Whether a request waits for more of its body.
    pub fn awaits_body(&self, id: u32) -> bool {
        use Phase::{Answering, Feedback, Probing, Reading};
        matches!(self.phase(id), Reading(_) | Probing(_) | Feedback(_) | Answering(_)) && !self.is_received(id)
    }

    /// The headers of a request have reached Envoy's router, or nobody will write into them: a decision would come too late. It goes where
    /// Envoy has sent it, unless that passes a policy's limits by.
    pub fn on_headers_gone(&mut self, host: &mut impl Host, id: u32) -> Flow {
        let Phase::Reading(reading) = self.phase(id) else { return Flow::Pause };
        let api = reading.api;
        if reading.subset.is_some() || self.refuses_unread(host) {
            let message = "The gateway's filters are not complete, and this request's limits cannot be kept.";
            return self.refuse(host, id, Some(api), &Refusal::new(503, RefusalReason::HeadersGone, message));
        }
        self.leave(host, id, api, UntouchedReason::HeadersGone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_body_that_comes_by_itself_says_that_headers_are_held() {
        let mut passage = Passage::new(false);
        assert!(!passage.waits(1, ms(0)) && !passage.waits(2, ms(10)));
        passage.body_comes(1, || ms(200));
        // A slow client is waited for from now on.
        assert!(passage.overdue(ms(10_000)).is_empty() && !passage.headers_go_on() && !passage.waits(3, ms(10_001)));
    }

    #[test]
    fn a_body_that_comes_when_the_request_goes_on_says_that_they_are_not() {
        let mut passage = Passage::new(false);
        passage.waits(1, ms(0));
        passage.waits(2, ms(100));
        assert_eq!((passage.overdue(ms(249)), passage.overdue(ms(250))), (vec![], vec![1]));
        passage.body_comes(1, || ms(251));
        assert!(passage.headers_go_on() && passage.waits(3, ms(260)));
        // The one that still waits is let go on with the next tick.
        assert_eq!((passage.overdue(ms(260)), passage.overdue(ms(261))), (vec![2], vec![]));
    }

    #[test]
    fn a_client_that_is_slow_at_the_start_says_nothing() {
        let mut passage = Passage::new(false);
        passage.waits(1, ms(0));
        assert_eq!(passage.overdue(ms(300)), [1]);
        passage.body_comes(1, || ms(900));
        assert!(!passage.headers_go_on());
        passage.waits(2, ms(1_000));
        passage.ends(2);
        assert!(passage.overdue(ms(9_000)).is_empty());
    }

    #[test]
    fn what_was_found_out_is_doubted_after_a_while_and_what_is_said_never() {
        for (is_said, later, goes_on) in [(false, 59, true), (false, 61, false), (true, 61, true)] {
            let mut passage = Passage::new(is_said);
            passage.waits(1, ms(0));
            passage.overdue(ms(300));
            passage.body_comes(1, || ms(301));
            passage.nobody_holds(Duration::from_secs(later).saturating_add(ms(301)));
            assert_eq!(passage.headers_go_on(), goes_on, "{is_said} {later}");
        }
    }
}
