//! Certificates for who plays a server that speaks TLS.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

/// The name of the provider that tests play.
pub(crate) const PROVIDER: &str = "provider.test";

/// Files in PEM.
#[derive(Debug)]
pub(crate) struct Certificates {
    /// The certificate of the authority, which a client is to trust.
    pub(crate) authority: PathBuf,
    /// The server's certificate, which the authority has signed.
    pub(crate) certificate: PathBuf,
    /// The server's private key.
    pub(crate) key: PathBuf,
}

/// Writes an authority of its own and a certificate for these names (or IP addresses), which is good until that year begins.
pub(crate) fn write_certificates(directory: &Path, names: &[&str], until_year: i32) -> Certificates {
    let authority_key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "An authority of tests");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_pem = authority.self_signed(&authority_key).expect("an authority").pem();
    let key = KeyPair::generate().expect("a key");
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut server = CertificateParams::new(names).expect("names of servers");
    server.distinguished_name.push(DnType::CommonName, "A server of tests");
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    server.not_after = date_time_ymd(until_year, 1, 1);
    let certificate = server.signed_by(&key, &Issuer::new(authority, authority_key)).expect("a certificate");
    let write = |name: &str, text: &str| {
        let file = directory.join(name);
        fs::write(&file, text).expect("a file is written");
        file
    };
    Certificates {
        authority: write("authority.pem", &authority_pem),
        certificate: write("server.pem", &certificate.pem()),
        key: write("server-key.pem", &key.serialize_pem()),
    }
}
