//! What may happen next, as the input chooses.

use std::time::Duration;

use routebalance_core::gateway::memory::{Exchange, Headers, header_of, owned};
use routebalance_core::names;

use super::upstream;
use super::vm::Vm;
use super::world::World;
use crate::choices::Choices;
use crate::material::{REQUESTS, RESPONSES};

const METHODS: [&str; 8] = ["POST", "POST", "POST", "POST", "POST", "GET", "DELETE", "OPTIONS"];
const CALLS: [&str; 28] = [
    "/v1/chat/completions",
    "/v1/chat/completions",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/v2/rerank",
    "/score",
    "/v1/audio/transcriptions",
    "/v1/responses/resp_a98f2f4ef1c1f3a7",
    "/v1/responses/resp_1/cancel",
    "/v1/responses/compact",
    "/v1/models",
    "/v1/models/auto",
    "/v1/models/n%6Fbody",
    "/openai/deployments/small/chat/completions?api-version=1",
    "/openai/deployments/no%2fbody/completions",
    "/routebalance/feedback",
    "/routebalance/debug/predict",
    "/routebalance/drill/vm",
    "/v1//chat/completions",
    "/generate",
    "/health",
    "/",
    "",
];
const PREFIXES: [&str; 10] = ["", "", "", "/strict", "/shed", "/priced", "/turns", "/least", "/paper", "/adaptive"];
/// What clients may say besides.
const HEADERS: [(&str, &[&str]); 28] = [
    (names::SUBSET_HEADER, &["10.0.0.1:1,10.0.0.2:1", "10.9.9.9:9", "", "nonsense", "[::1]:1, 10.0.0.1:1 ,"]),
    ("content-type", &["application/json", "multipart/form-data; boundary=x", "multipart/form-data; boundary=\"", ""]),
    ("content-encoding", &["gzip", "br", "identity", "gzip, br", "", "x\u{FFFD}"]),
    (names::ENCODING_HEADER, &["gzip", "zstd", "deflate", "gzip,gzip"]),
    ("authorization", &["Bearer sixteen-letters-x", "bearer  sixteen-letters-x ", "Bearer x", "Basic eA=="]),
    ("x-session-id", &["s1", "s2", "\u{FFFD}\u{FFFD}", ""]),
    (names::REQUEST_ID_HEADER, &["r-1", "\"\\\u{1}\u{7f}", "\u{FFFD}", ""]),
    (names::POOL_HEADER, &["pool-small", "pool-nobody"]),
    (names::ENDPOINT_HEADER, &["10.0.0.1:1", "10.9.9.9:9,,"]),
    (names::TTFT_SLO_HEADER, &["1", "400", "1e9", "-1", "nan", "0", "99999999999999999999"]),
    (names::TTFT_SLO_ALIAS_HEADER, &["1", "500", "x"]),
    (names::TPOT_SLO_HEADER, &["1", "40", "0.0001", "inf"]),
    (names::TPOT_SLO_ALIAS_HEADER, &["2", "41"]),
    (names::BUDGET_USD_HEADER, &["0", "0.0000001", "1", "1e308", "-0"]),
    (names::BUDGET_TOKENS_HEADER, &["0", "1", "20", "4294967296", "1.5"]),
    (names::QUALITY_MIN_HEADER, &["0", "0.5", "1", "1.1", ".5"]),
    (names::MODE_HEADER, &["strict", "relax", "STRICT", "?"]),
    (names::RELAX_ORDER_HEADER, &["quality,budget", "budget,budget", "ttft, tpot", ",", "x"]),
    (names::LOAD_FORMAT_HEADER, &["TEXT", "JSON"]),
    (names::TIMEOUT_HEADER, &["1", "0", "x"]),
    (names::MAX_RETRIES_HEADER, &["9", "0"]),
    ("upgrade", &["websocket"]),
    ("expect", &["100-continue"]),
    ("connection", &["keep-alive"]),
    ("traceparent", &["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]),
    ("x-request-timeout", &["1", "30"]),
    ("transfer-encoding", &["chunked"]),
    ("cookie", &["a=b; c=\u{FFFD}"]),
];
const TIMES: [Duration; 16] = [
    Duration::ZERO,
    Duration::from_nanos(1),
    Duration::from_micros(300),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(60),
    Duration::from_millis(210),
    Duration::from_millis(450),
    Duration::from_secs(1),
    Duration::from_secs(6),
    Duration::from_secs(70),
    Duration::from_secs(700),
    Duration::from_secs(90_000),
    Duration::from_secs(400_000_000),
];

impl World {
    /// Does what the input says.
    pub(super) fn act(&mut self, choices: &mut Choices<'_>) {
        match choices.byte() {
            0..=43 => self.conversation(choices),
            44..=49 => self.score(choices),
            // It costs as much as ten others.
            50 | 51 => self.stall(choices),
            52..=59 => self.conversation(choices),
            60..=84 => {
                let Some(vm) = self.vm(choices) else { return };
                begin(vm, choices, None);
            }
            85..=104 => self.with_stream(choices, more_of_request),
            105..=134 => self.with_stream(choices, upstream::more_of_response),
            135..=146 => self.with_stream(choices, upstream::attempt),
            147..=156 => self.with_stream(choices, |vm, id, choices| vm.end(id, choices.in_256(40))),
            157..=196 => self.ticks(choices),
            197..=222 => {
                let Some(vm) = self.vm(choices) else { return };
                upstream::answer_call(vm, choices);
            }
            223..=228 => {
                let time = choices.pick(&TIMES);
                self.pass(choices, time);
            }
            229..=232 => self.boot(choices),
            233..=236 => self.end(choices),
            237..=240 => self.fail_writes(choices),
            241..=244 => self.with_vm(choices, |vm, choices| vm.host.refuses_calls = choices.in_256(128)),
            245..=247 => self.with_vm(choices, wrong_callback),
            248..=252 => self.tamper(choices),
            253 => self.turn_back(choices),
            _ => {
                if choices.in_256(128) {
                    self.tamper(choices);
                }
            }
        }
    }

    fn with_vm(&mut self, choices: &mut Choices<'_>, f: impl FnOnce(&mut Vm, &mut Choices<'_>)) {
        if let Some(vm) = self.vm(choices) {
            f(vm, choices);
        }
    }

    fn with_stream(&mut self, choices: &mut Choices<'_>, f: impl FnOnce(&mut Vm, u32, &mut Choices<'_>)) {
        let Some(vm) = self.vm(choices) else { return };
        let at = choices.below(vm.streams.len());
        if let Some(id) = vm.streams.keys().nth(at).copied() {
            f(vm, id, choices);
        }
    }

    /// Ticks of all VMs or of one, after some time each; calls are answered between them.
    fn ticks(&mut self, choices: &mut Choices<'_>) {
        let (time, count) = (choices.pick(&TIMES), [1, 1, 1, 2, 2, 5][choices.below(6)]);
        let answers = choices.in_256(160);
        for _ in 0..count {
            self.pass(choices, time);
            if choices.in_256(40) {
                self.with_vm(choices, |vm, _| vm.tick());
            } else {
                self.tick_all();
            }
            for vm in self.vms.iter_mut().filter(|_| answers) {
                for _ in 0..vm.calls.len().min(4) {
                    upstream::answer_call(vm, choices);
                }
            }
        }
    }

    /// A request and its answer, most often whole and without a fault.
    fn conversation(&mut self, choices: &mut Choices<'_>) {
        let time = choices.pick(&TIMES[..10]);
        let at = choices.below(self.vms.len());
        let Some(vm) = self.vms.get_mut(at) else { return };
        let body = body(choices);
        let id = begin(vm, choices, Some(body.len()));
        if !vm.streams.get(&id).is_none_or(|stream| stream.is_whole) {
            let pieces = choices.pieces(&body);
            let last = pieces.len() - 1;
            let is_whole = !choices.in_256(24);
            for (at, piece) in pieces.into_iter().enumerate() {
                vm.body(id, piece, is_whole && at == last);
            }
        }
        if choices.in_256(90) {
            return;
        }
        self.pass(choices, time);
        if let Some(vm) = self.vms.get_mut(at) {
            upstream::answer(vm, id, choices);
        }
    }
}

/// The body of a request, with a name that the gateway knows most often.
fn body(choices: &mut Choices<'_>) -> Vec<u8> {
    let bytes = choices.bytes_like(REQUESTS);
    let names: [&[u8]; 8] = [b"auto", b"auto", b"small", b"large", b"embedder", b"sql", b"org/small", b"nobody"];
    let name = choices.pick(&names);
    let known = b"tiny-b";
    match bytes.windows(known.len()).position(|window| window == known) {
        Some(at) => [&bytes[..at], name, &bytes[at + known.len()..]].concat(),
        None if choices.in_256(96) => br#"{"id":"0000000000000000","score":0.5,"text":"x","repeat":1}"#.to_vec(),
        None => bytes,
    }
}

/// A request begins. Its client may say how long its body is.
fn begin(vm: &mut Vm, choices: &mut Choices<'_>, length: Option<usize>) -> u32 {
    let prefix = choices.pick(&PREFIXES);
    let path = format!("{prefix}{}", choices.pick(&CALLS));
    let mut request = owned(&[(":method", choices.pick(&METHODS)), (":path", &path), (":authority", "gateway")]);
    for _ in 0..choices.below(5) {
        let (name, values) = choices.pick(&HEADERS);
        request.push(((*name).to_owned(), choices.pick(values).to_owned()));
    }
    if let Some(length) = length.filter(|_| choices.in_256(100)) {
        request.push(("content-length".to_owned(), length.to_string()));
    }
    if choices.in_256(8) {
        request.push(("x-large".to_owned(), "x".repeat(60_000)));
    }
    if choices.in_256(4) {
        let (name, _) = choices.pick(&HEADERS);
        request.push(((*name).to_owned(), "\u{e9}1,".repeat(choices.below(9_000))));
    }
    let mut exchange = Exchange { request, attempts: 1, ..Exchange::default() };
    if choices.in_256(128) {
        exchange.connection = Some(u64::from(choices.byte()));
    }
    let route = prefix.trim_start_matches('/');
    let route = if route.is_empty() { "default" } else { route };
    let told = match choices.byte() % 8 {
        0 => None,
        1 => Some(("xds.route_metadata.filter_metadata.routebalance.policy", choices.pick(&["priced", "shed", "?"]))),
        _ => Some(("xds.route_name", route)),
    };
    exchange.properties.extend(told.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let ends = choices.in_256(16) || header_of(&exchange.request, ":method") == Some("GET");
    vm.begin(exchange, ends)
}

fn more_of_request(vm: &mut Vm, id: u32, choices: &mut Choices<'_>) {
    if choices.in_256(24) {
        return vm.request_trailers(id);
    }
    let bytes = body(choices);
    let end = choices.below(bytes.len().min(60_000) + 1);
    let is_cut = choices.in_256(100);
    let piece = if is_cut { &bytes[..end] } else { &bytes[..] };
    vm.body(id, piece, choices.in_256(160));
}

/// A callback that comes too late, or of which nobody knows.
fn wrong_callback(vm: &mut Vm, choices: &mut Choices<'_>) {
    let id = 1_000_000 + u32::from(choices.byte());
    match choices.byte() % 6 {
        0 => vm.body(id, b"{}", true),
        1 => vm.request_trailers(id),
        2 => vm.response(id, Headers::new(), &[], choices.in_256(128)),
        3 => vm.response_body(id, RESPONSES[0], choices.in_256(128)),
        4 => vm.response_trailers(id),
        _ => vm.end(id, choices.in_256(128)),
    }
}
