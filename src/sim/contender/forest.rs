//! Gradient-boosted regression trees as something to ask; the lab's tools grow them.

/// Splits from root to leaf: the published depth.
pub const DEPTH: usize = 6;
/// Splits of a tree.
pub const SPLITS: usize = (1 << DEPTH) - 1;
/// Places for inputs: with a power of two, and one place more than there are splits, no look-up has to be checked.
const PLACES: usize = 32;

/// Inputs of a forest, at most [`INPUTS_MAX`]; those that are not given are 0.
pub type Inputs = [f32; PLACES];

/// Inputs that a forest can have.
pub const INPUTS_MAX: usize = PLACES;

/// A complete tree: where it is less deep, its splits lead to equal leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// Index of the input of each split; the children of split `i` are `2 i + 1` and `2 i + 2`.
    pub inputs: [u8; SPLITS + 1],
    /// What is greater goes right.
    pub thresholds: [f32; SPLITS + 1],
    /// From left to right.
    pub leaves: [f32; SPLITS + 1],
}

/// One leaf, 0.
impl Default for Tree {
    fn default() -> Tree {
        Tree { inputs: [0; SPLITS + 1], thresholds: [f32::INFINITY; SPLITS + 1], leaves: [0.0; SPLITS + 1] }
    }
}

impl Tree {
    #[inline]
    fn prediction(&self, inputs: &Inputs) -> f32 {
        let mut i = 0_usize;
        for _ in 0..DEPTH {
            let input = self.inputs.get(i & SPLITS).copied().unwrap_or_default();
            let threshold = self.thresholds.get(i & SPLITS).copied().unwrap_or_default();
            let value = inputs.get(usize::from(input) & (PLACES - 1)).copied().unwrap_or_default();
            i = 2 * i + 1 + usize::from(value > threshold);
        }
        self.leaves.get(i.wrapping_sub(SPLITS) & SPLITS).copied().unwrap_or_default()
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
    pub fn prediction(&self, inputs: &Inputs) -> f64 {
        f64::from(self.trees.iter().fold(self.base, |sum, tree| sum + tree.prediction(inputs)))
    }

    /// What it says of each of these inputs. A tree is looked up once for all of them, and one does not wait for the other.
    pub fn predictions(&self, inputs: &[Inputs]) -> Vec<f64> {
        let mut sums = vec![self.base; inputs.len()];
        for tree in &self.trees {
            sums.iter_mut().zip(inputs).for_each(|(sum, inputs)| *sum += tree.prediction(inputs));
        }
        sums.into_iter().map(f64::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn what_is_greater_goes_right() {
        let mut tree = Tree::default();
        (tree.inputs[0], tree.thresholds[0]) = (1, 5.0);
        (tree.inputs[2], tree.thresholds[2]) = (0, 8.0);
        tree.leaves[0] = 1.0;
        tree.leaves[32] = 2.0;
        tree.leaves[48] = 3.0;
        let forest = Forest { base: 10.0, trees: vec![tree.clone(), tree] };
        let rows = [((9.0, 5.0), 12.0), ((8.0, 5.1), 14.0), ((8.1, 5.1), 16.0), ((9.0, f32::NAN), 12.0)];
        let inputs = rows.map(|((first, second), _)| {
            let mut inputs = Inputs::default();
            (inputs[0], inputs[1]) = (first, second);
            inputs
        });
        assert_eq!(forest.predictions(&inputs), rows.map(|(_, expected)| expected));
        assert_eq!(inputs.map(|i| forest.prediction(&i)), rows.map(|(_, expected)| expected));
    }
}
