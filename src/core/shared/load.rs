//! Counters of workers, the instances' reports, and what response headers have shown in between.

use std::time::Duration;

use super::{Index, Reader, Writer};
use crate::fleet::InstanceId;
use crate::reckoning::{Counters, Glimpse, InstanceCounters, InstanceReport, Reports};
use crate::telemetry::Load;

/// Records of workers belong to no configuration: rows that fit are used, whoever has written them.
const ANY: u64 = 0;

/// A worker's counters as bytes, and whose they are.
pub fn encode_counters(counters: &Counters, owner: u64, index: &Index) -> Vec<u8> {
    let mut writer = Writer::new(ANY);
    writer.u64(owner);
    for (i, c) in counters.0.iter().enumerate() {
        let Some(key) = index.key(InstanceId::new(i)) else { break };
        writer.u32(key);
        write_counters(&mut writer, c);
    }
    writer.0
}

/// Adds a worker's counters to a sum of this fleet's, if they are this owner's; whether they are. Rows of instances that the fleet does not
/// have are left out, as is what is broken.
pub fn add_counters(bytes: &[u8], owner: u64, index: &Index, sum: &mut Counters) -> bool {
    let open = || {
        let mut reader = Reader::open(bytes, ANY)?;
        (reader.u64()? == owner).then_some(reader)
    };
    let Some(reader) = open() else { return false };
    each_row(reader, index, read_counters, |i, counters| {
        if let Some(sum) = sum.get_mut(i) {
            sum.add(&counters);
        }
    });
    true
}

/// Whose reports a record has, and how often they come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The configuration that fetches them.
    pub identity: u64,
    /// Time between two of one instance.
    pub period: Duration,
}

/// The last reports as bytes, and the time between two of one instance. Of a load, what decisions read: the leader alone looks
/// at the rest.
pub fn encode_reports(reports: &Reports, sources: &Sources, index: &Index) -> Vec<u8> {
    let mut writer = Writer::new(sources.identity);
    writer.time(sources.period);
    for (i, report) in reports.0.iter().enumerate() {
        let Some(key) = index.key(InstanceId::new(i)) else { break };
        writer.u32(key);
        write_report(&mut writer, report);
    }
    writer.0
}

pub(super) fn write_report(writer: &mut Writer, report: &InstanceReport) {
    let InstanceReport { at, load, own, repeats, unreachable } = report;
    writer.time(at.unwrap_or(Duration::ZERO));
    writer.gauge(load.running);
    writer.gauge(load.waiting);
    writer.gauge(load.kv_use);
    writer.gauge(load.awake.map(f64::from));
    write_counters(writer, own);
    writer.u32(*repeats);
    writer.u32(*unreachable);
}

/// The last reports from bytes, in a fleet's order; of an instance that has no row, none. `None` if the record is of another
/// configuration, another version, or broken.
pub fn decode_reports(bytes: &[u8], identity: u64, index: &Index) -> Option<(Reports, Sources)> {
    let mut reader = Reader::open(bytes, identity)?;
    let period = reader.time()?;
    let mut reports = Reports(vec![InstanceReport::default(); index.len()]);
    each_row(reader, index, read_report, |i, report| {
        if let Some(place) = reports.get_mut(i) {
            *place = report;
        }
    });
    Some((reports, Sources { identity, period }))
}

pub(super) fn read_report(r: &mut Reader<'_>) -> Option<InstanceReport> {
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
}

/// Glimpses, by instance, as bytes.
pub fn encode_glimpses<'a>(glimpses: impl IntoIterator<Item = (InstanceId, &'a Glimpse)>, index: &Index) -> Vec<u8> {
    let mut writer = Writer::new(ANY);
    for (i, Glimpse { at, waiting, kv_use, running, own }) in glimpses {
        let Some(key) = index.key(i) else { continue };
        writer.u32(key);
        writer.time(*at);
        writer.gauge(*running);
        writer.gauge(*waiting);
        writer.gauge(*kv_use);
        write_counters(&mut writer, own);
    }
    writer.0
}

/// Glimpses from bytes, each with its instance; a broken record has none. Most rows are seen again and again: only those of
/// whose instance and time `is_news` says so are read.
pub fn decode_glimpses(
    bytes: &[u8],
    index: &Index,
    is_news: impl Fn(InstanceId, Duration) -> bool,
) -> Vec<(InstanceId, Glimpse)> {
    let mut glimpses = Vec::new();
    let Some(mut reader) = Reader::open(bytes, ANY) else { return glimpses };
    for number in 0.. {
        let Some(key) = reader.u32() else { break };
        let Some((row, rest)) = reader.0.split_at_checked(GLIMPSE_BYTES) else { break };
        reader.0 = rest;
        let read = || {
            let mut r = Reader(row);
            let at = r.time()?;
            let i = index.find(key, number).filter(|i| is_news(*i, at))?;
            let (running, waiting, kv_use) = (r.gauge()?, r.gauge()?, r.gauge()?);
            Some((i, Glimpse { at, running, waiting, kv_use, own: read_counters(&mut r)? }))
        };
        glimpses.extend(read());
    }
    glimpses
}

/// A time, three gauges and the counters of an instance.
const GLIMPSE_BYTES: usize = 8 + 3 * 4 + 7 * 8;

/// Visits every row whose instance the fleet has, until one is broken.
fn each_row<T>(
    mut reader: Reader<'_>,
    index: &Index,
    row: impl Fn(&mut Reader<'_>) -> Option<T>,
    mut visit: impl FnMut(InstanceId, T),
) {
    let read = |number: usize| {
        let key = reader.u32()?;
        Some((index.find(key, number), row(&mut reader)?))
    };
    for (at, value) in (0..).map_while(read) {
        if let Some(at) = at {
            visit(at, value);
        }
    }
}

pub(super) fn write_counters(writer: &mut Writer, counters: &InstanceCounters) {
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

pub(super) fn read_counters(reader: &mut Reader<'_>) -> Option<InstanceCounters> {
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
