//! Parts of a plan file as written; nothing is checked beyond its type.

use std::fmt;
use std::path::PathBuf;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::planning::profiles::ProfileRow;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGpu {
    pub(super) kind: String,
    pub(super) count: usize,
    pub(super) memory_gb: f64,
    #[serde(default)]
    pub(super) usd_per_hour: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    pub(super) name: String,
    #[serde(default)]
    pub(super) parameters_billion: Option<f64>,
    #[serde(default)]
    pub(super) weights_gb: Option<f64>,
    #[serde(default)]
    pub(super) quality_prior: Option<f64>,
    #[serde(default)]
    pub(super) layers: Option<u32>,
    #[serde(default)]
    pub(super) kv_bytes_per_token: Option<u32>,
    #[serde(default)]
    pub(super) max_model_len: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMemory {
    pub(super) factor: f64,
    pub(super) fixed_gb: f64,
}

impl Default for RawMemory {
    fn default() -> Self {
        // Weights grow by a tenth when loaded; 4 GB hold activations, CUDA graphs and the least KV cache. An assumption, checked
        // against nobody's GPU.
        RawMemory { factor: 1.1, fixed_gb: 4.0 }
    }
}

pub(super) fn paper_tensor_parallel() -> Vec<u32> {
    vec![1, 2, 4]
}

pub(super) fn paper_shares() -> Vec<u32> {
    (1..=10).map(|tenth| tenth * 10).collect()
}

pub(super) fn one_copy() -> Vec<u32> {
    vec![1]
}

pub(super) fn everything() -> f64 {
    1.0
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawBeyond {
    #[default]
    Never,
    LastSlope,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawGoal {
    #[default]
    Score,
    ScorePerUsd,
    Usd,
}

/// A CSV file, or its rows.
#[derive(Clone, Debug)]
pub(super) enum RawProfiles {
    File(PathBuf),
    Rows(Vec<ProfileRow>),
}

impl<'de> Deserialize<'de> for RawProfiles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rows;
        impl<'de> Visitor<'de> for Rows {
            type Value = RawProfiles;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the path of a CSV file, or a list of its rows")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<RawProfiles, E> {
                Ok(RawProfiles::File(path.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<RawProfiles, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(RawProfiles::Rows)
            }
        }
        deserializer.deserialize_any(Rows)
    }
}

/// Levels of demand, or a single rate.
#[derive(Clone, Debug)]
pub(super) struct RawDemand(pub(super) Vec<RawLevel>);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLevel {
    pub(super) requests_per_second: f64,
    #[serde(default = "everything")]
    pub(super) weight: f64,
}

impl<'de> Deserialize<'de> for RawDemand {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Levels;
        impl<'de> Visitor<'de> for Levels {
            type Value = RawDemand;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("requests per second, or a list of {requests_per_second, weight}")
            }

            fn visit_f64<E: de::Error>(self, rate: f64) -> Result<RawDemand, E> {
                Ok(RawDemand(vec![RawLevel { requests_per_second: rate, weight: 1.0 }]))
            }

            fn visit_u64<E: de::Error>(self, rate: u64) -> Result<RawDemand, E> {
                self.visit_f64(rate as f64)
            }

            fn visit_i64<E: de::Error>(self, rate: i64) -> Result<RawDemand, E> {
                self.visit_f64(rate as f64)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<RawDemand, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(RawDemand)
            }
        }
        deserializer.deserialize_any(Levels)
    }
}
