//! TLS before the emulated instance, as clients see it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use routebalance_instance::network::Network;
use routebalance_instance::{Fault, Handshake, InstanceOptions, RunningInstance, Tls, start};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use crate::certificates::{Certificates, PROVIDER, write_certificates};
use crate::http::{End, connect, receive, send};
use crate::{CHAT, recorded_server};

/// A year that is not over.
const LATER: i32 = 4000;

fn secured(files: &Certificates) -> InstanceOptions {
    let tls = Tls::from_files(&files.certificate, &files.key).unwrap();
    InstanceOptions { tls: Some(tls), ..recorded_server("plain") }
}

/// A client that trusts an authority.
struct Client<'a> {
    authority: &'a Path,
    versions: &'a [&'static SupportedProtocolVersion],
    protocols: &'a [&'a str],
}

impl Client<'_> {
    async fn connect(&self, instance: &RunningInstance, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.authority).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_protocol_versions(self.versions).unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = self.protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, connect(instance.address()).await).await
    }
}

fn chat(tokens: u32, stream: bool) -> Vec<u8> {
    let body = serde_json::json!({"messages": [{"role": "user", "content": "Why?"}], "max_tokens": tokens,
        "ignore_eos": true, "stream": stream});
    body.to_string().into_bytes()
}

#[tokio::test]
async fn a_client_that_trusts_the_authority_is_served() {
    let directory = TempDir::new().unwrap();
    let files = write_certificates(directory.path(), &[PROVIDER, "127.0.0.1"], LATER);
    let instance = start(secured(&files)).await.unwrap();
    for (versions, protocols, name, server_name, protocol) in [
        (&[&TLS13][..], &["http/1.1"][..], PROVIDER, Some(PROVIDER), Some("http/1.1")),
        (&[&TLS12], &["http/1.1"], PROVIDER, Some(PROVIDER), Some("http/1.1")),
        (&[&TLS12, &TLS13], &["h2", "http/1.1"], PROVIDER, Some(PROVIDER), Some("http/1.1")),
        (&[&TLS12, &TLS13], &[], PROVIDER, Some(PROVIDER), None),
        // An address is no name: nothing is named.
        (&[&TLS12, &TLS13], &[], "127.0.0.1", None, None),
    ] {
        let client = Client { authority: &files.authority, versions, protocols };
        let row = format!("{protocols:?} {name}");
        let mut connection = client.connect(&instance, name).await.expect(&row);
        for stream in [false, true] {
            send(&mut connection, "POST", CHAT, &[], &chat(3, stream)).await;
            let answer = receive(&mut connection).await;
            assert_eq!((answer.status.as_str(), answer.end), ("HTTP/1.1 200 OK", End::Complete), "{row}");
            let seen = instance.requests().pop().unwrap();
            let handshake =
                Handshake { server_name: server_name.map(str::to_owned), protocol: protocol.map(str::to_owned) };
            assert_eq!(seen.tls, Some(handshake), "{row}");
        }
    }
    assert_eq!(instance.tally().path(CHAT), 10);
    instance.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_trust_the_server_sends_nothing() {
    let directories = [(); 4].map(|()| TempDir::new().unwrap());
    let [good, other, expired, foreign] = &directories;
    let good = write_certificates(good.path(), &[PROVIDER], LATER);
    let other = write_certificates(other.path(), &[PROVIDER], LATER);
    let expired = write_certificates(expired.path(), &[PROVIDER], 2001);
    let foreign = write_certificates(foreign.path(), &["elsewhere.test"], LATER);
    for (files, authority, protocols, problem) in [
        (&good, &other.authority, &[][..], "invalid peer certificate: BadSignature"),
        (&expired, &expired.authority, &[], "invalid peer certificate: certificate expired"),
        (
            &foreign,
            &foreign.authority,
            &[],
            "invalid peer certificate: certificate not valid for name \"provider.test\"",
        ),
        (&good, &good.authority, &["h2"], "NoApplicationProtocol"),
    ] {
        let instance = start(secured(files)).await.unwrap();
        let client = Client { authority, versions: &[&TLS12, &TLS13], protocols };
        let found = client.connect(&instance, PROVIDER).await.map(drop).unwrap_err().to_string();
        assert!(found.contains(problem), "{problem}: {found}");
        assert!(instance.requests().is_empty());
        let client = Client { authority: &files.authority, protocols: &[], ..client };
        let name = if std::ptr::eq(files, &foreign) { "elsewhere.test" } else { PROVIDER };
        let is_expired = std::ptr::eq(files, &expired);
        assert_eq!(client.connect(&instance, name).await.is_err(), is_expired, "the next client is served: {problem}");
        instance.stop().await;
    }
}

#[tokio::test]
async fn a_client_without_tls_gets_no_answer() {
    let directory = TempDir::new().unwrap();
    let files = write_certificates(directory.path(), &[PROVIDER], LATER);
    let instance = start(secured(&files)).await.unwrap();
    let mut connection = connect(instance.address()).await;
    send(&mut connection, "GET", "/health", &[], b"").await;
    let mut seen = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), connection.read_to_end(&mut seen)).await;
    assert!(read.is_ok(), "the connection ends");
    assert!(!String::from_utf8_lossy(&seen).contains("HTTP"), "{seen:?}");
    assert!(instance.requests().is_empty());
    instance.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_shakes_no_hand_is_let_go_after_a_minute() {
    let directory = TempDir::new().unwrap();
    let files = write_certificates(directory.path(), &[PROVIDER], LATER);
    let network = Network::Memory(Arc::default());
    let instance = start(InstanceOptions { network: network.clone(), ..secured(&files) }).await.unwrap();
    // Nothing, and the beginning of a record.
    for sent in [&b""[..], &[22, 3, 1, 1, 0, 1]] {
        let mut connection = network.connect(instance.address()).await.unwrap();
        connection.write_all(sent).await.unwrap();
        let began = tokio::time::Instant::now();
        let mut seen = Vec::new();
        connection.read_to_end(&mut seen).await.unwrap();
        assert_eq!((seen.len(), began.elapsed().as_secs()), (0, 60), "{sent:?}");
    }
    instance.stop().await;
}

#[tokio::test]
async fn faults_reach_through_tls() {
    let directory = TempDir::new().unwrap();
    let files = write_certificates(directory.path(), &[PROVIDER], LATER);
    let instance = start(secured(&files)).await.unwrap();
    let client = Client { authority: &files.authority, versions: &[&TLS13], protocols: &[] };
    instance.set_fault(Fault::Reset { after_events: 4 }).await.unwrap();
    for stream in [true, false] {
        let mut connection = client.connect(&instance, PROVIDER).await.unwrap();
        send(&mut connection, "POST", CHAT, &[], &chat(40, stream)).await;
        assert_ne!(receive(&mut connection).await.end, End::Complete, "{stream}");
    }
    instance.set_fault(Fault::Refuse).await.unwrap();
    assert!(TcpStream::connect(instance.address()).await.is_err());
    instance.set_fault(Fault::None).await.unwrap();
    let mut connection = client.connect(&instance, PROVIDER).await.unwrap();
    send(&mut connection, "POST", CHAT, &[], &chat(3, true)).await;
    assert_eq!(receive(&mut connection).await.end, End::Complete);
    instance.stop().await;
}

#[test]
fn files_that_are_of_no_use_are_named() {
    let directories = [(); 2].map(|()| TempDir::new().unwrap());
    let [files, others] =
        directories.each_ref().map(|directory| write_certificates(directory.path(), &[PROVIDER], LATER));
    let file = |name: &str, text: &str| {
        let file = directories[0].path().join(name);
        fs::write(&file, text).unwrap();
        file
    };
    let certificate = fs::read_to_string(&files.certificate).unwrap();
    let both = file("both.pem", &(fs::read_to_string(&files.key).unwrap() + &certificate));
    let empty = file("empty.pem", "");
    let torn = file("torn.pem", &certificate[..certificate.len() / 2]);
    let junk = file("junk.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let locked =
        file("locked.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let gone = directories[0].path().join("gone.pem");
    let no_key = "there is no private key: it begins with -----BEGIN PRIVATE KEY----- and has no password";
    let apart = "the certificate and the private key do not belong together";
    for (certificate, key, problem) in [
        (&files.certificate, &files.key, None),
        (&both, &both, None),
        (&gone, &files.key, Some("gone.pem cannot be read: No such file")),
        (&files.certificate, &gone, Some("gone.pem cannot be read: No such file")),
        (&empty, &files.key, Some("there is no certificate: it begins with -----BEGIN CERTIFICATE-----")),
        (&files.key, &files.key, Some("there is no certificate: it begins with -----BEGIN CERTIFICATE-----")),
        (&torn, &files.key, Some("the certificate is no PEM")),
        (&junk, &files.key, Some(apart)),
        (&files.certificate, &empty, Some(no_key)),
        (&files.certificate, &files.certificate, Some(no_key)),
        (&files.certificate, &locked, Some(no_key)),
        (&files.certificate, &others.key, Some(apart)),
    ] {
        let row = format!("{} {}", certificate.display(), key.display());
        match (Tls::from_files(certificate, key), problem) {
            (Ok(_), None) => {}
            (Err(found), Some(problem)) => {
                let found = format!("{found:#}");
                assert!(found.contains(problem) && !found.contains('\n'), "{row}: {found}");
                let is_named = found.contains(&certificate.display().to_string()) || found.contains("cannot be read");
                assert!(is_named, "{row}: {found}");
            }
            (found, problem) => panic!("{row}: {found:?} instead of {problem:?}"),
        }
    }
}
