//! DNS over TCP: two bytes of length before each message (RFC 7766).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use knarr_dns_zone::Query;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::server::Answerer;

/// A client that says nothing for so long is left.
const IDLE: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 512;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// Asks a server.
pub(crate) async fn exchange(query: &Query, server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write(&mut stream, &query.bytes()).await?;
    read(&mut stream).await
}

/// Answers those who come by TCP.
pub(crate) async fn serve(answerer: Arc<Answerer>, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let answerer = answerer.clone();
                drop(tokio::spawn(async move {
                    // A client that breaks off is nobody's error.
                    converse(&answerer, stream, client).await.ok();
                    drop(slot);
                }));
            }
            // Out of descriptors, most likely: connections have to end first.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn converse(
    answerer: &Answerer,
    mut stream: TcpStream,
    client: SocketAddr,
) -> io::Result<()> {
    loop {
        let message = timeout(IDLE, read(&mut stream)).await??;
        if let Some(reply) = answerer.answer(&message, client.ip(), Some(u16::MAX.into())).await {
            write(&mut stream, &reply).await?;
        }
    }
}
