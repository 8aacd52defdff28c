//! Where a server is: an argument of the command to an ip:port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reqwest::Url;
use tokio::time::timeout;

/// A server as an argument names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    host: String,
    port: u16,
}

impl Place {
    /// Reads `http://host:port`, `host:port`, each with or without `/` or `/v1` behind it.
    ///
    /// # Errors
    /// A sentence that names the argument, unless it may hold a password.
    pub(super) fn parse(argument: &str) -> Result<Place, String> {
        if argument.contains('@') {
            return Err("a URL holds a user or a password: give the server's key by --api-key-file".to_owned());
        }
        let text = if argument.contains("://") { argument.to_owned() } else { format!("http://{argument}") };
        let url = Url::parse(&text).map_err(|e| format!("{argument:?} is no URL of a server: {e}"))?;
        if url.scheme() != "http" {
            let scheme = url.scheme();
            return Err(format!("{argument:?} is {scheme}: the gateway reaches its servers by plain http"));
        }
        if url.query().is_some() || url.fragment().is_some() || !matches!(url.path(), "" | "/" | "/v1" | "/v1/") {
            return Err(format!(
                "{argument:?} has a path: the gateway asks its servers below /v1, so give http://ip:port"
            ));
        }
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port_or_known_default().unwrap_or_default();
        if host.is_empty() || port == 0 {
            return Err(format!("{argument:?} has no host and port: give http://ip:port"));
        }
        Ok(Place { host, port })
    }

    /// The address, and a sentence if it is what a name stands for now.
    ///
    /// # Errors
    /// A sentence: nobody knows the name.
    pub(super) async fn resolve(&self, limit: Duration) -> Result<(SocketAddr, Option<String>), String> {
        let Place { host, port } = self;
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok((SocketAddr::new(ip, *port), None));
        }
        let looked_up = timeout(limit, tokio::net::lookup_host((host.as_str(), *port))).await;
        let addresses: Vec<SocketAddr> = match looked_up {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(e)) => return Err(format!("the name {host} has no address: {e}")),
            Err(_) => return Err(format!("the name {host} has no address within {limit:?}")),
        };
        let address = first_address(&addresses).ok_or_else(|| format!("the name {host} has no address"))?;
        let others = match addresses.iter().filter(|other| **other != address).count() {
            0 => String::new(),
            n => format!(", the first of its {}", n + 1),
        };
        let sentence = format!("{host} is {address} for now{others}: a configuration names addresses");
        Ok((address, Some(sentence)))
    }
}

/// IPv4 first: a server that listens on one kind of address only usually has that one.
fn first_address(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    addresses.iter().find(|address| address.is_ipv4()).or_else(|| addresses.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        for (argument, expected) in [
            ("http://10.0.0.1:8000", Ok(("10.0.0.1", 8000))),
            ("http://10.0.0.1:8000/", Ok(("10.0.0.1", 8000))),
            ("http://10.0.0.1:8000/v1", Ok(("10.0.0.1", 8000))),
            ("10.0.0.1:8000/v1/", Ok(("10.0.0.1", 8000))),
            ("10.0.0.1:8000", Ok(("10.0.0.1", 8000))),
            ("http://10.0.0.1", Ok(("10.0.0.1", 80))),
            ("HTTP://GPU-1.local:8000", Ok(("gpu-1.local", 8000))),
            ("localhost:8000", Ok(("localhost", 8000))),
            ("[::1]:8000", Ok(("::1", 8000))),
            ("http://[2001:db8::7]:8000/v1", Ok(("2001:db8::7", 8000))),
            ("::1", Err("no URL")),
            ("", Err("no URL")),
            ("10.0.0.1:99999", Err("no URL")),
            ("10.0.0.1:0", Err("no host and port")),
            ("https://10.0.0.1:8000", Err("plain http")),
            ("http://10.0.0.1:8000/openai/v1", Err("has a path")),
            ("http://10.0.0.1:8000/v1?key=1", Err("has a path")),
            ("http://me:secret@10.0.0.1:8000", Err("--api-key-file")),
        ] {
            match (Place::parse(argument), expected) {
                (Ok(place), Ok((host, port))) => assert_eq!((place.host.as_str(), place.port), (host, port)),
                (Err(sentence), Err(part)) => {
                    assert!(sentence.contains(part) && !sentence.contains("secret"), "{argument}: {sentence}");
                }
                (got, wanted) => panic!("{argument}: {got:?}, expected {wanted:?}"),
            }
        }
    }

    #[test]
    fn the_first_address_is_of_the_usual_kind() {
        let all: Vec<SocketAddr> = ["[::1]:1", "127.0.0.1:1", "127.0.0.2:1"].map(|a| a.parse().unwrap()).to_vec();
        for (addresses, first) in [(&all[..], Some(all[1])), (&all[..1], Some(all[0])), (&[], None)] {
            assert_eq!(first_address(addresses), first);
        }
    }

    #[tokio::test]
    async fn a_name_becomes_an_address_and_says_so() {
        let limit = Duration::from_secs(20);
        let (address, sentence) = Place::parse("localhost:81").unwrap().resolve(limit).await.unwrap();
        assert!(address.ip().is_loopback(), "{address}");
        assert!(sentence.is_some_and(|s| s.starts_with(&format!("localhost is {address} for now"))));
        let (address, sentence) = Place::parse("[::1]:81").unwrap().resolve(limit).await.unwrap();
        assert_eq!((address.to_string().as_str(), sentence), ("[::1]:81", None));
    }
}
