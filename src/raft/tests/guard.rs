//! What is let through the door of `raft_addr`, with a service behind it that only counts.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use http_body::Frame;
use tempfile::TempDir;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::raft::call_metadata::stamp;
use crate::raft::guard::{Guard, Guarded};
use crate::raft::identity::{ClusterId, Identity};

/// Reads each call's whole body, and then does not answer.
#[derive(Clone, Default)]
struct Reading(Arc<AtomicUsize>);

impl Service<Request<Body>> for Reading {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.fetch_add(1, Ordering::Relaxed);
        let mut body = request.into_body();
        Box::pin(async move {
            loop {
                let frame = poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx));
                match frame.await {
                    Some(Ok(_)) => {}
                    Some(Err(status)) => return Ok(status.into_http()),
                    None => pending().await,
                }
            }
        })
    }
}

/// Says how long its message is going to be, and no more.
struct Announced(Option<Bytes>);

impl http_body::Body for Announced {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}

struct Scene {
    _dir: TempDir,
    identity: Identity,
    seen: Arc<AtomicUsize>,
    guarded: Guarded<Reading>,
}

fn scene(calls: usize) -> Scene {
    let dir = TempDir::new().unwrap();
    let identity = Identity::open(dir.path(), "meta-1").unwrap();
    identity.claim(ClusterId::random()).unwrap();
    let reading = Reading::default();
    Scene {
        _dir: dir,
        seen: reading.0.clone(),
        guarded: Guard::new(identity.clone(), calls).guard(reading),
        identity,
    }
}

impl Scene {
    /// A call that announces a message of so many bytes.
    fn call(&mut self, method: &str, stamped: bool, bytes: u32) -> BoxFuture<Response<Body>, Infallible> {
        let mut metadata = MetadataMap::new();
        if stamped {
            stamp(&self.identity, self.identity.incarnation(), &mut metadata).unwrap();
        }
        let prefix = [&[0][..], &bytes.to_be_bytes()].concat();
        let mut request = Request::new(Body::new(Announced(Some(prefix.into()))));
        *request.uri_mut() = format!("/minfs.raft.{method}").parse().unwrap();
        *request.headers_mut() = metadata.into_headers();
        self.guarded.call(request)
    }

    /// The answer that such a call has at once, if it has one.
    fn answer(&mut self, method: &str, stamped: bool, bytes: u32) -> Option<Code> {
        let answer = self.call(method, stamped, bytes).now_or_never()?.unwrap();
        Some(Status::from_header_map(answer.headers()).unwrap().code())
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }
}

#[actix_rt::test]
async fn what_does_not_say_for_whom_it_is_is_not_read() {
    let mut scene = scene(10);
    for method in [
        "RaftService/Vote",
        "RaftService/AppendStream",
        "RaftService/InstallSnapshot",
    ] {
        assert_eq!(
            scene.answer(method, false, 1),
            Some(Code::InvalidArgument),
            "{method}"
        );
    }
    for method in [
        "PeerService/Propose",
        "PeerService/ReadIndex",
        "PeerService/Nonsense",
    ] {
        assert_eq!(
            scene.answer(method, false, 1),
            Some(Code::InvalidArgument),
            "{method}"
        );
    }
    assert_eq!(scene.seen(), 0);
    assert_eq!(scene.answer("RaftService/Vote", true, 1), None, "it is read");
    assert_eq!(scene.seen(), 1);
}

#[actix_rt::test]
async fn a_message_has_its_bound_and_that_of_strangers_is_small() {
    let mut scene = scene(10);
    let too_much = Some(Code::InvalidArgument);
    assert_eq!(scene.answer("RaftService/Vote", true, 64 << 20), None);
    assert_eq!(scene.answer("RaftService/Vote", true, (64 << 20) + 1), too_much);
    assert_eq!(scene.answer("PeerService/Identify", false, 4 << 10), None);
    assert_eq!(
        scene.answer("PeerService/Identify", false, (4 << 10) + 1),
        too_much
    );
    assert_eq!(scene.answer("PeerService/Claim", true, (4 << 10) + 1), too_much);
}

#[actix_rt::test]
async fn each_kind_of_call_has_its_own_number() {
    let mut scene = scene(2);
    let exhausted = Some(Code::ResourceExhausted);
    let calls: Vec<_> = (0..2).map(|_| scene.call("RaftService/Vote", true, 1)).collect();
    assert_eq!(scene.answer("RaftService/Vote", true, 1), exhausted);
    let strangers: Vec<_> = (0..64)
        .map(|_| scene.call("PeerService/Identify", false, 1))
        .collect();
    assert_eq!(scene.answer("PeerService/Claim", false, 1), exhausted);
    let streams: Vec<_> = (0..64)
        .map(|_| scene.call("RaftService/AppendStream", true, 1))
        .collect();
    assert_eq!(scene.answer("RaftService/InstallSnapshot", true, 1), exhausted);
    drop((calls, strangers, streams));
    assert_eq!(scene.answer("RaftService/Vote", true, 1), None);
    assert_eq!(scene.answer("PeerService/Claim", false, 1), None);
    assert_eq!(scene.answer("RaftService/InstallSnapshot", true, 1), None);
}
