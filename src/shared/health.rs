//! What is known of instances that something speaks against.

use super::{Reader, Writer};
use crate::health::{Record, Records};

/// The records as bytes. They belong to no fleet: each is found by its instance's address.
pub fn encode_health(records: &Records) -> Vec<u8> {
    let mut writer = Writer::new(0);
    for (instance, record) in &records.0 {
        let Record { failures, last_failure, stalled, last_busy, ejections, ejected_until, probe_until } = *record;
        writer.u32(*instance);
        writer.u32(failures);
        writer.u32(ejections);
        writer.u32(u32::from(stalled));
        for time in [last_failure, last_busy, ejected_until, probe_until] {
            writer.time(time);
        }
    }
    writer.0
}

/// The records from bytes; broken ones are none.
pub fn decode_health(bytes: &[u8]) -> Records {
    let rows = Reader::open(bytes, 0).and_then(|mut reader| {
        reader.rows(|r| {
            let instance = r.u32()?;
            let (failures, ejections, stalled) = (r.u32()?, r.u32()?, r.u32()? != 0);
            let (last_failure, last_busy, ejected_until, probe_until) = (r.time()?, r.time()?, r.time()?, r.time()?);
            let record = Record { failures, last_failure, stalled, last_busy, ejections, ejected_until, probe_until };
            Some((instance, record))
        })
    });
    Records(rows.unwrap_or_default().into_iter().collect())
}
