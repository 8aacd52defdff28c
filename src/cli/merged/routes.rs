//! What routes lack behind the filter.

use routebalance_core::config::Config;
use routebalance_core::names;
use serde_json::Value;

use super::Finding;
use super::fields::{deep, field, held, is_true, items, number, seconds, text};
use super::managers::Manager;
use super::reading::Resources;

/// Envoy's limit of a connection's buffer where nothing is said.
const CONNECTION_BUFFER_BYTES: u64 = 1 << 20;

/// What the routes of a connection manager that runs the filter lack.
pub(super) fn check(manager: &Manager<'_>, resources: &Resources, config: &Config) -> Vec<Finding> {
    let place = &manager.place;
    let named = || deep(manager.config, &["rds", "route_config_name"]).and_then(Value::as_str);
    let found = |name: &str| resources.routes.iter().find(|routes| text(routes, "name") == Some(name));
    let Some(routes) = field(manager.config, "route_config").or_else(|| named().and_then(found)) else {
        let name = named().map(|name| format!(" (`{name}`)")).unwrap_or_default();
        return vec![Finding::note(format!("{place}: its routes{name} come from elsewhere and were not checked"))];
    };
    let mut hosts = items(routes, "virtual_hosts").iter().filter(|host| is_own(host)).peekable();
    if hosts.peek().is_none() {
        let is_elsewhere = field(routes, "vhds").is_some()
            || items(routes, "virtual_hosts").iter().any(|host| field(host, "matcher").is_some());
        return vec![if is_elsewhere {
            Finding::note(format!("{place}: its virtual hosts have other routes than a list, which were not checked"))
        } else {
            Finding::error(format!(
                "{place}: no route matches the filter state `wasm.{}`, so nobody does what the filter decides: write the routes of \
                 `render` first into the virtual host",
                names::ROUTED_STATE
            ))
        }];
    }
    hosts.flat_map(|host| Host::new(manager, host).check(config)).collect()
}

/// Whether the filter's routes were meant to be in a virtual host.
fn is_own(host: &Value) -> bool {
    items(host, "routes").iter().any(|route| states(route).next().is_some() || takes_header(route))
}

/// How the routed state must be for a route.
fn states(route: &Value) -> impl Iterator<Item = &Value> {
    let key = format!("wasm.{}", names::ROUTED_STATE);
    let all = field(route, "match").map(|matches| items(matches, "filter_state")).unwrap_or_default();
    all.iter().filter(move |matcher| text(matcher, "key") == Some(&key))
}

fn takes_header(route: &Value) -> bool {
    let header = deep(route, &["route", "cluster_header"]).and_then(Value::as_str);
    header.is_some_and(|header| header.eq_ignore_ascii_case(names::POOL_HEADER))
}

/// Whether a route is for requests of this routed state, alone or with what may stand behind it.
fn is_for(route: &Value, state: &str) -> bool {
    let mut states = states(route).peekable();
    states.peek().is_some()
        && states.all(|matcher| {
            let Some(string) = field(matcher, "string_match") else { return true };
            let with_plan = format!("{state} 7");
            let is = |test: &dyn Fn(&str) -> bool| test(state) && test(&with_plan);
            if let Some(prefix) = text(string, "prefix") {
                is(&|text| text.starts_with(prefix))
            } else if let Some(exact) = text(string, "exact") {
                is(&|text| text == exact)
            } else if let Some(part) = text(string, "contains") {
                is(&|text| text.contains(part))
            } else if let Some(suffix) = text(string, "suffix") {
                is(&|text| text.ends_with(suffix))
            } else {
                // Expressions are taken for what they are meant to be.
                true
            }
        })
}

/// A virtual host with routes of the filter.
struct Host<'a> {
    place: String,
    listener: &'a Value,
    host: &'a Value,
    routes: &'a [Value],
}

impl<'a> Host<'a> {
    fn new(manager: &Manager<'a>, host: &'a Value) -> Host<'a> {
        let name = text(host, "name").unwrap_or("without a name");
        let place = format!("{}, virtual host {name}", manager.place);
        Host { place, listener: manager.listener, host, routes: items(host, "routes") }
    }

    /// A route as sentences name it.
    fn named(&self, index: usize) -> String {
        let name = self.routes.get(index).and_then(|route| text(route, "name")).filter(|name| !name.is_empty());
        name.map_or_else(|| format!("route {}", index + 1), |name| format!("route {} (`{name}`)", index + 1))
    }

    fn check(&self, config: &Config) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self.body_limit(config).into_iter().collect();
        findings.extend(self.states());
        findings.extend(self.order());
        findings.extend(self.marks(config));
        if config.envoy.model_fallback && !is_true(self.host, "include_request_attempt_count") {
            findings.push(Finding::warning(format!(
                "{}: attempts after the first cannot be told, and would ask another model's instance for the first model: write \
                 `include_request_attempt_count: true`",
                self.place
            )));
        }
        for (index, route) in self.routes.iter().enumerate() {
            if states(route).next().is_some() {
                findings.extend(self.routed(index, route));
            } else if let Some(cluster) = deep(route, &["route", "cluster"]).and_then(Value::as_str)
                && config.fleet.pools.iter().any(|pool| pool.cluster == cluster)
            {
                findings.extend(self.timeout(index, route).map(Finding::warning));
            }
        }
        findings
    }

    fn body_limit(&self, config: &Config) -> Option<Finding> {
        const FIELD: &str = "request_body_buffer_limit";
        let place = &self.place;
        let needed = config.max_buffered_bytes;
        let of_host = number(self.host, FIELD);
        let connection = number(self.listener, "per_connection_buffer_limit_bytes").unwrap_or(CONNECTION_BUFFER_BYTES);
        let routed = self.routes.iter().filter(|route| states(route).next().is_some());
        let (limit, is_said) = routed
            .map(|route| number(route, FIELD).or(of_host))
            .map(|said| (said.unwrap_or(connection), said.is_some()))
            .min()?;
        let what = if is_said {
            format!("its `{FIELD}` is")
        } else {
            format!("it has no `{FIELD}`, and the listener's `per_connection_buffer_limit_bytes` is")
        };
        (limit < needed).then(|| {
            Finding::error(format!(
                "{place}: {what} {limit}, so bodies below `request.max_buffered_bytes` ({needed}) would be answered with 413: write \
                 `{FIELD}: {}`",
                crate::render::body_limit(config)
            ))
        })
    }

    /// Both kinds of answers have a route.
    fn states(&self) -> Vec<Finding> {
        let kinds = [(names::ROUTED_AS_STREAM, "streams"), (names::ROUTED_AS_WHOLE, "whole answers")];
        let missing = kinds.into_iter().filter(|(state, _)| !self.routes.iter().any(|route| is_for(route, state)));
        let sentence = |(state, what): (&str, &str)| {
            Finding::error(format!(
                "{}: no route matches the filter state `wasm.{}` with the prefix `{state}`, so {what} would go where Envoy likes: write \
                 the route of `render` first",
                self.place,
                names::ROUTED_STATE
            ))
        };
        missing.map(sentence).collect()
    }

    /// Requests meet these routes before the filter has decided.
    fn marks(&self, config: &Config) -> Option<Finding> {
        let mark = ["metadata", "filter_metadata", names::METADATA_NAMESPACE, names::METADATA_POLICY];
        let mut undecided = self.routes.iter().filter(|route| states(route).next().is_none());
        let is_marked = !config.only_marked_routes || undecided.any(|route| deep(route, &mark).is_some());
        (!is_marked).then(|| {
            Finding::error(format!(
                "{}: no route without the filter state names a policy, so the filter leaves all requests alone \
                 (`only_marked_routes`): write the `metadata` of `render` into its own",
                self.place
            ))
        })
    }

    /// No route for what was not routed takes what was.
    fn order(&self) -> Option<Finding> {
        let prefix = |route: &Value| {
            let matches = field(route, "match")?;
            let is_plain = matches
                .as_object()?
                .keys()
                .all(|name| ["prefix", "case_sensitive", "caseSensitive"].contains(&name.as_str()));
            is_plain.then(|| text(matches, "prefix").map(str::to_owned))?
        };
        let mut hidden = self.routes.iter().enumerate().filter(|(_, route)| states(route).next().is_some());
        hidden.find_map(|(index, route)| {
            let own = deep(route, &["match", "prefix"]).and_then(Value::as_str)?;
            let earlier = self.routes.iter().take(index).position(|other| prefix(other).is_some_and(|p| own.starts_with(&p)))?;
            Some(Finding::error(format!(
                "{}: {} takes every request of {}, which matches the filter state and stands behind it: write the routes with the \
                 filter state first",
                self.place,
                self.named(earlier),
                self.named(index)
            )))
        })
    }

    /// A route for what the filter has routed.
    fn routed(&self, index: usize, route: &Value) -> Vec<Finding> {
        let (place, name) = (&self.place, self.named(index));
        if !takes_header(route) {
            return vec![Finding::error(format!(
                "{place}: {name} does not go to the pool that the filter has chosen: write `cluster_header: {}`",
                names::POOL_HEADER
            ))];
        }
        let mut findings: Vec<Finding> = Vec::new();
        let is_limited = deep(route, &["route", "timeout"]).is_some();
        findings.extend(self.timeout(index, route).map(|sentence| {
            // Who has written a time has chosen it.
            if is_limited { Finding::warning(sentence) } else { Finding::error(sentence) }
        }));
        let policy = deep(route, &["route", "retry_policy"]).or_else(|| field(self.host, "retry_policy"));
        let predicates = policy.map(|policy| items(policy, "retry_host_predicate")).unwrap_or_default();
        let is_previous = |predicate: &Value| {
            let is_typed = field(predicate, "typed_config")
                .is_some_and(|config| held(config, "previous_hosts.v3.PreviousHostsPredicate").is_some());
            is_typed || text(predicate, "name") == Some("envoy.retry_host_predicates.previous_hosts")
        };
        match policy {
            None => findings.push(Finding::warning(format!(
                "{place}: {name} has no `retry_policy`, so a failed attempt is the client's answer: write that of `render`"
            ))),
            Some(_) if !predicates.iter().any(is_previous) => findings.push(Finding::warning(format!(
                "{place}: {name} may try the same host again: write `envoy.retry_host_predicates.previous_hosts` into \
                 `retry_host_predicate`"
            ))),
            Some(_) => {}
        }
        findings
    }

    fn timeout(&self, index: usize, route: &Value) -> Option<String> {
        let action = field(route, "route")?;
        let limit = match field(action, "timeout") {
            None => "the default of 15 s".to_owned(),
            Some(_) if seconds(action, "timeout") == Some(0.0) => return None,
            Some(limit) => limit.as_str().unwrap_or("a limit").to_owned(),
        };
        Some(format!(
            "{}: the `timeout` of {} is {limit}, which cuts longer generations: write `timeout: 0s`",
            self.place,
            self.named(index)
        ))
    }
}
