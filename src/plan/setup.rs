//! Setups: how every model is deployed.

/// How one model is deployed: so many copies, each of so many shards, each with a share of a GPU of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Choice {
    /// Index of the GPU kind, of all copies.
    pub kind: usize,
    /// Shards of a copy, each on another GPU (tensor parallelism).
    pub tensor_parallel: u32,
    /// Compute of a GPU that each shard may use, percent: a cap (NVIDIA MPS active threads), not a reservation.
    pub share_percent: u32,
    /// Copies; 0 for a model that is not deployed, whose other fields are 0.
    pub replicas: u32,
}

impl Choice {
    /// The model is not deployed.
    pub const NONE: Choice = Choice { kind: 0, tensor_parallel: 0, share_percent: 0, replicas: 0 };

    /// Compute of all shards of all copies, percent of a GPU.
    pub fn compute_percent(&self) -> u32 {
        self.tensor_parallel * self.share_percent * self.replicas
    }
}

/// One choice per model, in the order of the problem's models.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Setup(pub Vec<Choice>);

/// Where the shards of a setup are: `gpus[model][copy]` lists the GPU of each shard. GPUs are numbered over all kinds, in the
/// order of the problem.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Placement {
    /// GPUs by model, copy and shard.
    pub gpus: Vec<Vec<Vec<usize>>>,
}
