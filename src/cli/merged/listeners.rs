//! What a listener lacks in front of the routes: the filter and its flag, what stands behind it, its headers, its log.

use std::collections::{BTreeMap, BTreeSet};

use routebalance_core::config::Config;
use routebalance_core::names;
use serde_json::Value;

use super::fields::{field, held, is_true, items, number, text, walk};
use super::managers::{Filter, Manager, Part};
use super::plugin;
use super::reading::Resources;
use super::{Finding, Known};

/// What is said where no connection manager runs the filter.
pub(super) fn without_filter(resources: &Resources, managers: &[Manager<'_>]) -> Finding {
    let is_unknown = |filter: &&Filter<'_>| matches!(filter.part, Part::Unknown);
    if resources.listeners.is_empty() {
        return Finding::note("no listeners in this file: they come from elsewhere and were not checked");
    }
    if resources.has_listeners_elsewhere {
        return Finding::note(
            "no listener in this file runs the filter: others come from elsewhere and were not checked",
        );
    }
    let mut unknown = managers.iter().flat_map(|m| m.filters.iter().filter(is_unknown).map(move |filter| (m, filter)));
    if let Some((manager, filter)) = unknown.next() {
        return Finding::note(format!(
            "{}: the filter `{}` comes from elsewhere, and no other filter is the module: the listeners were not checked",
            manager.place, filter.name
        ));
    }
    let places: BTreeSet<&str> = managers.iter().map(|manager| manager.place.as_str()).collect();
    let places: Vec<&str> = places.into_iter().collect();
    let places = if places.is_empty() { "there is none".to_owned() } else { places.join("; ") };
    Finding::error(format!(
        "no HTTP connection manager runs the filter ({places}): write the Wasm filter `routebalance` before \
         `envoy.filters.http.router` into its `http_filters`"
    ))
}

/// The configuration in the listener, and what is to be said of it.
pub(super) fn configuration(manager: &Manager<'_>, file: Option<&Known>, name: &str) -> (Option<Known>, Vec<Finding>) {
    let place = &manager.place;
    let Some(text) = manager.main().map(plugin::inline) else { return (None, Vec::new()) };
    let text = match text {
        Ok(text) => text,
        Err(problem) => return (None, vec![Finding::error(format!("{place}: {problem}"))]),
    };
    let known = match Known::parse(text.as_bytes()) {
        Ok(known) => known,
        Err(problem) => {
            let sentence = format!("{place}: the module refuses the plugin's configuration: {problem:#}");
            return (None, vec![Finding::error(sentence)]);
        }
    };
    let differs = file.and_then(|file| plugin::difference(&known.json, &file.json));
    let differs = differs.map(|field| {
        Finding::warning(format!(
            "{place}: the plugin's configuration is not that of {name}, first at `{field}`: Envoy runs the one in its own file, so \
             write the other there"
        ))
    });
    (Some(known), differs.into_iter().collect())
}

/// What a connection manager that runs the filter lacks.
pub(super) fn check(manager: &Manager<'_>, config: &Config) -> Vec<Finding> {
    let mut findings = places(manager);
    findings.extend(flag(manager, config));
    if config.envoy.headers_go_on {
        findings.extend(behind(manager, config));
    }
    findings.extend(early_mutation(manager));
    findings.extend(access_log(manager));
    findings
}

/// Before the router, and once.
fn places(manager: &Manager<'_>) -> Vec<Finding> {
    let place = &manager.place;
    let mut findings = Vec::new();
    let main = manager.position(|part| matches!(part, Part::Main(_)));
    let router = manager.position(|part| matches!(part, Part::Router));
    if router.is_some() && router < main {
        findings.push(Finding::error(format!(
            "{place}: the filter stands behind the router, which no request passes: write it before `envoy.filters.http.router`"
        )));
    }
    for (what, is_such) in [
        ("filter", (|part| matches!(part, Part::Main(_))) as fn(&Part<'_>) -> bool),
        ("second instance of the filter (root id `headers`)", |part| matches!(part, Part::Headers(_))),
    ] {
        let such: Vec<&str> =
            manager.filters.iter().filter(|filter| is_such(&filter.part)).map(|filter| filter.name).collect();
        if such.len() > 1 {
            findings.push(Finding::error(format!(
                "{place}: the {what} stands {} times (`{}`): leave one",
                such.len(),
                such.join("`, `")
            )));
        }
    }
    findings
}

fn flag(manager: &Manager<'_>, config: &Config) -> Option<Finding> {
    const FLAG: &str = "allow_on_headers_stop_iteration";
    let main = manager.main()?;
    let place = &manager.place;
    match (is_true(main, FLAG), config.envoy.headers_go_on) {
        (false, false) => Some(Finding::error(format!(
            "{place}: the plugin lacks `{FLAG}`, so headers go on and requests would pass undecided: write `{FLAG}: true` \
             beside its name, or `\"{FLAG}\": false` into `envoy` of routebalance.json"
        ))),
        // Bodies are held behind the filter then, which the flag does not hinder.
        (true, true) => Some(Finding::warning(format!(
            "{place}: the plugin has `{FLAG}`, but `envoy` of routebalance.json says that it has not: take `{FLAG}: true` out, or \
             `\"{FLAG}\": false` there"
        ))),
        _ => None,
    }
}

/// What stands behind the filter where headers go on.
fn behind(manager: &Manager<'_>, config: &Config) -> Vec<Finding> {
    let place = &manager.place;
    let mut findings = Vec::new();
    let holds = |part: &Part<'_>| matches!(part, Part::Buffer { holds: true, .. });
    let main = manager.position(|part| matches!(part, Part::Main(_)));
    let buffer = manager.position(holds);
    let headers = manager.position(|part| matches!(part, Part::Headers(_)));
    let router = manager.position(|part| matches!(part, Part::Router)).unwrap_or(manager.filters.len());
    if buffer.is_none() {
        findings.push(Finding::error(format!(
            "{place}: the buffer for requests that wait is missing, and they would pass undecided: write `routebalance-buffer` behind \
             the filter, as `render` does"
        )));
    }
    if headers.is_none() {
        findings.push(Finding::error(format!(
            "{place}: the second instance (root id `headers`) is missing, and requests would pass undecided: write \
             `routebalance-headers` behind the buffer, as `render` does"
        )));
    }
    if let (Some(main), Some(buffer), Some(headers)) = (main, buffer, headers)
        && !(main < buffer && buffer < headers && (headers < router || router < main))
    {
        findings.push(Finding::error(format!(
            "{place}: the filter, its buffer and its second instance (root id `headers`) stand in the wrong order: write them in this \
             one, before `envoy.filters.http.router`"
        )));
    }
    let limit = manager.filters.iter().find_map(|filter| match filter.part {
        Part::Buffer { config, holds: true } => number(config, "max_request_bytes"),
        _ => None,
    });
    if let Some(limit) = limit.filter(|limit| *limit < config.max_buffered_bytes) {
        findings.push(Finding::error(format!(
            "{place}: the buffer's `max_request_bytes` is {limit}, so bodies below `request.max_buffered_bytes` ({}) would be answered \
             with 413: write {}",
            config.max_buffered_bytes,
            crate::render::buffer_limit(config)
        )));
    }
    findings
}

/// Headers that clients could choose with while the filter is bypassed.
fn early_mutation(manager: &Manager<'_>) -> Option<Finding> {
    let extensions = items(manager.config, "early_header_mutation_extensions").iter();
    let mutations = extensions
        .filter_map(|extension| field(extension, "typed_config"))
        .flat_map(|config| items(config, "mutations"));
    let mutations: Vec<&Value> = mutations.collect();
    // Patterns are taken for what they are meant to be.
    if mutations.iter().any(|mutation| field(mutation, "remove_on_match").is_some()) {
        return None;
    }
    let is_removed = |header: &str| {
        mutations.iter().any(|m| text(m, "remove").is_some_and(|name| name.eq_ignore_ascii_case(header)))
    };
    let missing: Vec<String> = [names::POOL_HEADER, names::ENDPOINT_HEADER]
        .into_iter()
        .filter(|header| !is_removed(header))
        .map(|header| format!("`remove: {header}`"))
        .collect();
    (!missing.is_empty()).then(|| {
        Finding::warning(format!(
            "{}: while the filter is bypassed, clients could choose an endpoint: write {} into the mutations of \
             `early_header_mutation_extensions`",
            manager.place,
            missing.join(" and ")
        ))
    })
}

fn access_log(manager: &Manager<'_>) -> Option<Finding> {
    let state = format!("FILTER_STATE(wasm.{}", names::DECISION_STATE);
    let logs = [manager.config, manager.listener].into_iter().filter_map(|of| field(of, "access_log"));
    let has_decisions = logs.flat_map(walk).any(|value| value.as_str().is_some_and(|text| text.contains(&state)));
    (!has_decisions).then(|| {
        Finding::warning(format!(
            "{}: no access log tells decisions: write `%{state}:PLAIN)%` into its format, as `render` does",
            manager.place
        ))
    })
}

/// Instances of the module that do not share a VM.
pub(super) fn virtual_machines(own: &[Manager<'_>], resources: &Resources) -> Vec<Finding> {
    let vm_id = |plugin| plugin::vm_id(plugin).unwrap_or_default();
    let mut mains: Vec<(&str, &str)> = Vec::new();
    let mut findings = Vec::new();
    for manager in own {
        let place = manager.place.as_str();
        let Some(main) = manager.main().map(vm_id) else { continue };
        if let Some((other, id)) = mains.first().filter(|(_, id)| *id != main) {
            findings.push(Finding::warning(format!(
                "{place}: the filter's `vm_id` is `{main}`, but `{id}` in {other}, so they do not share what they know of instances: \
                 write `vm_id: {id}`"
            )));
        }
        for filter in &manager.filters {
            let Part::Headers(plugin) = filter.part else { continue };
            let id = vm_id(plugin);
            if id != main {
                findings.push(Finding::error(format!(
                    "{place}: the filter's `vm_id` is `{main}`, but that of `{}` is `{id}`: write `vm_id: {main}` in both",
                    filter.name
                )));
            }
        }
        mains.push((place, main));
    }
    let ids: Vec<&str> = mains.iter().map(|(_, id)| *id).collect();
    let Some(first) = ids.first() else { return findings };
    let mut others: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for cluster in &resources.clusters {
        let attempts = walk(cluster).filter_map(|value| held(value, "filters.http.wasm.v3.Wasm"));
        let attempts = attempts.filter_map(|wasm| field(wasm, "config"));
        let attempts = attempts.filter(|plugin| text(plugin, "root_id") == Some(names::ATTEMPTS_ROOT_ID));
        if let Some(id) = attempts.map(vm_id).find(|id| !ids.contains(id)) {
            others.entry(id).or_default().push(text(cluster, "name").unwrap_or("without a name"));
        }
    }
    findings.extend(others.iter().map(|(id, clusters)| {
        let word = if clusters.len() == 1 { "cluster" } else { "clusters" };
        Finding::error(format!(
            "{word} {}: the `vm_id` of the filter for attempts is `{id}`, but the listener's is `{first}`: write `vm_id: {first}`",
            clusters.join(", ")
        ))
    }));
    findings
}
