//! How Envoy is asked for its hosts.

use std::time::Duration;

/// How Envoy is asked for the hosts of its clusters.
#[derive(Clone, Debug, PartialEq)]
pub struct DiscoverySettings {
    /// The cluster of Envoy's own admin listener.
    pub cluster: String,
    /// Path of the question.
    pub path: String,
    /// Time between two questions.
    pub period: Duration,
    /// Time to wait for an answer.
    pub timeout: Duration,
}
