//! What workers have learnt.

use super::{Reader, Writer};
use crate::fleet::{Fleet, Model, Pool};
use crate::hash::fnv1a;
use crate::latency::Basis;
use crate::learning::beliefs::Beliefs;
use crate::learning::ledger::{Tallies, Tally};
use crate::learning::lengths::Lengths;
use crate::learning::speed::SpeedTallies;

/// What the keys of tallies are about: models or pools, by what makes what is learnt of them comparable. A row of one that this
/// configuration does not have is foreign to it, and kept for those that have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subjects {
    /// By the index of the model or the pool.
    subjects: Vec<u64>,
    /// Keys of each.
    keys: u32,
}

impl Subjects {
    fn hashed(kind: &str, keys: u32, texts: impl Iterator<Item = String>) -> Subjects {
        Subjects { subjects: texts.map(|text| fnv1a(format!("{kind} {text}").as_bytes())).collect(), keys }
    }

    /// Of lengths: models, against the estimates of a predictor with so many prototypes.
    pub fn lengths(fleet: &Fleet, prototypes: usize) -> Subjects {
        let text = |m: &Model| format!("{prototypes} {} {}", m.name, m.output_tokens_prior);
        Subjects::hashed("lengths", 1, fleet.models.iter().map(text))
    }

    /// Of feedback: models, against the estimates of a predictor with so many prototypes.
    pub fn beliefs(fleet: &Fleet, prototypes: usize) -> Subjects {
        let text = |m: &Model| format!("{prototypes} {} {}", m.name, m.quality_prior);
        Subjects::hashed("beliefs", 1 << 16, fleet.models.iter().map(text))
    }

    /// Of speed: pools, against forecasts that rest on this.
    pub fn speeds(fleet: &Fleet, basis: Basis) -> Subjects {
        let text = |p: &Pool| format!("{basis:?} {} {:?} {:?}", p.name, p.profile, p.limits);
        Subjects::hashed("speeds", 2, fleet.pools.iter().map(text))
    }

    /// The subject of a model or a pool, short.
    pub fn short(&self, index: usize) -> Option<u32> {
        let subject = self.subjects.get(index)?;
        Some((subject ^ (subject >> 32)) as u32)
    }

    /// The model or the pool with this short subject.
    pub fn with_short(&self, short: u32) -> Option<usize> {
        (0..self.subjects.len()).find(|index| self.short(*index) == Some(short))
    }

    fn with_keys(&self, keys: u32) -> Subjects {
        Subjects { subjects: self.subjects.clone(), keys }
    }

    fn subject(&self, key: u32) -> Option<(u64, u32)> {
        let index = usize::try_from(key.checked_div(self.keys)?).ok()?;
        Some((*self.subjects.get(index)?, key.checked_rem(self.keys)?))
    }

    fn key(&self, (subject, rest): (u64, u32)) -> Option<u32> {
        let index = u32::try_from(self.subjects.iter().position(|other| *other == subject)?).ok()?;
        index.checked_mul(self.keys)?.checked_add(Some(rest).filter(|rest| *rest < self.keys)?)
    }
}

/// A tally as it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    about: (u64, u32),
    /// [`Tally::seen`], `as_of`, `weight` and the sums.
    values: Vec<f64>,
}

/// Rows about models or pools that this configuration does not have: a worker's record keeps them for those that have.
pub type Foreign = Vec<Row>;

/// Foreign rows of all that is learnt of speed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ForeignSpeeds {
    factors: Foreign,
    lines: Foreign,
    residuals: Foreign,
    traffic: Foreign,
}

/// Foreign rows that a section keeps; the rest is forgotten.
const FOREIGN_MAX: usize = 256;

/// What one worker has learnt of lengths, as bytes: 24 per model.
pub fn encode_lengths(lengths: &Lengths, foreign: &Foreign, subjects: &Subjects) -> Vec<u8> {
    encode(lengths.own(), foreign, subjects)
}

/// What a worker has learnt of lengths from bytes; empty if they are of another version, or broken.
pub fn decode_lengths(bytes: &[u8], subjects: &Subjects) -> (Tallies<1>, Foreign) {
    decode(bytes, subjects, Lengths::sound)
}

/// What one worker has learnt from feedback, as bytes: 32 per model and kind of prompt that was scored.
pub fn encode_beliefs(beliefs: &Beliefs, foreign: &Foreign, subjects: &Subjects) -> Vec<u8> {
    encode(beliefs.own(), foreign, subjects)
}

/// What a worker has learnt from feedback from bytes; empty if they are of another version, or broken.
pub fn decode_beliefs(bytes: &[u8], subjects: &Subjects) -> (Tallies<2>, Foreign) {
    decode(bytes, subjects, Beliefs::sound)
}

/// What one worker has learnt of speed, as bytes: at most 440 per pool.
pub fn encode_speeds(own: &SpeedTallies, foreign: &ForeignSpeeds, subjects: &Subjects) -> Vec<u8> {
    let mut writer = Writer::new(ANY);
    section(&mut writer, &own.factors, &foreign.factors, subjects);
    section(&mut writer, &own.lines, &foreign.lines, subjects);
    section(&mut writer, &own.residuals, &foreign.residuals, subjects);
    section(&mut writer, &own.traffic, &foreign.traffic, &subjects.with_keys(1));
    writer.0
}

/// What a worker has learnt of speed from bytes; empty if they are of another version, or broken.
pub fn decode_speeds(bytes: &[u8], subjects: &Subjects) -> (SpeedTallies, ForeignSpeeds) {
    let read = || {
        let mut reader = Reader::open(bytes, ANY)?;
        let (factors, foreign_factors) = read_section(&mut reader, subjects, SpeedTallies::sound_factor)?;
        let (lines, foreign_lines) = read_section(&mut reader, subjects, SpeedTallies::sound_line)?;
        let (residuals, foreign_residuals) = read_section(&mut reader, subjects, SpeedTallies::sound_residuals)?;
        let pools = subjects.with_keys(1);
        let (traffic, foreign_traffic) = read_section(&mut reader, &pools, SpeedTallies::sound_traffic)?;
        let foreign = ForeignSpeeds {
            factors: foreign_factors,
            lines: foreign_lines,
            residuals: foreign_residuals,
            traffic: foreign_traffic,
        };
        Some((SpeedTallies { factors, lines, residuals, traffic }, foreign))
    };
    read().unwrap_or_default()
}

/// What is learnt belongs to models and pools, and to no configuration.
const ANY: u64 = 0;

fn encode<const N: usize>(tallies: &Tallies<N>, foreign: &Foreign, subjects: &Subjects) -> Vec<u8> {
    let mut writer = Writer::new(ANY);
    section(&mut writer, tallies, foreign, subjects);
    writer.0
}

fn decode<const N: usize>(
    bytes: &[u8],
    subjects: &Subjects,
    sound: fn(Tally<N>) -> Option<Tally<N>>,
) -> (Tallies<N>, Foreign) {
    let section = Reader::open(bytes, ANY).and_then(|mut reader| read_section(&mut reader, subjects, sound));
    section.unwrap_or_default()
}

/// Rows of tallies, the foreign ones last: their number first.
fn section<const N: usize>(writer: &mut Writer, tallies: &Tallies<N>, foreign: &Foreign, subjects: &Subjects) {
    let rows = || tallies.iter().filter_map(|(key, tally)| Some((subjects.subject(key)?, tally)));
    writer.u32(u32::try_from(rows().count().saturating_add(foreign.len())).unwrap_or(u32::MAX));
    for (about, Tally { seen, as_of, weight, sums }) in rows() {
        write_row(writer, about, [seen, as_of, weight].into_iter().chain(sums));
    }
    for Row { about, values } in foreign {
        write_row(writer, *about, values.iter());
    }
}

fn write_row<'a>(writer: &mut Writer, (subject, rest): (u64, u32), values: impl Iterator<Item = &'a f64>) {
    writer.u64(subject);
    writer.u32(rest);
    values.for_each(|value| writer.f32(*value));
}

fn read_section<const N: usize>(
    reader: &mut Reader<'_>,
    subjects: &Subjects,
    sound: fn(Tally<N>) -> Option<Tally<N>>,
) -> Option<(Tallies<N>, Foreign)> {
    let (mut own, mut foreign) = (Tallies::new(), Foreign::new());
    for _ in 0..reader.u32()? {
        let about = (reader.u64()?, reader.u32()?);
        let mut tally = Tally { seen: reader.f32()?, as_of: reader.f32()?, weight: reader.f32()?, sums: [0.0; N] };
        for sum in &mut tally.sums {
            *sum = reader.f32()?;
        }
        match subjects.key(about) {
            Some(key) => own.insert(key, sound(tally)?),
            None if foreign.len() < FOREIGN_MAX => {
                let Tally { seen, as_of, weight, sums } = tally;
                foreign.push(Row { about, values: [seen, as_of, weight].into_iter().chain(sums).collect() });
            }
            None => {}
        }
    }
    Some((own, foreign))
}
