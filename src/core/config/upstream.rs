//! How pools are reached, as written and checked.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::de::{self, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};

use super::numbers::Integer;
use super::{ConfigError, check_text, error};
use crate::fleet::{Credential, Metrics, MetricsPlace, PoolKind, SecretSource, Upstream, UpstreamTls};

/// Where Debian, Alpine and most images have the authorities that everybody trusts.
const CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawPoolKind {
    #[default]
    Own,
    Hosted,
}

impl RawPoolKind {
    pub(super) fn kind(self) -> PoolKind {
        match self {
            RawPoolKind::Own => PoolKind::Own,
            RawPoolKind::Hosted => PoolKind::Hosted,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTls {
    sni: Option<String>,
    ca_file: Option<String>,
    certificate_file: Option<String>,
    key_file: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCredential {
    #[serde(default)]
    file: Option<String>,
    #[serde(default)]
    sds_file: Option<String>,
    #[serde(default)]
    sds_name: Option<String>,
    #[serde(default)]
    header: Option<String>,
    #[serde(default)]
    prefix: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ClientCredentials {
    Keep,
    Drop,
}

/// The word `off`, or where reports are.
#[derive(Default)]
pub(super) enum RawMetrics {
    #[default]
    Shared,
    Off,
    Apart(RawMetricsPlace),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMetricsPlace {
    #[serde(default)]
    port: Option<Integer<u16>>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    tls: Option<RawTls>,
    #[serde(default)]
    bearer_token_file: Option<String>,
    #[serde(default)]
    cluster: Option<String>,
}

impl<'de> Deserialize<'de> for RawMetrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrPlace;

        impl<'de> Visitor<'de> for WordOrPlace {
            type Value = RawMetrics;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"off\", or an object")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<RawMetrics, E> {
                if word == "off" {
                    Ok(RawMetrics::Off)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(word), &self))
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawMetrics, A::Error> {
                RawMetricsPlace::deserialize(MapAccessDeserializer::new(map)).map(RawMetrics::Apart)
            }
        }

        deserializer.deserialize_any(WordOrPlace)
    }
}

/// The fields of a pool that say how it is reached.
pub(super) struct RawUpstream<'a> {
    pub(super) kind: RawPoolKind,
    pub(super) tls: Option<&'a RawTls>,
    pub(super) host: Option<&'a str>,
    pub(super) base_path: Option<&'a str>,
    pub(super) headers: &'a BTreeMap<String, String>,
    pub(super) credential: Option<&'a RawCredential>,
    pub(super) client_credentials: Option<ClientCredentials>,
    pub(super) names: Vec<(String, u16)>,
}

impl RawUpstream<'_> {
    /// `at` makes a field's path.
    pub(super) fn check(self, at: &impl Fn(&str) -> String) -> Result<Upstream, ConfigError> {
        let hosted = self.kind == RawPoolKind::Hosted;
        let is_host =
            |host: &str| host.len() <= 255 && host.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b'"');
        if let Some(host) = self.host.filter(|host| host.is_empty() || !is_host(host)) {
            return Err(error(at("host"), format!("{host:?} is not a host")));
        }
        let base_path = self.base_path.map(|path| check_base_path(at("base_path"), path)).transpose()?;
        let headers = self.headers.iter().map(|(name, value)| check_header(at, name, value));
        let headers = headers.collect::<Result<Vec<_>, _>>()?;
        let credential = self.credential.map(|credential| credential.check(at)).transpose()?;
        let said = self.client_credentials.map(|said| said == ClientCredentials::Drop);
        let drops_client_credentials = said.unwrap_or(hosted || credential.is_some());
        // A provider goes by the name that it has.
        let own_name = self.names.first().filter(|_| hosted).map(|(name, _)| name.clone());
        Ok(Upstream {
            tls: self.tls.map(|tls| check_tls(tls, &|field| at(&format!("tls.{field}")))).transpose()?,
            host: self.host.map(str::to_owned).or(own_name),
            base_path,
            headers,
            credential,
            drops_client_credentials,
            names: self.names,
        })
    }
}

fn check_tls(raw: &RawTls, at: &impl Fn(&str) -> String) -> Result<UpstreamTls, ConfigError> {
    let path = |field: &str, value: &Option<String>| value.as_deref().map(|v| check_text(&at(field), v)).transpose();
    if let Some(sni) = raw.sni.as_ref().filter(|sni| !is_name(sni)) {
        return Err(error(at("sni"), format!("{sni:?} is not a host name")));
    }
    let certificate = match (path("certificate_file", &raw.certificate_file)?, path("key_file", &raw.key_file)?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err(error(at("key_file"), "certificate_file needs it")),
        (None, Some(_)) => return Err(error(at("certificate_file"), "key_file needs it")),
    };
    let ca_file = path("ca_file", &raw.ca_file)?.unwrap_or_else(|| CA_FILE.to_owned());
    Ok(UpstreamTls { sni: raw.sni.clone(), ca_file, certificate })
}

impl RawCredential {
    fn check(&self, at: &impl Fn(&str) -> String) -> Result<Credential, ConfigError> {
        let at = |field: &str| at(&format!("credential.{field}"));
        let header = self.header.clone().unwrap_or_else(|| "authorization".to_owned()).to_ascii_lowercase();
        check_header_name(at("header"), &header)?;
        let bearer = if header == "authorization" { "Bearer " } else { "" };
        let prefix = self.prefix.clone().unwrap_or_else(|| bearer.to_owned());
        if !is_header_value(&prefix) {
            return Err(error(at("prefix"), "must be visible ASCII"));
        }
        let secret = match (&self.file, &self.sds_file, &self.sds_name) {
            (Some(file), None, None) => SecretSource::File(check_text(&at("file"), file)?),
            (None, Some(file), Some(name)) => {
                SecretSource::Sds { file: check_text(&at("sds_file"), file)?, name: check_text(&at("sds_name"), name)? }
            }
            (None, Some(_), None) => return Err(error(at("sds_name"), "sds_file needs it")),
            (None, None, Some(_)) => return Err(error(at("sds_file"), "sds_name needs it")),
            (None, None, None) => return Err(error(at("file"), "either file or sds_file is needed")),
            (Some(_), ..) => return Err(error(at("file"), "either file or sds_file, not both")),
        };
        Ok(Credential { secret, header, prefix })
    }
}

impl RawMetrics {
    /// `cluster` is the pool's.
    pub(super) fn check(&self, at: &impl Fn(&str) -> String, kind: RawPoolKind) -> Result<Metrics, ConfigError> {
        let at = |field: &str| at(&format!("metrics.{field}"));
        match self {
            RawMetrics::Shared if kind == RawPoolKind::Hosted => Ok(Metrics::Off),
            RawMetrics::Shared => Ok(Metrics::Shared),
            RawMetrics::Off => Ok(Metrics::Off),
            RawMetrics::Apart(_) if kind == RawPoolKind::Hosted => {
                Err(error(at("path"), "a hosted pool is not asked for its load"))
            }
            RawMetrics::Apart(raw) => {
                if raw.port == Some(Integer(0)) {
                    return Err(error(at("port"), "must not be 0"));
                }
                if let Some(path) = raw.path.as_ref().filter(|path| !is_path(path)) {
                    return Err(error(at("path"), format!("{path:?} must be a path that starts with /")));
                }
                if raw.tls.as_ref().is_some_and(|tls| tls.sni.is_none()) {
                    return Err(error(at("tls.sni"), "is needed: the name of the certificates there"));
                }
                let text = |field: &str, value: &Option<String>| {
                    value.as_deref().map(|value| check_text(&at(field), value)).transpose()
                };
                Ok(Metrics::Apart(MetricsPlace {
                    port: raw.port.map(|port| port.0),
                    path: raw.path.clone(),
                    tls: raw.tls.as_ref().map(|tls| check_tls(tls, &|f| at(&format!("tls.{f}")))).transpose()?,
                    bearer_token_file: text("bearer_token_file", &raw.bearer_token_file)?,
                    cluster: text("cluster", &raw.cluster)?,
                }))
            }
        }
    }
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'#')
}

/// Without the `/` at its end, which a base URL may have.
fn check_base_path(field: String, path: &str) -> Result<String, ConfigError> {
    if is_path(path) && !path.contains('?') && !path.contains('\\') {
        Ok(path.trim_end_matches('/').to_owned())
    } else {
        Err(error(field, format!("{path:?} must be a path that starts with /")))
    }
}

fn is_header_value(value: &str) -> bool {
    value.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}

fn check_header_name(field: String, name: &str) -> Result<(), ConfigError> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"-_.!$&'*+^`|~".contains(&b);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(is_token) {
        return Err(error(field, format!("{name:?} is not a header's name")));
    }
    if ["host", "content-length", "transfer-encoding", "connection"].contains(&name) {
        return Err(error(field, format!("{name:?} is not this header to set")));
    }
    Ok(())
}

fn check_header(at: &impl Fn(&str) -> String, name: &str, value: &str) -> Result<(String, String), ConfigError> {
    let name = name.to_ascii_lowercase();
    check_header_name(at("headers"), &name)?;
    if !is_header_value(value) {
        return Err(error(at(&format!("headers.{name}")), "must be visible ASCII"));
    }
    Ok((name, value.to_owned()))
}

/// A header that requests of a route must have.
pub(super) fn check_matched(route: usize, name: &str, value: &str) -> Result<(String, String), ConfigError> {
    let at = |field: &str| format!("routes[{route}].{field}");
    check_header(&at, name, value)
}

/// Whether this is a host's name and not an address.
pub(super) fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 253 && text.split('.').all(label) && !text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// An instance as it is written.
pub(super) enum WrittenAddress {
    /// `ip:port`.
    Address(SocketAddr),
    /// `name:port`.
    Name(String, u16),
}

/// Reads an instance. What people write of a URL is cited in the sentence.
pub(super) fn read_address(field: &str, text: &str) -> Result<WrittenAddress, ConfigError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 {
            Err(error(field, "the port must not be 0"))
        } else {
            Ok(WrittenAddress::Address(address))
        };
    }
    let refused = |problem: String| Err(error(field, problem));
    if text.contains("://") {
        return refused(format!("{text:?} is a URL: give host and port, and `tls` and `base_path` in the pool"));
    }
    if text.parse::<IpAddr>().is_ok() {
        return refused(format!("{text:?} has no port: write ip:port, and [ip]:port of an IPv6 address"));
    }
    let Some((name, port)) = text.rsplit_once(':') else {
        return refused(format!("{text:?} has no port: write name:port or ip:port"));
    };
    match port.parse::<u16>() {
        // The standard library reads `+80` as 80.
        Ok(number) if number > 0 && !port.starts_with('+') && is_name(name) => {
            Ok(WrittenAddress::Name(name.to_ascii_lowercase(), number))
        }
        _ => refused(format!("{text:?} is neither ip:port nor name:port")),
    }
}
