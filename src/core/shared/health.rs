//! What is known of instances that something speaks against.

use super::{Reader, Writer};
use crate::health::{Case, Record, Records};

/// The records as bytes. They belong to no fleet: each is found by its instance's address.
pub fn encode_health(records: &Records) -> Vec<u8> {
    let mut writer = Writer::new(0);
    for (instance, record) in &records.0 {
        let Record { failures, last_failure, stalled, last_busy, busy_answers, good_answers, .. } = *record;
        let Record { busy_since, busy_until, ejections, ejected_until, probe_until, suspicions, refusals, .. } =
            *record;
        for count in [*instance, failures, ejections, u32::from(stalled), busy_answers, good_answers] {
            writer.u32(count);
        }
        for time in [last_failure, last_busy, busy_since, busy_until, ejected_until, probe_until] {
            writer.time(time);
        }
        write_case(&mut writer, &suspicions);
        write_case(&mut writer, &refusals);
    }
    writer.0
}

fn write_case(writer: &mut Writer, case: &Case) {
    let Case { count, common, since, last, good_at_peers, same_at_peers, good_elsewhere, same_elsewhere } = *case;
    writer.u32(count);
    writer.u32(common);
    writer.time(since);
    writer.time(last);
    writer.u32(u32::from_le_bytes([good_at_peers, same_at_peers, good_elsewhere, same_elsewhere]));
}

/// The records from bytes; broken ones are none.
pub fn decode_health(bytes: &[u8]) -> Records {
    let rows = Reader::open(bytes, 0).and_then(|mut reader| reader.rows(read_record));
    Records(rows.unwrap_or_default().into_iter().collect())
}

fn read_record(r: &mut Reader<'_>) -> Option<(u32, Record)> {
    let instance = r.u32()?;
    let (failures, ejections, stalled) = (r.u32()?, r.u32()?, r.u32()? != 0);
    let (busy_answers, good_answers) = (r.u32()?, r.u32()?);
    let (last_failure, last_busy, busy_since) = (r.time()?, r.time()?, r.time()?);
    let (busy_until, ejected_until, probe_until) = (r.time()?, r.time()?, r.time()?);
    let (suspicions, refusals) = (read_case(r)?, read_case(r)?);
    let record = Record {
        failures,
        last_failure,
        stalled,
        last_busy,
        busy_answers,
        good_answers,
        busy_since,
        busy_until,
        ejections,
        ejected_until,
        probe_until,
        suspicions,
        refusals,
    };
    Some((instance, record))
}

fn read_case(r: &mut Reader<'_>) -> Option<Case> {
    let (count, common, since, last) = (r.u32()?, r.u32()?, r.time()?, r.time()?);
    let [good_at_peers, same_at_peers, good_elsewhere, same_elsewhere] = r.u32()?.to_le_bytes();
    Some(Case { count, common, since, last, good_at_peers, same_at_peers, good_elsewhere, same_elsewhere })
}
