//! TLS before the API: a certificate and its key, as vLLM's `--ssl-certfile` and `--ssl-keyfile` name them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What an instance needs to speak TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    pub(super) config: Arc<ServerConfig>,
}

/// What a client has asked for when it shook hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The name that it wants to speak to (SNI).
    pub server_name: Option<String>,
    /// The protocol that was agreed on (ALPN).
    pub protocol: Option<String>,
}

impl Tls {
    /// From a chain of certificates, the server's first, and its key.
    ///
    /// # Errors
    /// Either is no PEM, or they do not belong together.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> anyhow::Result<Self> {
        let chain = CertificateDer::pem_slice_iter(certificates).collect::<Result<Vec<_>, _>>();
        let chain = chain.context("the certificate is no PEM")?;
        ensure!(!chain.is_empty(), "there is no certificate: it begins with -----BEGIN CERTIFICATE-----");
        let key = PrivateKeyDer::from_pem_slice(key)
            .context("there is no private key: it begins with -----BEGIN PRIVATE KEY----- and has no password")?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("the certificate and the private key do not belong together")?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config) })
    }

    /// [`Tls::from_pem`] of two files, which may be one.
    ///
    /// # Errors
    /// A file cannot be read, is no PEM, or does not belong to the other.
    pub fn from_files(certificates: &Path, key: &Path) -> anyhow::Result<Self> {
        let read = |file: &Path| fs::read(file).with_context(|| format!("{} cannot be read", file.display()));
        Self::from_pem(&read(certificates)?, &read(key)?)
            .with_context(|| format!("{} and {} are of no use for TLS", certificates.display(), key.display()))
    }
}
