//! How a pool's instances are reached, where that takes more than an `ip:port`.

use std::borrow::Cow;

/// Who runs a pool's instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolKind {
    /// Somebody who gives this gateway their load: they have engines, queues and limits.
    #[default]
    Own,
    /// A provider. Its one address stands for servers without number: none of them queues, and 429 is all that it says of its load.
    Hosted,
}

/// TLS towards instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The name that is asked for and that the certificate must have; `None` for each instance's own name.
    pub sni: Option<String>,
    /// File of the authorities that are trusted.
    pub ca_file: String,
    /// Files of the gateway's own certificate and its key, for servers that ask for one.
    pub certificate: Option<(String, String)>,
}

/// Where a secret is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file that holds the secret and nothing else.
    File(String),
    /// A file with an answer of Envoy's secret discovery service, and the secret's name in it. A new file is read at once.
    Sds {
        /// The file.
        file: String,
        /// The secret's name.
        name: String,
    },
}

/// A secret that requests to a pool carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Where the secret is read from.
    pub secret: SecretSource,
    /// The header.
    pub header: String,
    /// What stands before the secret in the header.
    pub prefix: String,
}

/// Where and how a pool's load is asked for, where that differs from its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// As the telemetry says, at the address of the API.
    Shared,
    /// Nowhere.
    Off,
    /// At a place of its own.
    Apart(MetricsPlace),
}

/// A place of its own for load reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsPlace {
    /// The port; `None` for that of the API.
    pub port: Option<u16>,
    /// The path; `None` for that of the telemetry.
    pub path: Option<String>,
    /// TLS, where reports come by it; `None` without.
    pub tls: Option<UpstreamTls>,
    /// File of a token that whoever asks must show.
    pub bearer_token_file: Option<String>,
    /// The cluster of Envoy that leads there; `None` for that of the pool.
    pub cluster: Option<String>,
}

impl MetricsPlace {
    /// The cluster that leads there, where `cluster` is the pool's.
    pub fn cluster_beside<'a>(&'a self, cluster: &'a str) -> Cow<'a, str> {
        match &self.cluster {
            Some(cluster) => Cow::Borrowed(cluster),
            None if self.needs_own_cluster() => Cow::Owned(format!("{cluster}-metrics")),
            None => Cow::Borrowed(cluster),
        }
    }

    /// Whether the pool's own cluster does not lead there, and `render` writes one that does.
    pub fn needs_own_cluster(&self) -> bool {
        self.cluster.is_none() && (self.port.is_some() || self.tls.is_some() || self.bearer_token_file.is_some())
    }
}

/// What is done with requests on their way to a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    /// Host names with ports, which Envoy resolves; none where addresses are known or discovered.
    pub names: Vec<(String, u16)>,
    /// TLS; `None` without.
    pub tls: Option<UpstreamTls>,
    /// What the request's `host` becomes; `None` for what the client says.
    pub host: Option<String>,
    /// What stands in the place of `/v1` in paths; `None` for `/v1`.
    pub base_path: Option<String>,
    /// Headers that are set, in their order.
    pub headers: Vec<(String, String)>,
    /// The secret that is added.
    pub credential: Option<Credential>,
    /// Whether what the client shows to prove who it is stays here.
    pub drops_client_credentials: bool,
}

impl Upstream {
    /// Headers by which clients prove who they are: OpenAI's, Anthropic's, Azure's, Google's, and those of browsers and proxies.
    pub const CLIENT_CREDENTIALS: [&'static str; 6] =
        ["authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "proxy-authorization"];

    /// Whether requests need a route of their own: host or path change.
    pub fn has_own_route(&self) -> bool {
        self.host.is_some() || self.base_path.is_some()
    }

    /// Whether attempts for another pool cannot go through this pool's cluster, nor this pool's through another's.
    pub fn is_apart(&self) -> bool {
        *self != Upstream::default()
    }
}
