//! A pool's profile from what a server was seen to do: parameters with which the simulated engine does the same.

use crate::recordings::Logged;
use routebalance_core::fleet::{LatencyProfile, Limits};
use routebalance_sim::engine::{Detail, Engine, EventKind, Job};

/// A server to simulate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Server {
    /// How fast it is.
    pub profile: LatencyProfile,
    /// What it can hold.
    pub limits: Limits,
    /// Engines behind its address.
    pub engines: usize,
}

/// Seconds from a request's arrival to its first and to its last token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// To the first token.
    pub ttft_seconds: f64,
    /// To the last token.
    pub e2e_seconds: f64,
}

impl Times {
    /// Seconds per token after the first of so many.
    pub fn tpot_seconds(&self, tokens: u32) -> f64 {
        (self.e2e_seconds - self.ttft_seconds) / f64::from(tokens.saturating_sub(1).max(1))
    }
}

/// What the simulated server makes of requests, in their order. Each goes to the engine that holds the fewest. A request that it
/// cannot hold takes forever.
pub fn simulate(server: &Server, requests: &[Logged]) -> Vec<Times> {
    let never = Times { ttft_seconds: f64::INFINITY, e2e_seconds: f64::INFINITY };
    let mut times = vec![never; requests.len()];
    let mut engines = vec![Engine::new(server.profile, server.limits, Detail::Milestones); server.engines.max(1)];
    let mut events = Vec::new();
    for (id, request) in requests.iter().enumerate() {
        engines.iter_mut().for_each(|engine| engine.advance_into(request.at, &mut events));
        if let Some(engine) = engines.iter_mut().min_by_key(|engine| engine.len()) {
            let tokens = request.output_tokens;
            let job =
                Job { id: id as u64, prompt_tokens: request.prompt_tokens, output_tokens: tokens, max_tokens: tokens };
            // One that is too long never ends.
            let _ = engine.submit(request.at, job);
        }
    }
    for engine in &mut engines {
        while let Some(next) = engine.next_event() {
            engine.advance_into(next, &mut events);
        }
    }
    for event in events {
        let id = event.id as usize;
        if let (Some(request), Some(times)) = (requests.get(id), times.get_mut(id)) {
            let passed = event.at.saturating_sub(request.at).as_secs_f64();
            match event.kind {
                EventKind::FirstToken => times.ttft_seconds = passed,
                EventKind::Finished(_) => times.e2e_seconds = passed,
                _ => {}
            }
        }
    }
    times
}

/// How far simulated times are from measured ones: the mean square of the logarithms of their ratios, of the time to the first
/// token, to the last, and per token.
pub fn distance<'a>(pairs: impl Iterator<Item = (&'a Logged, &'a Times)>) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0);
    for (logged, times) in pairs {
        let measured = logged.times();
        let tokens = logged.output_tokens;
        sum += (times.ttft_seconds / logged.ttft_seconds).ln().powi(2)
            + (times.e2e_seconds / logged.e2e_seconds).ln().powi(2);
        if tokens > 1 {
            sum += (times.tpot_seconds(tokens) / measured.tpot_seconds(tokens)).ln().powi(2);
        }
        n += 1.0;
    }
    let mean = sum / f64::max(n, 1.0);
    if mean.is_nan() { f64::INFINITY } else { mean }
}

/// The server whose simulation comes closest, from `start` on: `distance_of` says how close. `kv` says whether the size of its KV
/// cache is fitted, too.
pub fn fit(start: &Server, kv: bool, distance_of: impl Fn(&Server) -> f64) -> Server {
    let server = |x: &[f64]| server_with(start, x);
    let mut x: Vec<f64> = parameters(start).map(f64::ln).into_iter().take(if kv { 6 } else { 5 }).collect();
    // Once more from where it ended, with a fresh simplex: it may have collapsed too early.
    for step in [0.5, 0.3, 0.1] {
        x = nelder_mead(x, step, 400, |x| distance_of(&server(x)));
    }
    server(&x)
}

/// What is fitted. All are positive, so the search moves their logarithms.
fn parameters(server: &Server) -> [f64; 6] {
    let Server { profile, limits, .. } = server;
    [
        profile.overhead_ms,
        profile.prefill_tokens_per_second,
        profile.tpot_ms,
        profile.tpot_growth_per_running,
        profile.tpot_growth_per_thousand_context_tokens,
        limits.kv_tokens as f64,
    ]
}

/// The server with parameters whose logarithms are `x`; what `x` does not reach stays.
fn server_with(start: &Server, x: &[f64]) -> Server {
    let mut values = parameters(start);
    values.iter_mut().zip(x).for_each(|(value, x)| *value = x.exp());
    let [overhead_ms, prefill_tokens_per_second, tpot_ms, per_running, per_context, kv_tokens] = values;
    Server {
        profile: LatencyProfile {
            overhead_ms,
            prefill_tokens_per_second,
            tpot_ms,
            tpot_growth_per_running: per_running,
            tpot_growth_per_thousand_context_tokens: per_context,
        },
        limits: Limits { kv_tokens: kv_tokens as u64, ..start.limits },
        engines: start.engines,
    }
}

/// A point of low value near `start` (Nelder and Mead 1965, *A Simplex Method for Function Minimization*), after so many rounds.
fn nelder_mead(start: Vec<f64>, step: f64, rounds: usize, value: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let n = start.len();
    let point = |x: Vec<f64>| (value(&x), x);
    let mut simplex = vec![point(start.clone())];
    for i in 0..n {
        let mut x = start.clone();
        x[i] += step;
        simplex.push(point(x));
    }
    // From the worst corner through the centre of the others, so many times as far.
    let towards = |centre: &[f64], worst: &[f64], far: f64| -> Vec<f64> {
        centre.iter().zip(worst).map(|(c, w)| c + far * (c - w)).collect()
    };
    for _ in 0..rounds {
        simplex.sort_by(|a, b| a.0.total_cmp(&b.0));
        let centre: Vec<f64> = (0..n).map(|i| simplex[..n].iter().map(|(_, x)| x[i]).sum::<f64>() / n as f64).collect();
        let worst = simplex[n].clone();
        let reflected = point(towards(&centre, &worst.1, 1.0));
        let better = if reflected.0 < simplex[0].0 {
            let expanded = point(towards(&centre, &worst.1, 2.0));
            Some(if expanded.0 < reflected.0 { expanded } else { reflected })
        } else if reflected.0 < simplex[n - 1].0 {
            Some(reflected)
        } else {
            let contracted = point(towards(&centre, &worst.1, if reflected.0 < worst.0 { 0.5 } else { -0.5 }));
            (contracted.0 < worst.0.min(reflected.0)).then_some(contracted)
        };
        match better {
            Some(better) => simplex[n] = better,
            None => {
                let best = simplex[0].1.clone();
                for (value_of, x) in simplex.iter_mut().skip(1) {
                    x.iter_mut().zip(&best).for_each(|(x, best)| *x = best + 0.5 * (*x - best));
                    *value_of = value(x);
                }
            }
        }
    }
    simplex.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(start, |(_, x)| x)
}

/// A server to start from: what a lone request suggests, and a little growth.
pub fn first_guess(alone: &Logged, limits: Limits, engines: usize) -> Server {
    let tpot_seconds = alone.times().tpot_seconds(alone.output_tokens);
    Server {
        profile: LatencyProfile {
            tpot_ms: tpot_seconds * 1e3,
            tpot_growth_per_running: 0.005,
            tpot_growth_per_thousand_context_tokens: 0.002,
            prefill_tokens_per_second: f64::from(alone.prompt_tokens) / alone.ttft_seconds,
            overhead_ms: 5.0,
        },
        limits,
        engines,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_lowest_point_is_found() {
        // Rosenbrock's valley.
        let valley = |x: &[f64]| (1.0 - x[0]).powi(2) + 100.0 * (x[1] - x[0] * x[0]).powi(2);
        let found = nelder_mead(vec![-1.2, 1.0], 0.5, 300, valley);
        assert!((found[0] - 1.0).abs() < 1e-4 && (found[1] - 1.0).abs() < 1e-4, "{found:?}");
    }

    /// A server that is itself an engine is found again from half of what it did.
    #[test]
    fn an_engine_fits_itself() {
        let limits = Limits { max_running: 8, kv_tokens: 1 << 20, max_model_len: 8_192 };
        let alone =
            Logged { at: Duration::ZERO, prompt_tokens: 600, output_tokens: 120, ttft_seconds: 0.2, e2e_seconds: 2.0 };
        let mut truth = first_guess(&alone, limits, 1);
        truth.profile.tpot_growth_per_running = 0.02;
        truth.profile.tpot_growth_per_thousand_context_tokens = 0.01;
        let mut random = routebalance_core::random::Random::new(5);
        let mut at = 0.0;
        let mut requests = Vec::new();
        for _ in 0..60 {
            at += random.exponential(0.4);
            let (prompt_tokens, output_tokens) = (50 + random.below(900) as u32, 20 + random.below(150) as u32);
            requests.push(Logged { at: Duration::from_secs_f64(at), prompt_tokens, output_tokens, ..alone });
        }
        let times = simulate(&truth, &requests);
        requests
            .iter_mut()
            .zip(&times)
            .for_each(|(r, t)| (r.ttft_seconds, r.e2e_seconds) = (t.ttft_seconds, t.e2e_seconds));
        let seen = &requests[..30];
        let mut start = truth;
        start.profile.tpot_ms *= 1.7;
        start.profile.prefill_tokens_per_second *= 0.6;
        let found = fit(&start, false, |server| distance(seen.iter().zip(&simulate(server, &requests))));
        let again = simulate(&found, &requests);
        let unseen = requests[30..].iter().zip(&again[30..]).map(|(r, t)| (t.e2e_seconds / r.e2e_seconds - 1.0).abs());
        let error = unseen.sum::<f64>() / 30.0;
        assert!(error < 0.01, "{error} {found:?}");
    }
}
