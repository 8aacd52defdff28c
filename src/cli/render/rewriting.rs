//! What a route changes of a request on its way to a pool: its path, and its host.

use routebalance_core::config::Route;
use routebalance_core::fleet::Pool;

use super::quoted;

/// What stands in a route's action for a pool, each part on a line of its own; nothing where nothing changes.
pub(super) fn rewriting(route: &Route, pool: Option<&Pool>) -> String {
    let upstream = pool.map(|pool| &pool.upstream);
    let host = upstream.and_then(|upstream| upstream.host.as_deref());
    let base = upstream.and_then(|upstream| upstream.base_path.as_deref());
    let host = host.map(|host| format!("host_rewrite_literal: {}", quoted(host)));
    let lines = path(route, base).into_iter().chain(host);
    lines.map(|line| format!("\n                  {line}")).collect()
}

/// The part of paths that a provider's base path replaces.
const VERSION: &str = "/v1";

/// The route's own rewriting and then the pool's, in one.
fn path(route: &Route, base: Option<&str>) -> Option<String> {
    let prefix = route.prefix.as_str();
    let rewritten = route.prefix_rewrite.as_deref().unwrap_or(prefix);
    let own = || route.prefix_rewrite.as_ref().map(|to| format!("prefix_rewrite: {}", quoted(to)));
    let Some(base) = base else { return own() };
    // What of the path is left to match behind the route's prefix, and what is put in its place.
    let (rest, with) = if let Some(rest) = VERSION.strip_prefix(rewritten) {
        (rest, base.to_owned())
    } else if let Some(behind) = rewritten.strip_prefix(VERSION).filter(|behind| behind.starts_with('/')) {
        ("", format!("{base}{behind}"))
    } else {
        return own();
    };
    let pattern = quoted(&format!("^{}(/|$)", escaped(&format!("{prefix}{rest}"))));
    let pattern =
        if rest.is_empty() && prefix.ends_with('/') { quoted(&format!("^{}()", escaped(prefix))) } else { pattern };
    let with = quoted(&format!("{}\\1", with.replace('\\', "")));
    Some(format!("regex_rewrite: {{ pattern: {{ regex: {pattern} }}, substitution: {with} }}"))
}

/// A text as a regular expression that matches it alone.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if !c.is_ascii_alphanumeric() && c != '/' && c != '_' && c != '-' {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
