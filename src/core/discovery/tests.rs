use super::*;
use crate::fleet::InstanceId;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const MINUTE: Duration = Duration::from_secs(60);

fn host(address: &str, presence: Presence) -> ClusterHost {
    ClusterHost { address: address.to_owned(), presence, placing: Placing::default() }
}

#[test]
fn a_recorded_answer_is_read() {
    let cluster = |name: &str, hosts: Vec<ClusterHost>| ClusterHosts { cluster: name.to_owned(), hosts };
    let (there, ill) = (Presence::Present, Presence::Unhealthy);
    let mut clusters = parse(include_bytes!("../../../tests/fixtures/envoy/clusters.json")).unwrap();
    clusters.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    let expected = [
        cluster("pool-a", vec![host("127.0.0.1:39001", there), host("127.0.0.1:39002", ill), host("[::1]:39003", ill)]),
        cluster("pool-b", vec![host("127.0.0.1:39004", ill), host("127.0.0.1:39901", ill)]),
        cluster("pool-c", vec![host("127.0.0.1:39005", there)]),
    ];
    assert_eq!(clusters, expected);
}

#[test]
fn answers() {
    let hosts = |hosts: &str| {
        let answer =
            format!(r#"{{"cluster_statuses":[{{"name":"a","host_statuses":[{hosts}],"added_via_api":true}}]}}"#);
        parse(answer.as_bytes()).map(|mut clusters| clusters.remove(0).hosts)
    };
    let health = |flags: &str| {
        format!(
            r#"{{"address":{{"socket_address":{{"address":"10.0.0.1","port_value":80}}}},"health_status":{{{flags}}}}}"#
        )
    };
    for (flags, presence) in [
        (r#""eds_health_status":"HEALTHY""#, Presence::Present),
        (r#""eds_health_status":"DEGRADED""#, Presence::Degraded),
        (r#""eds_health_status":"HEALTHY","failed_active_degraded_check":true"#, Presence::Degraded),
        (r#""eds_health_status":"DEGRADED","failed_outlier_check":true"#, Presence::Unhealthy),
        (r#""eds_health_status":"UNKNOWN""#, Presence::Present),
        ("", Presence::Present),
        (r#""failed_outlier_check":true,"eds_health_status":"HEALTHY""#, Presence::Unhealthy),
        (r#""failed_active_health_check":true"#, Presence::Unhealthy),
        (r#""pending_active_hc":true"#, Presence::Unhealthy),
        (r#""eds_health_status":"TIMEOUT""#, Presence::Unhealthy),
        (r#""eds_health_status":"DRAINING","a_new_flag":{"x":1}"#, Presence::Unhealthy),
    ] {
        assert_eq!(hosts(&health(flags)), Some(vec![host("10.0.0.1:80", presence)]), "{flags}");
    }
    assert_eq!(hosts(r#"{"address":{"pipe":{"path":"/x"}}}"#), Some(vec![]), "a socket of this machine");
    let address = |address: &str| format!(r#"{{"address":{{"socket_address":{address}}}}}"#);
    assert_eq!(hosts(&address(r#"{"address":"a.example","port_value":80}"#)), Some(vec![]), "not resolved yet");
    assert_eq!(hosts(&address(r#"{"address":"10.0.0.1","port_value":65536}"#)), Some(vec![]));
    assert_eq!(parse(br#"{"cluster_statuses":[{"name":"a"}]}"#).unwrap()[0].hosts, []);
    for broken in [&b""[..], b"{}", b"[]", b"not found", br#"{"cluster_statuses":[{"name":"a""#, b"\xff"] {
        assert_eq!(parse(broken), None, "{}", String::from_utf8_lossy(broken));
    }
}

/// The reference fleet; its second pool is discovered.
fn fleet() -> Fleet {
    let mut json: serde_json::Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
    json["pools"][1]["instances"] = "discover".into();
    crate::config::Config::parse(json.to_string().as_bytes()).unwrap().fleet
}

fn answer(fleet: &Fleet, pool: usize, addresses: &[&str]) -> Vec<ClusterHosts> {
    let hosts = addresses.iter().map(|a| host(a, Presence::Present)).collect();
    vec![ClusterHosts { cluster: fleet.pools[pool].cluster.clone(), hosts }]
}

fn idle(_: InstanceId) -> u64 {
    0
}

#[test]
fn hosts_come_and_go_and_keep_their_id() {
    let mut fleet = fleet();
    let listed = fleet.instances.len();
    assert!(fleet.pools[1].instances.is_empty());
    let mut roster = Roster::from_fleet(&fleet);
    type Step = (&'static [&'static str], &'static [(&'static str, Presence)]);
    let steps: [Step; 5] = [
        (&["10.0.0.2:1", "10.0.0.1:1"], &[("10.0.0.1:1", Presence::Present), ("10.0.0.2:1", Presence::Present)]),
        (&["10.0.0.2:1"], &[("10.0.0.1:1", Presence::Gone), ("10.0.0.2:1", Presence::Present)]),
        (
            &["10.0.0.2:1", "10.0.0.3:1"],
            &[("10.0.0.1:1", Presence::Gone), ("10.0.0.2:1", Presence::Present), ("10.0.0.3:1", Presence::Present)],
        ),
        (
            &["10.0.0.1:1", "10.0.0.3:1"],
            &[("10.0.0.1:1", Presence::Present), ("10.0.0.2:1", Presence::Gone), ("10.0.0.3:1", Presence::Present)],
        ),
        (&[], &[("10.0.0.1:1", Presence::Gone), ("10.0.0.2:1", Presence::Gone), ("10.0.0.3:1", Presence::Gone)]),
    ];
    for (hosts, expected) in steps {
        assert!(roster.update(&fleet.pools, &answer(&fleet, 1, hosts), idle, MINUTE), "{hosts:?} is news");
        assert!(!roster.update(&fleet.pools, &answer(&fleet, 1, hosts), idle, MINUTE), "{hosts:?} twice is none");
        assert_eq!(apply(&mut fleet, &roster), Vec::new(), "no id changes hands");
        let found: Vec<_> = fleet.instances[listed..].iter().map(|i| (i.address.as_str(), i.presence)).collect();
        assert_eq!(found, expected);
        assert_eq!(
            fleet.pools[1].instances,
            (listed..listed + expected.len()).map(InstanceId::new).collect::<Vec<_>>()
        );
        assert_eq!(fleet.pools[0].instances, [0, 1, 2].map(InstanceId::new), "other pools are as they were");
    }
    assert_eq!((roster.count(PoolId::new(1), Presence::Gone), roster.count(PoolId::new(0), Presence::Present)), (3, 3));
}

#[test]
fn listed_instances_are_followed_and_others_of_their_cluster_ignored() {
    let mut fleet = fleet();
    let mut roster = Roster::from_fleet(&fleet);
    let mut clusters = answer(&fleet, 0, &["127.0.0.1:18001", "10.9.9.9:1"]);
    clusters[0].hosts.push(host("127.0.0.1:18002", Presence::Unhealthy));
    assert!(roster.update(&fleet.pools, &clusters, idle, MINUTE));
    apply(&mut fleet, &roster);
    let presences: Vec<Presence> = fleet.instances[..4].iter().map(|i| i.presence).collect();
    assert_eq!(presences, [Presence::Present, Presence::Unhealthy, Presence::Gone, Presence::Present]);
    assert_eq!(fleet.instance_at("10.9.9.9:1"), None);
    assert!(!roster.update(&fleet.pools, &[], idle, MINUTE), "a cluster that is not named is as it was");
}

#[test]
fn a_server_may_be_an_instance_of_several_pools() {
    let mut fleet = fleet();
    let listed = fleet.instances.len();
    fleet.pools[2].discovered = true;
    let mut roster = Roster::from_fleet(&fleet);
    let both = [answer(&fleet, 1, &["10.0.0.1:1", "127.0.0.1:18001"]), answer(&fleet, 2, &["10.0.0.1:1"])].concat();
    roster.update(&fleet.pools, &both, idle, MINUTE);
    apply(&mut fleet, &roster);
    let found = |fleet: &Fleet, pool: usize| -> Vec<String> {
        let instances = fleet.pools[pool].instances.iter();
        instances.map(|i| fleet.instances[i.index()].address.clone()).filter(|a| a.ends_with(":1")).collect()
    };
    assert_eq!((found(&fleet, 1), found(&fleet, 2)), (vec!["10.0.0.1:1".to_owned()], vec!["10.0.0.1:1".to_owned()]));
    let keys: BTreeSet<u32> = fleet.instances.iter().map(|i| i.key).collect();
    assert_eq!(keys.len(), fleet.instances.len(), "each has records of its own");
    let at = |pool| fleet.serving("10.0.0.1:1", PoolId::new(pool)).map(|i| fleet.instances[i.index()].pool);
    assert_eq!((at(1), at(2), at(0)), (Some(PoolId::new(1)), Some(PoolId::new(2)), Some(PoolId::new(1))));
    // From the beginning or step by step: the same instances under the same keys.
    let mut anew = self::fleet();
    anew.pools[2].discovered = true;
    apply(&mut anew, &roster);
    assert_eq!(anew.instances, fleet.instances);
    // It has left one of them: the look-up finds the one that is there.
    let moved = [answer(&fleet, 1, &[]), answer(&fleet, 2, &["10.0.0.1:1"])].concat();
    roster.update(&fleet.pools, &moved, idle, MINUTE);
    assert_eq!(apply(&mut fleet, &roster), [], "no id means another instance");
    let id = fleet.instance_at("10.0.0.1:1").unwrap();
    assert_eq!(fleet.instances[id.index()].pool, PoolId::new(2));
    // Two pools of one model on one server would be one pool: the first has it.
    fleet.pools[2].served_model = fleet.pools[1].served_model.clone();
    let mut roster = Roster::from_fleet(&self::fleet());
    roster.update(&fleet.pools, &both, idle, MINUTE);
    assert_eq!(roster.members.len(), listed + 2);
}

#[test]
fn what_envoy_says_of_hosts_is_taken_over() {
    let mut fleet = fleet();
    let listed = fleet.instances.len();
    let mut roster = Roster::from_fleet(&fleet);
    apply(&mut fleet, &roster);
    assert!(!fleet.pools[1].known && fleet.pools[0].known, "nobody has told");
    let none = answer(&fleet, 1, &[]);
    assert!(roster.update(&fleet.pools, &none, idle, MINUTE), "that there is none is news");
    assert!(!roster.update(&fleet.pools, &none, idle, MINUTE));
    apply(&mut fleet, &roster);
    assert!(fleet.pools[1].known);
    let mut hosts = answer(&fleet, 1, &["10.0.0.1:1"]);
    roster.update(&fleet.pools, &hosts, idle, 2 * MINUTE);
    hosts[0].hosts[0].placing = Placing { priority: 1, weight: 90 };
    assert!(roster.update(&fleet.pools, &hosts, idle, 3 * MINUTE), "a weight is news");
    apply(&mut fleet, &roster);
    let host = &fleet.instances[listed];
    assert_eq!((host.placing, host.since), (Placing { priority: 1, weight: 90 }, 2 * MINUTE), "it is as old as it was");
    // Who was there when its pool was heard of first is not new.
    let mut first = Roster::from_fleet(&fleet);
    first.members.truncate(listed);
    first.update(&fleet.pools, &hosts, idle, MINUTE);
    assert_eq!(first.members[listed].since, Duration::ZERO);
}

#[test]
fn the_id_of_a_host_long_gone_is_given_away_once_nothing_is_outstanding() {
    let mut fleet = fleet();
    let listed = fleet.instances.len();
    let mut roster = Roster::from_fleet(&fleet);
    roster.update(&fleet.pools, &answer(&fleet, 1, &["10.0.0.1:1", "10.0.0.2:1"]), idle, MINUTE);
    roster.update(&fleet.pools, &answer(&fleet, 1, &[]), idle, 2 * MINUTE);
    apply(&mut fleet, &roster);
    let newcomer = answer(&fleet, 1, &["10.0.0.9:1"]);
    let with = |mut roster: Roster, outstanding: u64, now: Duration| {
        roster.update(&fleet.pools, &newcomer, |i| if i.index() == listed { outstanding } else { 0 }, now);
        roster.members.iter().position(|m| m.address == "10.0.0.9:1")
    };
    let later = 2 * MINUTE + FORGOTTEN_AFTER;
    assert_eq!(with(roster.clone(), 0, later - SECOND), Some(listed + 2), "it may come back");
    assert_eq!(with(roster.clone(), 1, later), Some(listed + 1), "a stream still runs on the first");
    assert_eq!(with(roster.clone(), 0, later), Some(listed));
    roster.update(&fleet.pools, &newcomer, idle, later);
    assert_eq!(apply(&mut fleet, &roster), [InstanceId::new(listed)]);
    assert_eq!(
        (fleet.instances[listed].address.as_str(), fleet.instances[listed].presence),
        ("10.0.0.9:1", Presence::Present)
    );
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_roster_is_bounded() {
    let fleet = fleet();
    let mut roster = Roster::from_fleet(&fleet);
    for round in 0..3 {
        let hosts: Vec<String> = (0..3_000).map(|i| format!("10.{round}.{}.{}:1", i / 250, i % 250)).collect();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        roster.update(&fleet.pools, &answer(&fleet, 1, &hosts), idle, MINUTE * (1 + round));
    }
    assert_eq!(roster.members.len(), INSTANCES_MAX);
}

#[test]
fn long_answers_are_asked_for_less_often() {
    for (bytes, period_ms) in [(0, 1_000), (12_000, 1_000), (3_600_000, 3_600)] {
        assert_eq!(period(SECOND, bytes), Duration::from_millis(period_ms));
    }
}
