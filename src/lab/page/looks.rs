//! How each contender looks, the same in every picture of a page.

use std::collections::BTreeMap;

use super::scene::{Ink, MARKS, MODELS, Mark, TONES};
use crate::cell::Cell;
use crate::summary::{ORACLE, OURS, PAPER, Summary, contenders};

/// Colours and marks of the contenders and models of a result.
#[derive(Clone, Debug)]
pub(super) struct Looks {
    contenders: BTreeMap<String, (Ink, Mark)>,
    models: Vec<String>,
}

impl Looks {
    /// Of all contenders and models that occur.
    pub(super) fn new(summaries: &[Summary]) -> Looks {
        let all: Vec<&Summary> = summaries.iter().collect();
        let (mut kin, mut others) = (0, 0);
        let look = |name: &str| match name {
            OURS => (Ink::Ours, Mark::Circle),
            PAPER => (Ink::Paper, Mark::Diamond),
            ORACLE => (Ink::Oracle, Mark::Circle),
            _ if name.starts_with(PAPER) => {
                kin += 1;
                (Ink::Kin, MARKS[(kin - 1) % MARKS.len()])
            }
            // Tones and marks come round at different times, so that 42 looks differ.
            _ => {
                others += 1;
                (Ink::Tone((others - 1) % TONES), MARKS[(others - 1) % MARKS.len()])
            }
        };
        let contenders = contenders(&all);
        let looks: Vec<(Ink, Mark)> = contenders.iter().copied().map(look).collect();
        let contenders = contenders.into_iter().map(str::to_owned).zip(looks).collect();
        let cells = summaries.iter().flat_map(|summary| &summary.cells);
        Looks { contenders, models: models(cells.copied()) }
    }

    /// A contender's colour.
    pub(super) fn ink(&self, contender: &str) -> Ink {
        self.contenders.get(contender).map_or(Ink::Muted, |(ink, _)| *ink)
    }

    /// A contender's mark.
    pub(super) fn mark(&self, contender: &str) -> Mark {
        self.contenders.get(contender).map_or(Mark::Circle, |(_, mark)| *mark)
    }

    /// All models, the smallest first.
    pub(super) fn models(&self) -> &[String] {
        &self.models
    }

    /// A model's colour: the larger, the darker.
    pub(super) fn model_ink(&self, model: &str) -> Ink {
        let at = self.models.iter().position(|name| name == model).unwrap_or(0);
        Ink::Model((at * (MODELS - 1)).checked_div(self.models.len().saturating_sub(1)).unwrap_or(MODELS / 2))
    }
}

/// The models of some cells, by the billions of parameters in their names (`qwen2.5-72b`), else by name.
fn models<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<String> {
    let mut names: Vec<String> = cells.flat_map(|cell| cell.mix.keys().cloned()).collect();
    names.sort();
    names.dedup();
    names.sort_by(|a, b| billions(a).total_cmp(&billions(b)));
    names
}

fn billions(model: &str) -> f64 {
    let lower = model.to_lowercase();
    let parts = lower.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    parts.filter_map(|part| part.strip_suffix('b')?.parse().ok()).next().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_ordered_by_size() {
        let rows = [("Qwen2.5-72B-Instruct", 72.0), ("qwen2.5-0.5b", 0.5), ("small", 0.0), ("b", 0.0)];
        for (name, size) in rows {
            assert_eq!(billions(name), size, "{name}");
        }
    }
}
