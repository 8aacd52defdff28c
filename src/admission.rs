//! Which candidates meet a request's SLO and budget, and what is given up when none does.

use crate::fleet::{Budget, Slo};
use crate::score::Candidate;

/// A constraint of a request, in the order in which constraints are given up: the published tiered mode (RouteBalance, section
/// 10 (a) of its specification: time first, money last).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// Time to the first token.
    Ttft,
    /// Time per output token.
    Tpot,
    /// Output tokens.
    Tokens,
    /// USD.
    Usd,
}

const ORDER: [Constraint; 4] = [Constraint::Ttft, Constraint::Tpot, Constraint::Tokens, Constraint::Usd];

/// Candidates that are left, and what had to be given up.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    /// The candidates to score; never empty unless none were given.
    pub candidates: Vec<Candidate>,
    /// Constraints that no candidate could meet together with the rest.
    pub relaxed: Vec<Constraint>,
}

/// Drops the candidates that break a constraint; if none is left, gives up one constraint after the other.
pub fn admit(candidates: Vec<Candidate>, slo: &Slo, budget: &Budget) -> Admitted {
    let set = |constraint: Constraint| match constraint {
        Constraint::Ttft => slo.ttft.is_some(),
        Constraint::Tpot => slo.tpot.is_some(),
        Constraint::Tokens => budget.tokens.is_some(),
        Constraint::Usd => budget.usd.is_some(),
    };
    let mut active: Vec<Constraint> = ORDER.into_iter().filter(|c| set(*c)).collect();
    let mut relaxed = Vec::new();
    loop {
        let left: Vec<Candidate> =
            candidates.iter().filter(|c| active.iter().all(|a| meets(c, *a, slo, budget))).copied().collect();
        if !left.is_empty() || active.is_empty() {
            return Admitted { candidates: left, relaxed };
        }
        relaxed.push(active.remove(0));
    }
}

fn meets(candidate: &Candidate, constraint: Constraint, slo: &Slo, budget: &Budget) -> bool {
    match constraint {
        Constraint::Ttft => slo.ttft.is_none_or(|limit| candidate.ttft_seconds <= limit.as_secs_f64()),
        Constraint::Tpot => slo.tpot.is_none_or(|limit| candidate.tpot_seconds <= limit.as_secs_f64()),
        Constraint::Tokens => budget.tokens.is_none_or(|limit| candidate.output_tokens_p80 <= f64::from(limit)),
        Constraint::Usd => budget.usd.is_none_or(|limit| candidate.usd_p80 <= limit),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn candidate(instance: usize, ttft_ms: f64, tpot_ms: f64, output_tokens: f64, usd: f64) -> Candidate {
        Candidate {
            instance,
            model: 0,
            quality: 0.5,
            output_tokens,
            output_tokens_p80: output_tokens,
            seconds: 1.0,
            ttft_seconds: ttft_ms / 1e3,
            tpot_seconds: tpot_ms / 1e3,
            e2e_seconds: 1.0,
            delay_seconds: 0.0,
            usd,
            usd_p80: usd,
            in_flight: 0.0,
            last_dispatch: Duration::ZERO,
        }
    }

    #[test]
    fn constraints_filter_and_give_way_in_order() {
        let fleet = [candidate(0, 100.0, 10.0, 400.0, 1e-5), candidate(1, 300.0, 40.0, 200.0, 4e-5)];
        let ms = |v: u64| Some(Duration::from_millis(v));
        let slo = |ttft, tpot| Slo { ttft, tpot };
        let budget = |usd, tokens| Budget { usd, tokens };
        type Row = (&'static str, Slo, Budget, &'static [usize], &'static [Constraint]);
        let rows: &[Row] = &[
            ("none", slo(None, None), budget(None, None), &[0, 1], &[]),
            ("ttft", slo(ms(200), None), budget(None, None), &[0], &[]),
            ("tpot", slo(None, ms(20)), budget(None, None), &[0], &[]),
            ("tokens", slo(None, None), budget(None, Some(300)), &[1], &[]),
            ("usd", slo(None, None), budget(Some(2e-5), None), &[0], &[]),
            ("ttft gives way to tokens", slo(ms(200), None), budget(None, Some(300)), &[1], &[Constraint::Ttft]),
            (
                "nothing is possible",
                slo(ms(1), ms(1)),
                budget(Some(0.0), Some(1)),
                &[0, 1],
                &[Constraint::Ttft, Constraint::Tpot, Constraint::Tokens, Constraint::Usd],
            ),
        ];
        for (name, slo, budget, expected, relaxed) in rows {
            let admitted = admit(fleet.to_vec(), slo, budget);
            let left: Vec<usize> = admitted.candidates.iter().map(|c| c.instance).collect();
            assert_eq!((left.as_slice(), admitted.relaxed.as_slice()), (*expected, *relaxed), "{name}");
        }
        assert!(admit(Vec::new(), &Slo::default(), &Budget::default()).candidates.is_empty());
    }
}
