//! Counters of workers and the instances' reports.

use std::time::Duration;

use super::{Reader, Writer};
use crate::reckoning::{Counters, InstanceCounters, InstanceReport, Reports};
use crate::telemetry::Load;

/// A worker's counters as bytes.
pub fn encode_counters(counters: &Counters, fingerprint: u64) -> Vec<u8> {
    let mut writer = Writer::new(fingerprint);
    counters.0.iter().for_each(|c| write_counters(&mut writer, c));
    writer.0
}

/// A worker's counters from bytes; `None` if they are of another fleet, another version, or broken.
pub fn decode_counters(bytes: &[u8], fingerprint: u64) -> Option<Counters> {
    Some(Counters(Reader::open(bytes, fingerprint)?.rows(read_counters)?))
}

/// The last reports as bytes.
pub fn encode_reports(reports: &Reports, fingerprint: u64) -> Vec<u8> {
    let mut writer = Writer::new(fingerprint);
    for report in &reports.0 {
        let InstanceReport { at, load: Load { running, waiting, kv_use, .. }, own, repeats, unreachable } = report;
        writer.time(at.unwrap_or(Duration::ZERO));
        writer.f64(*running);
        writer.f64(*waiting);
        writer.f64(*kv_use);
        write_counters(&mut writer, own);
        writer.u32(*repeats);
        writer.u32(*unreachable);
    }
    writer.0
}

/// The last reports from bytes; `None` if they are of another fleet, another version, or broken.
pub fn decode_reports(bytes: &[u8], fingerprint: u64) -> Option<Reports> {
    let rows = Reader::open(bytes, fingerprint)?.rows(|r| {
        let at = r.time()?;
        Some(InstanceReport {
            at: (!at.is_zero()).then_some(at),
            load: Load { running: r.f64()?, waiting: r.f64()?, kv_use: r.f64()?, ..Load::default() },
            own: read_counters(r)?,
            repeats: r.u32()?,
            unreachable: r.u32()?,
        })
    })?;
    Some(Reports(rows))
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
