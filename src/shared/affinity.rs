//! What workers have placed where: a journal per worker, cut into segments, so that what is new costs one write and one read per
//! tick whatever is remembered, and a worker that starts can catch up.

use super::{Reader, Writer};
use crate::affinity::Placement;

/// Segments of a worker's journal; the oldest one is written over.
pub const PLACEMENT_SEGMENTS: usize = 32;
/// Placements in a segment: below 10 KB.
const SEGMENT_KEPT: usize = 32;

/// One segment of a journal.
#[derive(Clone, Debug, Default, PartialEq)]
struct Segment {
    /// The number of its first placement since the journal began.
    first: u64,
    placements: Vec<Placement>,
}

impl Segment {
    fn encode(&self, fingerprint: u64) -> Vec<u8> {
        let mut writer = Writer::new(fingerprint);
        writer.u64(self.first);
        for Placement { at, instance, held_tokens, placed_tokens, keys } in &self.placements {
            writer.time(*at);
            writer.u32(u32::try_from(*instance).unwrap_or(u32::MAX));
            writer.u32(*held_tokens);
            writer.u32(*placed_tokens);
            writer.u32(u32::try_from(keys.len()).unwrap_or(u32::MAX));
            keys.iter().for_each(|key| writer.u64(*key));
        }
        writer.0
    }

    fn decode(bytes: &[u8], fingerprint: u64) -> Option<Segment> {
        let mut reader = Reader::open(bytes, fingerprint)?;
        let first = reader.u64()?;
        let placements = reader.rows(|r| {
            let (at, instance) = (r.time()?, r.u32()? as usize);
            let (held_tokens, placed_tokens) = (r.u32()?, r.u32()?);
            let keys = (0..r.u32()?).map(|_| r.u64()).collect::<Option<_>>()?;
            Some(Placement { at, instance, held_tokens, placed_tokens, keys })
        })?;
        let is_whole = first.is_multiple_of(SEGMENT_KEPT as u64) && placements.len() <= SEGMENT_KEPT;
        is_whole.then_some(Segment { first, placements })
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
    /// What was placed since the last call, as far as it is still there. `read` fetches a segment's bytes; `None` where there is
    /// none, or where it is as it was.
    pub fn news(&mut self, fingerprint: u64, mut read: impl FnMut(usize) -> Option<Vec<u8>>) -> Vec<Placement> {
        let mut news = Vec::new();
        // Once around to find where the oldest is, if the writer has lapped this reader, and once to read.
        for _ in 0..=2 * PLACEMENT_SEGMENTS {
            let segment = read(segment_of(self.next)).and_then(|bytes| Segment::decode(&bytes, fingerprint));
            let Some(segment) = segment else { break };
            let end = segment.first.saturating_add(segment.placements.len() as u64);
            if segment.first > self.next {
                // The writer has lapped this reader: what is oldest now follows this segment in the ring.
                self.next = segment.first.saturating_sub(((PLACEMENT_SEGMENTS - 1) * SEGMENT_KEPT) as u64);
                continue;
            }
            if end <= self.next {
                break;
            }
            let read = usize::try_from(self.next.saturating_sub(segment.first)).unwrap_or(usize::MAX);
            news.extend(segment.placements.into_iter().skip(read));
            self.next = end;
            if !end.is_multiple_of(SEGMENT_KEPT as u64) {
                break;
            }
        }
        news
    }
}

/// A worker's own journal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Journal {
    segment: Segment,
    unwritten: Vec<Placement>,
}

impl Journal {
    /// Goes on with the journal that is there, and says what is in it.
    pub fn open(fingerprint: u64, mut read: impl FnMut(usize) -> Option<Vec<u8>>) -> (Journal, Vec<Placement>) {
        let mut reader = JournalReader::default();
        let placements = reader.news(fingerprint, &mut read);
        let begun = usize::try_from(reader.next % SEGMENT_KEPT as u64).unwrap_or_default();
        let last = placements.len().saturating_sub(begun);
        let segment = Segment {
            first: reader.next.saturating_sub(begun as u64),
            placements: placements.get(last..).unwrap_or_default().to_vec(),
        };
        (Journal { segment, unwritten: Vec::new() }, placements)
    }

    /// Notes a placement, to be written with the next call of [`Journal::write`].
    pub fn note(&mut self, placement: Placement) {
        self.unwritten.push(placement);
    }

    /// Writes what was noted. `write` stores a segment's bytes.
    pub fn write(&mut self, fingerprint: u64, mut write: impl FnMut(usize, &[u8])) {
        let mut noted = std::mem::take(&mut self.unwritten).into_iter().peekable();
        while noted.peek().is_some() {
            if self.segment.placements.len() >= SEGMENT_KEPT {
                let first = self.segment.first.saturating_add(SEGMENT_KEPT as u64);
                self.segment = Segment { first, placements: Vec::new() };
            }
            let room = SEGMENT_KEPT.saturating_sub(self.segment.placements.len()).max(1);
            self.segment.placements.extend(noted.by_ref().take(room));
            write(segment_of(self.segment.first), &self.segment.encode(fingerprint));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const FINGERPRINT: u64 = 7;

    fn placement(number: u64) -> Placement {
        let keys = (0..number % 5).map(|i| number * 10 + i).collect();
        Placement { at: Duration::from_nanos(number), instance: 3, held_tokens: 2, placed_tokens: 1, keys }
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
                journal.note(placement(written));
                written += 1;
                // Several ticks between two reads.
                if written % 7 == 0 {
                    journal.write(FINGERPRINT, |i, bytes| drop(store.insert(i, bytes.to_vec())));
                }
            }
            journal.write(FINGERPRINT, |i, bytes| drop(store.insert(i, bytes.to_vec())));
            let news = reader.news(FINGERPRINT, |i| store.get(&i).cloned());
            let expected: Vec<Placement> = (written - news.len() as u64..written).map(placement).collect();
            assert_eq!(news, expected, "round {round}");
            let missed = written - known - news.len() as u64;
            assert!(missed == 0 || count >= 992, "round {round}: {missed} missed");
            assert!(missed == 0 || news.len() >= 960, "round {round}: {} left", news.len());
            known = written;
            let (reopened, all) = Journal::open(FINGERPRINT, |i| store.get(&i).cloned());
            assert_eq!(reopened, journal, "round {round}");
            assert_eq!(all.last(), written.checked_sub(1).map(placement).as_ref());
            journal = reopened;
        }
        assert!(store.len() <= PLACEMENT_SEGMENTS && store.values().all(|bytes| bytes.len() < 10_000));
    }

    #[test]
    fn broken_or_foreign_segments_are_none() {
        let mut journal = Journal::default();
        journal.note(placement(4));
        let mut bytes = Vec::new();
        journal.write(FINGERPRINT, |_, written| bytes = written.to_vec());
        for length in 1..bytes.len() {
            let cut = bytes.get(..length).map(<[u8]>::to_vec);
            let news = JournalReader::default().news(FINGERPRINT, |_| cut.clone());
            assert!(news.is_empty(), "{length}");
        }
        assert!(JournalReader::default().news(FINGERPRINT + 1, |_| Some(bytes.clone())).is_empty());
        assert_eq!(JournalReader::default().news(FINGERPRINT, |_| Some(bytes.clone())), [placement(4)]);
    }
}
