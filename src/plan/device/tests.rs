use super::*;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const BATCHES: &str = include_str!("../../../models/data/latency/batches.csv");
const PROMPTS: &str = include_str!("../../../models/data/latency/prompts.csv");
const ESTIMATES: &str = include_str!("../../../models/data/latency/estimates.csv");
const GPUS: &str = include_str!("../../../models/data/latency/gpus.csv");

/// Parameters (billions), layers and KV bytes per token of what was measured, from the models' own configurations.
fn size_of(model: &str) -> ModelSize {
    let (billions, layers, kv_bytes_per_token) = match model {
        "Llama-3-8B" => (8.03, 32.0, 131_072.0),
        "Mistral-7B" => (7.24, 32.0, 131_072.0),
        "Qwen2-7B" => (7.62, 28.0, 57_344.0),
        "Llama-2-70B" => (69.0, 80.0, 327_680.0),
        other => panic!("{other}"),
    };
    ModelSize { weights_gb: 2.0 * billions, layers, kv_bytes_per_token, max_model_len: 4_096 }
}

fn rows(csv: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    csv.lines().skip(1).map(|line| line.split(',').collect())
}

fn number(cell: &str) -> f64 {
    cell.parse().unwrap()
}

/// Logarithms of predicted over measured times to the first token of a prompt that is alone: what prefilling takes, and the step that
/// yields its token as it was measured.
fn prompt_errors(device: &Device) -> Vec<f64> {
    let of_kind = rows(PROMPTS).filter(|row| device.name.starts_with(row[0]));
    let error = |row: Vec<&str>| {
        let profile = device.profile(&size_of("Llama-2-70B"), row[1].parse().unwrap(), 100);
        ((number(row[2]) / profile.prefill_tokens_per_second * 1e3 + number(row[4])) / number(row[3])).ln()
    };
    of_kind.map(error).collect()
}

/// The same of batches: `batch` prompts of so many tokens, and as many answers of as many.
fn batch_errors(device: &Device) -> Vec<f64> {
    let of_kind = rows(BATCHES).filter(|row| device.name.starts_with(row[0]));
    let error = |row: Vec<&str>| {
        let profile = device.profile(&size_of(row[1]), row[2].parse().unwrap(), 100);
        let (tokens, batch, seconds) = (number(row[3]), number(row[4]), number(row[5]));
        let growth = profile.tpot_growth_per_running * (batch - 1.0)
            + profile.tpot_growth_per_thousand_context_tokens * batch * 1.5 * tokens / 1e3;
        let predicted =
            batch * tokens / profile.prefill_tokens_per_second + tokens * profile.tpot_ms / 1e3 * (1.0 + growth);
        (predicted / seconds).ln()
    };
    of_kind.map(error).collect()
}

fn rms(errors: &[f64]) -> f64 {
    (errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64).sqrt()
}

/// A constant of a kind.
type Constant = fn(&mut Device) -> &mut f64;

/// Least squares of logarithms, by steps along each constant that shrink when they help no more.
fn fitted(start: Device, constants: &[Constant], errors: fn(&Device) -> Vec<f64>) -> Device {
    let mut best = start;
    let mut least = rms(&errors(&best));
    let mut steps = vec![0.2; constants.len()];
    for _ in 0..4_000 {
        for (constant, step) in constants.iter().zip(&mut steps) {
            let moved = [1.0 + *step, 1.0 / (1.0 + *step)].map(|factor| {
                let mut device = best;
                *constant(&mut device) *= factor;
                (rms(&errors(&device)), device)
            });
            let better = moved.into_iter().find(|(error, _)| *error < least);
            *step *= if better.is_some() { 1.3 } else { 0.6 };
            if let Some((error, device)) = better {
                (least, best) = (error, device);
            }
        }
        if steps.iter().all(|step| *step < 1e-7) {
            break;
        }
    }
    best
}

#[test]
fn the_constants_are_those_of_the_fit() {
    let prefill: [Constant; 2] = [|d| &mut d.prefill, |d| &mut d.prefill_exponent];
    let decode: [Constant; 4] =
        [|d| &mut d.step_ms, |d| &mut d.growth_per_running, |d| &mut d.context, |d| &mut d.stream_ms];
    // Those of H100's memory follow from A100's.
    for (device, decode, within, batches_within) in [(0, &decode[..], 0.05, 0.06), (1, &decode[..3], 0.085, 0.16)] {
        let device = DEVICES[device];
        let fit = fitted(fitted(device, &prefill, prompt_errors), decode, batch_errors);
        for (i, constant) in prefill.iter().chain(decode).enumerate() {
            let (mut ours, mut theirs) = (device, fit);
            let (ours, theirs) = (*constant(&mut ours), *constant(&mut theirs));
            assert!((ours / theirs - 1.0).abs() < 0.01, "{}, constant {i}: {ours}, fitted {theirs}", device.name);
        }
        let (prompts, batches) = (rms(&prompt_errors(&device)), rms(&batch_errors(&device)));
        assert!(prompts < within && batches < batches_within, "{}: {prompts:.3} {batches:.3}", device.name);
    }
}

/// Peak bandwidth of a kind is in the table; the fraction of it that A100's constant comes to holds for all.
#[test]
fn kinds_read_memory_alike_and_are_as_the_table_says() {
    let a100 = DEVICES[0];
    let bandwidth = |name: &str| rows(GPUS).find(|row| row[0] == name).map(|row| number(row[2])).unwrap();
    for (row, device) in rows(GPUS).zip(&DEVICES) {
        assert_eq!((row[0], number(row[1]), number(row[3])), (device.name, device.memory_gb, device.usd_per_hour));
        let stream_ms = a100.stream_ms * bandwidth(a100.name) / bandwidth(device.name);
        assert!((device.stream_ms / stream_ms - 1.0).abs() < 0.001, "{}: {stream_ms}", device.name);
    }
    let reached = 2e9 / (a100.stream_ms / 1e3) / 1e9 / bandwidth(a100.name);
    assert!((0.7..0.9).contains(&reached), "{reached} of the bandwidth");
}

/// Of what L40S takes over A100 by the estimates: prefill is taken from it, decode comes out near it.
#[test]
fn l40s_is_as_estimated() {
    let (a100, l40s) = (DEVICES[0], DEVICES[2]);
    let rows_of = |gpu: &'static str| rows(ESTIMATES).filter(move |row| row[0] == gpu);
    let ratio = |column: usize| {
        let logs: Vec<f64> =
            rows_of("L40S").zip(rows_of("A100")).map(|(l, a)| (number(l[column]) / number(a[column])).ln()).collect();
        (logs.iter().sum::<f64>() / logs.len() as f64).exp()
    };
    assert!((a100.prefill / l40s.prefill / ratio(5) - 1.0).abs() < 0.001, "{}", ratio(5));
    let tpot = |device: &Device| device.profile(&size_of("Qwen2-7B"), 1, 100).tpot_ms;
    assert!((tpot(&l40s) / tpot(&a100) / ratio(6) - 1.0).abs() < 0.02, "{}", ratio(6));
}

/// What the fit has not seen: a token of Llama-2-70B on two A100 in Splitwise's table.
#[test]
fn a_large_model_decodes_as_measured_elsewhere() {
    let measured = rows(PROMPTS).find(|row| row[..3] == ["A100", "2", "1024"]).map(|row| number(row[4])).unwrap();
    let predicted = DEVICES[0].profile(&size_of("Llama-2-70B"), 2, 100).tpot_ms;
    assert!((predicted / measured - 1.0).abs() < 0.05, "{predicted} ms, measured {measured}");
}

#[test]
fn shares_slow_prefill_at_once_and_decode_below_the_knee() {
    let size = size_of("Llama-3-8B");
    let device = Device::named("A100-80GB").unwrap();
    let whole = device.profile(&size, 1, 100);
    let stream = device.stream_ms * 8.03;
    for (share, prefill, slower) in [(100, 1.0, 1.0), (80, 0.8, 1.0), (40, 0.4, 2.0), (10, 0.1, 8.0), (0, 0.01, 80.0)] {
        let profile = device.profile(&size, 1, share);
        let expected = whole.prefill_tokens_per_second * prefill;
        assert!((profile.prefill_tokens_per_second / expected - 1.0).abs() < 1e-9, "{share} %");
        let expected = whole.tpot_ms + stream * (slower - 1.0);
        assert!((profile.tpot_ms / expected - 1.0).abs() < 1e-9, "{share} %: {}", profile.tpot_ms);
    }
    assert!(Device::named("A30").is_none());
}

#[test]
fn memory_that_is_left_is_shared_by_caps() {
    let memory = ShardMemory { factor: 1.1, fixed_gb: 4.0 };
    let rows = [
        ("alone", vec![(30.0, 40)], 40, 2.0 + 50.0),
        ("two of 30 and 60 %", vec![(20.0, 30), (30.0, 60)], 30, 2.0 + 10.0),
        ("too much", vec![(50.0, 50), (40.0, 50)], 50, 2.0),
        ("nothing is there", vec![], 50, 2.0 + 80.0),
    ];
    for (name, shards, cap, expected) in rows {
        assert!((kv_gb(&memory, 80.0, &shards, cap) - expected).abs() < 1e-9, "{name}");
    }
    assert!((kv_gb_alone(&memory, 80.0, 30.0, 40) - 22.0).abs() < 1e-9);
    let size = ModelSize { weights_gb: 16.0, layers: 32.0, kv_bytes_per_token: 1e5, max_model_len: 4_096 };
    let limits = limits(&size, 2, 2.0);
    assert_eq!((limits.kv_tokens, limits.max_running, limits.max_model_len), (40_000, 256, 4_096));
}
