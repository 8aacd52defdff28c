//! A worker's counters where a fleet is large: a record for each place of the worker's fleet, and a head that says which have changed, so
//! that what is written for a request does not grow with the fleet. Places are taken again, so there are never more records than a fleet has
//! had instances at once.
//!
//! A row is written before the head that names it, and counters only grow: a row that is newer than its head harms nobody.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::load::{read_counters, write_counters};
use super::{Index, Reader, Writer, add_counters};
use crate::reckoning::{Counters, InstanceCounters};

/// Fleets up to this size have their counters in one record: one read tells all.
pub const WHOLE_ROWS_MAX: usize = 32;
/// How long the head names a row that has changed: readers look at every tick, and may be late.
const NAMED_FOR: Duration = Duration::from_millis(100);
/// Most rows that a head names.
const NAMED_MAX: usize = 64;
/// Most places that are read: a configuration has at most so many instances, and some that have gone.
const PLACES_MAX: u32 = 16_384;
/// What stands in the place of the first row's key in a head.
const HEAD: u32 = 0;
/// Rows belong to no configuration.
const ANY: u64 = 0;

/// The rows that a worker has written, for its head.
#[derive(Clone, Debug, Default)]
pub struct RowsWritten {
    /// How many there were.
    number: u64,
    /// The places of the last ones, and when.
    recent: VecDeque<(Duration, u32)>,
}

impl RowsWritten {
    /// The row of a place was written.
    pub fn push(&mut self, place: usize, now: Duration) {
        self.number = self.number.wrapping_add(1);
        self.recent.push_back((now, u32::try_from(place).unwrap_or(u32::MAX)));
        let is_old = |(at, _): &(Duration, u32)| now.saturating_sub(*at) > NAMED_FOR;
        while self.recent.len() > NAMED_MAX || self.recent.len() > 1 && self.recent.front().is_some_and(is_old) {
            self.recent.pop_front();
        }
    }

    /// The head of a worker's rows, of which there are so many.
    pub fn encode(&self, owner: u64, places: usize) -> Vec<u8> {
        let mut writer = Writer::new(ANY);
        writer.u64(owner);
        writer.u32(HEAD);
        writer.u64(self.number);
        writer.u32(u32::try_from(places).unwrap_or(u32::MAX));
        self.recent.iter().for_each(|(_, place)| writer.u32(*place));
        writer.0
    }
}

/// The counters of the instance with this key as bytes, and whose they are.
pub fn encode_row(counters: &InstanceCounters, key: u32, owner: u64) -> Vec<u8> {
    let mut writer = Writer::new(ANY);
    writer.u64(owner);
    writer.u32(key);
    write_counters(&mut writer, counters);
    writer.0
}

/// A row of this owner's: the instance's key and counters.
fn decode_row(bytes: &[u8], owner: u64) -> Option<(u32, InstanceCounters)> {
    let mut reader = Reader::open(bytes, ANY)?;
    if reader.u64()? != owner {
        return None;
    }
    Some((reader.u32()?, read_counters(&mut reader)?))
}

/// What a head says.
struct Head {
    number: u64,
    places: u32,
    recent: Vec<u32>,
}

/// A head of this owner's.
fn decode_head(bytes: &[u8], owner: u64) -> Option<Head> {
    let mut reader = Reader::open(bytes, ANY)?;
    if reader.u64()? != owner || reader.u32()? != HEAD {
        return None;
    }
    let (number, places) = (reader.u64()?, reader.u32()?);
    Some(Head { number, places: places.min(PLACES_MAX), recent: reader.rows(Reader::u32)? })
}

/// The counters of other workers whose fleets are large, as far as they have been read.
#[derive(Clone, Debug, Default)]
pub struct RowsRead(BTreeMap<usize, Followed>);

/// One worker's.
#[derive(Clone, Debug)]
struct Followed {
    owner: u64,
    number: u64,
    index: Index,
    counters: Counters,
}

impl RowsRead {
    /// Adds a worker's counters to a sum of this fleet's, if they are this owner's; whether they are. `bytes` are what it has written,
    /// and `row` reads the record of a place: of those that have changed, or of all where it is not known which.
    pub fn add(
        &mut self,
        (slot, owner, bytes): (usize, u64, &[u8]),
        index: &Index,
        sum: &mut Counters,
        row: impl Fn(u32) -> Option<Vec<u8>>,
    ) -> bool {
        let Some(Head { number, places, recent }) = decode_head(bytes, owner) else {
            return add_counters(bytes, owner, index, sum);
        };
        let new = || Followed { owner, number: 0, index: index.clone(), counters: Counters::new(index.len()) };
        let known = self.0.entry(slot).or_insert_with(new);
        let is_same = known.owner == owner && known.index == *index;
        let missed = usize::try_from(number.wrapping_sub(known.number)).unwrap_or(usize::MAX);
        let is_followed = is_same && missed <= recent.len();
        if !is_followed {
            *known = new();
        }
        let mut read = |place: u32| {
            let found = row(place).and_then(|bytes| decode_row(&bytes, owner));
            let Some((key, counters)) = found else { return };
            let at = index.find(key, usize::try_from(place).unwrap_or(usize::MAX));
            if let Some(known) = at.and_then(|at| known.counters.get_mut(at)) {
                *known = counters;
            }
        };
        if is_followed {
            recent.iter().rev().take(missed).for_each(|place| read(*place));
        } else {
            (0..places).for_each(read);
        }
        known.number = number;
        sum.add(&known.counters);
        true
    }
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
                let (mut counters, mut written) = (Counters::new(index.len()), RowsWritten::default());
                let mut now = Duration::from_secs(owner);
                for _ in 0..random.below(200) {
                    now += Duration::from_millis(random.below(30) as u64);
                    let i = InstanceId::new(random.below(index.len()));
                    counters.get_mut(i).unwrap().dispatched_requests += 1;
                    counters.get_mut(i).unwrap().last_dispatch = now;
                    board.write_rows(3, owner, &counters, &index, (&[i], &mut written, now));
                    if random.below(20) == 0 {
                        let (bytes, mut sum) = (board.read(Key::Counters(3)).0.unwrap(), Counters::new(index.len()));
                        let row = |place| board.read(Key::Row(3, place)).0;
                        assert!(read.add((3, owner, &bytes), &index, &mut sum, row));
                        assert_eq!(sum, counters, "{seed}");
                        assert!(!read.add((3, owner + 1, &bytes), &index, &mut sum, row), "another owner's");
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
        let (mut written, mut bytes) = (RowsWritten::default(), 0);
        for number in 0..1_000_u64 {
            // 200 requests per second over 8 workers, each told twice.
            let now = Duration::from_millis(20 * number);
            written.push(0, now);
            bytes += encode_row(&InstanceCounters::default(), 7, 7).len() + written.encode(7, 4_096).len();
        }
        assert!(bytes / 1_000 <= 140, "{}", bytes / 1_000);
    }

    #[test]
    fn what_is_broken_is_no_counters() {
        let index = index();
        let mut written = RowsWritten::default();
        written.push(1, Duration::ZERO);
        let head = written.encode(7, 4_096);
        for end in 0..head.len() {
            let mut sum = Counters::new(index.len());
            RowsRead::default().add((0, 7, &head[..end]), &index, &mut sum, |_| Some(vec![1, 2, 3]));
            assert_eq!(sum, Counters::new(index.len()), "{end}");
        }
    }
}
