//! What routes, virtual hosts and requests want of a decision.

use serde_json::json;

use super::rig::{self, Rig, configuration, model, pool, server};
use crate::harness::eventually;

/// A cheap model and a good one.
async fn gateway(
    change: impl FnOnce(&mut serde_json::Value),
    edit: fn(&str) -> String,
) -> (Rig, [routebalance_instance::RunningInstance; 2]) {
    let (cheap, good) = (rig::start(server("cheap")).await, rig::start(server("good")).await);
    let mut config = configuration(
        vec![model("cheap", 0.4, 0.1), model("good", 0.8, 5.0)],
        vec![
            pool("cheap", "cheap", json!([cheap.address().to_string()]), json!({})),
            pool("good", "good", json!([good.address().to_string()]), json!({})),
        ],
    );
    config["policies"] = json!([
        {"name": "save", "weights": {"quality": 0.01, "latency": 0, "cost": 0.99}},
        {"name": "shine", "weights": {"quality": 1, "latency": 0, "cost": 0}},
    ]);
    config["default_policy"] = json!("save");
    change(&mut config);
    (Rig::start_in(rig::directory(), config, edit).await, [cheap, good])
}

pub(crate) async fn weights() {
    let routes = |config: &mut serde_json::Value| {
        config["routes"] = json!([
            {"name": "inline", "prefix": "/inline/", "prefix_rewrite": "/", "policy": "save", "weights": {"quality": 1, "latency": 0, "cost": 0}},
            {"name": "broken", "prefix": "/broken/", "prefix_rewrite": "/", "policy": "shine", "weights": {"quality": 3, "latency": 1, "cost": 0}},
            {"name": "text", "prefix": "/text/", "prefix_rewrite": "/", "policy": "save", "weights": {"quality": 1, "latency": 1, "cost": 2}},
            {"name": "missing", "prefix": "/missing/", "prefix_rewrite": "/", "policy": "shine"},
            {"name": "gold", "prefix": "/", "policy": "shine", "headers": {"X-Tier": "gold"}},
            {"name": "by-host", "prefix": "/", "policy": "shine", "hosts": ["gold.example.com"]},
            {"name": "bare", "prefix": "/", "policy": "save", "hosts": ["bare.example.com"]},
            {"name": "all", "prefix": "/", "policy": "save"},
        ]);
    };
    // As an operator may write the metadata: wrongly, as a text, and at the virtual host.
    let edit = |yaml: &str| {
        let change = |yaml: &str, from: &str, to: &str| {
            assert!(yaml.contains(from), "{from}");
            yaml.replace(from, to)
        };
        let of_weights = |weights: &str| format!("weights: {{ {weights} }} }}");
        let yaml = change(yaml, &of_weights("quality: 0.75, latency: 0.25, cost: 0"), &of_weights("quality: high"));
        let yaml = change(&yaml, &of_weights("quality: 0.25, latency: 0.25, cost: 0.5"), "weights: \"1/0/0\" }");
        let missing = yaml.rfind("prefix: \"/missing/\"").expect("the route");
        let (before, after) = yaml.split_at(missing);
        let end = after.find("              - name: \"gold\"").expect("the next route");
        let yaml =
            format!("{before}{}{}", change(&after[..end], "policy: \"shine\"", "policy: \"nobody\""), &after[end..]);
        // The last route of the host's own says nothing, and its host does.
        let host = yaml.find("domains: [\"bare.example.com\"]").expect("the host");
        let (before, after) = yaml.split_at(host);
        let own = "                metadata:\n                  filter_metadata:\n                    routebalance: { policy: \"save\" }\n";
        let end = after.find("- name: llm\n").expect("the next host");
        let bare = change(&after[..end], own, "");
        let of_host = "metadata: { filter_metadata: { routebalance: { policy: \"shine\" } } }\n              routes:\n";
        format!("{before}{}{}", change(&bare, "routes:\n", of_host), &after[end..])
    };
    let (rig, _servers) = gateway(routes, edit).await;
    rig.reported(4).await;
    let chosen = async |path: &str, headers: &[(&str, &str)]| {
        let got = rig.chat_at(&format!("{path}v1/chat/completions"), "auto", headers, 20).await.ok();
        got.header("x-routebalance-model").to_owned()
    };
    for (path, headers, expected) in [
        ("/", &[][..], "cheap"),
        ("/inline/", &[], "good"),
        ("/broken/", &[], "good"),
        ("/text/", &[], "good"),
        ("/", &[("host", "bare.example.com")], "good"),
        // The policy by the route's name.
        ("/missing/", &[], "good"),
        ("/", &[("x-tier", "gold")], "good"),
        ("/", &[("x-tier", "silver")], "cheap"),
        ("/", &[("host", "gold.example.com")], "good"),
        ("/", &[("host", "example.com")], "cheap"),
        // Nobody trusts these.
        ("/", &[("x-routebalance-weights", "1/0/0"), ("x-routebalance-policy", "shine")], "cheap"),
    ] {
        assert_eq!(chosen(path, headers).await, expected, "{path} {headers:?}");
    }
    for _ in 0..2 {
        chosen("/broken/", &[]).await;
    }
    let unread = async || rig.stat("route_metadata_unread").await;
    eventually("what cannot be understood is counted", unread, |n| *n == 4).await;
    let log = rig.envoy.log_text();
    for (route, problem) in
        [("broken", "`weights` must be three numbers"), ("missing", "no policy is named \\\"nobody\\\"")]
    {
        let of_route = |line: &&str| {
            line.contains(&format!("route \\\"{route}\\\"")) || line.contains(&format!("route {route:?}"))
        };
        let lines: Vec<&str> = log.lines().filter(of_route).collect();
        // One for each worker at most.
        assert!((1..=2).contains(&lines.len()), "{route}: {lines:?}");
        assert!(lines[0].contains(&problem.replace('\\', "")), "{lines:?}");
    }
    let decisions = rig.decisions(13).await;
    let own = decisions.iter().filter(|decision| decision["weights"].is_object()).count();
    assert_eq!(own, 2, "the log has weights where they are not the policy's");
}

pub(crate) async fn trusted() {
    let trust = |config: &mut serde_json::Value| {
        config["policies"][0]["trust_request_headers"] = json!(true);
        config["policies"][0]["budget"] = json!({"tokens": 10});
    };
    let (rig, servers) = gateway(trust, str::to_owned).await;
    rig.reported(4).await;
    for (headers, expected) in [
        (&[][..], "cheap"),
        (&[("x-routebalance-weights", "1/0/0")], "good"),
        (&[("x-routebalance-weights", " 8 / 1e0 / 0.5 ")], "good"),
        (&[("x-routebalance-weights", "0/0/1")], "cheap"),
        (&[("x-routebalance-policy", "shine")], "good"),
        (&[("x-routebalance-policy", "shine"), ("x-routebalance-weights", "0/0/1")], "cheap"),
    ] {
        let got = rig.chat("auto", headers, 20).await.ok();
        assert_eq!(got.header("x-routebalance-model"), expected, "{headers:?}");
        let tokens = got.json()["usage"]["completion_tokens"].as_u64();
        assert_eq!(tokens, Some(10), "the limits of the route's policy stay, whatever is named: {headers:?}");
    }
    for server in &servers {
        for request in server.requests() {
            assert!(request.headers.iter().all(|(name, _)| !name.ends_with("-weights") && !name.ends_with("-policy")));
        }
    }
    for (header, value) in [
        ("x-routebalance-weights", "1/0"),
        ("x-routebalance-weights", "0/0/0"),
        ("x-routebalance-weights", "1/-1/0"),
        ("x-routebalance-weights", "NaN/1/1"),
        ("x-routebalance-weights", "high"),
        ("x-routebalance-policy", "nobody"),
        ("x-routebalance-policy", ""),
    ] {
        let got = rig.chat("auto", &[(header, value)], 20).await;
        assert_eq!((got.status, got.header("x-routebalance-refused-reason")), (400, "header"), "{header}: {value}");
        assert!(got.json()["error"]["message"].as_str().unwrap_or_default().contains(header), "{got:?}");
    }
}
