//! The least that a filter of this kind can do, for `bench envoy` to compare with: it holds the body, sends requests to the endpoints of
//! one cluster in turn by two headers and filter state, and reads nothing.

#![cfg(target_os = "wasi")]
#![allow(missing_docs, reason = "what `proxy_wasm::main!` writes has no documentation")]

use std::cell::Cell;
use std::rc::Rc;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType, MapType};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

/// A cluster and its endpoints, and whose turn it is.
#[derive(Default)]
struct Targets {
    cluster: String,
    endpoints: Vec<String>,
    next: Cell<usize>,
}

#[derive(Default)]
struct Root(Rc<Targets>);

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        let bytes = hostcalls::get_buffer(BufferType::PluginConfiguration, 0, size).ok().flatten().unwrap_or_default();
        let mut words = bytes.split(u8::is_ascii_whitespace).map(|word| String::from_utf8_lossy(word).into_owned());
        let cluster = words.next().unwrap_or_default();
        self.0 = Rc::new(Targets { cluster, endpoints: words.collect(), next: Cell::new(0) });
        !self.0.endpoints.is_empty()
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream(self.0.clone())))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Stream(Rc<Targets>);

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        if end_of_stream { Action::Continue } else { Action::Pause }
    }

    fn on_http_request_body(&mut self, _: usize, end_of_stream: bool) -> Action {
        if !end_of_stream {
            return Action::Pause;
        }
        let Targets { cluster, endpoints, next } = &*self.0;
        let turn = next.replace(next.get().wrapping_add(1)).checked_rem(endpoints.len()).unwrap_or_default();
        let endpoint = endpoints.get(turn).map(String::as_str);
        let _ = hostcalls::set_map_value(MapType::HttpRequestHeaders, "x-routebalance-cluster", Some(cluster));
        let _ = hostcalls::set_map_value(MapType::HttpRequestHeaders, "x-gateway-destination-endpoint", endpoint);
        let _ = hostcalls::set_property(vec!["routebalance_routed"], Some(b"whole"));
        let _ = hostcalls::call_foreign_function("clear_route_cache", None);
        Action::Continue
    }
}
