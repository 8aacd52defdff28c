//! The same fleet with other prices, and without its largest model.

use crate::prompts::generating;
use routebalance_core::config::Config;
use routebalance_core::fleet::{Fleet, InstanceId, ModelId, Tariff};

/// A change of a fleet's prices.
type Change = fn(&mut Fleet);

/// Price vectors that differ in kind. The paper tries five and does not say which; these are ours.
pub const TARIFFS: [(&str, Change); 5] = [
    ("prices as configured", |_| {}),
    ("prices all alike", alike),
    ("prices squared", squared),
    ("prices by speed", by_speed),
    ("prices of output x 4", dear_output),
];

/// The geometric mean of the prices of an output token.
fn middle(fleet: &Fleet) -> f64 {
    let of = generating(fleet);
    let logs = of.iter().map(|m| fleet.models[m.index()].tariff.usd_per_output_token.max(1e-12).ln());
    (logs.sum::<f64>() / of.len().max(1) as f64).exp()
}

fn alike(fleet: &mut Fleet) {
    let usd = middle(fleet);
    for m in generating(fleet) {
        fleet.models[m.index()].tariff = Tariff::new(usd, usd);
    }
}

/// Twice as far apart in the logarithm: dear models are much dearer.
fn squared(fleet: &mut Fleet) {
    let middle = middle(fleet);
    for m in generating(fleet) {
        let tariff = &mut fleet.models[m.index()].tariff;
        tariff.usd_per_input_token *= tariff.usd_per_input_token / middle;
        tariff.usd_per_output_token *= tariff.usd_per_output_token / middle;
    }
}

/// In proportion to the time that a token takes.
fn by_speed(fleet: &mut Fleet) {
    let tpot = |fleet: &Fleet, m: ModelId| {
        fleet.pools.iter().filter(|p| p.model == m).map(|p| p.profile.tpot_ms).fold(f64::INFINITY, f64::min)
    };
    let served: Vec<ModelId> = generating(fleet).into_iter().filter(|m| tpot(fleet, *m).is_finite()).collect();
    let logs: f64 = served.iter().map(|m| tpot(fleet, *m).ln()).sum();
    let (usd, middle_ms) = (middle(fleet), (logs / served.len().max(1) as f64).exp());
    for m in served {
        let price = usd * tpot(fleet, m) / middle_ms;
        fleet.models[m.index()].tariff = Tariff::new(price, price);
    }
}

fn dear_output(fleet: &mut Fleet) {
    for m in generating(fleet) {
        fleet.models[m.index()].tariff.usd_per_output_token *= 4.0;
    }
}

/// A fleet without its largest model.
pub mod without {
    use super::{Config, Fleet, InstanceId, ModelId, generating};

    /// Name of the variation.
    pub const LARGEST: &str = "no largest model";

    /// The configuration without the instances of its dearest model. Pools and models keep their places.
    #[must_use]
    pub fn largest(config: &Config) -> Config {
        let mut config = config.clone();
        let fleet = &mut config.fleet;
        let dear = |fleet: &Fleet, m: &ModelId| fleet.models[m.index()].tariff.usd_per_output_token;
        let largest = generating(fleet).into_iter().max_by(|a, b| dear(fleet, a).total_cmp(&dear(fleet, b)));
        let gone: Vec<usize> = (0..fleet.pools.len()).filter(|p| Some(fleet.pools[*p].model) == largest).collect();
        fleet.instances.retain(|instance| !gone.contains(&instance.pool.index()));
        for (p, pool) in fleet.pools.iter_mut().enumerate() {
            let of_pool = |i: &usize| fleet.instances[*i].pool.index() == p;
            pool.instances = (0..fleet.instances.len()).filter(of_pool).map(InstanceId::new).collect();
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap()
    }

    #[test]
    fn prices_keep_their_middle_unless_output_is_dear() {
        let usual = middle(&config().fleet);
        for (name, change) in TARIFFS {
            let mut fleet = config().fleet;
            change(&mut fleet);
            let expected = if name.contains("x 4") { 4.0 * usual } else { usual };
            assert!((middle(&fleet) / expected - 1.0).abs() < 1e-9, "{name}: {} for {usual}", middle(&fleet));
        }
    }

    #[test]
    fn the_largest_model_goes() {
        let config = without::largest(&config());
        assert_eq!(config.fleet.instances.len(), 12);
        assert_eq!(config.fleet.pools[3].instances, []);
        assert_eq!(config.fleet.pools[4].instances, [InstanceId::new(11)]);
        assert_eq!(config.fleet.instances[11].pool.index(), 4);
    }
}
