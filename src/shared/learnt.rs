//! What workers have learnt.

use super::{Reader, Writer};
use crate::learning::beliefs::Beliefs;
use crate::learning::ledger::{Tallies, Tally};
use crate::learning::lengths::Lengths;
use crate::learning::speed::{SpeedTallies, Speeds};

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

/// What one worker has learnt of speed, as bytes: at most 380 per pool.
pub fn encode_speeds(speeds: &Speeds, fingerprint: u64) -> Vec<u8> {
    let own = speeds.own();
    let mut writer = Writer::new(fingerprint);
    section(&mut writer, &own.factors);
    section(&mut writer, &own.lines);
    section(&mut writer, &own.residuals);
    section(&mut writer, &own.traffic);
    writer.0
}

/// What a worker has learnt of speed from bytes; empty if they are of other pools, another version, or broken.
pub fn decode_speeds(bytes: &[u8], fingerprint: u64) -> SpeedTallies {
    let read = || {
        let mut reader = Reader::open(bytes, fingerprint)?;
        Some(SpeedTallies {
            factors: read_section(&mut reader, SpeedTallies::sound_factor)?,
            lines: read_section(&mut reader, SpeedTallies::sound_line)?,
            residuals: read_section(&mut reader, SpeedTallies::sound_residuals)?,
            traffic: read_section(&mut reader, SpeedTallies::sound_traffic)?,
        })
    };
    read().unwrap_or_default()
}

fn encode<const N: usize>(tallies: &Tallies<N>, fingerprint: u64) -> Vec<u8> {
    let mut writer = Writer::new(fingerprint);
    tallies.iter().for_each(|(key, tally)| row(&mut writer, *key, tally));
    writer.0
}

fn decode<const N: usize>(bytes: &[u8], fingerprint: u64, sound: fn(Tally<N>) -> Option<Tally<N>>) -> Tallies<N> {
    let rows = Reader::open(bytes, fingerprint).and_then(|mut reader| reader.rows(|reader| read_row(reader, sound)));
    rows.unwrap_or_default().into_iter().collect()
}

/// Tallies in the midst of a record: their number first.
fn section<const N: usize>(writer: &mut Writer, tallies: &Tallies<N>) {
    writer.u32(u32::try_from(tallies.len()).unwrap_or(u32::MAX));
    tallies.iter().for_each(|(key, tally)| row(writer, *key, tally));
}

fn read_section<const N: usize>(
    reader: &mut Reader<'_>,
    sound: fn(Tally<N>) -> Option<Tally<N>>,
) -> Option<Tallies<N>> {
    let rows = reader.u32()?;
    (0..rows).map(|_| read_row(reader, sound)).collect()
}

fn row<const N: usize>(writer: &mut Writer, key: u32, tally: &Tally<N>) {
    let Tally { seen, as_of, weight, sums } = tally;
    writer.u32(key);
    for value in [seen, as_of, weight].into_iter().chain(sums) {
        writer.f32(*value);
    }
}

fn read_row<const N: usize>(
    reader: &mut Reader<'_>,
    sound: fn(Tally<N>) -> Option<Tally<N>>,
) -> Option<(u32, Tally<N>)> {
    let key = reader.u32()?;
    let mut tally = Tally { seen: reader.f32()?, as_of: reader.f32()?, weight: reader.f32()?, sums: [0.0; N] };
    for sum in &mut tally.sums {
        *sum = reader.f32()?;
    }
    Some((key, sound(tally)?))
}
