//! Records of large fleets: a record for each place of the writer's fleet, and a head that says which have changed, so that what is written
//! for a change does not grow with the fleet. A worker's counters and a leader's reports are such records; those of small fleets are one,
//! which one read tells whole. Places are taken again, so there are never more rows than a fleet has had instances at once.
//!
//! A row is written before the head that names it. Counters only grow, and a report is replaced by a newer one: a row that is newer than its
//! head harms nobody.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::load::{read_counters, read_report, write_counters, write_report};
use super::{Index, Reader, Sources, Writer, add_counters, decode_reports};
use crate::fleet::InstanceId;
use crate::reckoning::{Counters, InstanceCounters, InstanceReport, Reports};

/// Fleets up to this size have one record. Unit tests draw fleets of few instances, and see both forms.
pub const WHOLE_ROWS_MAX: usize = if cfg!(test) { 3 } else { 32 };
/// How long the head names a row that has changed: readers look at every tick, and may be late.
const NAMED_FOR: Duration = Duration::from_millis(100);
/// Most rows that a head names.
const NAMED_MAX: usize = 64;
/// Most places that are read: a configuration has at most so many instances, and some that have gone.
const PLACES_MAX: u32 = 16_384;
/// What stands in the place of the first row's key in a head.
const HEAD: u32 = 0;
/// Counters belong to no configuration.
const ANY: u64 = 0;

/// What of a record is to be written, and which of its rows were.
#[derive(Clone, Debug, Default)]
pub struct Unwritten {
    /// Whether anything is.
    pub is_due: bool,
    /// Of a large fleet, the rows.
    rows: Vec<InstanceId>,
    /// How many rows were written.
    number: u64,
    /// The places of the last ones, and when.
    recent: VecDeque<(Duration, u32)>,
}

impl Unwritten {
    /// A row has changed, in a fleet of so many places.
    pub fn changed(&mut self, row: InstanceId, places: usize) {
        self.is_due = true;
        if places > WHOLE_ROWS_MAX && !self.rows.contains(&row) {
            self.rows.push(row);
        }
    }

    /// These rows and no others are to be written.
    pub fn rewrite(&mut self, rows: impl IntoIterator<Item = InstanceId>) {
        self.is_due = true;
        self.rows = rows.into_iter().collect();
    }

    /// Writes the rows, each as `write` does; whether all are written.
    pub fn write_rows(&mut self, now: Duration, mut write: impl FnMut(InstanceId) -> bool) -> bool {
        while let Some(row) = self.rows.last().copied() {
            if !write(row) {
                return false;
            }
            self.rows.pop();
            self.number = self.number.wrapping_add(1);
            self.recent.push_back((now, u32::try_from(row.index()).unwrap_or(u32::MAX)));
        }
        let is_old = |(at, _): &(Duration, u32)| now.saturating_sub(*at) > NAMED_FOR;
        while self.recent.len() > NAMED_MAX || self.recent.len() > 1 && self.recent.front().is_some_and(is_old) {
            self.recent.pop_front();
        }
        true
    }

    fn write_head(&self, writer: &mut Writer, places: usize) {
        writer.u64(self.number);
        writer.u32(u32::try_from(places).unwrap_or(u32::MAX));
        self.recent.iter().for_each(|(_, place)| writer.u32(*place));
    }

    /// The head of a worker's counters, which have so many places.
    pub fn counters_head(&self, owner: u64, places: usize) -> Vec<u8> {
        let mut writer = Writer::new(ANY);
        writer.u64(owner);
        writer.u32(HEAD);
        self.write_head(&mut writer, places);
        writer.0
    }

    /// The head of reports, which this worker writes.
    pub fn reports_head(&self, owner: u64, sources: &Sources, places: usize) -> Vec<u8> {
        let mut writer = Writer::new(sources.identity);
        writer.time(sources.period);
        writer.u32(HEAD);
        writer.u64(owner);
        self.write_head(&mut writer, places);
        writer.0
    }
}

/// The counters of the instance with this key as bytes, and whose they are.
pub fn encode_counters_row(counters: &InstanceCounters, key: u32, owner: u64) -> Vec<u8> {
    let mut writer = Writer::new(owner);
    writer.u32(key);
    write_counters(&mut writer, counters);
    writer.0
}

/// The report of the instance with this key as bytes, and of which configuration it is.
pub fn encode_report_row(report: &InstanceReport, key: u32, identity: u64) -> Vec<u8> {
    let mut writer = Writer::new(identity);
    writer.u32(key);
    write_report(&mut writer, report);
    writer.0
}

/// What a head says.
struct Head {
    /// Who writes the rows.
    owner: u64,
    number: u64,
    places: u32,
    recent: Vec<u32>,
}

impl Head {
    fn read(reader: &mut Reader<'_>, owner: u64) -> Option<Head> {
        let (number, places) = (reader.u64()?, reader.u32()?);
        Some(Head { owner, number, places: places.min(PLACES_MAX), recent: reader.rows(Reader::u32)? })
    }

    /// A head of this owner's counters.
    fn of_counters(bytes: &[u8], owner: u64) -> Option<Head> {
        let mut reader = Reader::open(bytes, ANY)?;
        if reader.u64()? != owner || reader.u32()? != HEAD {
            return None;
        }
        Head::read(&mut reader, owner)
    }

    /// A head of this configuration's reports, and how often they come.
    fn of_reports(bytes: &[u8], identity: u64) -> Option<(Head, Duration)> {
        let mut reader = Reader::open(bytes, identity)?;
        let period = reader.time()?;
        if reader.u32()? != HEAD {
            return None;
        }
        let owner = reader.u64()?;
        Some((Head::read(&mut reader, owner)?, period))
    }
}

/// Rows of another worker, as far as they have been read.
#[derive(Clone, Debug)]
struct Followed<T> {
    owner: u64,
    number: u64,
    index: Index,
    rows: T,
}

impl<T> Followed<T> {
    /// Reads the rows that have changed since they were read, or all of them, beginning with `new`, where it is not known which.
    fn follow(&mut self, head: &Head, index: &Index, new: impl FnOnce() -> T, mut read: impl FnMut(&mut T, u32)) {
        let missed = usize::try_from(head.number.wrapping_sub(self.number)).unwrap_or(usize::MAX);
        if self.owner == head.owner && self.index == *index && missed <= head.recent.len() {
            head.recent.iter().rev().take(missed).for_each(|place| read(&mut self.rows, *place));
        } else {
            *self = Followed { owner: head.owner, number: 0, index: index.clone(), rows: new() };
            (0..head.places).for_each(|place| read(&mut self.rows, place));
        }
        self.number = head.number;
    }
}

/// The rows of other workers, as far as they have been read.
#[derive(Clone, Debug, Default)]
pub struct RowsRead {
    /// By slot.
    counters: BTreeMap<usize, Followed<Counters>>,
    /// By place and configuration.
    reports: BTreeMap<(usize, u64), Followed<Arc<Reports>>>,
}

/// Most configurations whose reports are followed: those that have gone are forgotten.
const FOLLOWED_MAX: usize = 64;

impl RowsRead {
    /// Adds a worker's counters to a sum of this fleet's, if they are this owner's; whether they are. `bytes` are what it has written,
    /// and `row` reads the record of a place.
    pub fn add_counters(
        &mut self,
        (slot, owner, bytes): (usize, u64, &[u8]),
        index: &Index,
        sum: &mut Counters,
        row: impl Fn(u32) -> Option<Vec<u8>>,
    ) -> bool {
        let Some(head) = Head::of_counters(bytes, owner) else {
            // Whoever has left, or has another fleet now, has no rows to follow.
            self.counters.remove(&slot);
            return add_counters(bytes, owner, index, sum);
        };
        let new = || Counters::new(index.len());
        let known = self.counters.entry(slot).or_insert_with(|| Followed {
            owner,
            number: 0,
            index: index.clone(),
            rows: new(),
        });
        known.follow(&head, index, new, |counters, place| {
            let read = || {
                let bytes = row(place)?;
                let mut reader = Reader::open(&bytes, owner)?;
                Some((find(&mut reader, index, place)?, read_counters(&mut reader)?))
            };
            if let Some((at, found)) = read()
                && let Some(counters) = counters.get_mut(at)
            {
                *counters = found;
            }
        });
        sum.add(&known.rows);
        true
    }

    /// The reports of a place, if they are this configuration's, in a fleet's order, and where they come from.
    pub fn reports(
        &mut self,
        (place, identity, bytes): (usize, u64, &[u8]),
        index: &Index,
        row: impl Fn(u32) -> Option<Vec<u8>>,
    ) -> Option<(Arc<Reports>, Sources)> {
        let Some((head, period)) = Head::of_reports(bytes, identity) else {
            let (reports, sources) = decode_reports(bytes, identity, index)?;
            return Some((Arc::new(reports), sources));
        };
        if self.reports.len() >= FOLLOWED_MAX && !self.reports.contains_key(&(place, identity)) {
            self.reports.clear();
        }
        let new = || Arc::new(Reports(vec![InstanceReport::default(); index.len()]));
        let known = self.reports.entry((place, identity)).or_insert_with(|| Followed {
            owner: head.owner,
            number: 0,
            index: index.clone(),
            rows: new(),
        });
        known.follow(&head, index, new, |reports, place| {
            let read = || {
                let bytes = row(place)?;
                let mut reader = Reader::open(&bytes, identity)?;
                Some((find(&mut reader, index, place)?, read_report(&mut reader)?))
            };
            if let Some((at, found)) = read()
                && let Some(report) = Arc::make_mut(reports).get_mut(at)
            {
                *report = found;
            }
        });
        Some((known.rows.clone(), Sources { identity, period }))
    }
}

/// The instance whose key a row begins with. `place` is where a writer with the same fleet has it.
fn find(reader: &mut Reader<'_>, index: &Index, place: u32) -> Option<InstanceId> {
    index.find(reader.u32()?, usize::try_from(place).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::{Board, Bytes, Key};
    use super::*;
    use crate::config::Config;
    use crate::fleet::InstanceId;
    use crate::random::Random;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn index() -> Index {
        let config = Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap();
        Index::from_fleet(&config.fleet)
    }

    /// A reader that looks now and then has what the writer has, whoever wrote under the slot before.
    #[test]
    fn who_reads_now_and_then_has_what_was_written() {
        let index = index();
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let (mut board, mut read) = (Bytes::default(), RowsRead::default());
            for owner in 1..4 {
                let (mut counters, mut unwritten) = (Counters::new(index.len()), Unwritten::default());
                let mut now = Duration::from_secs(owner);
                for _ in 0..random.below(200) {
                    now += Duration::from_millis(random.below(30) as u64);
                    let i = InstanceId::new(random.below(index.len()));
                    counters.get_mut(i).unwrap().dispatched_requests += 1;
                    counters.get_mut(i).unwrap().last_dispatch = now;
                    unwritten.changed(i, WHOLE_ROWS_MAX + 1);
                    board.write_counters_rows(3, owner, &counters, &index, (&mut unwritten, now));
                    if random.below(20) == 0 {
                        let (bytes, mut sum) = (board.read(Key::Counters(3)).0.unwrap(), Counters::new(index.len()));
                        let row = |row| board.read(Key::CountersRow(3, row)).0;
                        assert!(read.add_counters((3, owner, &bytes), &index, &mut sum, row));
                        assert_eq!(sum, counters, "{seed}");
                        assert!(!read.add_counters((3, owner + 1, &bytes), &index, &mut sum, row), "another owner's");
                        let mut anew = Counters::new(index.len());
                        assert!(board.add_counters(3, owner, &index, &mut anew));
                        assert_eq!(anew, counters, "{seed}");
                    }
                }
            }
        }
    }

    /// What a request costs others to be told does not grow with the fleet.
    #[test]
    fn a_change_is_told_in_few_bytes() {
        let (mut unwritten, mut bytes) = (Unwritten::default(), 0);
        for number in 0..1_000_u64 {
            // 200 requests per second over 8 workers, each told twice.
            let now = Duration::from_millis(20 * number);
            unwritten.changed(InstanceId::new(0), 4_096);
            unwritten.write_rows(now, |_| true);
            bytes += encode_counters_row(&InstanceCounters::default(), 7, 7).len();
            bytes += unwritten.counters_head(7, 4_096).len();
        }
        assert!(bytes / 1_000 <= 140, "{}", bytes / 1_000);
    }

    #[test]
    fn reports_are_followed_over_a_change_of_the_leader() {
        let index = index();
        let (mut board, mut read) = (Bytes::default(), RowsRead::default());
        let sources = Sources { identity: 9, period: Duration::from_secs(1) };
        let mut now = Duration::from_secs(1);
        let mut random = Random::new(3);
        for owner in 1..4 {
            let (mut reports, mut unwritten) =
                (Reports(vec![InstanceReport::default(); index.len()]), Unwritten::default());
            unwritten.rewrite((0..index.len()).map(InstanceId::new));
            for _ in 0..100 {
                now += Duration::from_millis(random.below(60) as u64);
                let i = InstanceId::new(random.below(index.len()));
                reports.get_mut(i).unwrap().at = Some(now);
                unwritten.changed(i, WHOLE_ROWS_MAX + 1);
                assert!(board.write_report_rows((2, owner), &reports, &sources, &index, (&mut unwritten, now)));
                let bytes = board.read(Key::Reports(2)).0.unwrap();
                let row = |row| board.read(Key::ReportRow(2, row)).0;
                let seen = || (Arc::new(reports.clone()), sources.clone());
                if random.below(5) == 0 {
                    assert_eq!(read.reports((2, 9, &bytes), &index, row), Some(seen()));
                }
                assert_eq!(board.reports(2, 9, &index), Some(seen()), "who reads for the first time");
                assert_eq!(board.reports(2, 8, &index), None, "another configuration's");
            }
        }
    }

    #[test]
    fn what_is_broken_is_no_counters() {
        let index = index();
        let mut unwritten = Unwritten::default();
        unwritten.changed(InstanceId::new(1), 4_096);
        unwritten.write_rows(Duration::ZERO, |_| true);
        let head = unwritten.counters_head(7, 4_096);
        for end in 0..head.len() {
            let mut sum = Counters::new(index.len());
            RowsRead::default().add_counters((0, 7, &head[..end]), &index, &mut sum, |_| Some(vec![1, 2, 3]));
            assert_eq!(sum, Counters::new(index.len()), "{end}");
        }
    }
}
