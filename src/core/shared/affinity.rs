//! What workers have placed where: a journal per worker, cut into segments, so that what is new costs one write and one read per
//! tick whatever is remembered, and a worker that starts can catch up.

use super::{Index, Reader, Writer};
use crate::affinity::Placement;
use crate::fleet::InstanceId;

/// Segments of a worker's journal; the oldest one is written over.
pub const PLACEMENT_SEGMENTS: usize = 32;
/// Placements in a segment: below 10 KB.
const SEGMENT_KEPT: usize = 32;

/// One segment of a journal.
#[derive(Clone, Debug, Default, PartialEq)]
struct Segment {
    /// The number of its first placement since the journal began.
    first: u64,
    /// Each with the key of its instance. One that the fleet does not have is kept for those that have it.
    placements: Vec<(u32, Placement)>,
}

/// The id of an instance that the fleet does not have.
const NOWHERE: InstanceId = InstanceId::new(usize::MAX);

impl Segment {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0);
        writer.u64(self.first);
        for (key, Placement { at, instance: _, held_tokens, placed_tokens, keys }) in &self.placements {
            writer.time(*at);
            writer.u32(*key);
            writer.u32(*held_tokens);
            writer.u32(*placed_tokens);
            writer.u32(u32::try_from(keys.len()).unwrap_or(u32::MAX));
            keys.iter().for_each(|key| writer.u64(*key));
        }
        writer.0
    }

    /// The segment from bytes, without the placements before number `from`, and the number of the one that will follow it.
    fn decode(bytes: &[u8], index: &Index, from: u64) -> Option<(Segment, u64)> {
        let mut reader = Reader::open(bytes, 0)?;
        let first = reader.u64()?;
        let (mut placements, mut number) = (Vec::new(), first);
        while !reader.0.is_empty() {
            let (at, key) = (reader.time()?, reader.u32()?);
            let (held_tokens, placed_tokens) = (reader.u32()?, reader.u32()?);
            let keys = usize::try_from(reader.u32()?).ok()?.checked_mul(8)?;
            let (keys, rest) = reader.0.split_at_checked(keys)?;
            reader.0 = rest;
            if number >= from {
                let instance = index.find(key, NOWHERE.index()).unwrap_or(NOWHERE);
                let keys = Reader(keys).rows(Reader::u64)?;
                placements.push((key, Placement { at, instance, held_tokens, placed_tokens, keys }));
            }
            number = number.saturating_add(1);
        }
        let is_whole = first.is_multiple_of(SEGMENT_KEPT as u64) && number.saturating_sub(first) <= SEGMENT_KEPT as u64;
        is_whole.then_some((Segment { first, placements }, number))
    }
}

/// The segment in which the placement of this number is.
fn segment_of(number: u64) -> usize {
    (number / SEGMENT_KEPT as u64 % PLACEMENT_SEGMENTS as u64) as usize
}

/// A place in a worker's journal, up to which another worker has read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalReader {
    next: u64,
}

impl JournalReader {
    /// What was placed since the last call on instances of the fleet, as far as it is still there. `read` fetches a segment's bytes;
    /// `None` where there is none, or where it is as it was.
    pub fn news(&mut self, index: &Index, read: impl FnMut(usize) -> Option<Vec<u8>>) -> Vec<Placement> {
        here(self.all_news(index, read))
    }

    fn all_news(&mut self, index: &Index, mut read: impl FnMut(usize) -> Option<Vec<u8>>) -> Vec<(u32, Placement)> {
        let mut news = Vec::new();
        // Once around to find where the oldest is, if the writer has lapped this reader, and once to read.
        for _ in 0..=2 * PLACEMENT_SEGMENTS {
            let segment = read(segment_of(self.next)).and_then(|bytes| Segment::decode(&bytes, index, self.next));
            let Some((segment, end)) = segment else { break };
            if segment.first > self.next {
                // The writer has lapped this reader: what is oldest now follows this segment in the ring.
                self.next = segment.first.saturating_sub(((PLACEMENT_SEGMENTS - 1) * SEGMENT_KEPT) as u64);
                continue;
            }
            if end <= self.next {
                break;
            }
            news.extend(segment.placements);
            self.next = end;
            if !end.is_multiple_of(SEGMENT_KEPT as u64) {
                break;
            }
        }
        news
    }
}

/// Those on instances of the fleet.
fn here(placements: Vec<(u32, Placement)>) -> Vec<Placement> {
    placements.into_iter().map(|(_, placement)| placement).filter(|placement| placement.instance != NOWHERE).collect()
}

/// A worker's own journal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Journal {
    segment: Segment,
    unwritten: Vec<(u32, Placement)>,
}

impl Journal {
    /// Goes on with the journal that is there, and says what of the fleet is in it.
    pub fn open(index: &Index, mut read: impl FnMut(usize) -> Option<Vec<u8>>) -> (Journal, Vec<Placement>) {
        let mut reader = JournalReader::default();
        let placements = reader.all_news(index, &mut read);
        let begun = usize::try_from(reader.next % SEGMENT_KEPT as u64).unwrap_or_default();
        let last = placements.len().saturating_sub(begun);
        let segment = Segment {
            first: reader.next.saturating_sub(begun as u64),
            placements: placements.get(last..).unwrap_or_default().to_vec(),
        };
        (Journal { segment, unwritten: Vec::new() }, here(placements))
    }

    /// Notes a placement on the instance with this key, to be written with the next call of [`Journal::write`].
    pub fn note(&mut self, key: u32, placement: Placement) {
        self.unwritten.push((key, placement));
    }

    /// Writes what was noted. `write` stores a segment's bytes.
    pub fn write(&mut self, mut write: impl FnMut(usize, &[u8])) {
        let mut noted = std::mem::take(&mut self.unwritten).into_iter().peekable();
        while noted.peek().is_some() {
            if self.segment.placements.len() >= SEGMENT_KEPT {
                let first = self.segment.first.saturating_add(SEGMENT_KEPT as u64);
                self.segment = Segment { first, placements: Vec::new() };
            }
            let room = SEGMENT_KEPT.saturating_sub(self.segment.placements.len()).max(1);
            self.segment.placements.extend(noted.by_ref().take(room));
            write(segment_of(self.segment.first), &self.segment.encode());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::fleet::{Fleet, Instance, PoolId};
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// A fleet of four instances.
    fn index() -> Index {
        let instances = (0..4).map(|i| Instance::new(format!("10.0.0.{i}:1"), PoolId::new(0))).collect();
        Index::from_fleet(&Fleet { instances, ..Fleet::default() })
    }

    fn note(journal: &mut Journal, placement: Placement) {
        journal.note(index().key(placement.instance).unwrap(), placement);
    }

    fn placement(number: u64) -> Placement {
        let keys = (0..number % 5).map(|i| number * 10 + i).collect();
        Placement {
            at: Duration::from_nanos(number),
            instance: InstanceId::new(3),
            held_tokens: 2,
            placed_tokens: 1,
            keys,
        }
    }

    /// Whatever is written between two reads, a reader misses nothing unless it is lapped, and then only what is gone; a new owner
    /// of the slot goes on where the last one was.
    #[test]
    fn readers_follow() {
        let mut store: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let mut journal = Journal::default();
        let mut reader = JournalReader::default();
        let (mut written, mut known) = (0, 0);
        for (round, count) in [0, 1, 3, 40, 28, 1, 31, 32, 33, 1_000, 5, 2_500, 7, 1_024, 1].into_iter().enumerate() {
            for _ in 0..count {
                note(&mut journal, placement(written));
                written += 1;
                // Several ticks between two reads.
                if written % 7 == 0 {
                    journal.write(|i, bytes| drop(store.insert(i, bytes.to_vec())));
                }
            }
            journal.write(|i, bytes| drop(store.insert(i, bytes.to_vec())));
            let news = reader.news(&index(), |i| store.get(&i).cloned());
            let expected: Vec<Placement> = (written - news.len() as u64..written).map(placement).collect();
            assert_eq!(news, expected, "round {round}");
            let missed = written - known - news.len() as u64;
            assert!(missed == 0 || count >= 992, "round {round}: {missed} missed");
            assert!(missed == 0 || news.len() >= 960, "round {round}: {} left", news.len());
            known = written;
            let (reopened, all) = Journal::open(&index(), |i| store.get(&i).cloned());
            assert_eq!(reopened, journal, "round {round}");
            assert_eq!(all.last(), written.checked_sub(1).map(placement).as_ref());
            journal = reopened;
        }
        assert!(store.len() <= PLACEMENT_SEGMENTS && store.values().all(|bytes| bytes.len() < 10_000));
    }

    #[test]
    fn broken_segments_are_none_and_what_is_foreign_is_kept() {
        let mut journal = Journal::default();
        note(&mut journal, placement(4));
        let mut bytes = Vec::new();
        journal.write(|_, written| bytes = written.to_vec());
        for length in 1..bytes.len() {
            let cut = bytes.get(..length).map(<[u8]>::to_vec);
            let news = JournalReader::default().news(&index(), |_| cut.clone());
            assert!(news.is_empty(), "{length}");
        }
        let other = Index::from_fleet(&Fleet {
            instances: vec![Instance::new("10.0.0.9:1".to_owned(), PoolId::new(0))],
            ..Fleet::default()
        });
        assert!(JournalReader::default().news(&other, |_| Some(bytes.clone())).is_empty());
        let (mut heir, here) = Journal::open(&other, |_| Some(bytes.clone()));
        assert!(here.is_empty());
        heir.note(other.key(InstanceId::new(0)).unwrap(), Placement { instance: InstanceId::new(0), ..placement(5) });
        heir.write(|_, written| bytes = written.to_vec());
        assert_eq!(JournalReader::default().news(&index(), |_| Some(bytes.clone())), [placement(4)]);
    }
}
