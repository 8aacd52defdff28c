//! The parts of the rendered Envoy configuration that go into somebody else's.

use anyhow::{Context, Result};
use routebalance_core::config::Config;
use routebalance_core::names;
use serde_json::{Map, Value};

/// What the filter brings to a listener.
#[derive(Debug)]
pub(super) struct Parts {
    /// The filter and what stands behind it, in their order.
    pub(super) filters: Vec<Value>,
    /// Headers that clients cannot write, removed before the first route is matched.
    pub(super) early_mutation: Value,
    /// Settings of the virtual host.
    pub(super) host: Map<String, Value>,
    /// Its routes, in their order.
    pub(super) routes: Vec<Value>,
    /// Clusters that are nobody else's.
    pub(super) clusters: Vec<Value>,
    /// What clusters that somebody else makes lack, by their names.
    pub(super) joined: Vec<(String, Map<String, Value>)>,
    /// Most bytes of a body in Envoy.
    pub(super) body_limit: u64,
    /// Whether the plugin cannot hold headers.
    pub(super) headers_go_on: bool,
}

/// What a cluster of somebody else gets.
const JOINED: [&str; 3] = ["load_balancing_policy", "typed_extension_protocol_options", "circuit_breakers"];

impl Parts {
    pub(super) fn of(rendered: &str, config: &Config) -> Result<Parts> {
        let all: Value = serde_saphyr::from_str(rendered)?;
        let manager = all.pointer("/static_resources/listeners/0/filter_chains/0/filters/0/typed_config");
        let manager = manager.context("the rendered configuration has no connection manager")?;
        let host = manager.pointer("/route_config/virtual_hosts/0").and_then(Value::as_object);
        let mut host = host.context("the rendered configuration has no virtual host")?.clone();
        let routes = host.remove("routes").context("the rendered configuration has no routes")?;
        host.retain(|name, _| !["name", "domains"].contains(&name.as_str()));
        let body_limit = host.get("request_body_buffer_limit").and_then(Value::as_u64).unwrap_or_default();
        let is_joined = |name: &str| config.fleet.pools.iter().any(|pool| pool.discovered && pool.cluster == name);
        let all = list(all.pointer("/static_resources/clusters"))?.into_iter();
        let (others, clusters): (Vec<Value>, Vec<Value>) =
            all.partition(|cluster| cluster["name"].as_str().is_some_and(is_joined));
        Ok(Parts {
            filters: own_filters(manager)?,
            early_mutation: early_mutation(manager)?,
            host,
            routes: list(Some(&routes))?,
            clusters,
            joined: others.iter().map(joined).collect(),
            body_limit,
            headers_go_on: config.envoy.headers_go_on,
        })
    }
}

fn list(value: Option<&Value>) -> Result<Vec<Value>> {
    Ok(value.and_then(Value::as_array).context("the rendered configuration lacks a list")?.clone())
}

/// The filters that are ours. Those that unpack bodies stay out: they would unpack bodies of other hosts.
fn own_filters(manager: &Value) -> Result<Vec<Value>> {
    let is_own = |filter: &Value| filter["name"].as_str().is_some_and(|name| name.starts_with(super::NAME));
    Ok(list(manager.get("http_filters"))?.into_iter().filter(is_own).collect())
}

/// What removes headers; nothing that writes any, since other hosts would get them.
fn early_mutation(manager: &Value) -> Result<Value> {
    let mut all = manager.get("early_header_mutation_extensions").cloned().unwrap_or_default();
    let mutations = all.pointer_mut("/0/typed_config/mutations").and_then(Value::as_array_mut);
    mutations.context("the rendered configuration removes no headers")?.retain(|mutation| {
        mutation
            .get("remove")
            .is_some_and(|name| [names::POOL_HEADER, names::ENDPOINT_HEADER].map(Value::from).contains(name))
    });
    Ok(all)
}

/// What such a cluster has of ours.
fn joined(cluster: &Value) -> (String, Map<String, Value>) {
    let own = JOINED.into_iter().filter_map(|field| Some((field.to_owned(), cluster.get(field)?.clone())));
    (cluster["name"].as_str().unwrap_or_default().to_owned(), own.collect())
}

/// The plugin of a filter, wherever its wasm stands.
pub(super) fn plugin(filter: &Value) -> Option<&Value> {
    filter.pointer("/typed_config/config")
}

/// Where a cluster runs the filter for attempts after the first: its plugin as it is written there.
pub(super) fn attempts(cluster: &mut Value) -> Option<&mut Value> {
    cluster.pointer_mut(ATTEMPTS)
}

/// The action that runs it.
const ATTEMPTS: &str = "/typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/http_filters/0\
     /typed_config/xds_matcher/matcher_list/matchers/0/on_match/action/typed_config";
