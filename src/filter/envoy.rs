//! Envoy as the gateway's host.

use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{Action, BufferType, MapType};

use crate::host;
use routebalance_core::gateway::{Body, Flow, Host, Map};
use routebalance_core::shared::{Board, Key, Version};

/// Envoy: its host calls keep the state.
pub(super) struct Envoy;

impl Board for Envoy {
    #[inline(never)]
    fn read(&self, key: Key) -> (Option<Vec<u8>>, Option<Version>) {
        host::shared(&key.to_string())
    }

    #[inline(never)]
    fn write(&mut self, key: Key, bytes: &[u8], version: Option<Version>) -> bool {
        host::set_shared(&key.to_string(), bytes, version)
    }
}

fn map_type(map: Map) -> MapType {
    match map {
        Map::Request => MapType::HttpRequestHeaders,
        Map::Response => MapType::HttpResponseHeaders,
        Map::CallResponse => MapType::HttpCallResponseHeaders,
    }
}

impl Host for Envoy {
    fn now(&self) -> Duration {
        host::now()
    }

    fn wall_clock(&self) -> Duration {
        host::wall_clock()
    }

    fn header(&self, map: Map, name: &str) -> Option<String> {
        host::header(map_type(map), name)
    }

    fn headers(&self, map: Map) -> Vec<(String, String)> {
        host::headers_lossy(map_type(map))
    }

    fn text_headers(&self, map: Map) -> Vec<(String, String)> {
        host::headers(map_type(map))
    }

    fn set_header(&mut self, map: Map, name: &str, value: Option<&str>) {
        host::set_header(map_type(map), name, value);
    }

    fn body(&self, body: Body, start: usize, size: usize) -> Vec<u8> {
        let kind = match body {
            Body::Request => BufferType::HttpRequestBody,
            Body::Response => BufferType::HttpResponseBody,
            Body::CallResponse => BufferType::HttpCallResponseBody,
        };
        host::buffer(kind, start, size)
    }

    #[inline(never)]
    fn replace_body(&mut self, size: usize, with: &[u8]) -> bool {
        hostcalls::set_buffer(BufferType::HttpRequestBody, 0, size, with).is_ok()
    }

    fn property(&self, path: &[&str]) -> Option<String> {
        host::property(path)
    }

    fn number(&self, path: &[&str]) -> Option<u64> {
        host::number(path)
    }

    fn set_state(&mut self, key: &str, value: &str) {
        host::set_filter_state(key, value);
    }

    fn clear_route_cache(&mut self) {
        host::clear_route_cache();
    }

    #[inline(never)]
    fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        let _ = hostcalls::send_http_response(u32::from(status), headers.to_vec(), Some(body));
    }

    #[inline(never)]
    fn call(&mut self, cluster: &str, headers: &[(&str, &str)], body: &[u8], timeout: Duration) -> Option<u32> {
        let body = Some(body).filter(|body| !body.is_empty());
        hostcalls::dispatch_http_call(cluster, headers.to_vec(), body, vec![], timeout).ok()
    }

    fn enter(&mut self, context: u32) -> bool {
        hostcalls::set_effective_context(context).is_ok()
    }

    fn resume(&mut self) {
        let _ = hostcalls::resume_http_request();
    }
}

/// What a callback answers the host.
pub(super) fn action(flow: Flow) -> Action {
    match flow {
        Flow::Continue => Action::Continue,
        Flow::Pause => Action::Pause,
    }
}
