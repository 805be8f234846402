//! A client of HTTP/1.1 for one peer, as the transfer of files needs it.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The most bytes of an answer.
const MOST_ANSWER: usize = 64 << 10;

/// A connection.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
    patience: Duration,
}

async fn connect(
    address: SocketAddr,
    patience: Duration,
) -> Result<SendRequest<Full<Bytes>>, String> {
    let fail = |error: &dyn std::fmt::Display| format!("cannot connect to {address}: {error}");
    let stream = timeout(patience, TcpStream::connect(address)).await;
    let stream = stream
        .map_err(|error| fail(&error))?
        .map_err(|error| fail(&error))?;
    stream.set_nodelay(true).map_err(|error| fail(&error))?;
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|error| fail(&error))?;
    tokio::spawn(connection);
    Ok(sender)
}

impl Connection {
    /// Connects. Each request may take as long as `patience`.
    pub(super) async fn open(address: SocketAddr, patience: Duration) -> Result<Self, String> {
        let sender = connect(address, patience).await?;
        Ok(Self {
            sender,
            address,
            patience,
        })
    }

    /// Makes a request, and returns the body of the answer.
    pub(super) async fn call(
        &mut self,
        method: Method,
        action: &str,
        query: &str,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, String> {
        let fail = |error: &dyn std::fmt::Display| format!("{action} at {}: {error}", self.address);
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1-ssync/{action}?{query}"))
            .header(HOST, self.address.to_string())
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| fail(&error))?;
        if self.sender.is_closed() {
            // Nothing was said for a while, and the peer has ended it.
            self.sender = connect(self.address, self.patience).await?;
        }
        let sender = &mut self.sender;
        let exchange = async {
            sender.ready().await.map_err(|error| fail(&error))?;
            let answer = sender
                .send_request(request)
                .await
                .map_err(|error| fail(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MOST_ANSWER)
                .collect()
                .await;
            let body = body.map_err(|error| fail(&error))?.to_bytes();
            match status.is_success() {
                true => Ok(body.to_vec()),
                false => Err(fail(&format!(
                    "{status}: {}",
                    String::from_utf8_lossy(&body).trim()
                ))),
            }
        };
        match timeout(self.patience, exchange).await {
            Ok(result) => result,
            Err(error) => Err(fail(&error)),
        }
    }
}
