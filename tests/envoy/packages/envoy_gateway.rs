//! Envoy Gateway acted out, as its sources say: what it makes of a Gateway, and of an `EnvoyPatchPolicy`.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation};
use serde_json::{Value, json};

use super::{IMAGE, Machine, NAMESPACE, of_kind};

/// Envoy's configuration with these objects.
pub(super) fn applied(machine: &Machine, objects: &[Value]) -> String {
    let port = machine.port;
    let gateway = &of_kind(objects, "Gateway")["spec"];
    assert_eq!(gateway["listeners"][0]["port"], port);
    assert_eq!(of_kind(objects, "HTTPRoute")["spec"]["parentRefs"][0]["name"], "routebalance");
    let by_object = format!("{NAMESPACE}/routebalance/http");
    let names = [(by_object.clone(), by_object), (format!("tcp-{port}"), format!("http-{port}"))];
    let patches = of_kind(objects, "EnvoyPatchPolicy")["spec"]["jsonPatches"].as_array().expect("patches");
    let is_known = |(listener, _): &&(String, String)| patches.iter().any(|patch| patch["name"] == **listener);
    let (listener_name, routes_name) = names.iter().find(is_known).expect("a name of a listener");

    let router = json!({"name": "envoy.filters.http.router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        "suppress_envoy_headers": true,
    }});
    let mut manager = machine.manager(routes_name, &format!("{routes_name}/*"), json!([router]));
    let client = &of_kind(objects, "ClientTrafficPolicy")["spec"];
    let removed = client["headers"]["earlyRequestHeaders"]["remove"].as_array().expect("headers");
    manager["early_header_mutation_extensions"] = json!([{
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": removed.iter().map(|name| json!({"remove": name})).collect::<Vec<Value>>(),
        },
    }]);
    let mut routes = manager["route_config"].take();
    let limit: u64 = client["connection"]["bufferLimit"].as_str().expect("a quantity").parse().expect("bytes");
    let mut listener = json!({
        "name": listener_name,
        "address": machine.listen,
        "per_connection_buffer_limit_bytes": limit,
        "default_filter_chain": {"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": manager,
        }]},
    });
    let mut clusters = machine.clusters.clone();
    for patch in patches {
        let (kind, name) = (patch["type"].as_str().expect("a type"), patch["name"].as_str().expect("a name"));
        let operation = &patch["operation"];
        assert_eq!(operation["op"], "add", "{patch}");
        match kind.strip_prefix("type.googleapis.com/envoy.config.").expect("Envoy's own") {
            "cluster.v3.Cluster" => match clusters.iter_mut().find(|cluster| cluster["name"] == name) {
                Some(own) => add(own, operation),
                None => {
                    assert!(operation["path"] == "" && operation["value"]["name"] == name, "{patch}");
                    clusters.push(operation["value"].clone());
                }
            },
            "listener.v3.Listener" if name == listener_name => add(&mut listener, operation),
            "route.v3.RouteConfiguration" if name == routes_name => add(&mut routes, operation),
            other => panic!("{other} {name}"),
        }
    }
    listener["default_filter_chain"]["filters"][0]["typed_config"]["route_config"] = routes;
    let envoy = machine.envoy(&listener, &machine.with_admin(&clusters, 19_000));
    crate::setups::replaced(&envoy, &module(objects), &machine.module)
}

/// Where the proxies have the module.
fn module(objects: &[Value]) -> String {
    let pod = &of_kind(objects, "EnvoyProxy")["spec"]["provider"]["kubernetes"]["envoyDeployment"]["patch"]["value"];
    let pod = &pod["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][0]["image"]["reference"], IMAGE);
    format!("{}/plugin.wasm", pod["containers"][0]["volumeMounts"][0]["mountPath"].as_str().expect("a directory"))
}

fn add(resource: &mut Value, operation: &Value) {
    let path = PointerBuf::parse(operation["path"].as_str().expect("a path")).expect("a pointer");
    let operation = PatchOperation::Add(AddOperation { path, value: operation["value"].clone() });
    json_patch::patch(resource, &[operation]).expect("the patch fits");
}
