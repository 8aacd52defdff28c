//! What a budget leaves for an answer, and when it is used up (RouteBalance; PUBLISHED.md, section 10.3).

use crate::fleet::{Budget, Tariff};

/// Rounding of costs in USD, as published.
const USD_ROUNDING: f64 = 1e-9;

/// Tokens that a budget leaves for each of so many answers, at least 1, as published: see [`tokens_for_each`].
pub fn tokens_left(budget: &Budget, tariff: &Tariff, prompt_tokens: f64, answers: f64) -> Option<u32> {
    tokens_for_each(budget, tariff, prompt_tokens, answers).map(|left| left.max(1))
}

/// Tokens that a budget leaves for each of so many answers: `floor((usd - P c_in) / c_out)`, or the token budget if that is less.
/// `None` without a budget, and where a budget in USD meets free output.
pub fn tokens_for_each(budget: &Budget, tariff: &Tariff, prompt_tokens: f64, answers: f64) -> Option<u32> {
    let for_usd = budget.usd.filter(|_| tariff.usd_per_output_token > 0.0).map(|usd| {
        let left = usd - prompt_tokens * tariff.usd_per_input_token;
        // What is a whole number but for rounding is that number.
        left / tariff.usd_per_output_token * (1.0 + USD_ROUNDING)
    });
    let for_tokens = budget.tokens.map(f64::from);
    let left = [for_usd, for_tokens].into_iter().flatten().reduce(f64::min)?;
    // A cast takes what is no number for 0, and what is too much for the greatest.
    Some((left / answers.max(1.0)) as u32)
}

/// Whether a cost uses a budget up.
pub fn is_exhausted(budget: &Budget, usd: f64) -> bool {
    budget.usd.is_some_and(|limit| usd >= limit - USD_ROUNDING)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const DEAR: Tariff = Tariff::new(0.4e-6, 0.4e-6);
    const FREE: Tariff = Tariff::new(0.0, 0.0);

    #[test]
    fn tokens_that_a_budget_leaves() {
        let usd = |usd| Budget { usd: Some(usd), tokens: None };
        let both = Budget { usd: Some(1e-4), tokens: Some(60) };
        for (name, budget, tariff, prompt_tokens, answers, expected) in [
            ("no budget", Budget::default(), DEAR, 100.0, 1.0, None),
            ("exact", usd(1e-4), DEAR, 0.0, 1.0, Some(250)),
            ("prompt paid first", usd(1e-4), DEAR, 100.0, 1.0, Some(150)),
            ("cut down", usd(1.001e-4), DEAR, 100.0, 1.0, Some(150)),
            ("shared by answers", usd(1e-4), DEAR, 100.0, 4.0, Some(37)),
            ("prompt alone exceeds it", usd(1e-5), DEAR, 100.0, 1.0, Some(1)),
            ("free output", usd(1e-5), FREE, 100.0, 1.0, None),
            ("tokens", Budget { usd: None, tokens: Some(60) }, FREE, 100.0, 1.0, Some(60)),
            ("the tighter", both, DEAR, 100.0, 1.0, Some(60)),
            ("the tighter is USD", both, DEAR, 240.0, 1.0, Some(10)),
            ("nothing generated", usd(1e-4), DEAR, 100.0, 0.0, Some(150)),
            ("no number", usd(f64::NAN), DEAR, 100.0, 1.0, Some(1)),
            ("more than fits", usd(1e9), DEAR, 100.0, 1.0, Some(u32::MAX)),
        ] {
            assert_eq!(tokens_left(&budget, &tariff, prompt_tokens, answers), expected, "{name}");
        }
    }

    #[test]
    fn a_budget_is_used_up_to_the_rounding() {
        let budget = Budget { usd: Some(1e-4), tokens: None };
        for (usd, expected) in [(0.9e-4, false), (1e-4 - 0.9e-9, true), (1e-4, true), (2e-4, true), (f64::NAN, false)] {
            assert_eq!(is_exhausted(&budget, usd), expected, "{usd}");
            assert!(!is_exhausted(&Budget::default(), usd));
        }
    }
}
