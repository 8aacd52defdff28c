//! The module in an interpreter, on a host in memory that speaks the ABI of proxy-wasm: as much of it as the module's way of a plain
//! request needs, and every other function refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use routebalance_core::gateway::memory::{MemoryHost, ROOT};
use routebalance_core::gateway::{Body, Host, Map};
use wasmi::{
    Caller, Config, Engine, Extern, Func, Instance, Linker, Memory, Module, Store, Val, WasmParams, WasmResults,
};

const OK: i32 = 0;
const NOT_FOUND: i32 = 1;
const BAD_ARGUMENT: i32 = 2;
const CAS_MISMATCH: i32 = 8;
const UNIMPLEMENTED: i32 = 12;
/// Fuel that no run uses up.
const TANK: u64 = 1 << 50;

/// What the module's host functions work on.
pub(super) struct State {
    pub(super) host: MemoryHost,
    configuration: Vec<u8>,
    shared: BTreeMap<Vec<u8>, (Vec<u8>, u32)>,
    metrics: i32,
    memory: Option<Memory>,
    /// Calls of the module into its host, and of the host into the module.
    pub(super) crossings: u64,
}

/// A VM with the module.
pub(super) struct Vm {
    pub(super) store: Store<State>,
    instance: Instance,
}

impl Vm {
    /// Starts the module with a configuration, as Envoy does.
    pub(super) fn start(module: &Path, configuration: &[u8]) -> Vm {
        let mut config = Config::default();
        config.consume_fuel(true);
        let engine = Engine::new(&config);
        let bytes = std::fs::read(module).expect("the module is there");
        let module = Module::new(&engine, &bytes).expect("the module is valid");
        let host = MemoryHost { time: Duration::from_secs(1_000), ..MemoryHost::default() };
        let state = State {
            host,
            configuration: configuration.to_vec(),
            shared: BTreeMap::new(),
            metrics: 0,
            memory: None,
            crossings: 0,
        };
        let mut store = Store::new(&engine, state);
        store.set_fuel(TANK).expect("fuel is counted");
        let mut linker = Linker::new(&engine);
        define(&mut linker);
        refuse_others(&mut linker, &mut store, &module);
        let instance = linker.instantiate_and_start(&mut store, &module).expect("the module starts");
        let memory = instance.get_memory(&store, "memory").expect("the module has a memory");
        store.data_mut().memory = Some(memory);
        let mut vm = Vm { store, instance };
        vm.call::<(), ()>("_initialize", ());
        let root = ROOT as i32;
        vm.call::<(i32, i32), ()>("proxy_on_context_create", (root, 0));
        vm.call::<(i32, i32), i32>("proxy_on_vm_start", (root, 0));
        let size = configuration.len() as i32;
        assert_eq!(vm.call::<(i32, i32), i32>("proxy_on_configure", (root, size)), 1, "the configuration is taken");
        vm
    }

    /// Calls one of the module's functions.
    pub(super) fn call<P: WasmParams, R: WasmResults>(&mut self, name: &str, arguments: P) -> R {
        self.store.data_mut().crossings += 1;
        let function = self.instance.get_typed_func::<P, R>(&self.store, name).expect("the module exports it");
        function.call(&mut self.store, arguments).unwrap_or_else(|trap| panic!("{name}: {trap}"))
    }

    /// What was charged so far.
    pub(super) fn fuel(&self) -> u64 {
        TANK - self.store.get_fuel().expect("fuel is counted")
    }
}

/// A host function's view of the module's memory.
struct Here<'a, 'b>(&'a mut Caller<'b, State>);

impl Here<'_, '_> {
    fn memory(&self) -> Memory {
        self.0.data().memory.expect("the module has started")
    }

    fn bytes(&self, at: i32, size: i32) -> Vec<u8> {
        let (at, size) = (at as usize, size as usize);
        self.memory().data(&*self.0).get(at..at + size).expect("a place in memory").to_vec()
    }

    fn text(&self, at: i32, size: i32) -> String {
        String::from_utf8(self.bytes(at, size)).expect("names are text")
    }

    fn put(&mut self, at: i32, bytes: &[u8]) {
        let memory = self.memory();
        memory.write(&mut *self.0, at as usize, bytes).expect("a place in memory");
    }

    fn number(&mut self, at: i32, number: u32) {
        self.put(at, &number.to_le_bytes());
    }

    /// Returns a buffer: the module allocates it.
    fn give(&mut self, bytes: Option<&[u8]>, at: i32, size: i32) -> i32 {
        let Some(bytes) = bytes else { return NOT_FOUND };
        self.0.data_mut().crossings += 1;
        let allocate = self.0.get_export("proxy_on_memory_allocate").and_then(Extern::into_func).expect("an allocator");
        let allocate = allocate.typed::<i32, i32>(&*self.0).expect("takes a size");
        let place = allocate.call(&mut *self.0, bytes.len() as i32).expect("memory is there");
        self.put(place, bytes);
        self.number(at, place as u32);
        self.number(size, bytes.len() as u32);
        OK
    }

    fn host(&mut self) -> &mut MemoryHost {
        self.0.data_mut().crossings += 1;
        &mut self.0.data_mut().host
    }
}

fn map(kind: i32) -> Option<Map> {
    match kind {
        0 => Some(Map::Request),
        2 => Some(Map::Response),
        6 => Some(Map::CallResponse),
        _ => None,
    }
}

/// Headers as the ABI has them.
fn pairs(headers: &[(String, String)]) -> Vec<u8> {
    let mut bytes = (headers.len() as u32).to_le_bytes().to_vec();
    for (name, value) in headers {
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend((value.len() as u32).to_le_bytes());
    }
    for (name, value) in headers {
        bytes.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    bytes
}

/// The other way round; no value here holds a zero.
fn parsed(bytes: &[u8]) -> Vec<(String, String)> {
    let count = bytes.first_chunk::<4>().map_or(0, |count| u32::from_le_bytes(*count)) as usize;
    let texts: Vec<&[u8]> = bytes.get(4 + 8 * count..).unwrap_or_default().split(|byte| *byte == 0).collect();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    texts.chunks_exact(2).take(count).map(|pair| (text(pair[0]), text(pair[1]))).collect()
}

fn define(linker: &mut Linker<State>) {
    define_headers(linker);
    define_requests(linker);
    define_shared(linker);
    define_wasi(linker);
}

type Of<'a> = Caller<'a, State>;

fn define_headers(linker: &mut Linker<State>) {
    bind(linker.func_wrap(
        "env",
        "proxy_get_header_map_pairs",
        |mut c: Of<'_>, kind: i32, at: i32, size: i32| -> i32 {
            let mut here = Here(&mut c);
            let all = map(kind).map(|map| pairs(&here.host().headers(map)));
            here.give(all.as_deref(), at, size)
        },
    ));
    bind(linker.func_wrap(
        "env",
        "proxy_get_header_map_value",
        |mut c: Of<'_>, kind: i32, n: i32, length: i32, at: i32, size: i32| -> i32 {
            let mut here = Here(&mut c);
            let name = here.text(n, length);
            let value = map(kind).and_then(|map| here.host().header(map, &name));
            here.give(value.as_deref().map(str::as_bytes), at, size)
        },
    ));
    for name in ["proxy_replace_header_map_value", "proxy_add_header_map_value"] {
        bind(linker.func_wrap(
            "env",
            name,
            |mut c: Of<'_>, kind: i32, n: i32, length: i32, v: i32, size: i32| -> i32 {
                let mut here = Here(&mut c);
                let (name, value) = (here.text(n, length), here.text(v, size));
                map(kind).into_iter().for_each(|map| here.host().set_header(map, &name, Some(&value)));
                OK
            },
        ));
    }
    bind(linker.func_wrap(
        "env",
        "proxy_remove_header_map_value",
        |mut c: Of<'_>, kind: i32, n: i32, length: i32| -> i32 {
            let mut here = Here(&mut c);
            let name = here.text(n, length);
            map(kind).into_iter().for_each(|map| here.host().set_header(map, &name, None));
            OK
        },
    ));
}

fn define_requests(linker: &mut Linker<State>) {
    bind(linker.func_wrap(
        "env",
        "proxy_get_buffer_bytes",
        |mut c: Of<'_>, kind: i32, start: i32, most: i32, at: i32, size: i32| -> i32 {
            let mut here = Here(&mut c);
            let body = |body| move |host: &mut MemoryHost| host.body(body, start as usize, most as usize);
            let bytes = match kind {
                0 => body(Body::Request)(here.host()),
                1 => body(Body::Response)(here.host()),
                4 => body(Body::CallResponse)(here.host()),
                7 => here.0.data().configuration.clone(),
                _ => Vec::new(),
            };
            here.give(Some(&bytes).filter(|bytes| !bytes.is_empty()).map(Vec::as_slice), at, size)
        },
    ));
    bind(linker.func_wrap(
        "env",
        "proxy_set_buffer_bytes",
        |mut c: Of<'_>, kind: i32, _start: i32, size: i32, at: i32, length: i32| -> i32 {
            let mut here = Here(&mut c);
            let with = here.bytes(at, length);
            if kind == 0 && here.host().replace_body(size as usize, &with) { OK } else { BAD_ARGUMENT }
        },
    ));
    bind(linker.func_wrap(
        "env",
        "proxy_get_property",
        |mut c: Of<'_>, n: i32, length: i32, at: i32, size: i32| -> i32 {
            let mut here = Here(&mut c);
            let path = here.text(n, length);
            let path: Vec<&str> = path.split('\0').collect();
            let host = here.host();
            let number = host.number(&path).map(|number| number.to_le_bytes().to_vec());
            let value = number.or_else(|| host.property(&path).map(String::into_bytes));
            here.give(value.as_deref(), at, size)
        },
    ));
    bind(linker.func_wrap(
        "env",
        "proxy_set_property",
        |mut c: Of<'_>, n: i32, length: i32, v: i32, size: i32| -> i32 {
            let mut here = Here(&mut c);
            let (name, value) = (here.text(n, length), here.text(v, size));
            here.host().set_state(&name, &value);
            OK
        },
    ));
    bind(linker.func_wrap("env", "proxy_set_effective_context", |mut c: Of<'_>, context: i32| -> i32 {
        if Here(&mut c).host().enter(context as u32) { OK } else { BAD_ARGUMENT }
    }));
    bind(linker.func_wrap(
        "env",
        "proxy_call_foreign_function",
        |mut c: Of<'_>, _: i32, _: i32, _: i32, _: i32, _: i32, _: i32| -> i32 {
            Here(&mut c).host().clear_route_cache();
            OK
        },
    ));
    bind(linker.func_wrap("env", "proxy_http_call", http_call));
}

#[expect(clippy::too_many_arguments, reason = "the ABI's own")]
fn http_call(
    mut c: Of<'_>,
    cluster: i32,
    cluster_size: i32,
    headers: i32,
    headers_size: i32,
    body: i32,
    body_size: i32,
    _trailers: i32,
    _trailers_size: i32,
    timeout_ms: i32,
    token: i32,
) -> i32 {
    let mut here = Here(&mut c);
    let cluster = here.text(cluster, cluster_size);
    let (headers, body) = (parsed(&here.bytes(headers, headers_size)), here.bytes(body, body_size));
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let timeout = Duration::from_millis(timeout_ms as u64);
    let number = here.host().call(&cluster, &headers, &body, timeout).expect("calls are taken");
    here.number(token, number);
    OK
}

fn define_shared(linker: &mut Linker<State>) {
    bind(linker.func_wrap(
        "env",
        "proxy_get_shared_data",
        |mut c: Of<'_>, k: i32, length: i32, at: i32, size: i32, cas: i32| -> i32 {
            let mut here = Here(&mut c);
            let key = here.bytes(k, length);
            let _ = here.host();
            let Some((value, version)) = here.0.data().shared.get(&key).cloned() else { return NOT_FOUND };
            here.number(cas, version);
            here.give(Some(&value), at, size)
        },
    ));
    bind(linker.func_wrap(
        "env",
        "proxy_set_shared_data",
        |mut c: Of<'_>, k: i32, length: i32, v: i32, size: i32, cas: i32| -> i32 {
            let mut here = Here(&mut c);
            let (key, value) = (here.bytes(k, length), here.bytes(v, size));
            let _ = here.host();
            let (old, version) = here.0.data_mut().shared.entry(key).or_default();
            if cas != 0 && cas as u32 != *version {
                return CAS_MISMATCH;
            }
            (*old, *version) = (value, version.wrapping_add(1));
            OK
        },
    ));
    bind(linker.func_wrap(
        "env",
        "proxy_define_metric",
        |mut c: Of<'_>, _kind: i32, _n: i32, _length: i32, id: i32| -> i32 {
            let mut here = Here(&mut c);
            let _ = here.host();
            here.0.data_mut().metrics += 1;
            let number = here.0.data().metrics;
            here.number(id, number as u32);
            OK
        },
    ));
    for name in ["proxy_increment_metric", "proxy_record_metric"] {
        bind(linker.func_wrap("env", name, |mut c: Of<'_>, _id: i32, _value: i64| -> i32 {
            let _ = Here(&mut c).host();
            OK
        }));
    }
    bind(linker.func_wrap("env", "proxy_set_tick_period_milliseconds", |_: Of<'_>, _: i32| -> i32 { OK }));
    bind(linker.func_wrap("env", "proxy_log", |_: Of<'_>, _: i32, _: i32, _: i32| -> i32 { OK }));
    bind(linker.func_wrap("env", "proxy_get_current_time_nanoseconds", |mut c: Of<'_>, at: i32| -> i32 {
        let mut here = Here(&mut c);
        let now = here.host().wall_clock();
        here.put(at, &(now.as_nanos() as u64).to_le_bytes());
        OK
    }));
}

fn define_wasi(linker: &mut Linker<State>) {
    const WASI: &str = "wasi_snapshot_preview1";
    bind(linker.func_wrap(WASI, "clock_time_get", |mut c: Of<'_>, _clock: i32, _precision: i64, at: i32| -> i32 {
        let mut here = Here(&mut c);
        let now = here.host().now();
        here.put(at, &(now.as_nanos() as u64).to_le_bytes());
        OK
    }));
    // The same numbers each time: hash tables have the same order, and runs the same fuel.
    bind(linker.func_wrap(WASI, "random_get", |mut c: Of<'_>, at: i32, size: i32| -> i32 {
        Here(&mut c).put(at, &vec![7; size as usize]);
        OK
    }));
    bind(linker.func_wrap(WASI, "environ_sizes_get", |mut c: Of<'_>, count: i32, size: i32| -> i32 {
        let mut here = Here(&mut c);
        here.number(count, 0);
        here.number(size, 0);
        OK
    }));
    bind(linker.func_wrap(WASI, "environ_get", |_: Of<'_>, _: i32, _: i32| -> i32 { OK }));
    bind(linker.func_wrap(WASI, "fd_write", |mut c: Of<'_>, _fd: i32, at: i32, _count: i32, written: i32| -> i32 {
        let mut here = Here(&mut c);
        let piece = here.bytes(at, 8);
        let (start, size) = piece.split_at(4);
        let number = |bytes: &[u8]| bytes.first_chunk::<4>().map_or(0, |bytes| i32::from_le_bytes(*bytes));
        let text = here.bytes(number(start), number(size));
        eprintln!("the module says: {}", String::from_utf8_lossy(&text));
        here.number(written, text.len() as u32);
        OK
    }));
}

fn bind<T>(defined: Result<&mut Linker<State>, T>)
where
    T: std::fmt::Debug,
{
    defined.expect("each function is defined once");
}

/// Whatever else the module imports answers that it is not there.
fn refuse_others(linker: &mut Linker<State>, store: &mut Store<State>, module: &Module) {
    for import in module.imports() {
        let Some(function) = import.ty().func() else { continue };
        let refuse = |_: Of<'_>, _: &[Val], results: &mut [Val]| {
            results.iter_mut().for_each(|result| *result = Val::I32(UNIMPLEMENTED));
            Ok(())
        };
        let refused = Func::new(&mut *store, function.clone(), refuse);
        // Those that are defined stay as they are.
        let _ = linker.define(import.module(), import.name(), refused);
    }
}
