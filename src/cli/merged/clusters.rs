//! What the clusters of pools lack.

use routebalance_core::config::Config;
use routebalance_core::fleet::{Pool, PoolKind};
use routebalance_core::names;
use serde_json::Value;

use super::Finding;
use super::fields::{deep, field, held, items, number, seconds, text, walk};
use super::reading::Resources;

/// vLLM closes connections that are idle for so long.
const KEEP_ALIVE_SECONDS: f64 = 5.0;
/// Bounds of Envoy's own where nothing is said.
const BOUNDS: [(&str, u64); 4] =
    [("max_connections", 1_024), ("max_pending_requests", 1_024), ("max_requests", 1_024), ("max_retries", 3)];

/// What the clusters of some configurations' pools lack.
pub(super) fn check<'a>(resources: &Resources, configs: impl Iterator<Item = &'a Config>) -> Vec<Finding> {
    if resources.clusters.is_empty() && !resources.has_all_clusters() {
        return vec![Finding::note("no clusters in this file: they come from elsewhere and were not checked")];
    }
    let mut findings = Vec::new();
    for config in configs {
        for pool in &config.fleet.pools {
            match find(resources, &pool.cluster) {
                Some(found) => findings.extend(cluster(found, config, pool)),
                None => findings.push(missing(resources, pool)),
            }
        }
        let admin = config.discovery.as_ref().map(|discovery| discovery.cluster.as_str());
        if let Some(admin) = admin.filter(|admin| find(resources, admin).is_none()) {
            let sentence = format!(
                "there is no cluster {admin}, by which the filter asks Envoy's admin listener for discovered instances"
            );
            findings.push(if resources.has_all_clusters() {
                Finding::error(format!("{sentence}: write it with the admin listener's address"))
            } else {
                Finding::note(format!("{sentence}: it comes from elsewhere and was not checked"))
            });
        }
    }
    findings
}

fn find<'a>(resources: &'a Resources, name: &str) -> Option<&'a Value> {
    resources.clusters.iter().find(|cluster| text(cluster, "name") == Some(name))
}

fn missing(resources: &Resources, pool: &Pool) -> Finding {
    let Pool { name, cluster, .. } = pool;
    if resources.has_all_clusters() {
        Finding::error(format!("there is no cluster {cluster}, which pool {name} needs: write that of `render`"))
    } else {
        Finding::note(format!("cluster {cluster} of pool {name} comes from elsewhere and was not checked"))
    }
}

fn cluster(cluster: &Value, config: &Config, pool: &Pool) -> Vec<Finding> {
    let name = pool.cluster.as_str();
    let mut findings: Vec<Finding> = endpoint_choice(cluster, name).into_iter().collect();
    findings.extend(bounds(cluster, name));
    if field(cluster, "outlier_detection").is_some() {
        findings.push(Finding::warning(format!(
            "cluster {name}: its `outlier_detection` takes instances out without the filter's knowing, which does so itself: take it out"
        )));
    }
    let options = protocol_options(cluster);
    let idle = options.and_then(|options| field(options, "common_http_protocol_options"));
    let idle = idle.or_else(|| field(cluster, "common_http_protocol_options"));
    let idle = idle.and_then(|options| seconds(options, "idle_timeout"));
    let is_short = idle.is_some_and(|idle| idle > 0.0 && idle < KEEP_ALIVE_SECONDS);
    if !is_short && pool.kind == PoolKind::Own {
        findings.push(Finding::warning(format!(
            "cluster {name}: now and then a request would meet a connection that vLLM closes after 5 s: write `idle_timeout: 4s` into \
             `common_http_protocol_options` of its HttpProtocolOptions"
        )));
    }
    if config.envoy.model_fallback && !options.is_some_and(sees_attempts) {
        findings.push(Finding::warning(format!(
            "cluster {name}: no filter sees attempts after the first, which would ask another model's instance for the first model: \
             write the `http_filters` of `render` into its HttpProtocolOptions, or `\"model_fallback\": false` into `envoy` of \
             routebalance.json"
        )));
    }
    findings
}

fn protocol_options(cluster: &Value) -> Option<&Value> {
    let all = field(cluster, "typed_extension_protocol_options")?.as_object()?;
    all.values().find_map(|options| held(options, "upstreams.http.v3.HttpProtocolOptions"))
}

/// Whether the module runs for attempts, or something that comes from elsewhere may.
fn sees_attempts(options: &Value) -> bool {
    items(options, "http_filters").iter().flat_map(walk).any(|value| {
        text(value, "root_id") == Some(names::ATTEMPTS_ROOT_ID)
            || field(value, "dynamic_config").is_some()
            || field(value, "config_discovery").is_some()
    })
}

/// Whether requests go to the endpoint that was chosen.
fn endpoint_choice(cluster: &Value, name: &str) -> Option<Finding> {
    let header = names::ENDPOINT_HEADER;
    let policy = field(cluster, "load_balancing_policy")
        .and_then(|policy| walk(policy).find_map(|value| held(value, "override_host.v3.OverrideHost")));
    let Some(policy) = policy else {
        return Some(Finding::error(format!(
            "cluster {name}: it has no `load_balancing_policy` of the type OverrideHost, so requests would go where Envoy likes: write \
             that of `render`, with the source `header: {header}`"
        )));
    };
    let sources = items(policy, "override_host_sources").iter();
    let headers: Vec<&str> = sources.filter_map(|source| text(source, "header")).collect();
    if headers.iter().any(|found| found.eq_ignore_ascii_case(header)) {
        return None;
    }
    let what = match headers.as_slice() {
        [] => "reads no header".to_owned(),
        headers => format!("reads the header `{}`", headers.join("`, `")),
    };
    Some(Finding::error(format!(
        "cluster {name}: its OverrideHost {what}, so requests would go where Envoy likes: write `header: {header}` into \
         `override_host_sources`"
    )))
}

/// Bounds that nobody has set, or that were set to what they are anyway.
fn bounds(cluster: &Value, name: &str) -> Option<Finding> {
    let thresholds =
        deep(cluster, &["circuit_breakers"]).map(|breakers| items(breakers, "thresholds")).unwrap_or_default();
    let is_default = |threshold: &&Value| text(threshold, "priority").is_none_or(|priority| priority == "DEFAULT");
    let threshold = thresholds.iter().find(is_default).unwrap_or(&Value::Null);
    let own: Vec<String> = BOUNDS
        .into_iter()
        .filter(|(bound, value)| number(threshold, bound).is_none_or(|written| written == *value))
        .map(|(bound, value)| format!("`{bound}` {value}"))
        .collect();
    (!own.is_empty()).then(|| {
        Finding::warning(format!(
            "cluster {name}: Envoy's own bounds hold ({}), and it would answer 503 to more: write the `circuit_breakers` of `render`",
            own.join(", ")
        ))
    })
}
