//! Connections: accepted, secured where that is asked for, served.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::serve::Server;
use super::tls::Handshake;
use super::wire::Wire;
use crate::network::{Connection, Listener};

/// After this time without a request the server closes a connection, as vLLM's uvicorn does.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// After this time without a handshake, too, as asyncio does.
const HANDSHAKE: Duration = Duration::from_secs(60);

/// Serves connections until it is aborted, which closes them.
pub(super) async fn accept(mut listener: Listener, server: Arc<Server>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(connection) => {
                    connections.spawn(secure(connection, Arc::clone(&server)));
                }
                // Out of file descriptors: wait for some to come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn secure(connection: Connection, server: Arc<Server>) {
    let cut = Arc::new(AtomicBool::new(false));
    // Below TLS: what is cut is a record, and no goodbye follows.
    let wire = Wire { connection, cut: Arc::clone(&cut) };
    let Some(tls) = &server.options.tls else { return converse(wire, server, cut, None).await };
    let accepting = TlsAcceptor::from(Arc::clone(&tls.config)).accept(wire);
    // Who speaks no TLS, trusts nobody or says nothing is no client.
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, accepting).await else { return };
    let agreed = stream.get_ref().1;
    let handshake = Handshake {
        server_name: agreed.server_name().map(str::to_owned),
        protocol: agreed.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
    };
    converse(stream, server, cut, Some(handshake)).await;
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    server: Arc<Server>,
    cut: Arc<AtomicBool>,
    handshake: Option<Handshake>,
) {
    let service = service_fn(|request| {
        let (server, cut, handshake) = (Arc::clone(&server), Arc::clone(&cut), handshake.clone());
        async move { Ok::<_, Infallible>(server.serve(request, handshake, cut).await) }
    });
    // A client that leaves, or a fault that cuts, ends the connection with an error: both are meant.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
