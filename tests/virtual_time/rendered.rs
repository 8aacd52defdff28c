//! What requests meet of the configuration that `render` writes for Envoy.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

/// Envoy's configuration, as far as it is acted out here.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) routes: Vec<Route>,
    pub(super) clusters: BTreeMap<String, Cluster>,
    /// How long a request may take to arrive.
    pub(super) request_timeout: Duration,
    /// The largest body that is held back.
    pub(super) body_bytes_max: usize,
    /// The largest piece of a body that is read at once.
    pub(super) piece_bytes_max: usize,
    pub(super) log_format: String,
}

/// One route.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) name: String,
    prefix: String,
    /// What the routed state begins with.
    state: Option<String>,
    pub(super) policy: Option<String>,
    pub(super) target: Target,
    pub(super) prefix_rewrite: Option<String>,
    pub(super) retries: Retries,
}

/// Where a route leads.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Cluster(String),
    /// To the cluster that this header names.
    Header(String),
}

/// When an attempt is followed by another.
#[derive(Clone, Debug)]
pub(super) struct Retries {
    conditions: Vec<String>,
    statuses: Vec<u64>,
    pub(super) count: u64,
    /// How long an attempt may be silent.
    pub(super) idle_timeout: Option<Duration>,
    pub(super) back_off: Duration,
}

impl Retries {
    pub(super) fn has_condition(&self, condition: &str) -> bool {
        self.conditions.iter().any(|other| other == condition)
    }

    pub(super) fn on_status(&self, status: u16) -> bool {
        self.has_condition("retriable-status-codes") && self.statuses.contains(&status.into())
    }
}

/// One cluster.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) hosts: Vec<Host>,
    /// Whether requests go to the endpoint that the filter names.
    pub(super) is_overridden: bool,
}

/// One host of a cluster.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) address: String,
    /// 0 for those that are chosen where nobody else has chosen.
    priority: usize,
    /// As Envoy names it.
    pub(super) health: String,
}

impl Host {
    pub(super) fn new(address: String, health: &str) -> Host {
        Host { address, priority: 0, health: health.to_owned() }
    }

    fn is_well(&self) -> bool {
        !["UNHEALTHY", "DRAINING", "TIMEOUT"].contains(&self.health.as_str())
    }
}

impl Cluster {
    /// The hosts among which Envoy chooses by itself.
    pub(super) fn balanced(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|host| host.priority == 0 && host.is_well())
    }

    /// A host that the filter names, if it may be used.
    pub(super) fn named(&self, address: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| host.address == address && host.is_well())
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn seconds(value: &Value) -> Option<Duration> {
    let seconds: f64 = value.as_str()?.strip_suffix('s')?.parse().expect("seconds");
    Some(Duration::from_secs_f64(seconds)).filter(|time| !time.is_zero())
}

fn all(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

impl Rendered {
    pub(super) fn parse(yaml: &str) -> Rendered {
        let all_of_it: Value = serde_saphyr::from_str(yaml).expect("YAML");
        let resources = &all_of_it["static_resources"];
        let listener = &resources["listeners"][0];
        let manager = &listener["filter_chains"][0]["filters"][0]["typed_config"];
        let host = &manager["route_config"]["virtual_hosts"][0];
        let format = &manager["access_log"][0]["typed_config"]["log_format"]["text_format_source"]["inline_string"];
        let cluster = |value: &Value| (text(&value["name"]).expect("a name"), Cluster::parse(value));
        Rendered {
            routes: all(&host["routes"]).map(Route::parse).collect(),
            clusters: all(&resources["clusters"]).map(cluster).collect(),
            request_timeout: seconds(&manager["request_timeout"]).expect("a limit"),
            body_bytes_max: host["request_body_buffer_limit"].as_u64().expect("a limit") as usize,
            piece_bytes_max: listener["per_connection_buffer_limit_bytes"].as_u64().expect("a limit") as usize,
            log_format: text(format).expect("a format"),
        }
    }

    /// The route of a path, given what the filter has said of the request.
    pub(super) fn route(&self, path: &str, state: Option<&str>) -> Option<&Route> {
        let is_met = |route: &&Route| {
            let wanted = route.state.as_deref();
            path.starts_with(&route.prefix) && wanted.is_none_or(|wanted| state.is_some_and(|s| s.starts_with(wanted)))
        };
        self.routes.iter().find(is_met)
    }
}

impl Route {
    fn parse(value: &Value) -> Route {
        let (found, action) = (&value["match"], &value["route"]);
        let policy = &action["retry_policy"];
        let cluster = text(&action["cluster"]).map(Target::Cluster);
        Route {
            name: text(&value["name"]).expect("a name"),
            prefix: text(&found["prefix"]).expect("a prefix"),
            state: text(&found["filter_state"][0]["string_match"]["prefix"]),
            policy: text(&value["metadata"]["filter_metadata"]["routebalance"]["policy"]),
            target: cluster.or_else(|| text(&action["cluster_header"]).map(Target::Header)).expect("a cluster"),
            prefix_rewrite: text(&action["prefix_rewrite"]),
            retries: Retries {
                conditions: policy["retry_on"].as_str().unwrap_or_default().split(',').map(str::to_owned).collect(),
                statuses: all(&policy["retriable_status_codes"]).filter_map(Value::as_u64).collect(),
                count: policy["num_retries"].as_u64().unwrap_or(0),
                idle_timeout: seconds(&policy["per_try_idle_timeout"]),
                back_off: seconds(&policy["retry_back_off"]["base_interval"]).unwrap_or_default(),
            },
        }
    }

    /// The path as an instance gets it.
    pub(super) fn rewrite(&self, path: &str) -> String {
        match &self.prefix_rewrite {
            Some(rewrite) => format!("{rewrite}{}", path.strip_prefix(&self.prefix).unwrap_or(path)),
            None => path.to_owned(),
        }
    }
}

impl Cluster {
    fn parse(value: &Value) -> Cluster {
        let localities = all(&value["load_assignment"]["endpoints"]);
        let hosts = localities.flat_map(|locality| {
            let priority = locality["priority"].as_u64().unwrap_or(0) as usize;
            all(&locality["lb_endpoints"]).map(move |endpoint| {
                let socket = &endpoint["endpoint"]["address"]["socket_address"];
                let address = format!("{}:{}", socket["address"].as_str().expect("an address"), socket["port_value"]);
                Host { priority, ..Host::new(address, "HEALTHY") }
            })
        });
        Cluster { hosts: hosts.collect(), is_overridden: value.to_string().contains("override_host_sources") }
    }
}
