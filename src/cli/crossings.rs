//! Crossings between a VM and its host, as Envoy logs them: with its component `wasm` at the level `trace`, each is a line.

use std::collections::BTreeMap;

use serde::Serialize;

/// Crossings of one kind of callback.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Callback {
    /// How often it came.
    pub calls: u64,
    /// What crossed meanwhile, by the function's name; the call itself is one.
    pub functions: BTreeMap<String, u64>,
    /// Bytes that were written to shared data.
    pub shared_bytes: u64,
}

/// The crossings of a log, by the callback in which they were. Each of Envoy's threads has its own.
pub fn callbacks(log: &str) -> BTreeMap<String, Callback> {
    let mut current: BTreeMap<&str, String> = BTreeMap::new();
    let mut found: BTreeMap<String, Callback> = BTreeMap::new();
    for line in log.lines() {
        let Some(Crossing { thread, name, is_call, arguments }) = crossing(line) else { continue };
        // The host takes memory in the VM for what it returns: that is no callback.
        let is_callback = is_call && name.starts_with("proxy_on_") && name != "proxy_on_memory_allocate";
        if is_callback {
            current.insert(thread, name.to_owned());
        }
        let callback = current.get(thread).cloned().unwrap_or_else(|| name.to_owned());
        let entry = found.entry(callback).or_default();
        entry.calls += u64::from(is_callback);
        *entry.functions.entry(name.to_owned()).or_default() += 1;
        if name == "proxy_set_shared_data" {
            let bytes = arguments.split(',').nth(VALUE_SIZE).and_then(|size| size.trim().parse().ok());
            entry.shared_bytes += bytes.unwrap_or(0);
        }
    }
    found
}

/// Which argument of `proxy_set_shared_data` is the size of the value.
const VALUE_SIZE: usize = 3;

/// What a line tells of a crossing.
struct Crossing<'a> {
    thread: &'a str,
    name: &'a str,
    /// Whether the host calls.
    is_call: bool,
    arguments: &'a str,
}

/// The crossing that a line tells of. Returns are not counted.
fn crossing(line: &str) -> Option<Crossing<'_>> {
    let thread = line.strip_prefix('[')?.split("][").nth(1)?;
    let (call, is_call) = match line.split_once("[host->vm] ") {
        Some((_, call)) => (call, true),
        None => (line.split_once("[vm->host] ")?.1, false),
    };
    let (name, arguments) = call.split_once('(').unwrap_or((call, ""));
    let name = name.split(' ').next()?.rsplit('.').next()?;
    Some(Crossing { thread, name, is_call, arguments: arguments.split(')').next().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crossings_belong_to_the_callback_of_their_thread() {
        let log = "\
            [2026-11-30 05:00:00.000][7][trace][wasm] [a.cc:1] [host->vm] proxy_on_tick(1)\n\
            [2026-11-30 05:00:00.000][8][trace][wasm] [a.cc:1] [host->vm] proxy_on_request_headers(2, 9, 0)\n\
            [2026-11-30 05:00:00.000][7][trace][wasm] [a.cc:1] [vm->host] env.proxy_get_shared_data(1, 2)\n\
            [2026-11-30 05:00:00.000][7][trace][wasm] [a.cc:1] [vm<-host] env.proxy_get_shared_data return: 0\n\
            [2026-11-30 05:00:00.000][8][trace][wasm] [a.cc:1] [vm->host] wasi_snapshot_preview1.clock_time_get(1)\n\
            [2026-11-30 05:00:00.000][8][trace][wasm] [a.cc:1] [host->vm] malloc(9)\n\
            [2026-11-30 05:00:00.000][8][trace][wasm] [a.cc:1] [vm->host] env.proxy_set_shared_data(1, 2, 3, 99, 0)\n\
            [2026-11-30 05:00:00.000][8][info][main] nothing\n";
        let found = callbacks(log);
        let functions = |name: &str| found[name].functions.iter().map(|(k, v)| (k.as_str(), *v)).collect::<Vec<_>>();
        assert_eq!(functions("proxy_on_tick"), [("proxy_get_shared_data", 1), ("proxy_on_tick", 1)]);
        let expected =
            [("clock_time_get", 1), ("malloc", 1), ("proxy_on_request_headers", 1), ("proxy_set_shared_data", 1)];
        assert_eq!(functions("proxy_on_request_headers"), expected);
        assert_eq!((found["proxy_on_request_headers"].shared_bytes, found["proxy_on_tick"].shared_bytes), (99, 0));
    }
}
