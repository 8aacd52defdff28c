//! Evidence that may be the request's fault as well as the instance's, and what contradicts it.

use std::time::Duration;

use super::HealthSettings;

/// Good answers of peers that show that such requests can be served.
const GOOD_AT_PEERS: u8 = 2;
/// How long evidence must stand without one good answer of the instance where peers say nothing. A shorter `max_ejection` counts
/// as this long.
const UNCONTRADICTED: Duration = Duration::from_secs(10);

/// Requests that went wrong at an instance since it last gave a good answer, and what happened to its peers meanwhile.
///
/// Any good answer of the instance ends the case, whenever its request was sent: one request's failure says nothing of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Case {
    /// Requests that went wrong here.
    pub count: u32,
    /// Of those, the ones that other pools serve, too.
    pub common: u32,
    /// When the first of them was seen.
    pub since: Duration,
    /// When the last of them was seen.
    pub last: Duration,
    /// Good answers of the pool's other instances since then.
    pub good_at_peers: u8,
    /// Requests that went wrong in the same way at them.
    pub same_at_peers: u8,
    /// Good answers of other pools.
    pub good_elsewhere: u8,
    /// Requests that went wrong in the same way there.
    pub same_elsewhere: u8,
}

impl Case {
    /// Whether nothing has gone wrong.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether enough has gone wrong just now to ask somebody else first.
    pub(super) fn is_open(&self, now: Duration, settings: &HealthSettings) -> bool {
        self.count >= settings.failures_to_eject && now.saturating_sub(self.last) < settings.base_ejection
    }

    /// One more request went wrong here. What lies further back than an ejection can last is another case.
    pub(super) fn add(&mut self, is_common: bool, now: Duration, settings: &HealthSettings) {
        if self.is_empty() || now.saturating_sub(self.last) > settings.max_ejection.max(UNCONTRADICTED) {
            *self = Case { since: now, ..Case::default() };
        }
        self.count = self.count.saturating_add(1);
        self.common = self.common.saturating_add(u32::from(is_common));
        self.last = now;
    }

    /// A good answer of another instance; whether that is news.
    pub(super) fn good(&mut self, is_peer: bool) -> bool {
        let count = if is_peer { &mut self.good_at_peers } else { &mut self.good_elsewhere };
        let is_news = self.count > 0 && *count < GOOD_AT_PEERS;
        *count = count.saturating_add(u8::from(is_news));
        is_news
    }

    /// The same went wrong at another instance; whether that is news.
    pub(super) fn same(&mut self, is_peer: bool) -> bool {
        let count = if is_peer { &mut self.same_at_peers } else { &mut self.same_elsewhere };
        let is_news = self.count > 0 && *count < u8::MAX;
        *count = count.saturating_add(u8::from(is_news));
        is_news
    }

    /// Whether the pool's other instances serve what goes wrong here: they have given good answers, and the same has not gone wrong
    /// half as often at them, nor at other pools' instances, where a request may have been tried before or next. What fails at two
    /// instances is told of one after the other: where that has been seen, one more may be on its way.
    fn peers_serve(&self) -> bool {
        let same = u32::from(self.same_at_peers).saturating_add(self.same_elsewhere.into());
        let same = same.saturating_add(u32::from(same > 0));
        self.good_at_peers >= GOOD_AT_PEERS && same.saturating_mul(2) < self.count
    }

    /// Whether no instance of the pool serves what other pools do.
    fn others_serve(&self) -> bool {
        self.good_at_peers == 0
            && self.good_elsewhere >= GOOD_AT_PEERS
            && u32::from(self.same_elsewhere).saturating_mul(2) < self.common
    }

    /// Whether refusals make the instance a black hole.
    pub(super) fn is_black_hole(&self, settings: &HealthSettings) -> bool {
        let enough = settings.failures_to_eject;
        (self.count >= enough && self.peers_serve()) || (self.common >= enough && self.others_serve())
    }

    /// Whether failures that may be their requests' are the instance's after all. Peers' answers are worth a back-off's time of doubt,
    /// in which the instance may answer what it has.
    pub(super) fn convicts(&self, now: Duration, settings: &HealthSettings) -> bool {
        let stood = now.saturating_sub(self.since);
        self.count >= settings.failures_to_eject
            && ((self.peers_serve() && stood >= settings.base_ejection)
                || stood >= settings.max_ejection.max(UNCONTRADICTED))
    }
}
