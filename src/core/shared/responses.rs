//! Where stored responses are.

use super::{Reader, Writer};
use crate::hash::fnv1a;

/// Which instance holds which stored response: a bounded ring, newest last. Instances are named by the keys of their addresses,
/// which outlive their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Responses(Vec<(u64, u32)>);

/// Responses that one worker remembers. At 12 bytes each, a write of the record stays below 5 us.
pub const RESPONSES_KEPT: usize = 1_024;

impl Responses {
    /// Remembers which instance holds a response.
    pub fn insert(&mut self, id: &str, instance_key: u32) {
        if self.0.len() >= RESPONSES_KEPT {
            self.0.remove(0);
        }
        self.0.push((fnv1a(id.as_bytes()), instance_key));
    }

    /// Goes on where the slot's last owner has stopped: what that one has seen comes before all of one's own.
    pub fn follow(&mut self, earlier: &Responses) {
        let own = std::mem::take(&mut self.0);
        self.0 = earlier.0.iter().copied().chain(own).collect();
        let excess = self.0.len().saturating_sub(RESPONSES_KEPT);
        self.0.drain(..excess);
    }

    /// The key of the instance that holds a response.
    pub fn holder(&self, id: &str) -> Option<u32> {
        let hash = fnv1a(id.as_bytes());
        self.0.iter().rev().find(|(h, _)| *h == hash).map(|(_, key)| *key)
    }

    /// The ring as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0);
        for (hash, key) in &self.0 {
            writer.u64(*hash);
            writer.u32(*key);
        }
        writer.0
    }

    /// The ring from bytes; a broken one is empty.
    pub fn decode(bytes: &[u8]) -> Responses {
        let rows = Reader::open(bytes, 0).and_then(|mut reader| reader.rows(|r| Some((r.u64()?, r.u32()?))));
        Responses(rows.unwrap_or_default())
    }
}
