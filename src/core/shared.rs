//! Records that workers share: a board to leave them on, versioned bytes to types and back, one writer per key.
//!
//! Envoy's shared data lives as long as its process, survives VMs and configurations, and cannot be deleted: keys are few and
//! bounded. Every record says what it is about. What is about an instance (counters, reports, health, placements) has the key of its
//! address in every row, and is shared by all configurations that have the instance. What was learnt has the model or the pool in every
//! row, and stays through a reload. Everything else belongs to one configuration and starts with its identity. A record of another
//! version, configuration or owner is as good as absent.

mod affinity;
mod board;
mod health;
mod index;
mod learnt;
mod load;
mod prices;
mod read_cache;
mod recent;
mod responses;
mod roster;
mod rows;
mod shown;
mod slots;

use std::time::Duration;

pub use affinity::{Journal, JournalReader, PLACEMENT_SEGMENTS};
pub use board::{Board, Bytes, Key, Learnt, MemoryBoard, Version};
pub use health::{decode_health, encode_health};
pub use index::Index;
pub use learnt::{
    Foreign, ForeignSpeeds, Subjects, decode_beliefs, decode_lengths, decode_speeds, encode_beliefs, encode_lengths,
    encode_speeds,
};
pub use load::{
    Sources, add_counters, decode_glimpses, decode_reports, encode_counters, encode_glimpses, encode_reports,
};
pub use prices::{decode_prices, encode_prices, prices_fingerprint};
pub use read_cache::ReadCache;
pub use recent::{RECENT_SEGMENTS, Recent, RecentDecision};
pub use responses::{RESPONSES_KEPT, Responses};
pub use roster::{decode_hosts, decode_roster, encode_roster};
pub use rows::{RowsRead, Unwritten, WHOLE_ROWS_MAX, encode_counters_row, encode_report_row};
pub use shown::{decode_shown, encode_shown};
pub use slots::{MAX_PLACES, MAX_SLOTS, Place, SLOT_TTL, Slots, heartbeat};

/// Version of the form of all records. It is part of every key, so that modules of two versions do not meet.
const VERSION: u8 = 6;

// === bytes ===

struct Writer(Vec<u8>);

/// Most records are no longer than that, and are written without growing.
const RECORD_BYTES: usize = 256;

impl Writer {
    fn new(fingerprint: u64) -> Writer {
        let mut writer = Writer(Vec::with_capacity(RECORD_BYTES));
        writer.0.push(VERSION);
        writer.u64(fingerprint);
        writer
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn f32(&mut self, value: f64) {
        self.u32((value as f32).to_bits());
    }

    /// A small number that may be unknown; eight digits are enough.
    fn gauge(&mut self, value: Option<f64>) {
        self.f32(value.unwrap_or(f64::NAN));
    }

    fn text(&mut self, value: &str) {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(value.as_bytes());
    }

    fn time(&mut self, value: Duration) {
        self.u64(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX));
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn open(bytes: &'a [u8], fingerprint: u64) -> Option<Reader<'a>> {
        let (version, rest) = bytes.split_first()?;
        let mut reader = Reader(rest);
        (*version == VERSION && reader.u64()? == fingerprint).then_some(reader)
    }

    fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*head))
    }

    fn f32(&mut self) -> Option<f64> {
        Some(f64::from(f32::from_bits(self.u32()?)))
    }

    fn gauge(&mut self) -> Option<Option<f64>> {
        self.f32().map(|value| Some(value).filter(|value| value.is_finite()))
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn time(&mut self) -> Option<Duration> {
        Some(Duration::from_nanos(self.u64()?))
    }

    fn rows<T>(&mut self, mut row: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut rows = Vec::new();
        while !self.0.is_empty() {
            rows.push(row(self)?);
        }
        Some(rows)
    }
}

#[cfg(test)]
mod tests;
