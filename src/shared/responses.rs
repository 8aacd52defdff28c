//! Where stored responses are.

use super::{Reader, Writer, fnv1a};

/// Which instance holds which stored response: a bounded ring, newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Responses(Vec<(u64, u64)>);

/// Responses that one worker remembers. At 16 bytes each, a write of the record stays below 5 us.
pub const RESPONSES_KEPT: usize = 1_024;

impl Responses {
    /// Remembers which instance holds a response.
    pub fn insert(&mut self, id: &str, instance: usize) {
        if self.0.len() >= RESPONSES_KEPT {
            self.0.remove(0);
        }
        self.0.push((fnv1a(id.as_bytes()), instance as u64));
    }

    /// The instance that holds a response.
    pub fn instance(&self, id: &str) -> Option<usize> {
        let hash = fnv1a(id.as_bytes());
        let (_, instance) = self.0.iter().rev().find(|(h, _)| *h == hash)?;
        usize::try_from(*instance).ok()
    }

    /// The ring as bytes.
    pub fn encode(&self, fingerprint: u64) -> Vec<u8> {
        let mut writer = Writer::new(fingerprint);
        for (hash, instance) in &self.0 {
            writer.u64(*hash);
            writer.u64(*instance);
        }
        writer.0
    }

    /// The ring from bytes; a broken one is empty.
    pub fn decode(bytes: &[u8], fingerprint: u64) -> Responses {
        let rows = Reader::open(bytes, fingerprint).and_then(|mut reader| reader.rows(|r| Some((r.u64()?, r.u64()?))));
        Responses(rows.unwrap_or_default())
    }
}
