//! `routebalance check FILE`: says what Envoy would say of a configuration.

use std::path::Path;

use anyhow::Context;

use routebalance_core::config::Config;
use routebalance_core::fleet::{ModelKind, Pool};
use routebalance_core::predictor::Predictor;
use routebalance_core::router::Router;

/// Parses a configuration file.
///
/// # Errors
/// One sentence: the file cannot be read, or the field that is wrong.
pub fn check(path: &Path) -> anyhow::Result<Config> {
    let json = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Config::parse(&json)?)
}

/// One line about a valid configuration.
pub fn summary(config: &Config) -> String {
    let routes = match config.routes.len() {
        0 => "the default route".to_owned(),
        count => format!("{count} routes"),
    };
    format!(
        "valid: {} models, {} pools, {} instances, {} policies, {routes}",
        config.fleet.models.len(),
        config.fleet.pools.len(),
        config.fleet.instances.len(),
        config.policies.len()
    )
}

/// What a valid configuration will not do as its author may think, a sentence each.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = silences(config);
    warnings.extend(open_secrets(config));
    let predictor = config.predictor_enabled.then(Predictor::load).and_then(Result::ok);
    let router = Router::new(config.clone(), predictor);
    let unknown = router.unpredicted();
    if !unknown.is_empty() {
        warnings.push(format!("the predictor does not know {}: their priors decide", unknown.join(", ")));
    }
    warnings
}

/// Pools whose secrets anybody on the way can read.
fn open_secrets(config: &Config) -> impl Iterator<Item = String> {
    let is_open = |pool: &&Pool| pool.upstream.credential.is_some() && pool.upstream.tls.is_none();
    let sentence =
        |pool: &Pool| format!("pool {} sends its credential without TLS: write `\"tls\": {{}}` into it", pool.name);
    config.fleet.pools.iter().filter(is_open).map(sentence)
}

/// Pools whose longest prompt takes longer to prefill than a stream may be silent.
fn silences(config: &Config) -> Vec<String> {
    let limit = config.envoy.per_try_idle_timeout.as_secs_f64();
    let generating = config
        .fleet
        .pools
        .iter()
        .filter(|pool| config.fleet.model_of(pool).is_some_and(|model| model.kind == ModelKind::Generate));
    let seconds = generating.map(|pool| {
        let tokens = pool.limits.max_model_len;
        (pool, tokens, f64::from(tokens) / pool.profile.prefill_tokens_per_second)
    });
    let too_long = seconds.filter(|(_, _, seconds)| *seconds > limit);
    let sentence = |(pool, tokens, seconds): (&Pool, u32, f64)| {
        format!(
            "envoy.per_try_idle_timeout_ms is {} ms, but pool {} prefills a prompt of {tokens} tokens in {seconds:.0} s: its \
             stream would be given up",
            limit * 1e3,
            pool.name
        )
    };
    too_long.map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: &[(&str, serde_json::Value)]) -> Config {
        let mut json: serde_json::Value = serde_json::from_str(include_str!("../../envoy/routebalance.json")).unwrap();
        for (at, value) in changes {
            let (parent, key) = at.rsplit_once('/').unwrap();
            json.pointer_mut(parent).unwrap()[key] = value.clone();
        }
        Config::parse(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_valid_configuration_may_deserve_a_warning() {
        assert_eq!(warnings(&config(&[])), [""; 0], "ours deserves none");
        let short = warnings(&config(&[("/envoy/per_try_idle_timeout_ms", 1_000.into())]));
        assert!(!short.is_empty() && short.iter().all(|w| w.contains("envoy.per_try_idle_timeout_ms is 1000 ms")));
        let own = config(&[("/models/1/name", "our-own".into()), ("/pools/1/model", "our-own".into())]);
        assert_eq!(warnings(&own), ["the predictor does not know our-own: their priors decide"]);
        let secret = [("/pools/0/credential", serde_json::json!({"file": "/key"}))];
        assert!(warnings(&config(&secret)).iter().any(|w| w.contains("qwen2.5-3b sends its credential without TLS")));
        let without = [("/predictor", serde_json::json!({"enabled": false}))];
        assert_eq!(warnings(&config(&without)), [""; 0], "who has no predictor knows it");
    }
}
