//! Gradient-boosted regression trees as something to ask; the lab's tools grow them.

/// Splits from root to leaf: the published depth.
pub const DEPTH: usize = 6;
/// Splits of a tree.
pub const SPLITS: usize = (1 << DEPTH) - 1;

/// A complete tree: where it is less deep, its splits lead to equal leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// Index of the input and threshold; what is greater goes right. The children of split `i` are `2 i + 1` and `2 i + 2`.
    pub splits: [(u8, f32); SPLITS],
    /// From left to right.
    pub leaves: [f32; SPLITS + 1],
}

impl Tree {
    fn of(&self, inputs: &[f32]) -> f32 {
        let mut i = 0_usize;
        for _ in 0..DEPTH {
            let (input, threshold) = self.splits.get(i).copied().unwrap_or_default();
            let right = inputs.get(usize::from(input)).is_some_and(|value| *value > threshold);
            i = i.saturating_mul(2).saturating_add(1).saturating_add(usize::from(right));
        }
        self.leaves.get(i.saturating_sub(SPLITS)).copied().unwrap_or_default()
    }
}

/// A sum of trees.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forest {
    /// What it says without trees.
    pub base: f32,
    /// Its trees.
    pub trees: Vec<Tree>,
}

impl Forest {
    /// What it says of these inputs.
    pub fn of(&self, inputs: &[f32]) -> f64 {
        f64::from(self.base + self.trees.iter().map(|tree| tree.of(inputs)).sum::<f32>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn what_is_greater_goes_right() {
        let mut tree = Tree { splits: [(0, f32::MAX); SPLITS], leaves: [0.0; SPLITS + 1] };
        tree.splits[0] = (1, 5.0);
        tree.leaves[0] = 1.0;
        tree.leaves[32] = 2.0;
        let forest = Forest { base: 10.0, trees: vec![tree.clone(), tree] };
        for (inputs, expected) in [([9.0, 5.0], 12.0), ([9.0, 5.1], 14.0), ([9.0, f32::NAN], 12.0)] {
            assert_eq!(forest.of(&inputs), expected, "{inputs:?}");
        }
        assert_eq!(forest.of(&[]), 12.0, "what is not there is not greater");
    }
}
