//! The answer of Envoy's admin listener to `/clusters?format=json`, as far as it matters; everything else in it is ignored.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use crate::fleet::{Placing, Presence};

/// The hosts of one Envoy cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterHosts {
    /// The cluster's name.
    pub cluster: String,
    /// Its hosts.
    pub hosts: Vec<ClusterHost>,
}

/// One host of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterHost {
    /// `ip:port`, brackets around an IPv6 address; resolved, where the configuration has a name.
    pub address: String,
    /// Present, degraded or unhealthy.
    pub presence: Presence,
    /// Where it stands among the others.
    pub placing: Placing,
}

#[derive(Deserialize)]
struct ClustersAnswer {
    cluster_statuses: Vec<RawCluster>,
}

#[derive(Deserialize)]
struct RawCluster {
    #[serde(default)]
    name: String,
    #[serde(default)]
    host_statuses: Vec<RawHost>,
}

#[derive(Deserialize)]
struct RawHost {
    #[serde(default)]
    address: RawAddress,
    #[serde(default)]
    health_status: RawHostHealth,
    #[serde(default)]
    priority: u32,
    #[serde(default)]
    weight: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawAddress {
    socket_address: Option<RawSocketAddress>,
}

#[derive(Deserialize)]
struct RawSocketAddress {
    address: String,
    port_value: u32,
}

/// Envoy's `HostHealthStatus`. It leaves out what is false.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawHostHealth {
    failed_active_health_check: bool,
    failed_active_degraded_check: bool,
    failed_outlier_check: bool,
    pending_active_hc: bool,
    excluded_via_immediate_hc_fail: bool,
    eds_health_status: String,
}

impl RawHostHealth {
    /// Envoy goes on sending to hosts whose health nobody has told it, and to those that are degraded where the others do not suffice.
    fn presence(&self) -> Presence {
        let refused = matches!(self.eds_health_status.as_str(), "UNHEALTHY" | "DRAINING" | "TIMEOUT");
        let failed = self.failed_active_health_check || self.failed_outlier_check;
        if refused || failed || self.pending_active_hc || self.excluded_via_immediate_hc_fail {
            Presence::Unhealthy
        } else if self.failed_active_degraded_check || self.eds_health_status == "DEGRADED" {
            Presence::Degraded
        } else {
            Presence::Present
        }
    }
}

/// Reads an answer; `None` if it is not one. Hosts without an IP address (pipes, internal listeners) are left out: no request
/// can be directed to them.
pub fn parse(answer: &[u8]) -> Option<Vec<ClusterHosts>> {
    let answer: ClustersAnswer = serde_json::from_slice(answer).ok()?;
    let host = |raw: RawHost| {
        let socket = raw.address.socket_address?;
        let (ip, port): (IpAddr, u16) = (socket.address.parse().ok()?, u16::try_from(socket.port_value).ok()?);
        Some(ClusterHost {
            address: SocketAddr::new(ip, port).to_string(),
            presence: raw.health_status.presence(),
            placing: Placing { priority: raw.priority, weight: raw.weight.unwrap_or(1).max(1) },
        })
    };
    let cluster = |raw: RawCluster| ClusterHosts {
        cluster: raw.name,
        hosts: raw.host_statuses.into_iter().filter_map(host).collect(),
    };
    Some(answer.cluster_statuses.into_iter().map(cluster).collect())
}
