//! A connection that can be told to break off in the middle of what it writes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::network::Connection;

/// What is left out of the last write: more than a chunk's end, less than an event.
const MISSING_BYTES: usize = 20;

/// A connection; once `cut` is set, the next write is cut short and the peer gets a reset.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) connection: Connection,
    pub(super) cut: Arc<AtomicBool>,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.cut.load(Ordering::Relaxed) {
            return Pin::new(&mut self.connection).poll_write(cx, buf);
        }
        let part = &buf[..buf.len() - MISSING_BYTES.min(buf.len())];
        if !part.is_empty() {
            ready!(Pin::new(&mut self.connection).poll_write(cx, part))?;
        }
        self.connection.reset_at_close()?;
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    /// Several parts in one go, as TLS writes its first words and the alert that takes them back: it tries once.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.cut.load(Ordering::Relaxed) {
            return Pin::new(&mut self.connection).poll_write_vectored(cx, bufs);
        }
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        self.poll_write(cx, first)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cut.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}
