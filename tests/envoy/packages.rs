//! What `render --for PLATFORM` prints, run: the objects are applied as the platform applies them to what it makes by itself, and Envoy
//! runs what comes of that.

#[path = "packages/envoy_gateway.rs"]
mod envoy_gateway;
#[path = "packages/istio.rs"]
mod istio;
#[path = "packages/types.rs"]
mod types;
#[path = "packages/validation.rs"]
mod validation;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use routebalance_cli::merged::check_merged;
use routebalance_cli::packages::{PackageArgs, Platform, package};
use serde_json::{Value, json};

pub(crate) use validation::objects_are_valid;

use crate::harness::{Gateway, Request};

/// A host of somebody else at the same listener.
pub(crate) const OTHERS: &str = "others.example.com";
/// The image that the packages name.
const IMAGE: &str = "registry.example.com/llm/routebalance:0.1.0";
const NAMESPACE: &str = "llm";

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    package: PackageArgs,
}

/// Arguments as they are given, with an image and a namespace.
fn arguments(more: &[&str]) -> PackageArgs {
    let given = ["render", "--image", IMAGE, "--namespace", NAMESPACE].into_iter().chain(more.iter().copied());
    Arguments::try_parse_from(given).expect("arguments").package
}

/// What the machine has that the package cannot know: ports, files.
struct Machine {
    config: Value,
    listen: Value,
    port: u16,
    admin: Value,
    module: String,
    directory: PathBuf,
    access_log: Value,
    /// Clusters that the platform makes by itself, as it makes them.
    clusters: Vec<Value>,
}

impl Machine {
    fn of(rendered: &str) -> Machine {
        let all: Value = serde_saphyr::from_str(rendered).expect("YAML");
        let listener = &all["static_resources"]["listeners"][0];
        let manager = &listener["filter_chains"][0]["filters"][0]["typed_config"];
        let filters = manager["http_filters"].as_array().expect("filters");
        let filter = filters.iter().find(|filter| filter["name"] == "routebalance").expect("the filter");
        let text = filter["typed_config"]["config"]["configuration"]["value"].as_str().expect("its configuration");
        let config: Value = serde_json::from_str(text).expect("JSON");
        let access_log = config["envoy"]["access_log"].as_str().expect("a path");
        Machine {
            listen: listener["address"].clone(),
            port: listener["address"]["socket_address"]["port_value"].as_u64().expect("a port") as u16,
            admin: all["admin"].clone(),
            module: config["envoy"]["module"].as_str().expect("a module").to_owned(),
            directory: Path::new(access_log).parent().expect("a directory").to_owned(),
            access_log: manager["access_log"].clone(),
            clusters: all["static_resources"]["clusters"]
                .as_array()
                .expect("clusters")
                .iter()
                .filter_map(others)
                .collect(),
            config,
        }
    }

    /// The objects for a platform; `more` are arguments.
    fn objects(&self, platform: Platform, more: &[&str]) -> Vec<Value> {
        let port = self.port.to_string();
        let more: Vec<&str> = ["--port", &port].into_iter().chain(more.iter().copied()).collect();
        documents(&package(&self.config, platform, &arguments(&more)).expect("a package"))
    }

    /// The objects for a gateway of Istio whose Service maps port 80.
    fn behind_service(&self, more: &[&str]) -> Vec<Value> {
        let port = self.port.to_string();
        let more: Vec<&str> =
            ["--port", "80", "--target-port", &port].into_iter().chain(more.iter().copied()).collect();
        documents(&package(&self.config, Platform::IstioGateway, &arguments(&more)).expect("a package"))
    }

    /// What the package says with this machine's admin listener, which is elsewhere on the platform.
    fn with_admin(&self, clusters: &[Value], port: u16) -> Vec<Value> {
        let own = self.admin["address"]["socket_address"]["port_value"].to_string();
        let is_admin = |cluster: &Value| cluster["name"] == "routebalance-admin";
        let moved = |cluster: &Value| {
            let text = cluster.to_string();
            let there = format!("\"port_value\":{port}");
            assert!(!is_admin(cluster) || text.contains(&there), "{text}");
            serde_json::from_str(&text.replace(&there, &format!("\"port_value\":{own}"))).expect("JSON")
        };
        clusters.iter().map(|cluster| if is_admin(cluster) { moved(cluster) } else { cluster.clone() }).collect()
    }

    /// Envoy's whole configuration around a listener and clusters.
    fn envoy(&self, listener: &Value, clusters: &[Value]) -> String {
        let all = json!({
            "node": {"id": "gateway", "cluster": "gateway"},
            "admin": self.admin,
            "static_resources": {"listeners": [listener], "clusters": clusters},
        });
        let text = serde_json::to_string_pretty(&all).expect("text");
        // What platforms make of a package is a merged configuration as well.
        let file = self.directory.join("merged.json");
        fs::write(&file, &text).expect("a file");
        let findings = check_merged(None, &[file]).expect("a configuration of Envoy");
        assert!(findings.is_empty(), "`check --envoy` finds: {findings:#?}");
        text
    }

    /// A connection manager as platforms make one: ours says nothing of it.
    fn manager(&self, route_configuration: &str, virtual_host: &str, filters: Value) -> Value {
        let nothing = json!({"match": {"prefix": "/"}, "direct_response": {"status": 503}});
        let others =
            json!({"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": OTHERS}}});
        json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "gateway",
            "use_remote_address": true,
            "normalize_path": true,
            "stream_idle_timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            // Scenarios compare answers with those of instances, and ids stand in them.
            "preserve_external_request_id": true,
            // The operator's book says what to put into the platform's own log.
            "access_log": self.access_log,
            "http_filters": filters,
            "route_config": {
                "name": route_configuration,
                "virtual_hosts": [
                    {"name": virtual_host, "domains": ["*"], "routes": [nothing]},
                    {"name": "others", "domains": [OTHERS], "routes": [others]},
                ],
            },
        })
    }
}

/// A cluster whose hosts somebody else knows, as that one makes it: without what the filter needs there.
fn others(cluster: &Value) -> Option<Value> {
    let mut cluster = cluster.as_object().filter(|cluster| cluster["type"] == "EDS")?.clone();
    cluster.retain(|field, _| ["name", "type", "connect_timeout", "eds_cluster_config"].contains(&field.as_str()));
    cluster.insert("lb_policy".to_owned(), "LEAST_REQUEST".into());
    Some(Value::Object(cluster))
}

/// The documents of a text.
fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).expect("YAML")).collect()
}

/// The object of a kind; there is one.
fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    object
}

/// Another host of the listener meets a filter that leaves it alone: its calls are no calls of ours, and its statistics are not ours.
pub(crate) async fn others_are_left_alone(gateway: &Gateway) {
    let before = gateway.stats().await;
    let calls = [
        Request::chat("auto"),
        Request::chat("no-model-of-ours").chunked(7),
        Request::post("/v1/messages", "no JSON"),
        Request::get("/v1/models"),
    ];
    for call in calls {
        let to_others = Request { path: format!("http://{OTHERS}{}", call.path), ..call.clone() };
        let reply = gateway.send(&to_others).await;
        assert_eq!((reply.status, reply.answer.text()), (200, OTHERS), "{} {}", call.method, call.path);
        assert!(reply.answer.headers.iter().all(|(name, _)| !name.starts_with("x-routebalance")), "{reply:?}");
    }
    let counted = |stats: &BTreeMap<String, u64>| -> u64 {
        stats.iter().filter(|(name, _)| name.contains("untouched") || name.contains("decisions")).map(|(_, n)| n).sum()
    };
    assert_eq!(counted(&gateway.stats().await), counted(&before));
}

pub(crate) fn istio_gateway(rendered: &str) -> String {
    let machine = Machine::of(rendered);
    istio::Proxy::gateway(&machine).with(&machine.behind_service(&[]))
}

pub(crate) fn istio_gateway_by_traffic_extension(rendered: &str) -> String {
    let machine = Machine::of(rendered);
    istio::Proxy::gateway(&machine).with(&machine.behind_service(&["--istio-extension", "traffic-extension"]))
}

pub(crate) fn istio_sidecar(rendered: &str) -> String {
    let machine = Machine::of(rendered);
    istio::Proxy::sidecar(&machine).with(&machine.objects(Platform::IstioSidecar, &[]))
}

pub(crate) fn envoy_gateway(rendered: &str) -> String {
    let machine = Machine::of(rendered);
    envoy_gateway::applied(&machine, &machine.objects(Platform::EnvoyGateway, &[]))
}

pub(crate) fn envoy_gateway_of_two(rendered: &str) -> String {
    let machine = Machine::of(rendered);
    envoy_gateway::applied(&machine, &machine.objects(Platform::EnvoyGateway, &["--xds-names", "v2"]))
}

/// Kubernetes: the file in the map, with what is the pod's own replaced by what is this machine's.
pub(crate) fn kubernetes(rendered: &str) -> String {
    let machine = Machine::of(rendered);
    let objects = machine.objects(Platform::Kubernetes, &[]);
    let file = of_kind(&objects, "ConfigMap")["data"]["envoy.yaml"].as_str().expect("a file").to_owned();
    let pod = &of_kind(&objects, "Deployment")["spec"]["template"]["spec"];
    let mount = pod["containers"][0]["volumeMounts"][1]["mountPath"].as_str().expect("a directory");
    assert_eq!(pod["volumes"][1]["image"]["reference"], IMAGE);
    let arguments = pod["containers"][0]["args"].to_string();
    assert!(arguments.contains(r#""-c","/etc/routebalance/envoy.yaml""#), "{arguments}");
    assert_eq!(of_kind(&objects, "Service")["spec"]["ports"][0]["targetPort"], 10_000);
    let mut all: Value = serde_saphyr::from_str(&file).expect("YAML");
    let listener = &mut all["static_resources"]["listeners"][0];
    assert_eq!(listener["address"]["socket_address"]["port_value"], 10_000);
    listener["address"] = machine.listen.clone();
    listener["filter_chains"][0]["filters"][0]["typed_config"]["access_log"] = machine.access_log.clone();
    all["admin"] = machine.admin.clone();
    let text = serde_json::to_string_pretty(&all).expect("text");
    crate::setups::replaced(&text, &format!("{mount}/plugin.wasm"), &machine.module)
}
