//! What a request insists on by its headers, on top of its policy.

use std::fmt;
use std::time::Duration;

use crate::fleet::{Constraint, Constraints, Mode, Order};
use crate::names;

/// A header that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderError {
    /// Its name.
    pub header: &'static str,
    /// What it must be.
    expected: &'static str,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The header `{}` must be {}.", self.header, self.expected)
    }
}

impl std::error::Error for HeaderError {}

/// The policy's constraints with those of the request, whose headers have these `values`. The tighter limit counts;
/// mode and order are the request's, if it names them.
///
/// # Errors
///
/// The first header that cannot be understood.
pub fn constraints(
    policy: &Constraints,
    mut values: impl FnMut(&str) -> Vec<String>,
) -> Result<Constraints, HeaderError> {
    let mut constraints = *policy;
    let mut header = |name: &'static str| match <[String; 1]>::try_from(values(name)) {
        Ok([value]) => Ok(Some(value)),
        Err(none) if none.is_empty() => Ok(None),
        // A gateway in front that adds its own leaves the client's in place.
        Err(_) => Err(HeaderError { header: name, expected: "sent once" }),
    };
    for name in [names::TTFT_SLO_HEADER, names::TTFT_SLO_ALIAS_HEADER] {
        if let Some(value) = header(name)? {
            constraints.slo.ttft = tighter(constraints.slo.ttft, milliseconds(name, &value)?);
        }
    }
    for name in [names::TPOT_SLO_HEADER, names::TPOT_SLO_ALIAS_HEADER] {
        if let Some(value) = header(name)? {
            constraints.slo.tpot = tighter(constraints.slo.tpot, milliseconds(name, &value)?);
        }
    }
    if let Some(value) = header(names::BUDGET_USD_HEADER)? {
        let usd = number(names::BUDGET_USD_HEADER, &value, 0.0..=1e9, "a number of USD, at least 0")?;
        constraints.budget.usd = Some(constraints.budget.usd.map_or(usd, |own| own.min(usd)));
    }
    if let Some(value) = header(names::BUDGET_TOKENS_HEADER)? {
        let expected = "a whole number of tokens, at least 1";
        let tokens: Option<u32> = value.trim().parse().ok().filter(|tokens| *tokens > 0);
        let tokens = tokens.ok_or(HeaderError { header: names::BUDGET_TOKENS_HEADER, expected })?;
        constraints.budget.tokens = tighter(constraints.budget.tokens, tokens);
    }
    if let Some(value) = header(names::QUALITY_MIN_HEADER)? {
        let quality = number(names::QUALITY_MIN_HEADER, &value, 0.0..=1.0, "a number from 0 to 1")?;
        constraints.quality_min = Some(constraints.quality_min.map_or(quality, |own| own.max(quality)));
    }
    if let Some(value) = header(names::MODE_HEADER)? {
        let expected = "tiered, relaxed or strict";
        constraints.mode = mode(value.trim()).ok_or(HeaderError { header: names::MODE_HEADER, expected })?;
    }
    if let Some(value) = header(names::RELAX_ORDER_HEADER)? {
        let expected = "some of ttft, tpot, quality and budget, once each, separated by commas";
        constraints.order = order(&value).ok_or(HeaderError { header: names::RELAX_ORDER_HEADER, expected })?;
    }
    Ok(constraints)
}

fn tighter<T: Ord>(own: Option<T>, wanted: T) -> Option<T> {
    match own {
        Some(own) => Some(own.min(wanted)),
        None => Some(wanted),
    }
}

fn number(
    header: &'static str,
    value: &str,
    range: std::ops::RangeInclusive<f64>,
    expected: &'static str,
) -> Result<f64, HeaderError> {
    value.trim().parse().ok().filter(|number| range.contains(number)).ok_or(HeaderError { header, expected })
}

fn milliseconds(header: &'static str, value: &str) -> Result<Duration, HeaderError> {
    let expected = "a number of milliseconds, at least 0.001";
    Ok(Duration::from_secs_f64(number(header, value, 0.001..=1e9, expected)? / 1e3))
}

fn mode(value: &str) -> Option<Mode> {
    match value {
        "tiered" => Some(Mode::Tiered),
        "relaxed" => Some(Mode::Relaxed),
        "strict" => Some(Mode::Strict),
        _ => None,
    }
}

fn order(value: &str) -> Option<Order> {
    let named = |name: &str| Constraint::ALL.into_iter().find(|constraint| constraint.name() == name.trim());
    let first: Option<Vec<Constraint>> = value.split(',').map(named).collect();
    Order::starting_with(&first?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Budget, Slo};
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn read(policy: &Constraints, headers: &[(&str, &str)]) -> Result<Constraints, HeaderError> {
        let values =
            |name: &str| headers.iter().filter(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()).collect();
        constraints(policy, values)
    }

    #[test]
    fn headers_are_read_and_the_tighter_counts() {
        let none = Constraints::default();
        let tight = Constraints {
            slo: Slo { ttft: Some(Duration::from_millis(200)), tpot: Some(Duration::from_millis(20)) },
            budget: Budget { usd: Some(1e-4), tokens: Some(100) },
            quality_min: Some(0.5),
            mode: Mode::Strict,
            ..none
        };
        let ms = |ms: u64| Some(Duration::from_millis(ms));
        let slo = |ttft, tpot| Constraints { slo: Slo { ttft, tpot }, ..none };
        let budget = |usd, tokens| Constraints { budget: Budget { usd, tokens }, ..none };
        let order = |first: &[Constraint]| Order::starting_with(first).unwrap();
        type Row = (Constraints, &'static [(&'static str, &'static str)], Constraints);
        let rows: &[Row] = &[
            (none, &[], none),
            (tight, &[("x-other", "1")], tight),
            (none, &[("x-routebalance-ttft-slo-ms", "250")], slo(ms(250), None)),
            (none, &[("x-llm-d-slo-ttft-ms", " 250 ")], slo(ms(250), None)),
            (none, &[("x-routebalance-ttft-slo-ms", "250"), ("x-llm-d-slo-ttft-ms", "100")], slo(ms(100), None)),
            (none, &[("x-routebalance-tpot-slo-ms", "12")], slo(None, ms(12))),
            (none, &[("x-llm-d-slo-tpot-ms", "1.2e1")], slo(None, ms(12))),
            (none, &[("x-routebalance-budget-usd", "0.001")], budget(Some(0.001), None)),
            (none, &[("x-routebalance-budget-usd", "0")], budget(Some(0.0), None)),
            (none, &[("x-routebalance-budget-tokens", "64")], budget(None, Some(64))),
            (none, &[("x-routebalance-quality-min", "0.4")], Constraints { quality_min: Some(0.4), ..none }),
            (none, &[("x-routebalance-mode", "strict")], Constraints { mode: Mode::Strict, ..none }),
            (tight, &[("x-routebalance-mode", "relaxed")], Constraints { mode: Mode::Relaxed, ..tight }),
            (
                none,
                &[("x-routebalance-relax-order", "budget, quality")],
                Constraints { order: order(&[Constraint::Budget, Constraint::Quality]), ..none },
            ),
            (
                tight,
                &[
                    ("x-routebalance-ttft-slo-ms", "300"),
                    ("x-routebalance-tpot-slo-ms", "30"),
                    ("x-routebalance-budget-usd", "1"),
                    ("x-routebalance-budget-tokens", "1000"),
                    ("x-routebalance-quality-min", "0.1"),
                ],
                tight,
            ),
        ];
        for (policy, headers, expected) in rows {
            assert_eq!(read(policy, headers), Ok(*expected), "{headers:?}");
        }
        assert_eq!(order(&[Constraint::Budget]).constraints()[1..], Constraint::ALL[..3]);
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        let rows: &[(&'static str, &[&str])] = &[
            ("x-routebalance-ttft-slo-ms", &["", "fast", "0", "-1", "NaN", "inf", "1e99", "250ms", "1,2"]),
            ("x-llm-d-slo-ttft-ms", &["soon"]),
            ("x-routebalance-tpot-slo-ms", &["0"]),
            ("x-llm-d-slo-tpot-ms", &["0"]),
            ("x-routebalance-budget-usd", &["-0.1", "$1", "NaN"]),
            ("x-routebalance-budget-tokens", &["0", "1.5", "-3", "99999999999"]),
            ("x-routebalance-quality-min", &["1.1", "-1", "high"]),
            ("x-routebalance-mode", &["", "STRICT", "lenient"]),
            ("x-routebalance-relax-order", &["", "ttft,ttft", "ttft,speed", "ttft;tpot", "ttft,"]),
        ];
        for (header, values) in rows {
            let twice = read(&Constraints::default(), &[(header, "1"), ("x-other", "1"), (header, "1")]).unwrap_err();
            assert_eq!(twice.header, *header);
            for value in *values {
                let error = read(&Constraints::default(), &[(header, value)]).unwrap_err();
                assert_eq!(error.header, *header, "{value:?}");
                let sentence = error.to_string();
                assert!(sentence.contains(header) && sentence.ends_with('.'), "{sentence}");
            }
        }
    }
}
