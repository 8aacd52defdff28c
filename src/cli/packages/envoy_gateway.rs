//! For Envoy Gateway, by an `EnvoyPatchPolicy` (<https://gateway.envoyproxy.io/latest/tasks/extensibility/envoy-patch-policy/>): its
//! `EnvoyExtensionPolicy` neither knows `allow_on_headers_stop_iteration` nor lets a buffer stand between two instances of a module, which
//! it also gives VMs of their own. The module comes into the proxies by an image volume.

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::parts::Parts;
use super::{NAME, PackageArgs, XdsNames, object};

const API: &str = "gateway.envoyproxy.io/v1alpha1";
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const LISTENER: &str = "http";

/// Where Envoy Gateway keeps things, by its names.
struct XdsResources {
    listener: String,
    routes: String,
}

pub(super) fn objects(parts: &Parts, args: &PackageArgs) -> Result<Vec<Value>> {
    let port = args.port.unwrap_or(80);
    let resources = match args.xds_names {
        XdsNames::V1 => {
            let name = format!("{}/{NAME}/{LISTENER}", args.namespace);
            XdsResources { listener: name.clone(), routes: name }
        }
        XdsNames::V2 => XdsResources { listener: format!("tcp-{port}"), routes: format!("http-{port}") },
    };
    let mut listener = json!({"name": LISTENER, "port": port, "protocol": "HTTP"});
    if args.host != "*" {
        listener["hostname"] = args.host.clone().into();
    }
    let target = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": NAME});
    let proxy = json!({"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "name": NAME});
    let filter = json!({"type": "ExtensionRef", "extensionRef": {
        "group": "gateway.envoyproxy.io", "kind": "HTTPRouteFilter", "name": NAME,
    }});
    let removed: Vec<&Value> = parts
        .early_mutation
        .pointer("/0/typed_config/mutations")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|mutation| mutation.get("remove"))
        .collect();
    Ok(vec![
        object(API, "EnvoyProxy", NAME, args, with_module(args)?),
        object(
            GATEWAY_API,
            "Gateway",
            NAME,
            args,
            json!({
                "gatewayClassName": "eg",
                "infrastructure": {"parametersRef": proxy},
                "listeners": [listener],
            }),
        ),
        // Only what makes Envoy Gateway name the host: the filter's routes come first, and serve everything.
        object(
            GATEWAY_API,
            "HTTPRoute",
            NAME,
            args,
            json!({
                "parentRefs": [{"name": NAME}],
                "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "filters": [filter]}],
            }),
        ),
        object(API, "HTTPRouteFilter", NAME, args, json!({"directResponse": {"statusCode": 503}})),
        object(
            API,
            "ClientTrafficPolicy",
            NAME,
            args,
            json!({
                "targetRefs": [target],
                // Envoy Gateway's own limit of 32 KiB is the size of a short conversation.
                "connection": {"bufferLimit": parts.body_limit.to_string()},
                "headers": {"earlyRequestHeaders": {"remove": removed}},
            }),
        ),
        object(
            API,
            "EnvoyPatchPolicy",
            NAME,
            args,
            json!({
                "targetRef": target,
                "type": "JSONPatch",
                "jsonPatches": patches(parts, &resources, args),
            }),
        ),
    ])
}

/// Proxies with the module as a file.
fn with_module(args: &PackageArgs) -> Result<Value> {
    let volume = json!({"name": NAME, "image": {"reference": args.image()?, "pullPolicy": "IfNotPresent"}});
    let mount = json!({"name": NAME, "mountPath": "/routebalance", "readOnly": true});
    let pod = json!({"volumes": [volume], "containers": [{"name": "envoy", "volumeMounts": [mount]}]});
    Ok(json!({"provider": {"type": "Kubernetes", "kubernetes": {"envoyDeployment": {
        "patch": {"type": "StrategicMerge", "value": {"spec": {"template": {"spec": pod}}}},
    }}}}))
}

fn patches(parts: &Parts, resources: &XdsResources, args: &PackageArgs) -> Vec<Value> {
    let add = |kind: &str, name: &str, path: &str, value: Value| {
        json!({
            "type": format!("type.googleapis.com/envoy.config.{kind}"),
            "name": name,
            "operation": {"op": "add", "path": path, "value": value},
        })
    };
    let mut patches = Vec::new();
    for cluster in &parts.clusters {
        let name = cluster["name"].as_str().unwrap_or_default();
        patches.push(add("cluster.v3.Cluster", name, "", cluster.clone()));
    }
    for (name, settings) in &parts.joined {
        patches.extend(
            settings.iter().map(|(field, value)| add("cluster.v3.Cluster", name, &format!("/{field}"), value.clone())),
        );
    }
    let filters = format!("/default_filter_chain/filters/0/typed_config/http_filters/{}", args.position);
    // Each is put before what stands there, so the last one comes first.
    for filter in parts.filters.iter().rev() {
        patches.push(add("listener.v3.Listener", &resources.listener, &filters, filter.clone()));
    }
    let host = "/virtual_hosts/0";
    let settings: &Map<String, Value> = &parts.host;
    for (field, value) in settings {
        patches.push(add("route.v3.RouteConfiguration", &resources.routes, &format!("{host}/{field}"), value.clone()));
    }
    for route in parts.routes.iter().rev() {
        patches.push(add("route.v3.RouteConfiguration", &resources.routes, &format!("{host}/routes/0"), route.clone()));
    }
    patches
}
