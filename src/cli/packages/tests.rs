use clap::Parser;
use serde_json::{Value, json};

use super::*;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    package: PackageArgs,
}

fn arguments(more: &[&str]) -> PackageArgs {
    Arguments::try_parse_from(["render"].iter().chain(more)).unwrap().package
}

fn example() -> Value {
    serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap()
}

const IMAGE: [&str; 2] = ["--image", "registry.example.com/llm/routebalance:1"];

fn packaged(config: &Value, platform: Platform, more: &[&str]) -> Result<String> {
    package(config, platform, &arguments(&[&IMAGE, more].concat()))
}

fn objects(config: &Value, platform: Platform, more: &[&str]) -> Vec<Value> {
    let text = packaged(config, platform, more).unwrap();
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

#[test]
fn what_is_wrong_is_said_in_one_sentence() {
    let gateway = Platform::IstioGateway;
    let rows: [(&[&str], &str); 10] = [
        (&[], "--image"),
        (&["--image", "oci://registry/a:1"], "without a scheme"),
        (&["--image", "routebalance"], "no image of a registry"),
        (&["--image", "a/b:1", "--namespace", "No Name"], "no name of a namespace"),
        (&["--image", "a/b:1", "--host", "*.*.a"], "no name of a host"),
        (&["--image", "a/b:1", "--host", "a_b"], "no name of a host"),
        (&["--image", "a/b:1", "--selector", "app"], "NAME=VALUE"),
        (&["--image", "a/b:1", "--port", "0"], "port 0"),
        (&["--image", "a/b:1", "--inference-pool", "nobody=8000,app=a"], "no pool `nobody`"),
        (&["--image", "a/b:1", "--inference-pool", "qwen2.5-7b=8000"], "no label"),
    ];
    for (given, part) in rows {
        let problem = package(&example(), gateway, &arguments(given)).unwrap_err().to_string();
        assert!(problem.contains(part) && !problem.contains('\n'), "{given:?}: {problem}");
    }
    let problem = packaged(&json!([]), gateway, &[]).unwrap_err().to_string();
    assert!(problem.contains("no object"), "{problem}");
    let problem = packaged(&json!({"models": []}), gateway, &[]).unwrap_err().to_string();
    assert!(problem.contains("pools"), "{problem}");
}

/// Other hosts of a mesh's listener keep their time-outs, their errors and their bodies.
#[test]
fn a_mesh_gets_what_is_the_filters_own_and_nothing_else() {
    for platform in [Platform::IstioGateway, Platform::IstioSidecar, Platform::EnvoyGateway] {
        let text = packaged(&example(), platform, &[]).unwrap();
        for others in ["local_reply_config", "request_timeout", "Decompressor", "content-encoding", "overload_manager"]
        {
            assert!(!text.contains(others), "{platform:?}: {others}");
        }
        assert!(text.contains("x-gateway-destination-endpoint") && text.contains("override_host"), "{platform:?}");
    }
}

#[test]
fn without_the_flag_istio_loads_the_module_itself() {
    let mut config = example();
    let kinds = |config: &Value, more: &[&str]| -> Vec<String> {
        let all = objects(config, Platform::IstioGateway, more);
        all.iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(kinds(&config, &[]), ["Gateway", "VirtualService", "EnvoyFilter"]);
    config["envoy"]["allow_on_headers_stop_iteration"] = json!(false);
    assert_eq!(kinds(&config, &[]), ["Gateway", "VirtualService", "WasmPlugin", "WasmPlugin", "EnvoyFilter"]);
    let newer = ["--istio-extension", "traffic-extension"];
    assert_eq!(kinds(&config, &newer)[2..4], ["TrafficExtension", "TrafficExtension"]);
    let text = packaged(&config, Platform::IstioGateway, &[]).unwrap();
    assert!(!text.contains("allow_on_headers_stop_iteration: true") && text.contains("extenstions.istio.io"), "{text}");
}

#[test]
fn a_pool_of_the_inference_extension_names_no_picker() {
    let all = objects(&example(), Platform::EnvoyGateway, &["--inference-pool", "qwen2.5-7b=8000,app=vllm-7b"]);
    let pool = all.iter().find(|object| object["kind"] == "InferencePool").unwrap();
    assert_eq!(pool["metadata"]["name"], "qwen2-5-7b");
    assert_eq!(
        pool["spec"],
        json!({"selector": {"matchLabels": {"app": "vllm-7b"}}, "targetPorts": [{"number": 8000}]})
    );
}

#[test]
fn the_chart_is_of_this_version() {
    let chart: Value = serde_saphyr::from_str(include_str!("../../../envoy/chart/Chart.yaml")).unwrap();
    assert_eq!(
        (&chart["version"], &chart["appVersion"]),
        (&env!("CARGO_PKG_VERSION").into(), &env!("CARGO_PKG_VERSION").into())
    );
    let values: Value = serde_saphyr::from_str(include_str!("../../../envoy/chart/values.yaml")).unwrap();
    let pinned = crate::envoy_binary::PINNED_VERSION;
    assert_eq!(values["envoyImage"], format!("docker.io/envoyproxy/envoy:v{pinned}"));
}

#[test]
fn what_a_mesh_cannot_carry_is_refused_by_its_field() {
    let secret = json!({"kind": "hosted", "instances": ["a.example:443"], "credential": {"file": "/k"}});
    let token = json!({"metrics": {"port": 9400, "bearer_token_file": "/t"}});
    let tls = json!({"instances": "discover", "tls": {"sni": "a.example"}});
    for (at, change, field) in [
        ("/pools/3", secret, "pools[3].credential.file"),
        ("/pools/3", token, "pools[3].metrics.bearer_token_file"),
        ("/pools/3", tls, "pools[3].tls"),
        ("/routes/0", json!({"hosts": ["a.example"]}), "routes[0].hosts"),
    ] {
        let mut config = example();
        let changed = config.pointer_mut(at).and_then(Value::as_object_mut).unwrap();
        changed.extend(change.as_object().unwrap().clone());
        let platforms = [Platform::IstioGateway, Platform::IstioSidecar, Platform::EnvoyGateway];
        for platform in platforms {
            let problem = packaged(&config, platform, &[]).unwrap_err().to_string();
            assert!(problem.contains(field), "{field}: {problem}");
        }
        assert!(packaged(&config, Platform::Envoy, &[]).is_ok(), "{field}");
    }
}
