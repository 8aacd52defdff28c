//! Plugins without `allow_on_headers_stop_iteration`: the module finds it out, and what is missing then costs decisions and no request.

use serde_json::Value;

use crate::harness::{Gateway, Request, eventually};
use crate::scenarios::{Shape, has_error_shape, names_its_choice};
use crate::setups::BUFFERED_BYTES_MAX;

/// What Envoy's log says when the module has found out.
const FOUND_OUT: &str = "requests' headers go on before they are decided";
/// What it says where nobody writes a decision's headers.
const NO_WRITER: &str = "no request is decided";

/// Nobody has said that the flag is missing: the first request of each worker waits, and all are decided.
pub(crate) async fn found_out(gateway: &Gateway) {
    let request = Request::chat("auto");
    for _ in 0..8 {
        names_its_choice(gateway, &gateway.send(&request).await.ok(), "fused");
    }
    for request in [request.clone().chunked(9), Request::get("/v1/models"), request] {
        gateway.send(&request).await.ok();
    }
    assert!(gateway.log_text().contains(FOUND_OUT), "{}", gateway.log_text());
    assert_eq!(gateway.stat("untouched.headers_gone").await, 0);
}

/// Nothing stands behind the filter: Envoy's own route serves, nothing waits, and the log says what is missing.
pub(crate) async fn incomplete(gateway: &Gateway) {
    let default = gateway.config().fleet.pool(gateway.config().envoy.default_pool).expect("a pool").name.clone();
    let request = Request::chat("Qwen/Qwen2.5-7B-Instruct");
    for request in [request.clone(), request.chunked(9)] {
        let reply = gateway.send(&request).await.ok();
        let (instance, received) = reply.arrival();
        assert_eq!(gateway.pool_of(*instance).name, default);
        assert_eq!(received.body, request.body, "it arrives as it was sent");
        assert_eq!(reply.header("x-routebalance-rung"), Some("untouched"));
    }
    assert!(gateway.stat("untouched.headers_gone").await >= 2);
    // What the filter answers itself needs no headers.
    assert_eq!(gateway.send(&Request::get("/v1/models")).await.ok().json()["object"], "list");
    let broken = gateway.send(&Request::post("/cost/v1/chat/completions", r#"{"model":"auto","messages":[]}"#)).await;
    has_error_shape(&broken, 503, Shape::OpenAi, "limits cannot be kept");
    assert_eq!(broken.header("x-routebalance-refused-reason"), Some("headers_gone"));
}

/// The same where the log must say it.
pub(crate) async fn without_writer(gateway: &Gateway) {
    incomplete(gateway).await;
    eventually("a line in the log", async || gateway.log_text(), |log| log.contains(NO_WRITER)).await;
}

/// A body that the buffer does not hold.
pub(crate) async fn beyond_the_buffer(gateway: &Gateway) {
    let bulk = "a".repeat(BUFFERED_BYTES_MAX + (1 << 20));
    let body = format!(r#"{{"model":"auto","max_tokens":4,"messages":[{{"role":"user","content":"{bulk}"}}]}}"#);
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let shape = if path.ends_with("messages") { Shape::Anthropic } else { Shape::OpenAi };
        let reply = gateway.send(&Request::post(path, body.clone())).await;
        has_error_shape(&reply, 413, shape, "too large");
        assert!(reply.arrivals.is_empty(), "{:?}", reply.arrivals.len());
    }
    let next: Value = gateway.send(&Request::chat("auto")).await.ok().json();
    assert!(next["choices"].is_array(), "{next}");
}
