//! What workers have learnt.

use super::{Reader, Writer};
use crate::learning::beliefs::Beliefs;
use crate::learning::ledger::{Tallies, Tally};
use crate::learning::lengths::Lengths;

/// What one worker has learnt of lengths, as bytes: 20 per model.
pub fn encode_lengths(lengths: &Lengths, fingerprint: u64) -> Vec<u8> {
    encode(lengths.own(), fingerprint)
}

/// What a worker has learnt of lengths from bytes; empty if they are of other models, another version, or broken.
pub fn decode_lengths(bytes: &[u8], fingerprint: u64) -> Tallies<1> {
    decode(bytes, fingerprint, Lengths::sound)
}

/// What one worker has learnt from feedback, as bytes: 24 per model and kind of prompt that was scored.
pub fn encode_beliefs(beliefs: &Beliefs, fingerprint: u64) -> Vec<u8> {
    encode(beliefs.own(), fingerprint)
}

/// What a worker has learnt from feedback from bytes; empty if they are of other models, another version, or broken.
pub fn decode_beliefs(bytes: &[u8], fingerprint: u64) -> Tallies<2> {
    decode(bytes, fingerprint, Beliefs::sound)
}

fn encode<const N: usize>(tallies: &Tallies<N>, fingerprint: u64) -> Vec<u8> {
    let mut writer = Writer::new(fingerprint);
    for (key, Tally { seen, as_of, weight, sums }) in tallies {
        writer.u32(*key);
        for value in [seen, as_of, weight].into_iter().chain(sums) {
            writer.f32(*value);
        }
    }
    writer.0
}

fn decode<const N: usize>(bytes: &[u8], fingerprint: u64, sound: fn(Tally<N>) -> Option<Tally<N>>) -> Tallies<N> {
    let rows = Reader::open(bytes, fingerprint).and_then(|mut reader| {
        reader.rows(|r| {
            let key = r.u32()?;
            let mut tally = Tally { seen: r.f32()?, as_of: r.f32()?, weight: r.f32()?, sums: [0.0; N] };
            for sum in &mut tally.sums {
                *sum = r.f32()?;
            }
            Some((key, sound(tally)?))
        })
    });
    rows.unwrap_or_default().into_iter().collect()
}
