//! The best routing of one setup, with a bound that certifies it.
//!
//! Maximise the score of the best assignment with shares `w` of the prompts per model, so that `sum_i h_ik(w_i) <= 1` for every
//! limit `k` ([`Term`]). The score is concave and piecewise linear in `w`, so this is a linear programme with a column for every
//! assignment and for every share of a model; both are found by prices (Dantzig and Wolfe 1960): for prices `alpha` of the models
//! and multipliers `beta` of the limits, the best assignment is `argmax (score - alpha)` prompt by prompt (RouterWise; PUBLISHED.md,
//! section 17), the best share of a model maximises `alpha_i x - sum_k beta_k h_ik(x)`, and the sum of the two is an upper bound whatever
//! the prices are. Prices are taken from between the best so far and the programme's (Wentges 1997): the programme's own swing widely at
//! first.
//!
//! Where `h` is not convex, which happens to limits of quantiles, the programme mixes shares of one model that no single share
//! equals. Then the shares' ranges are split until bound and routing meet (branch and bound).

use super::curve::Term;
use super::scores::{Assignment, Scores};
use super::simplex::{Basis, Column, Kind};

/// A routing of a setup.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Solved {
    /// Share of the prompts per model.
    pub(super) fractions: Vec<f64>,
    /// Prices at which the bound was found, score per prompt.
    pub(super) prices: Vec<f64>,
    /// What a limit is worth: score per unit of the limit.
    pub(super) multipliers: Vec<f64>,
    /// Its score.
    pub(super) score: f64,
    /// No routing has a higher score.
    pub(super) bound: f64,
}

/// Solves setups one after the other, each from what the last one has taught.
#[derive(Clone, Debug)]
pub(super) struct Solver<'a> {
    scores: &'a Scores,
    /// Assignments that were good lately.
    known: Vec<Assignment>,
    /// Where in `known` the next one goes.
    next: usize,
    /// Prices, then multipliers, of the best bound of the last setup.
    center: Vec<f64>,
    /// What a unit of a limit that is exceeded costs: no score makes up for it.
    excess_cost: f64,
    range: (f64, f64),
    /// The basis of the last programme.
    last: Vec<Start>,
}

/// Assignments that are kept.
const KNOWN_MAX: usize = 64;
/// Rounds of new columns for one programme.
const ROUNDS_MAX: usize = 400;
/// Pivots between two rounds.
const PIVOTS_MAX: usize = 400;
/// Programmes for one setup.
const NODES_MAX: usize = 400;
/// Gains below this are rounding.
const LEAST_GAIN: f64 = 1e-10;
/// Share of the programme's own prices in those that are asked.
const OWN_PRICES: f64 = 0.5;
/// A limit holds if it is exceeded by no more than this part of it.
const TOLERANCE: f64 = 1e-9;
/// What is exceeded by less than this is not exceeded, of shares and of limits.
const EXCESS_LEAST: f64 = 1e-7;

/// A column of a basis, without what belongs to its setup.
#[derive(Clone, Debug)]
enum Start {
    Assignment(Column),
    Share(usize, f64),
    Room(usize, f64),
}

/// The programme with every share in a range.
#[derive(Clone, Debug)]
struct Node {
    ranges: Vec<(f64, f64)>,
    /// Of its parent.
    bound: f64,
}

/// A programme's solution.
struct Relaxed {
    fractions: Vec<f64>,
    /// What the programme believes each model adds to all limits together.
    believed: Vec<f64>,
    value: f64,
    bound: f64,
    center: Vec<f64>,
    feasible: bool,
}

/// Where the columns of one programme are looked for.
struct Pricing {
    /// Prices and multipliers of the lowest bound.
    center: Vec<f64>,
    bound: f64,
    /// Columns of shares that have gained.
    shares: Vec<Column>,
}

/// What the columns of a basis come to.
struct Mixture {
    fractions: Vec<f64>,
    believed: Vec<f64>,
    value: f64,
}

impl<'a> Solver<'a> {
    pub(super) fn new(scores: &'a Scores) -> Solver<'a> {
        let models = scores.models();
        let range = scores.range();
        let mut solver = Solver {
            scores,
            known: Vec::new(),
            next: 0,
            center: Vec::new(),
            excess_cost: 1e3 * (range.1 - range.0).max(1e-3),
            range,
            last: Vec::new(),
        };
        let only = |i: usize| (0..models).map(|j| if i == j { 0.0 } else { f64::INFINITY }).collect::<Vec<f64>>();
        for i in 0..models {
            solver.learn(scores.assign(&only(i)));
        }
        solver.learn(scores.assign(&vec![0.0; models]));
        solver
    }

    fn learn(&mut self, assignment: Assignment) {
        // The first ones, a model each and the best of all, stay.
        let kept = self.scores.models().saturating_add(1);
        if self.known.len() < KNOWN_MAX.max(kept.saturating_add(1)) {
            self.known.push(assignment);
            return;
        }
        self.next = if self.next < kept || self.next >= self.known.len() { kept } else { self.next };
        if let Some(place) = self.known.get_mut(self.next) {
            *place = assignment;
        }
        self.next = self.next.saturating_add(1);
    }

    /// The best routing, to within a gap; `None` if there is none.
    pub(super) fn solve(&mut self, terms: &[Term], limits: usize, gap: f64) -> Option<Solved> {
        let cost = self.excess_cost;
        // What it costs to exceed a limit must be more than any score gains by it: by how much more shows only in the result.
        for dearer in [1.0, 1e3] {
            self.excess_cost = dearer * cost;
            let (solved, certain) = self.branch(terms, limits, gap);
            self.excess_cost = cost;
            if solved.is_some() || certain {
                return solved;
            }
        }
        None
    }

    /// [`Solver::solve`] at the excess' cost, and whether it is certain that there is none if none was found.
    fn branch(&mut self, terms: &[Term], limits: usize, gap: f64) -> (Option<Solved>, bool) {
        let ranges: Vec<(f64, f64)> = terms.iter().map(|t| (0.0, t.share_max())).collect();
        if ranges.iter().map(|r| r.1).sum::<f64>() < 1.0 {
            return (None, true);
        }
        // Where the best model of every prompt keeps the limits, there is nothing to solve.
        let free = self.known.get(terms.len()).filter(|free| holds(terms, limits, &free.shares));
        if let Some(free) = free {
            let free = Solved {
                fractions: free.shares.clone(),
                prices: vec![0.0; terms.len()],
                multipliers: vec![0.0; limits],
                score: free.score,
                bound: free.score,
            };
            return (Some(free), true);
        }
        let mut best: Option<Solved> = None;
        let mut open = vec![Node { ranges, bound: f64::INFINITY }];
        // The highest bound of what is not looked into any more.
        let mut left = f64::NEG_INFINITY;
        for _ in 0..NODES_MAX {
            let Some(at) = highest(&open) else { break };
            let node = open.swap_remove(at);
            let enough = best.as_ref().map_or(f64::NEG_INFINITY, |b| b.score + gap);
            if node.bound <= enough {
                left = left.max(node.bound);
                continue;
            }
            let relaxed = self.relaxed(terms, limits, &node, 0.5 * gap, enough);
            let bound = relaxed.bound.min(node.bound);
            if !relaxed.feasible {
                left = left.max(bound);
                continue;
            }
            let lowest = best.as_ref().map_or(f64::NEG_INFINITY, |b| b.score);
            if let Some((fractions, score)) = self.held(terms, limits, &relaxed, best.as_ref())
                && score > lowest
            {
                let prices = relaxed.center.iter().take(terms.len()).copied().collect();
                let multipliers = relaxed.center.iter().skip(terms.len()).copied().collect();
                best = Some(Solved { fractions, prices, multipliers, score, bound });
            }
            if best.as_ref().is_some_and(|b| bound <= b.score + gap) {
                left = left.max(bound);
                continue;
            }
            match split(terms, &node, &relaxed, bound) {
                Some(halves) => open.extend(halves),
                None => left = left.max(bound),
            }
        }
        let bound = open.iter().map(|n| n.bound).fold(left, f64::max);
        // Where no routing keeps the limits, what is missing costs more than the scores are worth.
        let certain = bound < self.range.0 - gap;
        (best.map(|b| Solved { bound: bound.max(b.score), ..b }), certain)
    }

    /// A routing that keeps the limits, near the programme's: its own if it does, or the last one on the way from one that does.
    fn held(&self, terms: &[Term], limits: usize, relaxed: &Relaxed, best: Option<&Solved>) -> Option<(Vec<f64>, f64)> {
        if holds(terms, limits, &relaxed.fractions) {
            return Some((relaxed.fractions.clone(), relaxed.value));
        }
        let known = self.known.iter().filter(|a| holds(terms, limits, &a.shares));
        let known = known.max_by(|a, b| a.score.total_cmp(&b.score)).map(|a| (a.shares.clone(), a.score));
        let found = best.map(|b| (b.fractions.clone(), b.score));
        let (from, score) = [known, found].into_iter().flatten().max_by(|a, b| a.1.total_cmp(&b.1))?;
        let between = |t: f64| from.iter().zip(&relaxed.fractions).map(|(a, b)| a + t * (b - a)).collect::<Vec<f64>>();
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            if holds(terms, limits, &between(middle)) {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some((between(low), score + low * (relaxed.value - score)))
    }

    /// Solves a node's programme to within a gap, or until its bound is not above `enough`.
    fn relaxed(&mut self, terms: &[Term], limits: usize, node: &Node, gap: f64, enough: f64) -> Relaxed {
        let programme = Programme { terms, limits, ranges: &node.ranges, excess_cost: self.excess_cost };
        let right = programme.right();
        if self.center.len() != terms.len().saturating_add(limits) {
            self.center = vec![0.0; terms.len().saturating_add(limits)];
        }
        let mut pricing = Pricing { center: self.center.clone(), bound: f64::INFINITY, shares: Vec::new() };
        let again = Basis::new(programme.again(&self.last), &right);
        let mut basis = again.or_else(|| self.known.last().and_then(|a| Basis::new(programme.first(a), &right)));
        // The end of the loop is a bound that meets the value; rounds and pivots are limits on rounding's account only.
        for _ in 0..ROUNDS_MAX {
            let Some(basis) = &mut basis else { break };
            for _ in 0..PIVOTS_MAX {
                let prices = basis.prices();
                let Some(column) = programme.best(&prices, &self.known, &pricing.shares) else { break };
                if !basis.enter(column, &right) {
                    break;
                }
            }
            let bound = pricing.bound;
            let met = bound - basis.value() <= gap && basis.amount(Kind::Excess) < EXCESS_LEAST;
            if met || bound <= enough || bound < self.range.0 - gap || !self.finds(&programme, basis, &mut pricing) {
                break;
            }
        }
        let Pricing { center, bound, .. } = pricing;
        self.center.clone_from(&center);
        self.last = basis.iter().flat_map(Basis::solution).map(|(column, _)| programme.start(column)).collect();
        let Mixture { fractions, believed, value } = programme.mixture(basis.as_ref());
        let served = basis.is_some_and(|b| b.amount(Kind::Excess) < EXCESS_LEAST);
        let feasible = served && bound >= self.range.0 - gap;
        Relaxed { fractions, believed, value, bound, center, feasible }
    }

    /// Looks for columns that gain at a basis' prices, and lowers the bound on the way. False if there are none.
    fn finds(&mut self, programme: &Programme<'_>, basis: &Basis, pricing: &mut Pricing) -> bool {
        let terms = programme.terms;
        let prices = basis.prices();
        for own in [OWN_PRICES, 1.0] {
            let asked = programme.between(&pricing.center, &prices, own);
            let (alpha, beta) = asked.split_at(terms.len().min(asked.len()));
            let assignment = self.scores.assign(alpha);
            let mut value = gain_of(&assignment, alpha) + beta.iter().sum::<f64>();
            let mut is_found = false;
            for (i, term) in terms.iter().enumerate() {
                let range = programme.ranges.get(i).copied().unwrap_or_default();
                let price = alpha.get(i).copied().unwrap_or(0.0);
                let (share, worth) = term.best_share(price, beta, range);
                value += worth;
                let column = programme.share(i, share);
                if programme.gain(&column, &prices) > LEAST_GAIN {
                    pricing.shares.push(column);
                    is_found = true;
                }
            }
            let gain = gain_of(&assignment, prices.get(1..).unwrap_or_default());
            if gain - prices.first().copied().unwrap_or(0.0) > LEAST_GAIN {
                self.learn(assignment);
                is_found = true;
            }
            if value < pricing.bound {
                pricing.bound = value;
                pricing.center = asked;
            }
            if is_found {
                return true;
            }
        }
        false
    }
}

/// What an assignment is worth at prices of its models.
fn gain_of(assignment: &Assignment, alpha: &[f64]) -> f64 {
    assignment.score - assignment.shares.iter().zip(alpha).map(|(s, p)| s * p).sum::<f64>()
}

fn highest(open: &[Node]) -> Option<usize> {
    let by_bound = |a: &(usize, &Node), b: &(usize, &Node)| a.1.bound.total_cmp(&b.1.bound);
    open.iter().enumerate().max_by(by_bound).map(|(at, _)| at)
}

/// Whether shares keep the limits, and their profiles tell of them.
fn holds(terms: &[Term], limits: usize, shares: &[f64]) -> bool {
    let mut sum = vec![0.0; limits];
    let mut of = Vec::with_capacity(limits);
    for (term, share) in terms.iter().zip(shares) {
        if *share > term.share_max() + TOLERANCE {
            return false;
        }
        term.additions(*share, &mut of);
        sum.iter_mut().zip(&of).for_each(|(sum, of)| *sum += of);
    }
    sum.iter().all(|sum| *sum <= 1.0 + TOLERANCE)
}

/// Splits a range at the share of the model of which the programme believes most too little; `None` if of none.
fn split(terms: &[Term], node: &Node, relaxed: &Relaxed, bound: f64) -> Option<[Node; 2]> {
    let mut of = Vec::new();
    let missed = terms.iter().zip(&relaxed.fractions).zip(&relaxed.believed).map(|((term, share), believed)| {
        term.additions(*share, &mut of);
        of.iter().sum::<f64>() - believed
    });
    let (model, missed) = missed.enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let (least, most) = *node.ranges.get(model)?;
    let at = relaxed.fractions.get(model)?.clamp(least, most);
    // A split at an end would leave the range as it is.
    let at = if at - least < 1e-6 || most - at < 1e-6 { 0.5 * (least + most) } else { at };
    if missed <= EXCESS_LEAST || most - least < 1e-6 {
        return None;
    }
    let node_with = |range: (f64, f64)| {
        let mut ranges = node.ranges.clone();
        if let Some(place) = ranges.get_mut(model) {
            *place = range;
        }
        Node { ranges, bound }
    };
    Some([node_with((least, at)), node_with((at, most))])
}

/// Rows: one assignment; for each model, what is assigned is within its share; for each model, one share; the limits.
struct Programme<'a> {
    terms: &'a [Term],
    limits: usize,
    ranges: &'a [(f64, f64)],
    excess_cost: f64,
}

impl Programme<'_> {
    fn models(&self) -> usize {
        self.terms.len()
    }

    fn rows(&self) -> usize {
        1 + 2 * self.models() + self.limits
    }

    fn right(&self) -> Vec<f64> {
        let zeros = std::iter::repeat_n(0.0, self.models());
        let ones = std::iter::repeat_n(1.0, self.models() + self.limits);
        std::iter::once(1.0).chain(zeros).chain(ones).collect()
    }

    fn assignment(&self, assignment: &Assignment) -> Column {
        let rest = std::iter::repeat_n(0.0, self.models() + self.limits);
        let entries = std::iter::once(1.0).chain(assignment.shares.iter().copied()).chain(rest).collect();
        Column { cost: assignment.score, entries, kind: Kind::Assignment }
    }

    fn share(&self, model: usize, share: f64) -> Column {
        let mut of = Vec::with_capacity(self.limits);
        if let Some(term) = self.terms.get(model) {
            term.additions(share, &mut of);
        }
        let in_row_of_model = |value: f64| (0..self.models()).map(move |m| if m == model { value } else { 0.0 });
        let entries =
            std::iter::once(0.0).chain(in_row_of_model(-share)).chain(in_row_of_model(1.0)).chain(of).collect();
        Column { cost: 0.0, entries, kind: Kind::Share }
    }

    /// Room in a row, or with `sign` -1 what is missing there.
    fn room(&self, row: usize, sign: f64) -> Column {
        let entries = (0..self.rows()).map(|r| if r == row { sign } else { 0.0 }).collect();
        let missing = sign < 0.0;
        let cost = if missing { -self.excess_cost } else { 0.0 };
        Column { cost, entries, kind: if missing { Kind::Excess } else { Kind::Slack } }
    }

    /// Rows that have room.
    fn roomy(&self) -> impl Iterator<Item = usize> {
        let models = self.models();
        (1..=models).chain(1 + 2 * models..self.rows())
    }

    /// A basis to begin with: an assignment, shares that serve it if they can, and room or what is missing in all other rows.
    fn first(&self, assignment: &Assignment) -> Vec<Column> {
        /// Shares begin a little above what is assigned: a basis with many zeros takes many pivots.
        const ABOVE: f64 = 1e-3;
        let wanted = assignment.shares.iter().zip(self.ranges);
        let shares: Vec<f64> = wanted.map(|(w, (least, most))| (w + ABOVE).max(*least).min(*most)).collect();
        let mut columns: Vec<Column> = vec![self.assignment(assignment)];
        columns.extend(shares.iter().enumerate().map(|(model, share)| self.share(model, *share)));
        let mut used = vec![0.0; self.rows()];
        for column in &columns {
            used.iter_mut().zip(&column.entries).for_each(|(used, entry)| *used += entry);
        }
        let right = self.right();
        let missing = |row: usize| used.get(row).zip(right.get(row)).is_some_and(|(used, right)| used > right);
        let rooms = self.roomy().map(|row| self.room(row, if missing(row) { -1.0 } else { 1.0 }));
        columns.extend(rooms);
        columns
    }

    /// What of a column another setup's programme may begin with.
    fn start(&self, column: &Column) -> Start {
        let entry = |row: &(usize, &f64)| *row.1 != 0.0;
        match column.kind {
            Kind::Assignment => Start::Assignment(column.clone()),
            Kind::Share => {
                let of_models = column.entries.iter().enumerate().skip(1 + self.models()).take(self.models());
                let model =
                    of_models.into_iter().find(entry).map_or(0, |(row, _)| row.saturating_sub(1 + self.models()));
                Start::Share(model, -column.entries.get(1 + model).copied().unwrap_or(0.0))
            }
            Kind::Slack | Kind::Excess => {
                let (row, sign) = column.entries.iter().enumerate().find(entry).unwrap_or((0, &0.0));
                Start::Room(row, *sign)
            }
        }
    }

    /// The basis of another setup's programme, with this one's numbers.
    fn again(&self, last: &[Start]) -> Vec<Column> {
        let column = |start: &Start| match start {
            Start::Assignment(column) => column.clone(),
            Start::Share(model, share) => {
                let (least, most) = self.ranges.get(*model).copied().unwrap_or_default();
                self.share(*model, share.clamp(least, most))
            }
            Start::Room(row, sign) => self.room(*row, *sign),
        };
        last.iter().map(column).collect()
    }

    fn mixture(&self, basis: Option<&Basis>) -> Mixture {
        let models = self.models();
        let (mut fractions, mut believed, mut value) = (vec![0.0; models], vec![0.0; models], 0.0);
        for (column, amount) in basis.into_iter().flat_map(Basis::solution) {
            match column.kind {
                Kind::Assignment => {
                    value += column.cost * amount;
                    let shares = column.entries.iter().skip(1);
                    fractions.iter_mut().zip(shares).for_each(|(f, share)| *f += amount * share);
                }
                Kind::Share => {
                    let model = column.entries.iter().skip(1).take(models).zip(&mut believed);
                    let of_limits = column.entries.iter().skip(1 + 2 * models).sum::<f64>();
                    model.filter(|(entry, _)| **entry != 0.0).for_each(|(_, b)| *b += amount * of_limits);
                }
                Kind::Excess | Kind::Slack => {}
            }
        }
        Mixture { fractions, believed, value }
    }

    fn gain(&self, column: &Column, prices: &[f64]) -> f64 {
        column.cost - column.entries.iter().zip(prices).map(|(e, p)| e * p).sum::<f64>()
    }

    /// The column that gains most, of those that are known; `None` if none does.
    fn best(&self, prices: &[f64], known: &[Assignment], shares: &[Column]) -> Option<Column> {
        let of_row = |row: usize| prices.get(row).copied().unwrap_or(0.0);
        let alpha = prices.get(1..1 + self.models()).unwrap_or_default();
        let by_gain = |a: &(usize, f64), b: &(usize, f64)| a.1.total_cmp(&b.1);
        let assignment = known.iter().map(|a| gain_of(a, alpha)).enumerate().max_by(by_gain);
        let assignment = assignment.map(|(i, gain)| (i, gain - of_row(0)));
        let share = shares.iter().map(|c| self.gain(c, prices)).enumerate().max_by(by_gain);
        let room = self.roomy().map(|row| (row, -of_row(row))).max_by(by_gain);
        let missing = self.roomy().map(|row| (row, of_row(row) - self.excess_cost)).max_by(by_gain);
        let gain = |x: &Option<(usize, f64)>| x.map_or(f64::NEG_INFINITY, |(_, gain)| gain);
        let most = [&assignment, &share, &room, &missing].into_iter().map(gain).fold(LEAST_GAIN, f64::max);
        if most <= LEAST_GAIN {
            return None;
        }
        if gain(&assignment) >= most {
            return known.get(assignment?.0).map(|a| self.assignment(a));
        }
        if gain(&share) >= most {
            return shares.get(share?.0).cloned();
        }
        if gain(&room) >= most {
            return Some(self.room(room?.0, 1.0));
        }
        Some(self.room(missing?.0, -1.0))
    }

    /// Prices of models and multipliers of limits between the best so far and the programme's; at least 0.
    fn between(&self, center: &[f64], prices: &[f64], own: f64) -> Vec<f64> {
        let models = prices.iter().skip(1).take(self.models());
        let limits = prices.iter().skip(1 + 2 * self.models());
        let mixed = |(c, p): (&f64, &f64)| (c + own * (p - c)).max(0.0);
        center.iter().zip(models.chain(limits)).map(mixed).collect()
    }
}

#[cfg(test)]
mod tests;
