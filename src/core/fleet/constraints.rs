//! What a request insists on, and what happens where that cannot be had.

use std::time::Duration;

/// Service-level objectives of a request.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Slo {
    /// Time to the first token.
    pub ttft: Option<Duration>,
    /// Time per output token.
    pub tpot: Option<Duration>,
}

/// What a request may spend.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Budget {
    /// USD for prompt and answer.
    pub usd: Option<f64>,
    /// Output tokens.
    pub tokens: Option<u32>,
}

/// One kind of constraint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Time to the first token.
    Ttft,
    /// Time per output token.
    Tpot,
    /// Answer quality.
    Quality,
    /// USD and output tokens.
    Budget,
}

impl Constraint {
    /// The published order of relaxation: time first, money last (RouteBalance; PUBLISHED.md, section 10.1).
    pub const ALL: [Constraint; 4] = [Constraint::Ttft, Constraint::Tpot, Constraint::Quality, Constraint::Budget];

    /// Its name in configuration, headers and logs.
    pub fn name(self) -> &'static str {
        match self {
            Constraint::Ttft => "ttft",
            Constraint::Tpot => "tpot",
            Constraint::Quality => "quality",
            Constraint::Budget => "budget",
        }
    }
}

/// What happens to a request whose constraints no candidate keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One constraint after the other is given up, until a candidate keeps the rest.
    #[default]
    Tiered,
    /// All constraints are given up at once.
    Relaxed,
    /// It is refused.
    Strict,
}

/// The order in which constraints are given up; each stands in it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order([Constraint; 4]);

impl Default for Order {
    fn default() -> Self {
        Order(Constraint::ALL)
    }
}

impl Order {
    /// These first, then the others in the published order; nothing if one is there twice.
    pub fn starting_with(first: &[Constraint]) -> Option<Order> {
        let rest = Constraint::ALL.into_iter().filter(|c| !first.contains(c));
        let all: Vec<Constraint> = first.iter().copied().chain(rest).collect();
        all.try_into().ok().map(Order)
    }

    /// The constraints, the first to be given up first.
    pub fn constraints(&self) -> [Constraint; 4] {
        self.0
    }
}

/// What a request insists on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constraints {
    /// Times.
    pub slo: Slo,
    /// Money and length.
    pub budget: Budget,
    /// Least predicted answer quality, 0 to 1.
    pub quality_min: Option<f64>,
    /// The probability with which times and budget must be kept, above 0 and below 1.
    pub confidence: f64,
    /// What happens where no candidate keeps them.
    pub mode: Mode,
    /// The order in which they are given up.
    pub order: Order,
}

impl Default for Constraints {
    fn default() -> Self {
        Constraints {
            slo: Slo::default(),
            budget: Budget::default(),
            quality_min: None,
            confidence: 0.7,
            mode: Mode::default(),
            order: Order::default(),
        }
    }
}

impl Constraints {
    /// Whether the request insists on this.
    pub fn has(&self, constraint: Constraint) -> bool {
        match constraint {
            Constraint::Ttft => self.slo.ttft.is_some(),
            Constraint::Tpot => self.slo.tpot.is_some(),
            Constraint::Quality => self.quality_min.is_some(),
            Constraint::Budget => self.budget.usd.is_some() || self.budget.tokens.is_some(),
        }
    }

    /// These, where nothing may be looser than others have it.
    pub fn within(&self, others: &Constraints) -> Constraints {
        fn least<T: PartialOrd>(own: Option<T>, other: Option<T>) -> Option<T> {
            match (own, other) {
                (Some(own), Some(other)) => Some(if other < own { other } else { own }),
                (own, other) => own.or(other),
            }
        }
        let (slo, budget) = (&self.slo, &self.budget);
        Constraints {
            slo: Slo { ttft: least(slo.ttft, others.slo.ttft), tpot: least(slo.tpot, others.slo.tpot) },
            budget: Budget {
                usd: least(budget.usd, others.budget.usd),
                tokens: least(budget.tokens, others.budget.tokens),
            },
            quality_min: least(self.quality_min.map(|q| -q), others.quality_min.map(|q| -q)).map(|q| -q),
            confidence: self.confidence.max(others.confidence),
            mode: if others.mode == Mode::Strict { Mode::Strict } else { self.mode },
            order: self.order,
        }
    }
}

/// When an instance counts as saturated, and what happens to a request where every candidate does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overload {
    /// What happens.
    pub action: OverloadAction,
    /// Saturated from so many waiting requests on.
    pub waiting_per_instance: Option<f64>,
    /// Saturated if the first token is expected later than this.
    pub ttft: Option<Duration>,
}

/// What happens to a request where every candidate is saturated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverloadAction {
    /// The best of them serves it.
    #[default]
    Serve,
    /// It is refused.
    Shed,
}
