//! What a simulation has besides the router's configuration and the workload.

use std::sync::Arc;
use std::time::Duration;

use crate::contender::Deciding;
use crate::sharing::Sharing;
use routebalance_core::config::Config;
use routebalance_core::health;
use routebalance_core::router::Router;

/// What a simulation has besides the router's configuration and the workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Gateways; every one sees its share of the requests, drawn at random.
    pub gateways: usize,
    /// Workers of each gateway.
    pub workers: usize,
    /// Time that anything needs from a gateway to an instance, and back.
    pub network: Duration,
    /// Time between two ticks of the filter.
    pub tick: Duration,
    /// How often Envoy tries again (`num_retries`); `None` for what the configuration makes it do.
    pub retries: Option<usize>,
    /// Time before it does.
    pub retry_back_off: Duration,
    /// Time without a byte after which Envoy gives an attempt at a stream up (`per_try_idle_timeout`). `None` for what the
    /// configuration says.
    pub per_try_idle: Option<Duration>,
    /// Share of scrapes that get lost, 0 to 1.
    pub scrape_loss: f64,
    /// Whether gateways see what speaks against instances, and avoid those.
    pub health: bool,
    /// Whether they remember which instance has kept the beginning of which prompt.
    pub affinity: bool,
    /// Whether the gateway sees attempts after the first one, as the clusters' own filter does: each takes the request's load with it, and
    /// where two instances have failed alike, the request is the suspect and no third one is asked.
    pub sees_attempts: bool,
    /// Whether another instance is asked for whole answers whose instance is stuck.
    pub reruns: bool,
    /// Whether requests wait for each other where their policy batches.
    pub batches: bool,
    /// Whether clients score every answer with its true quality, each at another worker than the one that served it, where the
    /// configuration takes feedback.
    pub feedback: bool,
    /// Whether answers show their instance's load in a header.
    pub header_loads: bool,
    /// What deciding takes.
    pub deciding: Deciding,
    /// Whether outcomes keep our router's decisions; they are large.
    pub keep_decisions: bool,
    /// Instances that share GPUs and slow each other down; `None` if each has its own.
    pub sharing: Option<Arc<Sharing>>,
    /// Seed of what happens by chance: who serves which request, scrapes lost, draws of the router.
    pub seed: u64,
}

/// One gateway of two workers, with the times of the filter and of the reference configuration of Envoy.
impl Default for Options {
    fn default() -> Options {
        Options {
            gateways: 1,
            workers: 2,
            network: Duration::from_micros(500),
            tick: Duration::from_millis(50),
            retries: None,
            retry_back_off: Duration::from_millis(10),
            per_try_idle: None,
            scrape_loss: 0.0,
            health: false,
            affinity: false,
            sees_attempts: false,
            reruns: false,
            batches: false,
            feedback: false,
            header_loads: false,
            deciding: Deciding::default(),
            keep_decisions: true,
            sharing: None,
            seed: 1,
        }
    }
}

impl Options {
    /// The router as gateways have it.
    pub(super) fn router(&self, router: &Router) -> Router {
        if self.health || !router.config().health.enabled {
            return router.clone();
        }
        let health = health::HealthSettings { enabled: false, ..router.config().health.clone() };
        router.with_config(Config { health, ..router.config().clone() })
    }
}
