//! Instances that share GPUs: each has a cap of the compute of its GPUs, and whoever is at work slows its neighbours down.

use routebalance_core::fleet::InstanceId;

/// One instance's part of GPUs.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its GPUs, one for each shard.
    pub gpus: Vec<usize>,
    /// Its cap of each of them, 0 to 1.
    pub cap: f64,
}

/// Who shares what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sharing {
    interference: f64,
    parts: Vec<Part>,
    /// For each instance, those that have a GPU in common with it.
    neighbours: Vec<Vec<InstanceId>>,
}

impl Sharing {
    /// These parts, in the order of the instances. `interference` is by how much a neighbour of a cap of 1 that is at work slows
    /// down what it shares no compute with: by caches and memory bandwidth.
    pub fn new(parts: Vec<Part>, interference: f64) -> Sharing {
        let meet = |a: &Part, b: &Part| a.gpus.iter().any(|gpu| b.gpus.contains(gpu));
        let neighbours_of = |(i, part): (usize, &Part)| -> Vec<InstanceId> {
            parts
                .iter()
                .enumerate()
                .filter(|(j, other)| *j != i && meet(part, other))
                .map(|(j, _)| InstanceId::new(j))
                .collect()
        };
        let neighbours = parts.iter().enumerate().map(neighbours_of).collect();
        Sharing { interference, parts, neighbours }
    }

    /// Instances that have a GPU in common with this one.
    pub fn neighbours(&self, instance: InstanceId) -> &[InstanceId] {
        self.neighbours.get(instance.index()).map_or(&[], Vec::as_slice)
    }

    /// By how much an instance is slowed down while these are at work: on each of its GPUs by `1 + interference * C`, where C are
    /// the caps of all others there that are at work, times `max(1, cap + C)` where that is more than the GPU has; its slowest shard
    /// counts, since all wait for each other. Whether it is at work itself does not matter.
    pub fn slow_down(&self, instance: InstanceId, at_work: &[bool]) -> f64 {
        let Some(part) = self.parts.get(instance.index()) else { return 1.0 };
        let works = |other: &InstanceId| at_work.get(other.index()).copied().unwrap_or_default();
        let slow_down_on = |gpu: &usize| {
            let others = self.neighbours(instance).iter().filter(|other| works(other));
            let here =
                others.filter_map(|other| self.parts.get(other.index())).filter(|other| other.gpus.contains(gpu));
            let caps: f64 = here.map(|other| other.cap).sum();
            (1.0 + self.interference * caps) * (part.cap + caps).max(1.0)
        };
        part.gpus.iter().map(slow_down_on).fold(1.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn the_slowest_shard_counts() {
        let part = |gpus: &[usize], cap: f64| Part { gpus: gpus.to_vec(), cap };
        // 0 has GPUs 0 and 1; 1 shares the first, 2 and 3 the second; 4 is alone.
        let parts = vec![part(&[0, 1], 0.5), part(&[0], 0.4), part(&[1], 0.3), part(&[1, 2], 0.4), part(&[3], 1.0)];
        let sharing = Sharing::new(parts, 0.25);
        let neighbours = |instance| sharing.neighbours(InstanceId::new(instance));
        assert_eq!(neighbours(0), [1, 2, 3].map(InstanceId::new));
        assert_eq!(neighbours(2), [0, 3].map(InstanceId::new));
        assert!(neighbours(4).is_empty() && neighbours(9).is_empty());
        let rows: [(usize, [bool; 5], f64); 7] = [
            (0, [true, false, false, false, true], 1.0),
            (0, [false, true, false, false, false], 1.1),
            (0, [true, true, true, false, false], 1.1),
            (0, [true, true, true, true, true], (1.0 + 0.25 * 0.7) * 1.2),
            (3, [true, true, false, true, true], 1.125),
            (3, [true, true, true, false, true], (1.0 + 0.25 * 0.8) * 1.2),
            (4, [true; 5], 1.0),
        ];
        for (instance, at_work, expected) in rows {
            let factor = sharing.slow_down(InstanceId::new(instance), &at_work);
            assert!((factor - expected).abs() < 1e-12, "{instance} {at_work:?}: {factor}");
        }
        assert_eq!(sharing.slow_down(InstanceId::new(9), &[true; 5]), 1.0);
    }
}
