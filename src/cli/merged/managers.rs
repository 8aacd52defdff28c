//! HTTP connection managers, and the parts that filters of theirs play.

use routebalance_core::names;
use serde_json::Value;

use super::fields::{deep, field, held, items, text, walk};
use super::plugin;
use super::reading::Resources;

/// An HTTP connection manager, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Manager<'a> {
    /// As sentences name it.
    pub(super) place: String,
    pub(super) listener: &'a Value,
    pub(super) config: &'a Value,
    /// In their order.
    pub(super) filters: Vec<Filter<'a>>,
}

/// The part that a filter plays here.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part<'a> {
    /// The instance of the module that decides; its plugin.
    Main(&'a Value),
    /// The instance that writes a decision's headers; its plugin.
    Headers(&'a Value),
    /// Envoy's buffer.
    Buffer {
        config: &'a Value,
        /// Whether it holds the requests that wait for a decision.
        holds: bool,
    },
    Router,
    /// It comes from elsewhere.
    Unknown,
    Other,
}

/// A filter of a connection manager.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter<'a> {
    pub(super) name: &'a str,
    pub(super) part: Part<'a>,
}

/// All of them. A plugin with this module is the filter, whatever its name.
pub(super) fn all<'a>(resources: &'a Resources, module: Option<&str>) -> Vec<Manager<'a>> {
    let mut all = Vec::new();
    for (index, listener) in resources.listeners.iter().enumerate() {
        let name = listener_name(listener, index);
        let chains: Vec<&Value> =
            items(listener, "filter_chains").iter().chain(field(listener, "default_filter_chain")).collect();
        for (chain_index, chain) in chains.iter().enumerate() {
            let place = match text(chain, "name").filter(|chain_name| !chain_name.is_empty()) {
                Some(chain_name) => format!("{name}, filter chain {chain_name}"),
                None if chains.len() == 1 => name.clone(),
                None => format!("{name}, filter chain {}", chain_index + 1),
            };
            let configs = items(chain, "filters").iter().filter_map(|filter| field(filter, "typed_config"));
            for config in configs.filter_map(|config| held(config, "http_connection_manager.v3.HttpConnectionManager"))
            {
                let filters = items(config, "http_filters").iter().map(|filter| read(filter, resources, module));
                all.push(Manager { place: place.clone(), listener, config, filters: filters.collect() });
            }
        }
    }
    all
}

fn listener_name(listener: &Value, index: usize) -> String {
    let name = text(listener, "name").filter(|name| !name.is_empty());
    let port = || deep(listener, &["address", "socket_address", "port_value"]).map(|port| format!("at port {port}"));
    let name = name.map(str::to_owned).or_else(port);
    format!("listener {}", name.unwrap_or_else(|| (index + 1).to_string()))
}

impl<'a> Manager<'a> {
    /// The plugin of the instance that decides.
    pub(super) fn main(&self) -> Option<&'a Value> {
        self.filters.iter().find_map(|filter| if let Part::Main(plugin) = filter.part { Some(plugin) } else { None })
    }

    /// The place of the first filter that plays such a part.
    pub(super) fn position(&self, is_such: impl Fn(&Part<'_>) -> bool) -> Option<usize> {
        self.filters.iter().position(|filter| is_such(&filter.part))
    }
}

fn read<'a>(filter: &'a Value, resources: &'a Resources, module: Option<&str>) -> Filter<'a> {
    Filter { name: text(filter, "name").unwrap_or("(no name)"), part: part(filter, resources, module) }
}

fn part<'a>(filter: &'a Value, resources: &'a Resources, module: Option<&str>) -> Part<'a> {
    let Some(config) = resources.filter_config(filter) else {
        let is_elsewhere = field(filter, "config_discovery").is_some();
        return if is_elsewhere { Part::Unknown } else { Part::Other };
    };
    if held(config, "router.v3.Router").is_some() {
        return Part::Router;
    }
    if let Some(buffer) = held(config, "buffer.v3.Buffer") {
        return Part::Buffer { config: buffer, holds: holds(field(filter, "typed_config").unwrap_or(config)) };
    }
    let Some(plugin) = plugin::own(config, module) else { return Part::Other };
    match text(plugin, "root_id") {
        Some(names::HEADERS_ROOT_ID) => Part::Headers(plugin),
        Some(names::ATTEMPTS_ROOT_ID) => Part::Other,
        _ => Part::Main(plugin),
    }
}

/// Whether a buffer is for all requests, or asks for the state by which the filter says which ones.
fn holds(config: &Value) -> bool {
    let key = format!("wasm.{}", names::HELD_STATE);
    field(config, "xds_matcher").is_none_or(|matcher| walk(matcher).any(|value| value.as_str() == Some(&key)))
}
