//! Prices that follow demand.

use super::{Reader, Writer};
use crate::fleet::{Fleet, Policy};
use crate::hash::fnv1a;
use crate::prices::{LivePrices, Steering};

/// Tells apart the prices of other models, of other plans, and of other pools: what was sent to those is not counted here.
pub fn prices_fingerprint(fleet: &Fleet, policies: &[Policy]) -> u64 {
    let mut text = String::new();
    for pool in &fleet.pools {
        text.push_str(&format!("{} {}\n", pool.cluster, pool.discovered));
    }
    for instance in fleet.instances.iter().filter(|i| fleet.pool(i.pool).is_some_and(|p| !p.discovered)) {
        text.push_str(&format!("{} {}\n", instance.pool.index(), instance.address));
    }
    for model in &fleet.models {
        text.push_str(&format!("{}\n", model.name));
    }
    for policy in policies {
        text.push_str(&format!("{} {:?} {:?}\n", policy.name, policy.demand_levels, policy.online_prices));
    }
    fnv1a(text.as_bytes())
}

/// The prices as bytes: some 30 per model of each policy that follows demand.
pub fn encode_prices(prices: &LivePrices, fingerprint: u64) -> Vec<u8> {
    let mut writer = Writer::new(fingerprint);
    writer.time(prices.at);
    for (policy, steering) in prices.policies.iter().enumerate() {
        let Some(steering) = steering else { continue };
        // Destructured in full, so that nothing new can be forgotten here.
        let Steering { sent, rates, in_flight, surcharge, relief, corrections, prices } = steering;
        writer.u32(u32::try_from(policy).unwrap_or(u32::MAX));
        writer.u32(u32::try_from(sent.len()).unwrap_or(u32::MAX));
        sent.iter().for_each(|count| writer.u64(*count));
        in_flight.iter().for_each(|requests| writer.f32(*requests));
        writer.f32(*surcharge);
        for values in [rates, relief, corrections, prices] {
            values.iter().for_each(|value| writer.f32(*value));
        }
    }
    writer.0
}

/// The prices of these policies from bytes; `None` if they are of other models or plans, of another version, or broken.
pub fn decode_prices(bytes: &[u8], fleet: &Fleet, policies: &[Policy], fingerprint: u64) -> Option<LivePrices> {
    let mut reader = Reader::open(bytes, fingerprint)?;
    let at = reader.time()?;
    let models = fleet.models.len();
    let rows = reader.rows(|r| {
        let policy = usize::try_from(r.u32()?).ok()?;
        let counted = usize::try_from(r.u32()?).ok().filter(|counted| *counted == 0 || *counted == models)?;
        let sent = (0..counted).map(|_| r.u64()).collect::<Option<Vec<u64>>>()?;
        let in_flight = [r.f32()?, r.f32()?];
        let surcharge = r.f32()?;
        let mut values = || (0..models).map(|_| r.f32()).collect::<Option<Vec<f64>>>();
        let [rates, relief, corrections, prices] = [values()?, values()?, values()?, values()?];
        let steering = Steering { sent, rates, in_flight, surcharge, relief, corrections, prices };
        let settings = policies.get(policy)?.online_prices;
        Some((policy, steering.sound(models, settings.as_ref())?))
    })?;
    let mut prices = LivePrices { at, policies: vec![None; policies.len()] };
    for (policy, steering) in rows {
        *prices.policies.get_mut(policy)? = Some(steering);
    }
    Some(prices)
}
