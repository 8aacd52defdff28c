//! Fleets as teams have them: a provider beside own GPUs, hosts by name, servers of several models, canaries, other zones, pools at zero;
//! and configurations that change while requests come.

#[path = "fleets/changing.rs"]
mod changing;
#[path = "fleets/hosted.rs"]
mod hosted;
#[path = "fleets/moving.rs"]
mod moving;
#[path = "fleets/reaching.rs"]
mod reaching;
#[path = "fleets/rig.rs"]
mod rig;
#[path = "fleets/wishing.rs"]
mod wishing;

use std::sync::Arc;

use libtest_mimic::Trial;

use crate::harness::Stage;

/// All of them, each with an Envoy of its own.
pub(crate) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    macro_rules! plain {
        ($($name:literal => $test:path,)+) => {
            $(trials.extend(stage.plain(concat!("fleets: ", $name), $test));)+
        };
    }
    plain! {
        "a provider gets its own key, host and path, and nothing of the client's" => hosted::dressed,
        "a provider and own GPUs share one score, and a wave spills over and comes back" => hosted::wave,
        "a provider that is limited is left alone until it says to come again" => hosted::limited,
        "a provider that refuses the key is no black hole" => hosted::refused,
        "a provider's key is changed by a file, without a restart" => hosted::rotated,
        "what the gateway does not read goes to no provider with the gateway's key" => hosted::unread,
        "hosts have names, TLS and certificates, and Envoy resolves them" => reaching::named,
        "one server has two models" => reaching::two_models,
        "load reports come from another port with a token, or not at all" => reaching::metrics,
        "the price of cached tokens is counted" => reaching::cached,
        "a canary gets its share, stable for each session" => moving::canary,
        "hosts serve by priority, weight and degradation" => moving::placed,
        "a pool at zero: 503 with Retry-After, others serve, and a gauge asks for instances" => moving::at_zero,
        "the gateway says that it is alive while the default pool is down" => moving::alive,
        "a new instance starts slowly" => moving::slow_start,
        "weights of routes, of hosts and of headers, and what cannot be understood" => wishing::weights,
        "policies and weights in request headers, where they are trusted" => wishing::trusted,
        "weights change by LDS under load, and what was learnt stays" => changing::by_lds,
        "weights change by ECDS under load, and what was learnt stays" => changing::by_ecds,
        "a configuration may be a Struct" => changing::as_struct,
    }
    trials
}
