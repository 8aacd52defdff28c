//! A client: as many requests as connections allow, or so many per second.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What a load has met.
#[derive(Debug, Default)]
pub(in super::super) struct Load {
    pub(in super::super) requests: u64,
    pub(in super::super) seconds: f64,
    /// Microseconds from when a request was to be sent until its answer was whole; sorted.
    pub(in super::super) latencies_us: Vec<u64>,
}

impl Load {
    pub(in super::super) fn per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Connection> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        Ok(Connection { sender, host: address.to_string() })
    }

    async fn post(&mut self, body: Bytes) -> Result<()> {
        let request = Request::post("/v1/chat/completions")
            .header("host", &self.host)
            .header("content-type", "application/json")
            .header("user-agent", "bench")
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await.context("no answer")?;
        let status = response.status();
        let mut answer = response.into_body();
        while let Some(frame) = answer.frame().await {
            frame?;
        }
        ensure!(status.is_success(), "{status}");
        Ok(())
    }
}

/// Each connection sends its next request when the last one is answered.
pub(in super::super) async fn closed(
    address: SocketAddr,
    body: &Bytes,
    connections: usize,
    time: Duration,
) -> Result<Load> {
    let started = Instant::now();
    let one = |_| {
        let body = body.clone();
        tokio::spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut latencies_us = Vec::new();
            while started.elapsed() < time {
                let sent = Instant::now();
                connection.post(body.clone()).await?;
                latencies_us.push(micros(sent.elapsed()));
            }
            Ok::<_, anyhow::Error>(latencies_us)
        })
    };
    gather(started, (0..connections).map(one).collect()).await
}

/// So many requests per second, evenly. One that waits for its connection is late, and its latency says so.
pub(in super::super) async fn open(address: SocketAddr, body: &Bytes, rate: f64, time: Duration) -> Result<Load> {
    const CONNECTIONS: usize = 32;
    let started = Instant::now();
    let one = |first: usize| {
        let body = body.clone();
        tokio::spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut latencies_us = Vec::new();
            for number in (first..).step_by(CONNECTIONS) {
                let due = started + Duration::from_secs_f64(number as f64 / rate);
                if due > started + time {
                    break;
                }
                // A timer's own lateness is not the gateway's.
                let is_late = Instant::now() > due;
                tokio::time::sleep_until(due.into()).await;
                let sent = if is_late { due } else { Instant::now() };
                connection.post(body.clone()).await?;
                latencies_us.push(micros(sent.elapsed()));
            }
            Ok::<_, anyhow::Error>(latencies_us)
        })
    };
    gather(started, (0..CONNECTIONS).map(one).collect()).await
}

async fn gather(started: Instant, tasks: Vec<tokio::task::JoinHandle<Result<Vec<u64>>>>) -> Result<Load> {
    let mut latencies_us = Vec::new();
    for task in tasks {
        latencies_us.extend(task.await??);
    }
    latencies_us.sort_unstable();
    Ok(Load { requests: latencies_us.len() as u64, seconds: started.elapsed().as_secs_f64(), latencies_us })
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
