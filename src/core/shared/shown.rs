//! What statistics a configuration shows, so that others can end those of one that has gone.

use super::{Reader, Writer};

/// Most gauges of a configuration that are remembered, some 500 KB.
const GAUGES_MAX: usize = 8_192;

/// The names of gauges as bytes.
pub fn encode_shown<'a>(identity: u64, gauges: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut writer = Writer::new(identity);
    gauges.take(GAUGES_MAX).for_each(|name| writer.text(name));
    writer.0
}

/// The names of gauges from bytes; none if they are another configuration's, or broken. What no name can be is none.
pub fn decode_shown(bytes: &[u8], identity: u64) -> Vec<String> {
    let read = Reader::open(bytes, identity).and_then(|mut reader| reader.rows(Reader::text));
    let mut names = read.unwrap_or_default();
    names.retain(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()));
    names
}
