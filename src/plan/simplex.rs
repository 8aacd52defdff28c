//! A small linear programme whose columns are found as they are needed: maximise `sum cost * x` with `sum column * x = right` and
//! `x >= 0`, by the revised simplex method with a dense inverse (Dantzig and Orchard-Hays 1954). A dozen rows.

/// A column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Column {
    pub(super) cost: f64,
    /// One entry per row.
    pub(super) entries: Vec<f64>,
    /// What it stands for.
    pub(super) kind: Kind,
}

/// What a column stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A way to assign the prompts.
    Assignment,
    /// A share of the requests at one model.
    Share,
    /// Room that is left.
    Slack,
    /// What is missing, at a price beyond all others.
    Excess,
}

/// A feasible basis.
#[derive(Clone, Debug)]
pub(super) struct Basis {
    columns: Vec<Column>,
    /// Rows of the inverse.
    inverse: Vec<Vec<f64>>,
    values: Vec<f64>,
    pivots: usize,
}

/// Entries below this are rounding.
const LEAST_PIVOT: f64 = 1e-9;
/// Pivots after which the inverse is computed anew.
const FRESH_AFTER: usize = 64;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Basis {
    /// A basis of these columns; `None` if they are dependent or not feasible.
    pub(super) fn new(columns: Vec<Column>, right: &[f64]) -> Option<Basis> {
        let inverse = invert(&columns)?;
        let values: Vec<f64> = inverse.iter().map(|row| dot(row, right)).collect();
        let feasible = values.len() == right.len() && values.iter().all(|v| *v >= -LEAST_PIVOT);
        feasible.then(|| Basis { columns, inverse, values: values.iter().map(|v| v.max(0.0)).collect(), pivots: 0 })
    }

    /// What one unit of each row's right side is worth.
    pub(super) fn prices(&self) -> Vec<f64> {
        let mut prices = vec![0.0; self.values.len()];
        for (column, row) in self.columns.iter().zip(&self.inverse) {
            for (price, entry) in prices.iter_mut().zip(row) {
                *price += column.cost * entry;
            }
        }
        prices
    }

    /// What the solution is worth.
    pub(super) fn value(&self) -> f64 {
        self.solution().map(|(column, value)| column.cost * value).sum()
    }

    /// The basis' columns and how much of each is used.
    pub(super) fn solution(&self) -> impl Iterator<Item = (&Column, f64)> {
        self.columns.iter().zip(self.values.iter().copied())
    }

    /// How much of a kind of column is used.
    pub(super) fn amount(&self, kind: Kind) -> f64 {
        self.solution().filter(|(column, _)| column.kind == kind).map(|(_, amount)| amount).sum()
    }

    /// Brings a column in, for the one that is used up first. False if nothing is: then the column is not what it should be.
    pub(super) fn enter(&mut self, column: Column, right: &[f64]) -> bool {
        let direction: Vec<f64> = self.inverse.iter().map(|row| dot(row, &column.entries)).collect();
        let mut leaving: Option<(usize, f64, f64)> = None;
        for (row, (d, value)) in direction.iter().zip(&self.values).enumerate() {
            if *d <= LEAST_PIVOT {
                continue;
            }
            let ratio = value / d;
            // Of those that are used up at once, the one with the largest entry keeps the inverse accurate.
            let better = leaving.is_none_or(|(_, least, pivot)| {
                ratio < least - LEAST_PIVOT || (ratio < least + LEAST_PIVOT && *d > pivot)
            });
            if better {
                leaving = Some((row, ratio, *d));
            }
        }
        let Some((row, ratio, pivot)) = leaving else { return false };
        let Some(pivot_row) = self.inverse.get_mut(row) else { return false };
        pivot_row.iter_mut().for_each(|entry| *entry /= pivot);
        let pivot_row = pivot_row.clone();
        for (r, (inverse, (value, d))) in
            self.inverse.iter_mut().zip(self.values.iter_mut().zip(&direction)).enumerate()
        {
            if r == row {
                *value = ratio.max(0.0);
            } else {
                *value = (*value - d * ratio).max(0.0);
                inverse.iter_mut().zip(&pivot_row).for_each(|(entry, p)| *entry -= d * p);
            }
        }
        if let Some(place) = self.columns.get_mut(row) {
            *place = column;
        }
        self.pivots = self.pivots.saturating_add(1);
        if self.pivots.checked_rem(FRESH_AFTER) == Some(0)
            && let Some(inverse) = invert(&self.columns)
        {
            self.values = inverse.iter().map(|row| dot(row, right).max(0.0)).collect();
            self.inverse = inverse;
        }
        true
    }
}

/// The inverse of the matrix of columns, by Gauss and Jordan with pivots from the whole column.
fn invert(columns: &[Column]) -> Option<Vec<Vec<f64>>> {
    let n = columns.len();
    if columns.iter().any(|c| c.entries.len() != n) {
        return None;
    }
    let unit = |i: usize| (0..n).map(move |j| if i == j { 1.0 } else { 0.0 });
    let row = |i: usize| columns.iter().filter_map(move |c| c.entries.get(i).copied()).chain(unit(i)).collect();
    let mut rows: Vec<Vec<f64>> = (0..n).map(row).collect();
    for i in 0..n {
        let size = |row: &Vec<f64>| row.get(i).copied().unwrap_or(0.0).abs();
        let at = (i..n).max_by(|a, b| {
            let size_of = |r: &usize| rows.get(*r).map_or(0.0, size);
            size_of(a).total_cmp(&size_of(b))
        })?;
        rows.swap(i, at);
        let pivot_row = rows.get_mut(i)?;
        let pivot = *pivot_row.get(i)?;
        if pivot.abs() < LEAST_PIVOT {
            return None;
        }
        pivot_row.iter_mut().for_each(|entry| *entry /= pivot);
        let pivot_row = pivot_row.clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(r, _)| *r != i) {
            let factor = *row.get(i)?;
            if factor != 0.0 {
                row.iter_mut().zip(&pivot_row).for_each(|(entry, p)| *entry -= factor * p);
            }
        }
    }
    rows.iter().map(|row| row.get(n..).map(<[f64]>::to_vec)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use routebalance_core::random::Random;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn slack(row: usize, rows: usize) -> Column {
        Column { cost: 0.0, entries: (0..rows).map(|r| if r == row { 1.0 } else { 0.0 }).collect(), kind: Kind::Slack }
    }

    /// Fills knapsacks from a list of columns, until none is worth more than it costs.
    fn solve(columns: &[Column], right: &[f64]) -> Basis {
        let mut basis = Basis::new((0..right.len()).map(|r| slack(r, right.len())).collect(), right).unwrap();
        for _ in 0..1_000 {
            let prices = basis.prices();
            let gain = |c: &Column| c.cost - dot(&prices, &c.entries);
            let slacks: Vec<Column> = (0..right.len()).map(|r| slack(r, right.len())).collect();
            let best = columns.iter().chain(&slacks).max_by(|a, b| gain(a).total_cmp(&gain(b))).unwrap();
            if gain(best) < 1e-9 {
                return basis;
            }
            assert!(basis.enter(best.clone(), right), "bounded");
        }
        panic!("no end");
    }

    #[test]
    fn small_programmes_end_at_their_dual() {
        let mut random = Random::new(8);
        for case in 0..60 {
            let rows = 2 + random.below(5);
            let right: Vec<f64> = (0..rows).map(|_| 0.5 + random.uniform()).collect();
            let column = |random: &mut Random| Column {
                cost: random.uniform(),
                entries: (0..rows).map(|_| 0.05 + random.uniform()).collect(),
                kind: Kind::Share,
            };
            let columns: Vec<Column> = (0..30).map(|_| column(&mut random)).collect();
            let basis = solve(&columns, &right);
            // The dual is feasible and has the same value: no solution is better.
            let prices = basis.prices();
            assert!(prices.iter().all(|p| *p >= -1e-9), "case {case}: {prices:?}");
            assert!(columns.iter().all(|c| c.cost <= dot(&prices, &c.entries) + 1e-8), "case {case}");
            assert!((dot(&prices, &right) - basis.value()).abs() < 1e-8, "case {case}");
            for (r, right) in right.iter().enumerate() {
                let used: f64 = basis.solution().map(|(c, x)| c.entries[r] * x).sum();
                assert!((used - right).abs() < 1e-8, "case {case}");
            }
        }
    }

    #[test]
    fn what_is_no_basis_is_none() {
        assert!(Basis::new(vec![slack(0, 2), slack(0, 2)], &[1.0, 1.0]).is_none(), "dependent");
        assert!(Basis::new(vec![slack(0, 2), slack(1, 2)], &[1.0, -1.0]).is_none(), "not feasible");
        assert!(Basis::new(vec![slack(0, 2)], &[1.0]).is_none(), "not square");
    }
}
