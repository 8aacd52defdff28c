//! For Istio: on a gateway, or in the sidecars of the clients.
//!
//! Where the plugin may hold headers, an `EnvoyFilter` brings all of it, since no other object of Istio knows
//! `allow_on_headers_stop_iteration` (<https://istio.io/latest/docs/reference/config/networking/envoy-filter/>, 1.27 and later). Elsewhere
//! Istio loads the module twice by `WasmPlugin`s or `TrafficExtension`s, and an `EnvoyFilter` brings the rest. In both, Istio's agent
//! fetches the image.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::parts::{Parts, attempts, plugin};
use super::{IstioExtension, NAME, PackageArgs, object};
use routebalance_core::names;

/// What `type_urls` says of a filter that comes by itself: where a module cannot be fetched, Istio's agent sends one that denies.
const TYPES: [&str; 2] = [
    "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
    "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
];
const MANAGER: &str = "envoy.filters.network.http_connection_manager";
const ROUTER: &str = "envoy.filters.http.router";
/// What the names of filters begin with that Istio makes of an object: before 1.26, before 1.30, and since.
const PLUGIN_NAMES: [(&str, &str); 3] = [
    ("extenstions.istio.io/wasmplugin/", ""),
    ("extensions.istio.io/wasmplugin/", ""),
    ("extensions.istio.io/trafficextension/", "~istio-translated-wasmplugin"),
];
const EXTENSION_NAMES: [(&str, &str); 1] = [("extensions.istio.io/trafficextension/", "")];

/// Where the filter stands.
struct Place {
    context: &'static str,
    /// Port of the listener.
    port: u16,
    route_configuration: String,
    virtual_host: String,
    /// Labels of the proxies; empty for all of the namespace.
    labels: Value,
}

/// On a gateway: its host and port, and the filter.
pub(super) fn gateway(parts: &Parts, args: &PackageArgs) -> Result<Vec<Value>> {
    let port = args.port.unwrap_or(80);
    let bound = args.target_port.unwrap_or(port);
    let mut labels = args.selected()?;
    if args.selector.is_empty() {
        labels = json!({"istio": "ingressgateway"});
    }
    let host = &args.host;
    let place = Place {
        context: "GATEWAY",
        port: bound,
        route_configuration: format!("http.{bound}"),
        virtual_host: format!("{host}:{port}"),
        labels: labels.clone(),
    };
    let server = json!({"port": {"number": port, "name": "http", "protocol": "HTTP"}, "hosts": [host]});
    let own_gateway = json!({"selector": labels, "servers": [server]});
    // Only what makes Istio name the host: the filter's routes come first, and serve everything.
    let placeholder = json!({"hosts": [host], "gateways": [NAME], "http": [{"directResponse": {"status": 503}}]});
    let mut objects = vec![
        object("networking.istio.io/v1", "Gateway", NAME, args, own_gateway),
        object("networking.istio.io/v1", "VirtualService", NAME, args, placeholder),
    ];
    objects.extend(filters(parts, &place, args)?);
    Ok(objects)
}

/// In sidecars: a service at a port of its own, which clients call, and the filter.
pub(super) fn sidecar(parts: &Parts, args: &PackageArgs) -> Result<Vec<Value>> {
    let port = args.port.unwrap_or(8_800);
    let place = Place {
        context: "SIDECAR_OUTBOUND",
        port,
        route_configuration: port.to_string(),
        virtual_host: format!("{NAME}.{}.svc.cluster.local:{port}", args.namespace),
        labels: args.selected()?,
    };
    // It has no endpoints: the filter's routes lead to the instances.
    let service = object("v1", "Service", NAME, args, json!({"ports": [{"name": "http", "port": port}]}));
    let mut objects = vec![service];
    objects.extend(filters(parts, &place, args)?);
    Ok(objects)
}

fn filters(parts: &Parts, place: &Place, args: &PackageArgs) -> Result<Vec<Value>> {
    let mut patches = Vec::new();
    let mut objects = Vec::new();
    for filter in &parts.filters {
        let Some(plugin) = plugin(filter).filter(|plugin| plugin.get("vm_config").is_some()) else {
            patches.extend(behind_plugin(filter, place, args));
            continue;
        };
        if parts.headers_go_on {
            objects.push(extension(filter, plugin, place, args)?);
        } else {
            patches.push(extension_config(filter, place, args)?);
            patches.push(before_router(place, discovered(&filter["name"])));
        }
    }
    patches.push(listener(place, "NETWORK_FILTER", json!({"typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "early_header_mutation_extensions": parts.early_mutation,
    }}), "MERGE"));
    patches.extend(clusters(parts, place, args)?);
    patches.push(virtual_host("VIRTUAL_HOST", place, &Value::Object(parts.host.clone()), "MERGE"));
    // Each comes first, so the last one is first at the end.
    patches.extend(parts.routes.iter().rev().map(|route| virtual_host("HTTP_ROUTE", place, route, "INSERT_FIRST")));
    let mut spec = json!({"configPatches": patches});
    if place.labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        spec["workloadSelector"] = json!({"labels": place.labels});
    }
    objects.push(object("networking.istio.io/v1alpha3", "EnvoyFilter", NAME, args, spec));
    Ok(objects)
}

/// The module as an object of Istio's own.
fn extension(filter: &Value, plugin: &Value, place: &Place, args: &PackageArgs) -> Result<Value> {
    let name = filter["name"].as_str().context("a filter without a name")?;
    let is_first = name == NAME;
    let mut wasm = json!({
        "url": format!("oci://{}", args.image()?),
        "imagePullPolicy": "IfNotPresent",
        "failStrategy": plugin["failure_policy"],
        "pluginName": plugin.get("root_id").cloned().unwrap_or_else(|| NAME.into()),
    });
    if let Some(text) = plugin.pointer("/configuration/value").and_then(Value::as_str) {
        wasm["pluginConfig"] = serde_json::from_str(text)?;
    }
    let mut matches = json!([{"mode": "CLIENT"}]);
    // On a gateway Istio tells plugins no port.
    if place.context == "SIDECAR_OUTBOUND" {
        matches[0]["ports"] = json!([{"number": place.port}]);
    }
    // Higher ones come first.
    let mut spec = json!({"priority": if is_first { 20 } else { 10 }, "match": matches});
    if place.labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        spec["selector"] = json!({"matchLabels": place.labels});
    }
    let kind = match args.istio_extension {
        IstioExtension::TrafficExtension => {
            spec["wasm"] = wasm;
            "TrafficExtension"
        }
        IstioExtension::WasmPlugin => {
            merge(&mut spec, wasm);
            "WasmPlugin"
        }
    };
    Ok(object("extensions.istio.io/v1alpha1", kind, name, args, spec))
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// A filter right behind the first instance of the module. Versions of Istio name that differently; a name that is not there is no error.
fn behind_plugin(filter: &Value, place: &Place, args: &PackageArgs) -> Vec<Value> {
    let known: &[(&str, &str)] = match args.istio_extension {
        IstioExtension::WasmPlugin => &PLUGIN_NAMES,
        IstioExtension::TrafficExtension => &EXTENSION_NAMES,
    };
    let name = |(start, end): &(&str, &str)| format!("{start}{}.{NAME}{end}", args.namespace);
    known.iter().map(|scheme| filter_patch(place, &name(scheme), filter.clone(), "INSERT_AFTER")).collect()
}

fn before_router(place: &Place, value: Value) -> Value {
    filter_patch(place, ROUTER, value, "INSERT_BEFORE")
}

fn filter_patch(place: &Place, beside: &str, value: Value, operation: &str) -> Value {
    let filter = json!({"name": MANAGER, "subFilter": {"name": beside}});
    patch(
        "HTTP_FILTER",
        json!({
            "context": place.context,
            "listener": {"portNumber": place.port, "filterChain": {"filter": filter}},
        }),
        value,
        operation,
    )
}

fn listener(place: &Place, apply_to: &str, value: Value, operation: &str) -> Value {
    patch(
        apply_to,
        json!({
            "context": place.context,
            "listener": {"portNumber": place.port, "filterChain": {"filter": {"name": MANAGER}}},
        }),
        value,
        operation,
    )
}

fn virtual_host(apply_to: &str, place: &Place, value: &Value, operation: &str) -> Value {
    patch(
        apply_to,
        json!({
            "context": place.context,
            "routeConfiguration": {"name": place.route_configuration, "vhost": {"name": place.virtual_host}},
        }),
        value.clone(),
        operation,
    )
}

fn patch(apply_to: &str, matches: Value, value: Value, operation: &str) -> Value {
    json!({"applyTo": apply_to, "match": matches, "patch": {"operation": operation, "value": value}})
}

/// A filter that comes by itself, so that Istio's agent fetches its module.
fn discovered(name: &Value) -> Value {
    json!({"name": name, "config_discovery": discovery()})
}

fn discovery() -> Value {
    json!({
        "config_source": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
        "type_urls": TYPES,
    })
}

fn extension_config(filter: &Value, place: &Place, args: &PackageArgs) -> Result<Value> {
    let mut typed = filter["typed_config"].clone();
    typed["config"]["vm_config"]["code"] = json!({"remote": {
        "http_uri": {"uri": format!("oci://{}", args.image()?), "timeout": "60s", "cluster": "_"},
    }});
    let value = json!({"name": filter["name"], "typed_config": typed});
    Ok(patch("EXTENSION_CONFIG", json!({"context": place.context}), value, "ADD"))
}

/// The filter's clusters, what the others lack, and the plugin that all of them run for attempts after the first.
fn clusters(parts: &Parts, place: &Place, args: &PackageArgs) -> Result<Vec<Value>> {
    let context = json!({"context": place.context});
    let mut patches = Vec::new();
    let mut attempts_filter = None;
    let mut by_itself = |cluster: &mut Value| {
        let Some(action) = attempts(cluster) else { return };
        let name = format!("{NAME}-{}", names::ATTEMPTS_ROOT_ID);
        let typed = action.pointer("/typed_config/typed_config").cloned().unwrap_or_default();
        attempts_filter = Some(json!({"name": name, "typed_config": typed}));
        let mut replaced = Map::new();
        replaced.insert("@type".to_owned(), action["@type"].clone());
        replaced.insert("dynamic_config".to_owned(), json!({"name": name, "config_discovery": discovery()}));
        *action = Value::Object(replaced);
    };
    for cluster in &parts.clusters {
        let mut cluster = cluster.clone();
        by_itself(&mut cluster);
        patches.push(patch("CLUSTER", context.clone(), cluster, "ADD"));
    }
    for (name, settings) in &parts.joined {
        let mut settings = Value::Object(settings.clone());
        by_itself(&mut settings);
        let matches = json!({"context": place.context, "cluster": {"name": name}});
        patches.push(patch("CLUSTER", matches, settings, "MERGE"));
    }
    if let Some(mut filter) = attempts_filter {
        if parts.headers_go_on {
            // Istio gives its plugins no id, and all instances must share a VM.
            filter["typed_config"]["config"]["vm_config"]["vm_id"] = "".into();
        }
        patches.insert(0, extension_config(&filter, place, args)?);
    }
    Ok(patches)
}
