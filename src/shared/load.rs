//! Counters of workers, the instances' reports, and what response headers have shown in between.

use std::time::Duration;

use super::{Reader, Writer};
use crate::fleet::Fleet;
use crate::reckoning::{Counters, Glimpse, InstanceCounters, InstanceReport, Reports};
use crate::telemetry::Load;

/// Records with a row per instance belong to no configuration: rows that fit are used, whoever has written them.
const ANY: u64 = 0;

/// A worker's counters as bytes.
pub fn encode_counters(counters: &Counters, fleet: &Fleet) -> Vec<u8> {
    let mut writer = Writer::new(ANY);
    for (c, instance) in counters.0.iter().zip(&fleet.instances) {
        writer.u32(instance.key);
        write_counters(&mut writer, c);
    }
    writer.0
}

/// A worker's counters from bytes, zero where the row is of another instance or there is none; `None` if the record is of another
/// version, or broken.
pub fn decode_counters(bytes: &[u8], fleet: &Fleet) -> Option<Counters> {
    Some(Counters(keyed(Reader::open(bytes, ANY)?, fleet, read_counters)?))
}

/// The last reports as bytes, and the time between two of one instance. Of a load, what decisions read: the leader alone looks
/// at the rest.
pub fn encode_reports(reports: &Reports, period: Duration, fleet: &Fleet) -> Vec<u8> {
    let mut writer = Writer::new(ANY);
    writer.time(period);
    for (report, instance) in reports.0.iter().zip(&fleet.instances) {
        let InstanceReport { at, load, own, repeats, unreachable } = report;
        writer.u32(instance.key);
        writer.time(at.unwrap_or(Duration::ZERO));
        writer.gauge(load.running);
        writer.gauge(load.waiting);
        writer.gauge(load.kv_use);
        writer.gauge(load.awake.map(f64::from));
        write_counters(&mut writer, own);
        writer.u32(*repeats);
        writer.u32(*unreachable);
    }
    writer.0
}

/// The period of the last reports, from the same bytes.
pub fn decode_period(bytes: &[u8]) -> Option<Duration> {
    Reader::open(bytes, ANY)?.time()
}

/// The last reports from bytes, and their period; none where the row is of another instance or there is none. `None` if the
/// record is of another version, or broken.
pub fn decode_reports(bytes: &[u8], fleet: &Fleet) -> Option<(Reports, Duration)> {
    let mut reader = Reader::open(bytes, ANY)?;
    let period = reader.time()?;
    let rows = keyed(reader, fleet, |r| {
        let at = r.time()?;
        let (running, waiting, kv_use) = (r.gauge()?, r.gauge()?, r.gauge()?);
        let awake = r.gauge()?.map(|awake| awake != 0.0);
        Some(InstanceReport {
            at: (!at.is_zero()).then_some(at),
            load: Load { running, waiting, kv_use, awake, ..Load::default() },
            own: read_counters(r)?,
            repeats: r.u32()?,
            unreachable: r.u32()?,
        })
    })?;
    Some((Reports(rows), period))
}

/// Glimpses, by index, as bytes.
pub fn encode_glimpses<'a>(glimpses: impl IntoIterator<Item = (usize, &'a Glimpse)>, fleet: &Fleet) -> Vec<u8> {
    let mut writer = Writer::new(ANY);
    for (i, Glimpse { at, waiting, kv_use, running, own }) in glimpses {
        let Some(instance) = fleet.instances.get(i) else { continue };
        writer.u32(u32::try_from(i).unwrap_or(u32::MAX));
        writer.u32(instance.key);
        writer.time(*at);
        writer.gauge(*running);
        writer.gauge(*waiting);
        writer.gauge(*kv_use);
        write_counters(&mut writer, own);
    }
    writer.0
}

/// Glimpses from bytes, each with the index of its instance; a broken record has none.
pub fn decode_glimpses(bytes: &[u8], fleet: &Fleet) -> Vec<(usize, Glimpse)> {
    let rows = Reader::open(bytes, ANY).and_then(|mut reader| {
        reader.rows(|r| {
            let (i, key) = (usize::try_from(r.u32()?).ok()?, r.u32()?);
            let (at, running, waiting, kv_use) = (r.time()?, r.gauge()?, r.gauge()?, r.gauge()?);
            let glimpse = Glimpse { at, running, waiting, kv_use, own: read_counters(r)? };
            Some((i, key, glimpse))
        })
    });
    let fits =
        |(i, key, _): &(usize, u32, Glimpse)| fleet.instances.get(*i).is_some_and(|instance| instance.key == *key);
    rows.unwrap_or_default().into_iter().filter(fits).map(|(i, _, glimpse)| (i, glimpse)).collect()
}

/// One value per instance of the fleet.
fn keyed<T: Default>(
    mut reader: Reader,
    fleet: &Fleet,
    mut row: impl FnMut(&mut Reader) -> Option<T>,
) -> Option<Vec<T>> {
    let mut values = Vec::with_capacity(fleet.instances.len());
    for instance in &fleet.instances {
        if reader.0.is_empty() {
            break;
        }
        let key = reader.u32()?;
        let value = row(&mut reader)?;
        values.push(if key == instance.key { value } else { T::default() });
    }
    values.resize_with(fleet.instances.len(), T::default);
    Some(values)
}

fn write_counters(writer: &mut Writer, counters: &InstanceCounters) {
    // Destructured in full, so that a new counter cannot be forgotten here.
    let InstanceCounters {
        dispatched_requests,
        finished_requests,
        dispatched_prompt_tokens,
        finished_prompt_tokens,
        dispatched_output_tokens,
        finished_output_tokens,
        last_dispatch,
    } = *counters;
    for value in [
        dispatched_requests,
        finished_requests,
        dispatched_prompt_tokens,
        finished_prompt_tokens,
        dispatched_output_tokens,
        finished_output_tokens,
    ] {
        writer.u64(value);
    }
    writer.time(last_dispatch);
}

fn read_counters(reader: &mut Reader<'_>) -> Option<InstanceCounters> {
    Some(InstanceCounters {
        dispatched_requests: reader.u64()?,
        finished_requests: reader.u64()?,
        dispatched_prompt_tokens: reader.u64()?,
        finished_prompt_tokens: reader.u64()?,
        dispatched_output_tokens: reader.u64()?,
        finished_output_tokens: reader.u64()?,
        last_dispatch: reader.time()?,
    })
}
