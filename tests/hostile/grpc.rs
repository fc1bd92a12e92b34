//! A gRPC client that sends whatever it is told to.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue, Request};

use super::support::http2::framed;

/// Every call has an answer, or an end, within this time: the servers' own bound is 5 s.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// The code of gRPC's OK.
pub const OK: u16 = 0;

/// One call, right or wrong.
#[derive(Clone, Debug)]
pub struct Call {
    pub path: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
    /// Whether the body's end is said.
    pub ends: bool,
    /// Whether OK would be a mistake.
    pub wrong: bool,
}

impl Call {
    /// A call whose body holds this message.
    pub fn new(path: &str, message: impl AsRef<[u8]>) -> Call {
        Call {
            path: path.to_owned(),
            headers: Vec::new(),
            body: framed(message.as_ref()).into(),
            ends: true,
            wrong: true,
        }
    }

    /// One that may well succeed.
    pub fn that_may_succeed(mut self) -> Call {
        self.wrong = false;
        self
    }

    /// With another body.
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Call {
        self.body = body.into();
        self
    }

    /// With metadata that no header can hold left out.
    pub fn with(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Call {
        if let Ok(value) = HeaderValue::from_bytes(value.as_ref()) {
            self.headers.push((HeaderName::from_static(name), value));
        }
        self
    }

    pub fn open_ended(mut self) -> Call {
        self.ends = false;
        self
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// With a gRPC status.
    Status(u16),
    /// With an HTTP status and no gRPC status.
    Http(u16),
    /// Its stream was reset.
    Reset,
    /// Its connection was closed.
    Closed,
}

/// How many calls ended how.
pub type Tally = BTreeMap<End, u64>;

/// An HTTP/2 connection.
pub struct Wire {
    send: SendRequest<Bytes>,
    task: JoinHandle<Result<(), h2::Error>>,
}

impl Wire {
    /// `None` when the server closes the connection at once.
    pub async fn connect(addr: &str) -> Option<Wire> {
        Wire::connect_with(&h2::client::Builder::new(), addr).await
    }

    pub async fn connect_with(builder: &h2::client::Builder, addr: &str) -> Option<Wire> {
        let socket = TcpStream::connect(addr).await.expect("the node listens");
        socket.set_nodelay(true).ok()?;
        let (send, connection) = builder.handshake(socket).await.ok()?;
        Some(Wire {
            send,
            task: tokio::spawn(connection),
        })
    }

    /// Whether it is closed.
    pub fn is_closed(&self) -> bool {
        self.task.is_finished()
    }

    /// Begins a call; gives what waits for its answer's head.
    pub async fn begin(&self, call: &Call) -> Option<h2::client::ResponseFuture> {
        let mut send = self.send.clone().ready().await.ok()?;
        let mut request = Request::post(format!("http://localhost{}", call.path))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .ok()?;
        for (name, value) in &call.headers {
            request.headers_mut().insert(name, value.clone());
        }
        let (answer, mut body) = send.send_request(request, false).ok()?;
        // Fails when the server has answered and wants no more.
        let _ = body.send_data(call.body.clone(), call.ends);
        if !call.ends {
            // Dropping it would end the stream.
            tokio::spawn(async move {
                let _ = std::future::poll_fn(|cx| body.poll_reset(cx)).await;
            });
        }
        Some(answer)
    }

    /// Makes a call and reads its answer to the end. Panics when there is none in time.
    pub async fn call(&self, call: &Call) -> End {
        let ended = async {
            let Some(answer) = self.begin(call).await else {
                return End::Closed;
            };
            match read(answer).await {
                Ok(end) => end,
                Err(error) if error.is_reset() => End::Reset,
                Err(_) => End::Closed,
            }
        };
        let what = || format!("{} with {} bytes has no answer", call.path, call.body.len());
        tokio::time::timeout(ANSWERED_WITHIN, ended)
            .await
            .unwrap_or_else(|_| panic!("{}", what()))
    }
}

async fn read(answer: h2::client::ResponseFuture) -> Result<End, h2::Error> {
    let (head, mut body) = answer.await?.into_parts();
    if let Some(status) = status(&head.headers) {
        return Ok(End::Status(status));
    }
    while let Some(piece) = body.data().await {
        body.flow_control().release_capacity(piece?.len())?;
    }
    let trailers = body.trailers().await?;
    Ok(match trailers.as_ref().and_then(status) {
        Some(status) => End::Status(status),
        None => End::Http(head.status.as_u16()),
    })
}

fn status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
