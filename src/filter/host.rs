//! Host calls that cannot trap: the SDK's trait methods unwrap what the host answers, and some of its functions panic on a
//! status that they do not list, so every call here asks only what the host can answer in that phase. They are not inlined: the module's
//! size is Envoy's start-up time, and a call into the host costs far more than one to here.

use std::time::{Duration, Instant, UNIX_EPOCH};

use proxy_wasm::hostcalls;
use proxy_wasm::types::{BufferType, MapType, MetricType};

thread_local! {
    /// The earliest time that can be told, which is the same for all VMs of a process. Std does not say what its clock counts from.
    static BEGINNING: Instant = beginning(Instant::now());
}

/// The earliest time that can be told, found by halves.
fn beginning(now: Instant) -> Instant {
    let seconds = (0..u64::BITS).rev().map(|bit| Duration::from_secs(1 << bit));
    let nanos = (0..30).rev().map(|bit| Duration::from_nanos(1 << bit));
    seconds.chain(nanos).fold(now, |found, step| found.checked_sub(step).unwrap_or(found))
}

/// Seconds beyond which the clock counts from anew: std may begin at 0 or at the least whole number.
const SECONDS: u64 = 1 << 32;

/// Time of a clock that nobody sets and that all VMs of the process share.
#[inline(never)]
pub(super) fn now() -> Duration {
    let since = BEGINNING.with(|beginning| Instant::now().saturating_duration_since(*beginning));
    Duration::new(since.as_secs() % SECONDS, since.subsec_nanos())
}

/// Time since the epoch, as the host has it: it may be set at any time.
pub(super) fn wall_clock() -> Duration {
    hostcalls::get_current_time().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default()
}

/// A header's value; bytes that are not UTF-8 are replaced.
#[inline(never)]
pub(super) fn header(map: MapType, name: &str) -> Option<String> {
    let bytes = hostcalls::get_map_value_bytes(map, name).ok()??;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Sets or removes a header.
#[inline(never)]
pub(super) fn set_header(map: MapType, name: &str, value: Option<&str>) {
    let _ = hostcalls::set_map_value(map, name, value);
}

/// All headers.
#[inline(never)]
pub(super) fn headers(map: MapType) -> Vec<(String, Vec<u8>)> {
    hostcalls::get_map_bytes(map).unwrap_or_default()
}

/// Part of a buffer; empty if there is none.
#[inline(never)]
pub(super) fn buffer(kind: BufferType, start: usize, size: usize) -> Vec<u8> {
    if size == 0 {
        return Vec::new();
    }
    hostcalls::get_buffer(kind, start, size).ok().flatten().unwrap_or_default()
}

/// A property as the host gives it.
#[inline(never)]
pub(super) fn raw_property(path: &[&str]) -> Option<Vec<u8>> {
    hostcalls::get_property(path.to_vec()).ok()?
}

/// A property as text.
pub(super) fn property(path: &[&str]) -> Option<String> {
    String::from_utf8(raw_property(path)?).ok()
}

/// A property as a whole number.
#[inline(never)]
pub(super) fn number(path: &[&str]) -> Option<u64> {
    let bytes = raw_property(path)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Sets filter state `wasm.<key>` of the current stream.
#[inline(never)]
pub(super) fn set_filter_state(key: &str, value: &str) {
    let _ = hostcalls::set_property(vec![key], Some(value.as_bytes()));
}

/// Makes Envoy match the routes again with the headers and the filter state as they are now.
pub(super) fn clear_route_cache() {
    let _ = hostcalls::call_foreign_function("clear_route_cache", None);
}

/// Shared data: the record and its compare-and-swap token.
#[inline(never)]
pub(super) fn shared(key: &str) -> (Option<Vec<u8>>, Option<u32>) {
    hostcalls::get_shared_data(key).unwrap_or((None, None))
}

/// Writes shared data; false if somebody else has written since the token was read.
#[inline(never)]
pub(super) fn set_shared(key: &str, value: &[u8], cas: Option<u32>) -> bool {
    hostcalls::set_shared_data(key, Some(value), cas).is_ok()
}

/// Metrics in Envoy's statistics, defined when first used.
#[derive(Default)]
pub(super) struct Metrics(std::collections::BTreeMap<String, u32>);

impl Metrics {
    fn id(&mut self, kind: MetricType, name: &str) -> Option<u32> {
        if let Some(id) = self.0.get(name) {
            return Some(*id);
        }
        let id = hostcalls::define_metric(kind, name).ok()?;
        self.0.insert(name.to_owned(), id);
        Some(id)
    }

    /// Adds to a counter.
    pub(super) fn count(&mut self, name: &str, more: u64) {
        if let Some(id) = self.id(MetricType::Counter, name) {
            let _ = hostcalls::increment_metric(id, i64::try_from(more).unwrap_or(i64::MAX));
        }
    }

    /// Sets a gauge.
    pub(super) fn set(&mut self, name: &str, value: u64) {
        if let Some(id) = self.id(MetricType::Gauge, name) {
            let _ = hostcalls::record_metric(id, value);
        }
    }

    /// Records a value in a histogram.
    pub(super) fn observe(&mut self, name: &str, value: u64) {
        if let Some(id) = self.id(MetricType::Histogram, name) {
            let _ = hostcalls::record_metric(id, value);
        }
    }
}
