//! Two configurations of one fleet in one Envoy.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;

use crate::harness::{Gateway, Request, eventually, header};
use crate::http;
use crate::setups::SECOND;
use crate::state::read_some;

/// The address of the second listener.
async fn second(gateway: &Gateway) -> SocketAddr {
    let listeners = gateway.envoy().admin_get("/listeners?format=json").await.expect("the admin answers");
    let listeners: Value = serde_json::from_str(&listeners).expect("JSON");
    let all = listeners["listener_statuses"].as_array().expect("a list");
    let listener = all.iter().find(|listener| listener["name"] == SECOND).expect("the second listener");
    let address = &listener["local_address"]["socket_address"];
    format!("{}:{}", address["address"].as_str().expect("an address"), address["port_value"])
        .parse()
        .expect("an address")
}

const MODEL: &str = "Qwen2.5-3B-Instruct";
const OUTSTANDING: &str = "outstanding_requests.qwen2.5-3b";

async fn open_stream(address: SocketAddr) -> TcpStream {
    let mut tcp = http::connect(address).await;
    Request::long_stream(MODEL).write(&mut tcp).await;
    read_some(&mut tcp).await;
    tcp
}

/// Both see what either has open, each under its own name, and every instance is asked by one of them.
pub(crate) async fn see_each_other(gateway: &Gateway) {
    let (first, second) = (gateway.envoy().address(), second(gateway).await);
    let asked = format!("{SECOND}.scrapes.ok");
    eventually("reports", || gateway.stat(&asked), |scrapes| *scrapes > 30).await;
    let mut streams = Vec::new();
    for address in [first, first, first, second, second] {
        streams.push(open_stream(address).await);
    }
    let of_second = format!("{SECOND}.{OUTSTANDING}");
    for name in [OUTSTANDING, of_second.as_str()] {
        eventually(name, || gateway.stat(name), |open| *open == 5).await;
    }
    for (address, rungs) in [(first, ["fused"]), (second, ["fused"])] {
        let mut tcp = http::connect(address).await;
        Request::chat("auto").write(&mut tcp).await;
        let answer = http::receive(&mut tcp).await;
        let rung = header(&answer, "x-routebalance-rung").unwrap_or_default();
        assert!(rungs.contains(&rung), "{rung} at {address}");
    }
    let scrapes = async || {
        let stats = gateway.stats().await;
        let stat_of = |name: &str| stats.get(name).copied().unwrap_or_default();
        stat_of("scrapes.ok") + stat_of(&format!("{SECOND}.scrapes.ok"))
    };
    let instances = gateway.config().fleet.instances.len() as u64;
    let before = scrapes().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let rounds = (scrapes().await - before) as f64 / instances as f64;
    // Each instance is asked ten times a second, and not twice as often.
    assert!((15.0..=40.0).contains(&rounds), "{rounds} rounds in 3 s");
    drop(streams);
    eventually("the second's load", || gateway.stat(&of_second), |open| *open == 0).await;
}
