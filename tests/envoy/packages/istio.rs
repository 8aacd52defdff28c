//! Istio acted out, as its sources say: what istiod makes of objects for a proxy, and what its agent makes of modules.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{IMAGE, Machine, NAMESPACE};

/// A proxy, before any object was applied.
pub(super) struct Proxy<'a> {
    machine: &'a Machine,
    context: &'static str,
    route_configuration: String,
    virtual_host: String,
    manager: Value,
    clusters: Vec<Value>,
    /// What comes by the extension discovery service.
    extensions: Vec<Value>,
}

impl<'a> Proxy<'a> {
    pub(super) fn gateway(machine: &'a Machine) -> Proxy<'a> {
        let port = machine.port;
        Proxy::new(machine, "GATEWAY", format!("http.{port}"), "*:80".to_owned())
    }

    pub(super) fn sidecar(machine: &'a Machine) -> Proxy<'a> {
        let port = machine.port;
        let host = format!("routebalance.{NAMESPACE}.svc.cluster.local:{port}");
        let mut proxy = Proxy::new(machine, "SIDECAR_OUTBOUND", port.to_string(), host);
        proxy.manager["use_remote_address"] = false.into();
        proxy
    }

    fn new(
        machine: &'a Machine,
        context: &'static str,
        route_configuration: String,
        virtual_host: String,
    ) -> Proxy<'a> {
        let by_name = |name: &str, kind: &str| json!({"name": name, "typed_config": {"@type": format!("type.googleapis.com/{kind}")}});
        let filters = json!([
            by_name("istio.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault"),
            by_name("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors"),
            by_name("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router"),
        ]);
        let manager = machine.manager(&route_configuration, &virtual_host, filters);
        Proxy {
            machine,
            context,
            route_configuration,
            virtual_host,
            manager,
            clusters: machine.clusters.clone(),
            extensions: Vec::new(),
        }
    }

    /// Envoy's configuration with these objects.
    pub(super) fn with(mut self, objects: &[Value]) -> String {
        for object in objects {
            assert_eq!(object["metadata"]["namespace"], NAMESPACE, "{object}");
        }
        self.plugins(objects);
        let filters = objects.iter().filter(|object| object["kind"] == "EnvoyFilter");
        for patch in filters.flat_map(|filter| filter["spec"]["configPatches"].as_array().expect("patches")) {
            self.apply(patch);
        }
        self.follow_discovery();
        let listener = json!({
            "name": format!("0.0.0.0_{}", self.machine.port),
            "address": self.machine.listen,
            "filter_chains": [{"filters": [{"name": MANAGER, "typed_config": self.manager}]}],
        });
        self.machine.envoy(&listener, &self.machine.with_admin(&self.clusters, 15_000))
    }

    /// Modules that Istio loads by itself: those of higher priority first, before what is there.
    fn plugins(&mut self, objects: &[Value]) {
        let is_plugin = |object: &&Value| object["kind"] == "WasmPlugin" || object["kind"] == "TrafficExtension";
        let mut plugins: Vec<&Value> = objects.iter().filter(is_plugin).collect();
        plugins.sort_by_key(|object| object["spec"]["priority"].as_i64());
        for object in plugins {
            let spec = &object["spec"];
            let ports = match self.context {
                "GATEWAY" => json!([{"mode": "CLIENT"}]),
                _ => json!([{"mode": "CLIENT", "ports": [{"number": self.machine.port}]}]),
            };
            assert_eq!(spec["match"], ports);
            let name = object["metadata"]["name"].as_str().expect("a name");
            let (wasm, end) = match object["kind"].as_str() {
                Some("TrafficExtension") => (&spec["wasm"], ""),
                _ => (spec, "~istio-translated-wasmplugin"),
            };
            let filter = format!("extensions.istio.io/trafficextension/{NAMESPACE}.{name}{end}");
            let mut config = json!({
                "name": format!("{NAMESPACE}.{name}"),
                "root_id": wasm["pluginName"],
                "failure_policy": wasm["failStrategy"],
                "vm_config": {
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"remote": {"http_uri": {"uri": wasm["url"], "timeout": "30s", "cluster": "_"}}},
                },
            });
            if let Some(given) = wasm.get("pluginConfig") {
                let text = given.to_string();
                config["configuration"] =
                    json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": text});
            }
            let typed =
                json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm", "config": config});
            self.extensions.push(json!({"name": filter, "typed_config": typed}));
            let types = ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"];
            let discovery = json!({"config_source": {"ads": {}}, "type_urls": types});
            self.filters().insert(0, json!({"name": filter, "config_discovery": discovery}));
        }
    }

    fn filters(&mut self) -> &mut Vec<Value> {
        self.manager["http_filters"].as_array_mut().expect("filters")
    }

    fn host(&mut self) -> &mut Value {
        &mut self.manager["route_config"]["virtual_hosts"][0]
    }

    fn apply(&mut self, patch: &Value) {
        let (found, operation, value) = (&patch["match"], &patch["patch"]["operation"], &patch["patch"]["value"]);
        assert_eq!(found["context"], self.context, "{patch}");
        let listener = &found["listener"];
        if !listener.is_null() {
            assert_eq!(listener["portNumber"], self.machine.port, "{patch}");
            assert_eq!(listener["filterChain"]["filter"]["name"], MANAGER, "{patch}");
        }
        let routes = &found["routeConfiguration"];
        if !routes.is_null() {
            assert_eq!(routes, &json!({"name": self.route_configuration, "vhost": {"name": self.virtual_host}}));
        }
        match (patch["applyTo"].as_str().expect("a kind"), operation.as_str().expect("an operation")) {
            ("EXTENSION_CONFIG", "ADD") => self.extensions.push(value.clone()),
            ("HTTP_FILTER", operation) => {
                let beside = &listener["filterChain"]["filter"]["subFilter"]["name"];
                let place = self.filters().iter().position(|filter| filter["name"] == *beside);
                // A name that is not there is no error.
                match (place, operation) {
                    (None, _) => {}
                    (Some(place), "INSERT_BEFORE") => self.filters().insert(place, value.clone()),
                    (Some(place), "INSERT_AFTER") => self.filters().insert(place + 1, value.clone()),
                    other => panic!("{other:?}"),
                }
            }
            ("NETWORK_FILTER", "MERGE") => merge(&mut self.manager, &value["typed_config"]),
            ("CLUSTER", "ADD") => self.clusters.push(value.clone()),
            ("CLUSTER", "MERGE") => {
                let own = self.clusters.iter_mut().find(|cluster| cluster["name"] == found["cluster"]["name"]);
                merge(own.expect("a cluster"), value);
            }
            ("VIRTUAL_HOST", "MERGE") => merge(self.host(), value),
            ("HTTP_ROUTE", "INSERT_FIRST") => {
                self.host()["routes"].as_array_mut().expect("routes").insert(0, value.clone());
            }
            other => panic!("{other:?}"),
        }
    }

    /// Whoever asks istiod for an extension gets it from a file instead, with the module that the agent has fetched.
    fn follow_discovery(&mut self) {
        let fetched = json!({"local": {"filename": self.machine.module}});
        for extension in &mut self.extensions {
            let code = &mut extension["typed_config"]["config"]["vm_config"]["code"];
            assert_eq!(code["remote"]["http_uri"]["uri"], format!("oci://{IMAGE}"));
            *code = fetched.clone();
            extension["@type"] = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig".into();
        }
        for extension in &self.extensions {
            let name = extension["name"].as_str().expect("a name");
            let all = json!({"resources": [extension]});
            fs::write(file_of(&self.machine.directory, name), all.to_string()).expect("a file");
        }
        let directory = &self.machine.directory;
        follow(&mut self.manager, directory);
        self.clusters.iter_mut().for_each(|cluster| follow(cluster, directory));
    }
}

/// Where an extension is: Envoy wants a file for each.
fn file_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{}.json", name.replace('/', "_")))
}

const MANAGER: &str = "envoy.filters.network.http_connection_manager";

/// Replaces every source of discovered extensions.
fn follow(place: &mut Value, directory: &Path) {
    match place {
        Value::Object(all) => {
            let file = all.get("name").and_then(Value::as_str).map(|name| file_of(directory, name));
            if let Some((discovery, file)) = all.get_mut("config_discovery").zip(file) {
                assert!(file.exists(), "nobody has the extension of {file:?}");
                discovery["config_source"] =
                    json!({"path_config_source": {"path": file}, "resource_api_version": "V3"});
            }
            all.values_mut().for_each(|value| follow(value, directory));
        }
        Value::Array(all) => all.iter_mut().for_each(|value| follow(value, directory)),
        _ => {}
    }
}

/// As protobuf merges: fields of messages one by one, lists at their ends.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from)) => into.extend(from.iter().cloned()),
        (into, from) => *into = from.clone(),
    }
}
