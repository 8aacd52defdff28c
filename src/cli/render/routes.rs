//! The routes: where requests go that the filter has decided, and those that it has not.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use routebalance_core::config::{Config, Route};
use routebalance_core::fleet::{Pool, PoolKind};
use routebalance_core::health::Suspect;
use routebalance_core::names;

use super::rewriting::{escaped, rewriting};
use super::{body_limit, quoted, seconds};

/// All virtual hosts: one for every list of hosts that a route has, and one for all others.
pub(super) fn routes(yaml: &mut String, config: &Config) -> anyhow::Result<()> {
    yaml.push_str(
        r#"          route_config:
            name: routebalance
            virtual_hosts:
"#,
    );
    let default_route = Route::everything(config.default_policy);
    let all = if config.routes.is_empty() { std::slice::from_ref(&default_route) } else { config.routes.as_slice() };
    let mut domains: Vec<&str> = Vec::new();
    for host in all.iter().flat_map(|route| &route.hosts) {
        if !domains.contains(&host.as_str()) {
            domains.push(host);
        }
    }
    for (i, domain) in domains.iter().enumerate() {
        // A virtual host has what is said of it, and what is said of all.
        let serves = |route: &&Route| route.hosts.is_empty() || route.hosts.iter().any(|host| host == domain);
        virtual_host(yaml, config, (&format!("llm-{}", i + 1), domain), all.iter().filter(serves))?;
    }
    virtual_host(yaml, config, ("llm", "*"), all.iter().filter(|route| route.hosts.is_empty()))
}

fn virtual_host<'a>(
    yaml: &mut String,
    config: &Config,
    (name, domain): (&str, &str),
    routes: impl Iterator<Item = &'a Route>,
) -> anyhow::Result<()> {
    let (body_limit, domain) = (body_limit(config), quoted(domain));
    write!(
        yaml,
        r#"            - name: {name}
              domains: [{domain}]
              request_body_buffer_limit: {body_limit}
              # Which attempts are not the first ones: the clusters' own filter sees to those.
              include_request_attempt_count: true
              routes:
"#
    )?;
    let mut written: Vec<&Route> = Vec::new();
    for route in routes {
        // What another route takes whole is never reached.
        let takes_all = |other: &&Route| other.headers.is_empty() && route.prefix.starts_with(&other.prefix);
        if domain != "\"*\"" && written.iter().any(takes_all) {
            continue;
        }
        route_set(yaml, config, route)?;
        written.push(route);
    }
    if written.is_empty() {
        yaml.push_str("              []\n");
    }
    Ok(())
}

/// The routes of one of ours: two for what the filter has decided, streams and whole answers, and one for what it has not, so that a
/// bypassed filter costs the choice and not the request. The first two hang on filter state, which no client can write; pools whose host or
/// path is another have two of their own before them.
fn route_set(yaml: &mut String, config: &Config, route: &Route) -> anyhow::Result<()> {
    let (name, metadata) = (quoted(&route.name), metadata(config, route));
    let own = config.fleet.pools.iter().filter(|pool| pool.upstream.has_own_route()).map(Some);
    for pool in own.chain([None]) {
        let to = pool.map(|pool| (names::POOL_HEADER, pool.cluster.as_str()));
        let headers = headers(route, to);
        let rewriting = rewriting(route, pool);
        for (state, silence) in [
            (names::ROUTED_AS_STREAM, Silence::Limited(config.envoy.per_try_idle_timeout)),
            (names::ROUTED_AS_WHOLE, Silence::Unlimited),
        ] {
            write!(
                yaml,
                r#"              - name: {name}
                match:
                  prefix: {}
                  filter_state:
                  - key: wasm.{}
                    string_match: {{ prefix: "{state}" }}
{headers}{metadata}{}"#,
                quoted(&route.prefix),
                names::ROUTED_STATE,
                action(&format!("cluster_header: {}", names::POOL_HEADER), &rewriting, silence, config.retries()),
            )?;
        }
    }
    let Some(pool) = config.fleet.pool(config.envoy.default_pool) else { return Ok(()) };
    passing(yaml, config, route, pool, &metadata)
}

/// What the filter has not decided goes to the default pool.
fn passing(yaml: &mut String, config: &Config, route: &Route, pool: &Pool, metadata: &str) -> anyhow::Result<()> {
    let (name, prefix) = (quoted(&route.name), quoted(&route.prefix));
    let cluster = format!("cluster: {}", quoted(&pool.cluster));
    let action = action(&cluster, &rewriting(route, Some(pool)), Silence::Passing, config.retries());
    let headers = headers(route, None);
    let matching = if pool.kind == PoolKind::Hosted {
        // The gateway's secret opens no more of a provider than what the filter itself asks for.
        let path = quoted(&format!("^{}(v1/)?({GENERATING})$", escaped(&route.prefix)));
        format!("match:\n                  safe_regex: {{ regex: {path} }}\n{headers}")
    } else if headers.is_empty() {
        format!("match: {{ prefix: {prefix} }}\n")
    } else {
        format!("match:\n                  prefix: {prefix}\n{headers}")
    };
    write!(yaml, "              - name: {name}\n                {matching}{metadata}{action}")?;
    Ok(())
}

/// Ends of the paths at which providers generate.
const GENERATING: &str = "chat/completions|completions|responses|messages|embeddings";

/// The headers that a route asks for, and one more.
fn headers(route: &Route, more: Option<(&str, &str)>) -> String {
    let asked = route.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let lines = asked.chain(more).map(|(name, value)| {
        format!("                  - {{ name: {}, string_match: {{ exact: {} }} }}\n", quoted(name), quoted(value))
    });
    let lines: String = lines.collect();
    if lines.is_empty() { lines } else { format!("                  headers:\n{lines}") }
}

/// What the filter reads of a route.
fn metadata(config: &Config, route: &Route) -> String {
    let policy = config.policy(route.policy).map_or("", |p| p.name.as_str());
    let mut fields = BTreeMap::from([(names::METADATA_POLICY, quoted(policy))]);
    if let Some(weights) = route.weights {
        let (quality, latency, cost) = (weights.quality, weights.latency, weights.cost);
        let weights = format!("{{ quality: {quality}, latency: {latency}, cost: {cost} }}");
        fields.insert(names::METADATA_WEIGHTS, weights);
    }
    let fields: Vec<String> = fields.into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
    format!(
        r#"                metadata:
                  filter_metadata:
                    {}: {{ {} }}
"#,
        names::METADATA_NAMESPACE,
        fields.join(", ")
    )
}

/// How long an attempt may be silent, and what that follows from.
#[derive(Clone, Copy)]
enum Silence {
    /// A stream that the filter has routed: its instance speaks at least this often.
    Limited(Duration),
    /// A whole answer that the filter has routed: it is silent until its end.
    Unlimited,
    /// What the filter has not read: nothing is known of it.
    Passing,
}

fn action(cluster: &str, rewriting: &str, silence: Silence, retries: usize) -> String {
    let routed_retries = format!("{ROUTED_RETRIES}{:?}", Suspect::STATUSES);
    let (idle_timeout, retry_on, per_try) = match silence {
        Silence::Limited(limit) => (
            "600s",
            routed_retries.as_str(),
            format!(
                "\n                    # An instance that hangs costs its streams this long. It must be longer than requests wait in the instances' queues.\n                    per_try_idle_timeout: {}",
                seconds(limit)
            ),
        ),
        Silence::Unlimited => ("0s", routed_retries.as_str(), String::new()),
        Silence::Passing => (
            "0s",
            r#"# Nobody knows what a request does that the filter has not read: it is sent again only where it did not arrive.
                    retry_on: connect-failure,refused-stream"#,
            String::new(),
        ),
    };
    format!(
        r#"                route:
                  {cluster}{rewriting}
                  # Generation takes as long as it takes.
                  timeout: 0s
                  idle_timeout: {idle_timeout}
                  retry_policy:
                    {retry_on}
                    num_retries: {retries}
                    # Never twice to the same host, also where Envoy chooses it.
                    retry_host_predicate:
                    - name: envoy.retry_host_predicates.previous_hosts
                      typed_config:
                        "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
                    host_selection_retry_max_attempts: 8{per_try}
                    retry_back_off: {{ base_interval: 0.010s, max_interval: 0.100s }}
"#
    )
}

/// A server that is busy (429, 503) is not asked again: the filter must see that it is, and avoids it before the next request.
const ROUTED_RETRIES: &str = r#"# Nothing has reached the client yet in any of these cases; the next attempt goes to the next endpoint. A vLLM that
                    # drains or whose engine has died answers new requests with 500. Not 503: a busy instance is no ill one, and the
                    # filter must see it.
                    retry_on: connect-failure,refused-stream,reset,retriable-status-codes
                    retriable_status_codes: "#;
