//! Limits of times over the rates, and budgets: ours, the paper's filters, and nothing.

use anyhow::Result;

use super::{Grid, MODES, Study, UNIFORM, published_slo};
use crate::contenders::{self, Knobs, LabInputs};
use crate::entrant::Entrant;
use crate::ground::Demand;
use routebalance_core::fleet::Mode;

/// Rate of the published budgets.
const BUDGET_RATE: f64 = 16.0;
/// Shares of requests with a budget, as published, and their names.
const SHARES: [(f64, &str); 3] = [(0.30, "budgets 30 %"), (0.45, "budgets 45 %"), (0.75, "budgets 75 %")];

pub(super) fn build(study: &mut Study<'_>) -> Result<()> {
    let slo = Demand { slo: published_slo(), ..Demand::default() };
    family(study, &Grid { variant: "slo", demand: slo, ..Grid::published() })?;
    for (budgets, variant) in SHARES {
        let demand = Demand { budgets, ..Demand::default() };
        family(study, &Grid { variant, demand, rates: vec![Some(BUDGET_RATE)], ..Grid::published() })?;
    }
    Ok(())
}

/// Everybody under one demand.
fn family(study: &mut Study<'_>, grid: &Grid<'_>) -> Result<()> {
    let ours = |setting: &'static str| {
        move |inputs: &LabInputs<'_>| -> Result<Vec<Entrant>> {
            let all = contenders::entrants("routebalance", Knobs::Headline, &[UNIFORM], inputs)?;
            Ok(all.into_iter().map(|entrant| Entrant { setting: setting.to_owned(), ..entrant }).collect())
        }
    };
    for (setting, mode) in MODES {
        study.add_made(&Grid { demand: Demand { mode, ..grid.demand }, ..grid.clone() }, ours(setting))?;
    }
    // What would be had without: the demand is measured, and nobody is told of it.
    let unheard = Demand { mode: Mode::Relaxed, unheard: true, ..grid.demand };
    study.add_made(&Grid { demand: unheard, ..grid.clone() }, ours("no admission"))?;
    study.add_made(grid, |inputs| Ok(contenders::filtered(UNIFORM, inputs)))
}
