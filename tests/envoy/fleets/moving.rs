//! Fleets that move: canaries, zones, pools at zero, newcomers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use routebalance_instance::{Fault, RunningInstance};
use serde_json::{Value, json};

use super::rig::{self, Rig, configuration, directory, endpoints, model, pool, replace, server};
use crate::harness::eventually;

/// A gateway with one discovered pool, `pool`, of so many servers, and these hosts in its file at first.
struct Discovered {
    rig: Rig,
    servers: Vec<RunningInstance>,
}

/// A host of the pool: which server it is, priority, weight and health.
type Host = (usize, u32, u32, &'static str);

impl Discovered {
    async fn start(servers: usize, hosts: &[Host], more: Value) -> Discovered {
        let mut running = Vec::new();
        for _ in 0..servers {
            running.push(rig::start(server("small")).await);
        }
        let other = rig::start(server("other")).await;
        let config = configuration(
            vec![model("small", 0.8, 0.1), model("other", 0.4, 0.1)],
            vec![
                pool("pool", "small", json!("discover"), more),
                pool("other", "other", json!([other.address().to_string()]), json!({})),
            ],
        );
        let directory = directory();
        replace(directory.path(), "pool.yaml", &file(&running, hosts));
        let rig = Rig::start_in(directory, config, str::to_owned).await;
        running.push(other);
        let discovered = Discovered { rig, servers: running };
        discovered.wait(hosts).await;
        discovered
    }

    async fn set(&self, hosts: &[Host]) {
        replace(self.rig.directory.path(), "pool.yaml", &file(&self.servers, hosts));
        self.wait(hosts).await;
    }

    async fn wait(&self, hosts: &[Host]) {
        let there = |health: &str| hosts.iter().filter(|host| host.3 == health).count() as u64;
        let gauge = async || {
            let stat = async |name: &str| self.rig.stat(&format!("{name}_instances.pool")).await;
            (stat("present").await, stat("degraded").await, stat("unhealthy").await)
        };
        let expected = (there("HEALTHY"), there("DEGRADED"), there("UNHEALTHY"));
        eventually("the hosts of the file", gauge, |seen| *seen == expected).await;
        // Priorities and weights have no gauge: a period and a tick.
        tokio::time::sleep(Duration::from_millis(400)).await;
    }

    /// Which part of so many requests each server gets, none of which waits for another.
    async fn parts(&self, requests: usize) -> Vec<f64> {
        self.servers.iter().for_each(RunningInstance::forget_requests);
        for _ in 0..requests / 20 {
            for got in join_all((0..20).map(|_| self.rig.chat("small", &[], 1))).await {
                got.ok();
            }
        }
        let asked = |server: &RunningInstance| server.requests_that(|r| r.method == "POST").len();
        self.servers.iter().map(|server| asked(server) as f64 / requests as f64).collect()
    }
}

fn file(servers: &[RunningInstance], hosts: &[Host]) -> String {
    let hosts: Vec<_> = hosts
        .iter()
        .map(|(i, priority, weight, health)| (servers[*i].address(), *priority, *weight, *health))
        .collect();
    endpoints("pool", &hosts)
}

pub(crate) async fn placed() {
    const H: &str = "HEALTHY";
    let rows: [(&str, &[Host], [f64; 4]); 6] = [
        ("another zone waits", &[(0, 0, 1, H), (1, 0, 1, H), (2, 1, 1, H), (3, 1, 1, H)], [0.5, 0.5, 0.0, 0.0]),
        (
            "a zone is down",
            &[(0, 0, 1, "UNHEALTHY"), (1, 0, 1, "UNHEALTHY"), (2, 1, 1, H), (3, 2, 1, H)],
            [0.0, 0.0, 1.0, 0.0],
        ),
        ("half a zone is down", &[(0, 0, 1, H), (1, 0, 1, "UNHEALTHY"), (2, 1, 1, H)], [0.7, 0.0, 0.3, 0.0]),
        ("weights", &[(0, 0, 90, H), (1, 0, 10, H)], [0.9, 0.1, 0.0, 0.0]),
        (
            "degraded waits",
            &[(0, 0, 1, H), (1, 0, 1, H), (2, 0, 1, H), (3, 0, 1, "DEGRADED")],
            [0.333, 0.333, 0.333, 0.0],
        ),
        ("nobody but degraded", &[(0, 0, 1, "DEGRADED"), (1, 0, 1, "UNHEALTHY")], [1.0, 0.0, 0.0, 0.0]),
    ];
    let gateway = Discovered::start(4, rows[0].1, json!({})).await;
    for (name, hosts, expected) in rows {
        gateway.set(hosts).await;
        let parts = gateway.parts(300).await;
        // Five standard deviations of a third of 300.
        let near = expected.iter().zip(&parts).all(|(a, b)| if *a == 0.0 { *b == 0.0 } else { (a - b).abs() < 0.14 });
        assert!(near, "{name}: {parts:?} is not {expected:?}");
    }
}

pub(crate) async fn canary() {
    let (stable, canary) = (rig::start(server("m-v1")).await, rig::start(server("m-v2")).await);
    let config = configuration(
        vec![model("m", 0.5, 0.1)],
        vec![
            pool("stable", "m", json!([stable.address().to_string()]), json!({"served_model": "m-v1"})),
            pool("canary", "m", json!([canary.address().to_string()]), json!({"served_model": "m-v2", "share": 0.2})),
        ],
    );
    let rig = Rig::start(config).await;
    rig.reported(4).await;
    let mut of_sessions: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for _ in 0..3 {
        for sessions in (0..100).collect::<Vec<usize>>().chunks(20) {
            let ask = async |session: &usize| {
                let id = format!("session-{session}");
                (*session, rig.chat("m", &[("x-session-id", &*id)], 1).await.ok())
            };
            for (session, got) in join_all(sessions.iter().map(ask)).await {
                of_sessions.entry(session).or_default().insert(got.header("x-routebalance-pool").to_owned());
            }
        }
    }
    assert!(of_sessions.values().all(|pools| pools.len() == 1), "each session stays: {of_sessions:?}");
    let at_canary = of_sessions.values().filter(|pools| pools.contains("canary")).count();
    assert!((6..=36).contains(&at_canary), "a fifth of the sessions, to four standard deviations: {at_canary}");
    let mut alone = 0;
    for _ in 0..10 {
        let got = join_all((0..20).map(|_| rig.chat("auto", &[], 1))).await;
        alone += got.into_iter().filter(|got| got.header("x-routebalance-pool") == "canary").count();
    }
    assert!((18..=63).contains(&alone), "a fifth of the requests without a session: {alone} of 200");
    // A canary that dies costs its share nothing but the choice.
    canary.set_fault(Fault::Refuse).await.expect("the port is closed");
    let mut statuses = Vec::new();
    for _ in 0..60 {
        statuses.push(rig.chat("m", &[], 1).await.status);
    }
    assert!(statuses.iter().all(|status| *status == 200), "the other version serves: {statuses:?}");
}

pub(crate) async fn at_zero() {
    let gateway = Discovered::start(2, &[(0, 0, 1, "HEALTHY")], json!({})).await;
    let rig = &gateway.rig;
    rig.chat("small", &[], 1).await.ok();
    let listed = async |name: &str| rig.get(&format!("/v1/models/{name}")).await.ok().json();
    assert_eq!(listed("small").await["available"], Value::Null);
    gateway.set(&[]).await;
    for (path, kind) in [("/v1/chat/completions", "Service Unavailable"), ("/v1/messages", "overloaded_error")] {
        let got = rig.chat_at(path, "small", &[], 1).await;
        assert_eq!((got.status, got.header("retry-after")), (503, "5"), "{got:?}");
        assert_eq!(got.header("x-routebalance-refused-reason"), "no_instance");
        let error = got.json()["error"].clone();
        assert_eq!(
            (&error["type"], error["message"].as_str().unwrap_or_default()),
            (&json!(kind), "No instance of the model `small` is running.")
        );
    }
    let auto = rig.chat("auto", &[], 1).await.ok();
    assert_eq!(auto.header("x-routebalance-model"), "other", "who leaves the choice is served");
    assert_eq!(listed("small").await["available"], json!(false));
    assert_eq!(
        (listed("other").await["available"].clone(), listed("auto").await["available"].clone()),
        (Value::Null, Value::Null)
    );
    assert_eq!((rig.stat("without_instance.pool").await, rig.stat("wanted_instances.pool").await), (2, 1));
    gateway.set(&[(1, 0, 1, "HEALTHY")]).await;
    rig.chat("small", &[], 1).await.ok();
    assert_eq!(listed("small").await["available"], Value::Null);
}

pub(crate) async fn alive() {
    let (down, up) = (rig::start(server("small")).await, rig::start(server("large")).await);
    let mut config = configuration(
        vec![model("small", 0.4, 0.1), model("large", 0.8, 0.1)],
        vec![
            pool("down", "small", json!([down.address().to_string()]), json!({})),
            pool("up", "large", json!([up.address().to_string()]), json!({})),
        ],
    );
    config["envoy"]["default_pool"] = json!("down");
    let rig = Rig::start(config).await;
    down.set_fault(Fault::Refuse).await.expect("the port is closed");
    for (method, body) in [("GET", r#"{"status":"ok"}"#), ("HEAD", "")] {
        let got = rig.send(method, "/health?verbose=1", &[], &Value::Null).await;
        assert_eq!((got.status, got.body.as_str()), (200, body), "{method}");
    }
    assert_eq!((down.tally().path("/health"), up.tally().path("/health")), (0, 0));
    assert_eq!(rig.get("/version").await.status, 503, "what is not the gateway's goes to the default pool");
}

pub(crate) async fn slow_start() {
    let gateway = Discovered::start(2, &[(0, 0, 1, "HEALTHY")], json!({"slow_start_ms": 3_600_000})).await;
    assert_eq!(gateway.parts(60).await[..2], [1.0, 0.0]);
    gateway.set(&[(0, 0, 1, "HEALTHY"), (1, 0, 1, "HEALTHY")]).await;
    let parts = gateway.parts(300).await;
    assert!(parts[1] < 0.35, "the newcomer gets less than half, since it counts as ten times as slow: {parts:?}");
    // A newcomer is no stranger to a request that has nobody else.
    gateway.set(&[(1, 0, 1, "HEALTHY")]).await;
    assert_eq!(gateway.parts(60).await[..2], [0.0, 1.0]);
}
