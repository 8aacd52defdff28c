//! Connections between the parts of a test bed: sockets, or memory, where time may be virtual.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Bytes that are written before anybody reads them, about what a kernel takes.
const UNREAD_BYTES_MAX: usize = 256 << 10;

/// Where addresses mean something.
#[derive(Clone, Debug, Default)]
pub enum Network {
    /// The system's sockets.
    #[default]
    Sockets,
    /// This process.
    Memory(Arc<Memory>),
}

/// Who listens where inside this process. Nothing here takes time: a runtime whose clock is paused sees every byte before a timer.
#[derive(Debug, Default)]
pub struct Memory {
    listeners: Mutex<BTreeMap<SocketAddr, UnboundedSender<DuplexStream>>>,
}

impl Memory {
    fn listeners(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, UnboundedSender<DuplexStream>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network {
    /// Listens at an address. In memory, port 0 is a port like any other.
    ///
    /// # Errors
    /// The address is taken, or is none of this machine.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<Listener> {
        let memory = match self {
            Network::Sockets => return TcpListener::bind(address).await.map(Listener::Socket),
            Network::Memory(memory) => memory,
        };
        let (sender, connections) = unbounded_channel();
        let mut listeners = memory.listeners();
        if listeners.get(&address).is_some_and(|other| !other.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        listeners.insert(address, sender);
        Ok(Listener::Memory { address, connections })
    }

    /// Connects to an address.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<Connection> {
        let memory = match self {
            Network::Sockets => return TcpStream::connect(address).await.map(Connection::Socket),
            Network::Memory(memory) => memory,
        };
        let (ours, theirs) = tokio::io::duplex(UNREAD_BYTES_MAX);
        let is_there = memory.listeners().get(&address).is_some_and(|listener| listener.send(theirs).is_ok());
        if is_there { Ok(Connection::Memory(ours)) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
    }
}

/// Where connections arrive; nobody listens any more once it is dropped.
#[derive(Debug)]
pub enum Listener {
    /// A socket.
    Socket(TcpListener),
    /// An address in memory.
    Memory {
        /// The address.
        address: SocketAddr,
        /// Who has connected.
        connections: UnboundedReceiver<DuplexStream>,
    },
}

impl Listener {
    /// Where it listens.
    ///
    /// # Errors
    /// The system does not know.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Listener::Socket(listener) => listener.local_addr(),
            Listener::Memory { address, .. } => Ok(*address),
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// The system has too few file descriptors.
    pub async fn accept(&mut self) -> io::Result<Connection> {
        match self {
            Listener::Socket(listener) => {
                let (tcp, _) = listener.accept().await?;
                let _ = tcp.set_nodelay(true);
                Ok(Connection::Socket(tcp))
            }
            Listener::Memory { connections, .. } => match connections.recv().await {
                Some(connection) => Ok(Connection::Memory(connection)),
                None => std::future::pending().await,
            },
        }
    }
}

/// One side of a connection.
#[derive(Debug)]
pub enum Connection {
    /// Through a socket.
    Socket(TcpStream),
    /// Through memory.
    Memory(DuplexStream),
}

impl Connection {
    /// The other side sees a reset when this one closes. In memory it sees that the connection has ended too early.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn reset_at_close(&self) -> io::Result<()> {
        match self {
            // With no time to linger, closing the socket sends RST.
            Connection::Socket(tcp) => tcp.set_zero_linger(),
            Connection::Memory(_) => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Socket(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Connection::Memory(pipe) => Pin::new(pipe).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Socket(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Connection::Memory(pipe) => Pin::new(pipe).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Socket(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Connection::Memory(pipe) => Pin::new(pipe).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Socket(tcp) => Pin::new(tcp).poll_flush(cx),
            Connection::Memory(pipe) => Pin::new(pipe).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Socket(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Connection::Memory(pipe) => Pin::new(pipe).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn memory_is_a_network() {
        let network = Network::Memory(Arc::default());
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let refused = network.connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let mut listener = network.listen(address).await.unwrap();
        assert_eq!(network.listen(address).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let mut ours = network.connect(address).await.unwrap();
        let mut theirs = listener.accept().await.unwrap();
        ours.write_all(b"well?").await.unwrap();
        drop(ours);
        let mut heard = String::new();
        theirs.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "well?");
        drop(listener);
        assert!(network.connect(address).await.is_err(), "nobody is there");
        network.listen(address).await.unwrap();
    }
}
