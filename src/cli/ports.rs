//! Free loopback ports that stay free until their user binds them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;

use anyhow::{Result, ensure};
use rand::RngExt;

/// Linux's usual range for outgoing connections, if the kernel does not say.
const EPHEMERAL: Range<u16> = 32_768..61_000;
const CANDIDATES: Range<u16> = 10_240..65_535;

/// A free port on loopback, held by a listener until it is dropped. After that nobody takes it by accident before its user
/// binds it: it lies outside the range from which the kernel picks ports for outgoing connections.
#[derive(Debug)]
pub struct HeldPort(TcpListener);

impl HeldPort {
    /// `127.0.0.1:port`.
    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("a bound listener has an address")
    }
}

/// Finds `count` free loopback ports.
pub fn free_ports(count: usize) -> Result<Vec<HeldPort>> {
    let ephemeral = ephemeral_range();
    let candidates: Vec<u16> = CANDIDATES.filter(|port| !ephemeral.contains(port)).collect();
    ensure!(!candidates.is_empty(), "the kernel's ephemeral port range leaves no port for servers");
    let start = rand::rng().random_range(0..candidates.len());
    let ports = candidates.iter().cycle().skip(start).take(candidates.len());
    let held: Vec<HeldPort> = ports.filter_map(|&port| hold(port)).take(count).collect();
    ensure!(held.len() == count, "only {} of {count} loopback ports are free: stop what uses the others", held.len());
    Ok(held)
}

fn hold(port: u16) -> Option<HeldPort> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok().map(HeldPort)
}

fn ephemeral_range() -> Range<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().map(str::parse::<u16>);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..last.saturating_add(1),
        _ => EPHEMERAL,
    }
}

/// Whether a server could listen there; the error is a sentence that names the port. Envoy itself would not notice: it
/// listens with SO_REUSEPORT and would share the port.
pub fn ensure_free(address: SocketAddr, what: &str) -> Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(e) => anyhow::bail!(
            "{what} needs port {} on {}, which is not free ({e}): stop what uses it, or configure another port",
            address.port(),
            address.ip()
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_are_distinct_held_and_released() {
        let held = free_ports(20).unwrap();
        let ports: BTreeSet<u16> = held.iter().map(|p| p.address().port()).collect();
        assert_eq!(ports.len(), 20);
        let problem = ensure_free(held[0].address(), "the test").unwrap_err().to_string();
        assert!(problem.contains(&held[0].address().port().to_string()), "{problem}");
        let released: Vec<SocketAddr> = held.iter().map(HeldPort::address).collect();
        drop(held);
        for address in released {
            ensure_free(address, "the test").unwrap();
        }
    }
}
