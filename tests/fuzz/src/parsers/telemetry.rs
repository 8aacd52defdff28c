//! Pages of `/metrics`, ORCA headers, and Envoy's list of hosts.

use std::net::{IpAddr, SocketAddr};

use routebalance_core::discovery;
use routebalance_core::fleet::{Placing, Presence};
use routebalance_core::telemetry::{Load, parse_metrics, parse_orca};
use serde_json::{Value, json};

use crate::choices::Choices;
use crate::material::{CLUSTERS, PAGES};
use crate::novelty::{magnitude, see};

/// What a page may say of requests and memory, whatever it is.
fn check_load(load: &Load) {
    let counts = [load.running, load.waiting];
    assert!(counts.iter().flatten().all(|count| *count >= 0.0 && count.is_finite()), "{load:?}");
    assert!(load.kv_use.is_none_or(|used| (0.0..=1.5).contains(&used)), "{load:?}");
    let sums = [load.ttft, load.tpot];
    assert!(sums.iter().flatten().all(|sum| sum.seconds >= 0.0 && sum.count >= 0.0), "{load:?}");
    assert!(load.progress_tokens.is_none_or(|tokens| tokens >= 0.0 && tokens.is_finite()), "{load:?}");
    let known = [load.running, load.waiting, load.kv_use, load.progress_tokens].map(|value| value.is_some());
    see((known, load.awake, load.ttft.is_some(), load.tpot.is_some()));
}

/// A page: garbage, or lines of which it is known what they say.
pub fn metrics(data: &[u8]) {
    let mut choices = Choices::new(data);
    if choices.in_256(128) {
        let page = choices.bytes_like(PAGES);
        let read = parse_metrics(&page);
        check_load(&read.load);
        let adapters = read.adapters.iter().flat_map(|adapters| adapters.running.iter().chain(&adapters.waiting));
        assert!(adapters.clone().count() <= 128 && adapters.map(String::len).sum::<usize>() <= page.len());
        // Lines before the end of a page say what they said.
        let cut = choices.below(page.len() + 1);
        let lines = page[..cut].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        check_load(&parse_metrics(&page[..lines]).load);
        return;
    }
    let (mut page, mut expected) = (String::new(), Load::default());
    for _ in 0..choices.below(12) {
        line(&mut choices, &mut page, &mut expected);
    }
    let read = parse_metrics(page.as_bytes()).load;
    check_load(&read);
    let of = |load: &Load| (load.running, load.waiting, load.kv_use, load.awake);
    assert_eq!(of(&read), of(&expected), "{page:?}");
}

/// A line as Prometheus writes it.
fn line(choices: &mut Choices<'_>, page: &mut String, expected: &mut Load) {
    let labels = choices.pick(&["", "{engine=\"0\"}", "{a=\"}\\\" b\",model_name=\"x y\"}", "{engine=\"1\",}"]);
    let count = f64::from(choices.byte());
    let end = choices.pick(&["\n", "\r\n", " 1700000000000\n", "\n# HELP x y\n\n"]);
    match choices.byte() % 6 {
        0 => {
            page.push_str(&format!("vllm:num_requests_running{labels} {count}{end}"));
            expected.running = Some(expected.running.unwrap_or_default() + count);
        }
        1 => {
            page.push_str(&format!("sglang:num_queue_reqs{labels} {count:e}{end}"));
            expected.waiting = Some(expected.waiting.unwrap_or_default() + count);
        }
        2 => {
            let used = count / 256.0;
            page.push_str(&format!("vllm:kv_cache_usage_perc{labels} {used}{end}"));
            expected.kv_use = Some(expected.kv_use.unwrap_or_default().max(used));
        }
        3 => {
            let is_awake = count > 99.0;
            page.push_str(&format!(
                "vllm:engine_sleep_state{{engine=\"0\",sleep_state=\"awake\"}} {}{end}",
                u8::from(is_awake)
            ));
            expected.awake = Some(expected.awake.unwrap_or(true) && is_awake);
        }
        4 => page
            .push_str(&format!("vllm:num_requests_running{labels} {}{end}", choices.pick(&["NaN", "-1", "+Inf", "x"]))),
        _ => page
            .push_str(&format!("vllm:num_requests_running_other{labels} {count}{end}# vllm:num_requests_running 7\n")),
    }
}

/// The header `endpoint-load-metrics`.
pub fn orca(data: &[u8]) {
    let mut choices = Choices::new(data);
    if choices.in_256(100) {
        let header = String::from_utf8_lossy(&choices.bytes_like(&[
            b"JSON {\"named_metrics\": {\"num_requests_waiting\": 3.0, \"kv_cache_usage_perc\": 0.5}}",
            b"TEXT named_metrics.num_requests_waiting=0, named_metrics.kv_cache_usage_perc=0.1",
            b"num_requests_running=7",
        ]))
        .into_owned();
        return check_load(&parse_orca(&header));
    }
    let (running, waiting, used) = (choices.byte(), choices.byte(), f64::from(choices.byte()) / 256.0);
    let names = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"];
    let form = choices.byte();
    let header = if form & 1 == 1 {
        let metrics = json!({names[0]: running, names[1]: waiting, names[2]: used, "other": {"x": 1}});
        let report = if form & 2 == 2 { json!({"named_metrics": metrics, "cpu": 0.5}) } else { metrics };
        format!("{}{report}", ["JSON ", "json\t", ""][usize::from(form >> 2) % 3])
    } else {
        let prefix = if form & 2 == 2 { "named_metrics." } else { "" };
        let space = if form & 4 == 4 { " " } else { "" };
        let form = ["TEXT ", "text  ", ""][usize::from(form >> 3) % 3];
        format!(
            "{form}{prefix}{}={running},{space}{prefix}{}{space}={waiting},x=y,{space}{prefix}{}={space}{used}",
            names[0], names[1], names[2]
        )
    };
    let load = parse_orca(&header);
    let expected = (Some(f64::from(running)), Some(f64::from(waiting)), Some(used));
    assert_eq!((load.running, load.waiting, load.kv_use), expected, "{header:?}");
}

/// The answer of the admin listener to `/clusters?format=json`.
pub fn clusters(data: &[u8]) {
    let mut choices = Choices::new(data);
    if choices.in_256(128) {
        let answer = choices.bytes_like(&[CLUSTERS]);
        let read = discovery::parse(&answer);
        see((read.is_some(), read.as_ref().map(Vec::len)));
        let Some(read) = read else { return };
        // What is not read may hold what no string can be.
        if let Ok(value) = serde_json::from_slice::<Value>(&answer) {
            assert_eq!(Some(read.len()), value["cluster_statuses"].as_array().map(Vec::len));
        }
        let hosts = read.iter().flat_map(|cluster| &cluster.hosts);
        assert!(hosts.clone().all(|host| host.address.parse::<SocketAddr>().is_ok()), "{read:?}");
        return;
    }
    let (mut clusters, mut expected) = (Vec::new(), Vec::new());
    for number in 0..choices.below(5) {
        let name = format!("pool-{number}");
        let (mut hosts, mut there) = (Vec::new(), Vec::new());
        for _ in 0..choices.below(6) {
            let ip = choices.pick(&["10.0.0.1", "::1", "2001:db8::7", "localhost", "10.0.0.256"]);
            let port = choices.pick(&[1, 80, 65_535, 65_536]);
            let health = choices.pick(&["HEALTHY", "DEGRADED", "UNKNOWN", "UNHEALTHY", "DRAINING", "TIMEOUT"]);
            let flag =
                choices.pick(&["", "", "failed_active_health_check", "failed_outlier_check", "pending_active_hc"]);
            let mut status = json!({"eds_health_status": health});
            if !flag.is_empty() {
                status[flag] = json!(true);
            }
            let address = if choices.in_256(20) {
                json!({"pipe": {"path": "/x"}})
            } else {
                json!({"socket_address": {"address": ip, "port_value": port}})
            };
            let refused = ["UNHEALTHY", "DRAINING", "TIMEOUT"].contains(&health) || !flag.is_empty();
            let presence = match health {
                _ if refused => Presence::Unhealthy,
                "DEGRADED" => Presence::Degraded,
                _ => Presence::Present,
            };
            let (priority, weight) = (choices.pick(&[0, 0, 1, 7]), choices.pick(&[1, 1, 10, 128]));
            let of = ip.parse::<IpAddr>().ok().zip(u16::try_from(port).ok());
            if let Some((ip, port)) = of.filter(|_| address.get("pipe").is_none()) {
                there.push((SocketAddr::new(ip, port).to_string(), presence, Placing { priority, weight }));
            }
            hosts.push(json!({"address": address, "health_status": status, "weight": weight, "priority": priority}));
        }
        clusters.push(json!({"name": name, "host_statuses": hosts, "added_via_api": true}));
        expected.push((name, there));
    }
    see(magnitude(expected.len() as u64));
    let answer = json!({ "cluster_statuses": clusters }).to_string();
    let read = discovery::parse(answer.as_bytes()).expect("an answer");
    let read: Vec<_> = read
        .into_iter()
        .map(|c| {
            (c.cluster, c.hosts.into_iter().map(|host| (host.address, host.presence, host.placing)).collect::<Vec<_>>())
        })
        .collect();
    assert_eq!(read, expected);
}
