use std::time::Duration;

use super::*;

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn load(running: impl Into<Option<f64>>, waiting: impl Into<Option<f64>>, kv_use: impl Into<Option<f64>>) -> Load {
    Load { running: running.into(), waiting: waiting.into(), kv_use: kv_use.into(), ..Load::default() }
}

/// What it says about requests and memory.
fn gauges(read: &Load) -> Load {
    load(read.running, read.waiting, read.kv_use)
}

/// Excerpts of recorded pages of vLLM 0.32: the families that matter and their neighbours.
#[test]
fn recorded_pages() {
    let rows = [
        (
            "plain",
            include_str!("../../../tests/fixtures/vllm-small/metrics-plain.txt"),
            load(8.0, 32.0, 0.0019533634476864847),
        ),
        (
            "pressure",
            include_str!("../../../tests/fixtures/vllm-small/metrics-pressure.txt"),
            load(8.0, 16.0, 0.5797101449275363),
        ),
        (
            "dp2",
            include_str!("../../../tests/fixtures/vllm-small/metrics-dp2.txt"),
            load(2.0, 0.0, 0.0002441704309608106),
        ),
        (
            "lora",
            include_str!("../../../tests/fixtures/vllm-small/metrics-lora.txt"),
            load(4.0, 4.0, 0.0009766817238432424),
        ),
    ];
    for (name, page, expected) in rows {
        let read = parse_metrics(page.as_bytes());
        assert_eq!(gauges(&read.load), expected, "{name}");
        assert_eq!(parse_metrics(page.replace('\n', "\r\n").as_bytes()), read, "{name} with carriage returns");
    }
}

#[test]
fn pages() {
    let none = Load::default();
    let rows: &[(&[u8], Load)] = &[
        (b"", none),
        (b"<html>502</html>", none),
        (b"vllm:num_requests_running 0", load(0.0, None, None)),
        (b"vllm:num_requests_running{} 3 1795319144000\n", load(3.0, None, None)),
        (b" vllm:num_requests_running {engine=\"0\"}\t3\n", load(3.0, None, None)),
        (b"vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 3\n", none),
        (b"xvllm:num_requests_waiting 3\n# vllm:num_requests_waiting 3\n", none),
        (b"vllm:gpu_cache_usage_perc{engine=\"0\"} 0.25\n", load(None, None, 0.25)),
        (b"vllm:num_requests_waiting{model_name=\"a } b, \\\"c\\\" {\\\\\",engine=\"0\"} 5.0\n", load(None, 5.0, None)),
        (b"vllm:num_requests_waiting{model_name=\"Qwen\xc3\xa9\"} 5.0\n", load(None, 5.0, None)),
        // Values that are no measurement.
        (b"vllm:num_requests_running NaN\nvllm:kv_cache_usage_perc +Inf\n", none),
        (b"vllm:num_requests_running -1\nvllm:num_requests_waiting 1e7\nvllm:kv_cache_usage_perc 1.6\n", none),
        (b"vllm:num_requests_running NaN\nvllm:num_requests_running 2\n", load(2.0, None, None)),
        // Lines that are malformed, between good ones.
        (b"vllm:num_requests_running\nvllm:num_requests_running \nvllm:num_requests_running x\n", none),
        (b"vllm:num_requests_running{engine=\"0 4\nvllm:num_requests_waiting 2\n", load(None, 2.0, None)),
        (b"vllm:num_requests_running{engine=\"0\"\nvllm:num_requests_waiting{\xff} 9\nvllm:num_requests_waiting 2\n", load(None, 2.0, None)),
        // SGLang.
        (
            b"# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs{engine_type=\"unified\",model_name=\"q\",tp_rank=\"0\"} 7.0\n\
              sglang:num_queue_reqs{model_name=\"q\"} 2.0\nsglang:token_usage{model_name=\"q\"} 0.28\n\
              sglang:num_used_tokens{model_name=\"q\"} 123859.0\nsglang:gen_throughput{model_name=\"q\"} 86.5\n",
            load(7.0, 2.0, 0.28),
        ),
        // TensorRT-LLM, trtllm-serve.
        (
            b"trtllm_num_requests_running{model_name=\"q\"} 6\ntrtllm_num_requests_waiting{model_name=\"q\"} 1\n\
              trtllm_kv_cache_utilization{model_name=\"q\"} 0.125\ntrtllm_kv_cache_tokens_per_block{} 32\n",
            load(6.0, 1.0, 0.125),
        ),
        // TensorRT-LLM, Triton's backend.
        (
            b"nv_trt_llm_request_metrics{model=\"tensorrt_llm\",request_type=\"waiting\",version=\"1\"} 4\n\
              nv_trt_llm_request_metrics{model=\"tensorrt_llm\",request_type=\"scheduled\",version=\"1\"} 9\n\
              nv_trt_llm_request_metrics{model=\"request_type=\\\"waiting\\\"\",request_type=\"max\",version=\"1\"} 512\n\
              nv_trt_llm_request_metrics{model=\"tensorrt_llm\"} 5\n\
              nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\",model=\"tensorrt_llm\"} 0.4375\n\
              nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"max\",model=\"tensorrt_llm\"} 6239\n",
            load(9.0, 4.0, 0.4375),
        ),
    ];
    for (page, expected) in rows {
        assert_eq!(gauges(&parse_metrics(page).load), *expected, "{}", String::from_utf8_lossy(page));
    }
}

#[test]
fn what_else_a_page_says() {
    let sum = |seconds, count| Some(Sum { seconds, count });
    let rows: &[(&str, Load)] = &[
        (
            "vllm:generation_tokens_total{engine=\"0\"} 30.0\nvllm:generation_tokens_total{engine=\"1\"} 12\n\
             vllm:prompt_tokens_total{engine=\"0\"} 1.5e+06\nvllm:generation_tokens_created{engine=\"0\"} 1.7e9\n",
            Load { progress_tokens: Some(1_500_042.0), ..Load::default() },
        ),
        (
            "sglang:realtime_tokens_total{mode=\"decode\"} 30\nsglang:generation_tokens_total{} 12\n",
            Load { progress_tokens: Some(30.0), ..Load::default() },
        ),
        (
            "vllm:time_to_first_token_seconds_bucket{engine=\"0\",le=\"0.001\"} 9.0\n\
             vllm:time_to_first_token_seconds_count{engine=\"0\"} 4.0\nvllm:time_to_first_token_seconds_sum{engine=\"0\"} 0.5\n\
             vllm:time_to_first_token_seconds_count{engine=\"1\"} 2.0\nvllm:time_to_first_token_seconds_sum{engine=\"1\"} 0.25\n",
            Load { ttft: sum(0.75, 6.0), ..Load::default() },
        ),
        (
            "vllm:request_time_per_output_token_seconds_count 3\nvllm:request_time_per_output_token_seconds_sum 3\n\
             vllm:inter_token_latency_seconds_count 40\nvllm:inter_token_latency_seconds_sum 2\n",
            Load { tpot: sum(2.0, 40.0), ..Load::default() },
        ),
        (
            "trtllm_time_per_output_token_seconds_count{} 3\ntrtllm_time_per_output_token_seconds_sum{} 0.5\n\
             trtllm_time_to_first_token_seconds_count{} 3\n",
            Load { tpot: sum(0.5, 3.0), ..Load::default() },
        ),
        (
            "vllm:engine_sleep_state{sleep_state=\"awake\"} 1\nvllm:engine_sleep_state{sleep_state=\"discard_all\"} 0\n",
            Load { awake: Some(true), ..Load::default() },
        ),
        (
            "vllm:engine_sleep_state{sleep_state=\"awake\"} 1\nvllm:engine_sleep_state{sleep_state=\"awake\"} 0\n",
            Load { awake: Some(false), ..Load::default() },
        ),
        ("vllm:generation_tokens_total NaN\nvllm:prompt_tokens_total -4\n", Load::default()),
    ];
    for (page, expected) in rows {
        assert_eq!(parse_metrics(page.as_bytes()), Page { load: *expected, adapters: None }, "{page}");
    }
}

#[test]
fn the_latest_row_of_adapters_counts() {
    let lora = parse_metrics(include_bytes!("../../../tests/fixtures/vllm-small/metrics-lora.txt"));
    let sql = vec!["sql".to_owned()];
    assert_eq!(lora.adapters, Some(Adapters { running: sql.clone(), waiting: sql }));
    let row = |running: &str| {
        format!(
            "vllm:lora_requests_info{{max_lora=\"4\",running_lora_adapters=\"{running}\",waiting_lora_adapters=\"\"}} 1.5e9\n"
        )
    };
    let two = parse_metrics(row("a, b,").as_bytes()).adapters.unwrap();
    assert_eq!((two.running, two.waiting), (vec!["a".to_owned(), "b".to_owned()], vec![]));
    let many = (0..1_000).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(parse_metrics(row(&many).as_bytes()).adapters.unwrap().running.len(), 64);
    let broken = row("a").replace("running_lora_adapters", "running");
    assert_eq!(parse_metrics(broken.as_bytes()).adapters, None);
}

#[test]
fn many_instances_are_asked_less_often() {
    let config = crate::config::Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap();
    let ms = Duration::from_millis;
    // (instances, size of every page, period)
    let rows = [
        (14, None, 250),
        (1_000, None, 5_500),
        (1_000, Some(55_000), 5_500),
        (1_000, Some(1_000), 250),
        (45, Some(55_000), 250),
        (46, Some(55_000), 253),
        (4_096, Some(100_000), 40_960),
        (0, Some(55_000), 250),
    ];
    for (instances, page, period) in rows {
        let mut schedule = Schedule::default();
        page.into_iter().for_each(|bytes| (0..5_000).for_each(|_| schedule.parsed(bytes)));
        assert_eq!(schedule.period(&config.telemetry, instances), ms(period), "{instances} {page:?}");
    }
    for (period, fresh, max_age) in [(250, 1_000, 5_000), (501, 1_002, 5_010), (5_500, 11_000, 55_000)] {
        let stretched = stretched(&config.telemetry, ms(period));
        assert_eq!((stretched.fresh, stretched.max_age), (ms(fresh), ms(max_age)));
    }
}

#[test]
fn every_instance_has_one_turn_in_a_period_and_no_tick_is_busier_than_another() {
    let ms = Duration::from_millis;
    for (instances, period, tick) in [(1, 250, 50), (14, 250, 50), (1_000, 5_500, 50), (3, 100, 50), (7, 20, 50)] {
        let mut rounds = Rounds::default();
        let mut turns = vec![Vec::new(); instances];
        let ticks = 40 * period / tick;
        let mut busiest = 0;
        for i in 0..=ticks {
            let of_tick = rounds.turns(ms(1_000 + i * tick), ms(period), instances, usize::MAX);
            // Whoever begins asks all.
            let is_first = i == 0;
            assert!(!is_first || of_tick.len() == instances);
            busiest = busiest.max(if is_first { 0 } else { of_tick.len() });
            of_tick.into_iter().for_each(|instance| turns[instance].push(i * tick));
        }
        let even = (instances as u64 * tick).div_ceil(period) as usize;
        assert!(busiest <= (even + 1).min(instances), "{instances} every {period} ms: {busiest} in a tick");
        for of_one in turns {
            let longest = of_one.windows(2).map(|w| w[1] - w[0]).max().unwrap();
            assert!(longest <= period.max(tick) + tick, "{instances} every {period} ms: one waited {longest} ms");
        }
    }
    // No room: turns wait, and there is no burst afterwards.
    let mut rounds = Rounds::default();
    let none: usize = (0..100).map(|i| rounds.turns(ms(i * 50), ms(250), 14, 0).len()).sum();
    assert_eq!((none, rounds.turns(ms(5_050), ms(250), 14, 64).len()), (0, 14));
    assert_eq!(rounds.turns(ms(5_100), ms(250), 0, 64), Vec::<usize>::new(), "nobody is there");
}

#[test]
fn orca_headers() {
    let none = Load::default();
    let rows = [
        // As recorded from vLLM 0.32, one engine.
        ("TEXT named_metrics.num_requests_waiting=0.0, named_metrics.kv_cache_usage_perc=0.0", load(None, 0.0, 0.0)),
        (r#"JSON {"named_metrics": {"num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.0}}"#, load(None, 0.0, 0.0)),
        // Two engines: every name twice.
        (
            "TEXT named_metrics.num_requests_waiting=2.0, named_metrics.kv_cache_usage_perc=0.5, \
             named_metrics.num_requests_waiting=1.0, named_metrics.kv_cache_usage_perc=0.25",
            load(None, 3.0, 0.5),
        ),
        ("named_metrics.kv_cache_usage_perc=0.4,named_metrics.num_requests_running=2", load(2.0, None, 0.4)),
        (r#"{"named_metrics":{"kv_cache_usage_perc":0.4}}"#, load(None, None, 0.4)),
        (r#"{"num_requests_waiting":3,"cpu_utilization":0.5}"#, load(None, 3.0, None)),
        (r#"json {"named_metrics":{"kv_cache_utilization":0.4}}"#, load(None, None, 0.4)),
        ("text  num_requests_waiting = 3", load(None, 3.0, None)),
        ("TEXT cpu_utilization=0.3, named_metrics.kv_cache_usage_perc=nan", none),
        ("TEXT named_metrics.kv_cache_usage_perc=2, named_metrics.num_requests_waiting=-1", none),
        (r#"JSON {"named_metrics": {"num_requests_waiting": "3""#, none),
        (r#"JSON {"named_metrics": [1]}"#, none),
        ("BIN CZqZmZmZmbk/", none),
        ("TEXT", none),
        ("", none),
    ];
    for (header, expected) in rows {
        assert_eq!(parse_orca(header), expected, "{header}");
    }
}

#[test]
fn any_bytes_are_survived() {
    let alphabet = b"vllm:num_requests_waiting{=\"\\} 0.1,e\n\xff#nv_trt_llm_request_metrics";
    let mut seed = 1_u64;
    for _ in 0..2_000 {
        let page: Vec<u8> = (0..200)
            .map(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                alphabet[(seed >> 33) as usize % alphabet.len()]
            })
            .collect();
        let lines = [b"vllm:num_requests_waiting".as_slice(), b"nv_trt_llm_request_metrics{", b"", &page].concat();
        let Load { running, waiting, kv_use, .. } = parse_metrics(&lines).load;
        assert!(
            [running, waiting, kv_use].into_iter().flatten().all(|value| (0.0..=REQUESTS_MAX * 9.0).contains(&value))
        );
        parse_orca(&String::from_utf8_lossy(&page));
    }
}
