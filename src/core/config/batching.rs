//! How the requests of a policy are batched, as written and checked.

use std::time::Duration;

use serde::Deserialize;

use super::numbers::{Integer, Number};
use super::{ConfigError, check_number, error};
use crate::fleet::{BatchSizing, Batching};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBatching {
    pub(super) mode: BatchingMode,
    #[serde(default)]
    pub(super) size: Option<Integer<u32>>,
    pub(super) window_ms: Option<Number>,
    #[serde(default = "max_wait_ms")]
    pub(super) max_wait_ms: Number,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BatchingMode {
    Adaptive,
    Fixed,
}

/// The longest of the published windows.
fn max_wait_ms() -> Number {
    Number(200.0)
}

impl RawBatching {
    /// `at` is the path of a field of the policy.
    pub(super) fn check(&self, at: &impl Fn(&str) -> String) -> Result<Batching, ConfigError> {
        let milliseconds = |field: &str, value: Number| {
            Ok::<_, ConfigError>(Duration::from_secs_f64(check_number(at(field), value, 1.0, 10_000.0)? / 1e3))
        };
        let sizing = match (self.mode, self.size, self.window_ms) {
            (BatchingMode::Adaptive, None, None) => BatchSizing::Adaptive,
            (BatchingMode::Adaptive, Some(_), _) => {
                return Err(error(at("batching.size"), "belongs to the mode fixed"));
            }
            (BatchingMode::Adaptive, ..) => return Err(error(at("batching.window_ms"), "belongs to the mode fixed")),
            (BatchingMode::Fixed, None, _) => return Err(error(at("batching.size"), "is needed in the mode fixed")),
            (BatchingMode::Fixed, _, None) => {
                return Err(error(at("batching.window_ms"), "is needed in the mode fixed"));
            }
            (BatchingMode::Fixed, Some(size), Some(window_ms)) => {
                if !(1..=1_024).contains(&size.0) {
                    return Err(error(at("batching.size"), "must be between 1 and 1024"));
                }
                BatchSizing::Fixed { size: size.0 as usize, window: milliseconds("batching.window_ms", window_ms)? }
            }
        };
        Ok(Batching { sizing, max_wait: milliseconds("batching.max_wait_ms", self.max_wait_ms)? })
    }
}
