//! The record of prices.

use super::*;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

#[test]
fn prices_go_on_with_whoever_reads_them() {
    let Config { fleet, mut policies, .. } =
        Config::parse(include_bytes!("../../../../envoy/routebalance.json")).unwrap();
    let values = |all: [f64; 4]| all.into_iter().chain([0.0]).collect::<Vec<f64>>();
    let (prices, fractions) = (values([0.0, 0.1, 0.3, 0.4]), values([0.4, 0.3, 0.2, 0.1]));
    policies[2].demand_levels = vec![DemandLevel { rate: 20.0, prices, fractions }];
    policies[2].online_prices =
        Some(OnlinePrices { ttft: SECOND, max_correction: 0.3, time_constant: Duration::from_secs(9) });
    let fingerprint = prices_fingerprint(&fleet, &policies);
    let mut live = LivePrices::default();
    let counters = |n: u64| Counters(vec![counters(n); fleet.instances.len()]);
    for n in 0..20 {
        let seen = Observation::from_fleet(&fleet, &counters(3 * n), &[], &[]);
        live.step(&policies, &seen, SECOND * u32::try_from(n).unwrap());
    }
    let bytes = encode_prices(&live, fingerprint);
    let decode = |bytes: &[u8]| decode_prices(bytes, &fleet, &policies, fingerprint);
    let back = decode(&bytes).unwrap();
    let (was, is) = (live.policies[2].as_ref().unwrap(), back.policies[2].as_ref().unwrap());
    assert_eq!((back.at, &is.sent, back.policies.len()), (live.at, &was.sent, policies.len()));
    let all =
        |s: &Steering| [&s.rates[..], &s.relief, &s.corrections, &s.prices, &s.in_flight, &[s.surcharge]].concat();
    assert!(all(was).iter().zip(all(is)).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs()), "{was:?} {is:?}");
    assert!(was.corrections.iter().any(|c| c.abs() > 0.01), "{was:?}");
    for cut in 18..bytes.len() {
        assert_eq!(decode(&bytes[..cut]), None, "cut at {cut}");
    }
    for (at, value) in (9..bytes.len()).flat_map(|at| [0x00, 0x7f, 0x80, 0xff].map(|value| (at, value))) {
        let mut broken = bytes.clone();
        broken[at] = value;
        let steering = decode(&broken).and_then(|prices| prices.policies.into_iter().flatten().next());
        assert!(steering.is_none_or(|s| s.prices.iter().all(|p| (0.0..=1.6).contains(p))), "{at} {value}");
    }
    let mut others = policies.clone();
    others[2].demand_levels[0].rate = 21.0;
    assert_eq!(decode_prices(&bytes, &fleet, &others, prices_fingerprint(&fleet, &others)), None, "another plan");
}
