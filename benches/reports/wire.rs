//! A heartbeat as the bytes that go out, made once and sent again and again.
//!
//! Encoding 10,000 block ids for every beat of a thousand DataServers would take the processor away from the
//! servers that are measured, who share this machine. What is sent is what a DataServer sends.

use bytes::{BufMut, Bytes};
use minfs::proto::dfs::{HeartbeatRequest, HeartbeatResponse};
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// The connection of one DataServer.
#[derive(Clone)]
pub struct Line(Grpc<Channel>);

impl Line {
    pub fn new(channel: Channel) -> Line {
        Line(Grpc::new(channel))
    }

    /// Beats, and gives how many commands the answer has.
    pub async fn beat(&mut self, beat: Bytes) -> Result<usize, Status> {
        let gone = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        self.0.ready().await.map_err(gone)?;
        let path = PathAndQuery::from_static("/dfs_project.MetaServerService/Heartbeat");
        let answer = self.0.unary(Request::new(beat), path, Encoded).await?;
        Ok(answer.into_inner().commands.len())
    }
}

/// What [`Line::beat`] sends.
pub fn encoded(beat: &HeartbeatRequest) -> Bytes {
    beat.encode_to_vec().into()
}

/// Requests that are encoded already.
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = HeartbeatResponse;
    type Encoder = Encoded;
    type Decoder = Encoded;

    fn encoder(&mut self) -> Encoded {
        Encoded
    }

    fn decoder(&mut self) -> Encoded {
        Encoded
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = HeartbeatResponse;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<HeartbeatResponse>, Status> {
        let answer = HeartbeatResponse::decode(from);
        answer
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}
