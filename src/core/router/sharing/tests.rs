use serde_json::{Value, json};

use super::*;
use crate::config::Config;
use crate::fleet::Placing;
use crate::random::Random;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// A fleet of one model: pools with these shares and so many instances each.
fn fleet(pools: &[(Option<f64>, usize)]) -> Fleet {
    let mut json: Value = serde_json::from_str(include_str!("../../../../envoy/routebalance.json")).unwrap();
    let pool = json["pools"][0].clone();
    json["models"] = json!([json["models"][0]]);
    json["envoy"] = json!({});
    let pools = pools.iter().enumerate().map(|(p, (share, instances))| {
        let mut pool = pool.clone();
        (pool["name"], pool["cluster"]) = (format!("p{p}").into(), format!("p{p}").into());
        pool["instances"] = (0..*instances).map(|i| format!("10.0.{p}.{i}:1")).collect();
        if let Some(share) = share {
            pool["share"] = json!(share);
        }
        pool
    });
    json["pools"] = pools.collect();
    Config::parse(json.to_string().as_bytes()).unwrap().fleet
}

/// Which part of the lots each instance of a fleet is not set aside for.
fn parts(fleet: &Fleet, loads: Option<&[LoadNow]>) -> Vec<f64> {
    const LOTS: u64 = 20_000;
    let sharing = Sharing::from_fleet(fleet);
    let mut counts = vec![0.0; fleet.instances.len()];
    let mut random = Random::new(1);
    for _ in 0..LOTS {
        let aside = sharing.set_aside(fleet, loads, random.uniform().to_bits());
        assert!(aside.iter().any(|aside| !aside), "somebody serves");
        counts.iter_mut().zip(aside).for_each(|(count, aside)| *count += f64::from(u8::from(!aside)));
    }
    counts.iter().map(|count| count / LOTS as f64).collect()
}

fn assert_near(found: &[f64], expected: &[f64], name: &str) {
    let near = found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.012);
    assert!(near, "{name}: {found:?} is not {expected:?}");
}

#[test]
fn pools_get_their_shares_and_the_others_the_rest() {
    type Row = (&'static [(Option<f64>, usize)], &'static [f64]);
    let rows: [Row; 5] = [
        (&[(None, 1), (Some(0.1), 1)], &[0.9, 0.1]),
        (&[(None, 1), (None, 1), (Some(0.25), 2)], &[0.75, 0.75, 0.25, 0.25]),
        (&[(Some(0.6), 1), (Some(0.4), 1)], &[0.6, 0.4]),
        (&[(Some(0.0), 1), (None, 1)], &[0.0, 1.0]),
        (&[(Some(1.0), 1), (None, 1)], &[1.0, 0.0]),
    ];
    for (pools, expected) in rows {
        assert_near(&parts(&fleet(pools), None), expected, &format!("{pools:?}"));
    }
    assert!(Sharing::from_fleet(&fleet(&[(None, 2), (None, 2)])).is_empty(), "no rule, no lot");
}

#[test]
fn a_session_stays_where_it_is_while_a_share_grows() {
    let aside = |share: f64, session: u64| {
        let fleet = fleet(&[(None, 1), (Some(share), 1)]);
        Sharing::from_fleet(&fleet).set_aside(&fleet, None, session)[1]
    };
    for session in 0..200 {
        let at: Vec<bool> = [0.1, 0.3, 0.9].map(|share| !aside(share, session)).to_vec();
        assert!(at.windows(2).all(|pair| !pair[0] || pair[1]), "who is at the canary stays there");
        assert_eq!(aside(0.3, session), aside(0.3, session));
    }
}

#[test]
fn hosts_serve_by_priority_weight_and_degradation_as_envoy_means_them() {
    const P: Presence = Presence::Present;
    const D: Presence = Presence::Degraded;
    const U: Presence = Presence::Unhealthy;
    const G: Presence = Presence::Gone;
    type Row = (&'static str, &'static [(Presence, u32, u32)], &'static [f64]);
    let rows: [Row; 11] = [
        ("alike", &[(P, 0, 1), (P, 0, 1)], &[1.0, 1.0]),
        ("another zone waits", &[(P, 0, 1), (P, 0, 1), (P, 1, 1), (P, 1, 1)], &[1.0, 1.0, 0.0, 0.0]),
        // 1.4 x 1/2 of the first level.
        ("half of a level is ill", &[(P, 0, 1), (U, 0, 1), (P, 1, 1)], &[0.7, 0.7, 0.3]),
        (
            "three of four are enough",
            &[(P, 0, 1), (P, 0, 1), (P, 0, 1), (U, 0, 1), (P, 1, 1)],
            &[1.0, 1.0, 1.0, 1.0, 0.0],
        ),
        ("a level is ill", &[(U, 0, 1), (P, 1, 1)], &[0.0, 1.0]),
        ("a level has gone", &[(G, 0, 1), (P, 3, 1)], &[1.0, 1.0]),
        ("weights", &[(P, 0, 90), (P, 0, 10)], &[0.9, 0.1]),
        ("weights of groups", &[(P, 0, 1), (P, 0, 1), (P, 0, 2)], &[0.5, 0.5, 0.5]),
        ("degraded waits", &[(P, 0, 1), (D, 0, 1), (P, 0, 1), (P, 0, 1)], &[1.0, 0.0, 1.0, 1.0]),
        ("degraded of the first level comes after the second", &[(D, 0, 1), (P, 1, 1)], &[0.0, 1.0]),
        ("nobody but degraded", &[(D, 0, 1), (U, 0, 1)], &[1.0, 0.0]),
    ];
    for (name, hosts, expected) in rows {
        let mut fleet = fleet(&[(None, hosts.len())]);
        for (instance, (presence, priority, weight)) in fleet.instances.iter_mut().zip(hosts) {
            instance.presence = *presence;
            instance.placing = Placing { priority: *priority, weight: *weight };
        }
        if name == "alike" {
            assert!(Sharing::from_fleet(&fleet).is_empty());
            continue;
        }
        assert_near(&parts(&fleet, None), expected, name);
    }
}

#[test]
fn whoever_this_gateway_has_ejected_is_not_available() {
    let mut fleet = fleet(&[(None, 2)]);
    fleet.instances[1].placing.priority = 1;
    let ejected = LoadNow { standing: Standing::Ejected, ..LoadNow::default() };
    let silent = LoadNow { unreachable: true, ..LoadNow::default() };
    let well = LoadNow::default();
    for (loads, expected) in [([well, well], [1.0, 0.0]), ([ejected, well], [0.0, 1.0]), ([silent, well], [0.0, 1.0])] {
        assert_near(&parts(&fleet, Some(&loads)), &expected, "ejected");
    }
}

#[test]
fn rules_of_different_names_are_independent() {
    let fleet = fleet(&[(None, 2), (Some(0.5), 2)]);
    let mut weighted = fleet.clone();
    weighted.instances[0].placing.weight = 3;
    weighted.instances[2].placing.weight = 3;
    assert_near(&parts(&weighted, None), &[0.375, 0.125, 0.375, 0.125], "half by three quarters");
}
