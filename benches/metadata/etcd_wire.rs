//! The part of etcd's KV service that the benchmark speaks, written as etcd's `rpc.proto` and `kv.proto` have it.
//!
//! Used by `etcd` alone. The crate `etcd-client` puts a balancer, locks for tokens and an interceptor between a
//! call and the connection, which would be charged to etcd; here a call takes the same way through tonic as
//! one to MinFS does. Fields that nobody looks at are left out, which makes reading answers cheaper than any
//! full client's.

use bytes::Bytes;
use prost::{Message, Oneof};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// `RangeRequest`; the defaults of what is missing mean: linearizable, the newest revision, keys and values.
#[derive(Clone, PartialEq, Message)]
pub struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub range_end: Vec<u8>,
}

/// `RangeResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    pub kvs: Vec<KeyValue>,
}

/// `mvccpb.KeyValue`.
#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
}

/// `TxnRequest`: if all comparisons hold, all operations are done, else none.
#[derive(Clone, PartialEq, Message)]
pub struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    pub compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    pub success: Vec<RequestOp>,
}

/// `TxnResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct TxnResponse {
    #[prost(bool, tag = "2")]
    pub succeeded: bool,
}

/// `Compare`, of a key's version alone; the version of a key that does not exist is 0.
#[derive(Clone, PartialEq, Message)]
pub struct Compare {
    #[prost(int32, tag = "1")]
    result: i32,
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(oneof = "TargetUnion", tags = "4")]
    target_union: Option<TargetUnion>,
}

/// What a version is compared with: being there, and being 0, are two things on the wire.
#[derive(Clone, PartialEq, Oneof)]
pub enum TargetUnion {
    #[prost(int64, tag = "4")]
    Version(i64),
}

/// `RequestOp`.
#[derive(Clone, PartialEq, Message)]
pub struct RequestOp {
    #[prost(oneof = "OneRequest", tags = "2, 3")]
    request: Option<OneRequest>,
}

/// The operations of a transaction that are used here.
#[derive(Clone, PartialEq, Oneof)]
pub enum OneRequest {
    #[prost(message, tag = "2")]
    Put(PutRequest),
    #[prost(message, tag = "3")]
    DeleteRange(DeleteRangeRequest),
}

/// `PutRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `DeleteRangeRequest`, of one key.
#[derive(Clone, PartialEq, Message)]
pub struct DeleteRangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

/// `CompareResult`.
const EQUAL: i32 = 0;
const GREATER: i32 = 1;
/// `CompareTarget`.
const VERSION: i32 = 0;

impl Compare {
    /// The key exists.
    pub fn exists(key: Vec<u8>) -> Compare {
        Compare::version(key, GREATER)
    }

    /// The key does not exist.
    pub fn is_free(key: Vec<u8>) -> Compare {
        Compare::version(key, EQUAL)
    }

    fn version(key: Vec<u8>, result: i32) -> Compare {
        Compare {
            result,
            target: VERSION,
            key,
            target_union: Some(TargetUnion::Version(0)),
        }
    }
}

impl RequestOp {
    /// Sets a key.
    pub fn put(key: Vec<u8>, value: Vec<u8>) -> RequestOp {
        let request = Some(OneRequest::Put(PutRequest { key, value }));
        RequestOp { request }
    }

    /// Removes a key.
    pub fn delete(key: Vec<u8>) -> RequestOp {
        let request = Some(OneRequest::DeleteRange(DeleteRangeRequest { key }));
        RequestOp { request }
    }
}

/// etcd's KV service on one connection.
#[derive(Clone)]
pub struct Kv(Grpc<Channel>);

impl Kv {
    /// On this connection.
    pub fn new(channel: Channel) -> Kv {
        Kv(Grpc::new(channel))
    }

    /// `KV.Range`.
    pub async fn range(&mut self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.call(request, "/etcdserverpb.KV/Range").await
    }

    /// `KV.Txn`.
    pub async fn txn(&mut self, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.call(request, "/etcdserverpb.KV/Txn").await
    }

    async fn call<Q, A>(&mut self, request: Q, method: &'static str) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.0
            .ready()
            .await
            .map_err(|error| Status::unknown(format!("not ready: {error}")))?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = self
            .0
            .unary(Request::new(request), PathAndQuery::from_static(method), codec);
        Ok(answer.await?.into_inner())
    }
}
