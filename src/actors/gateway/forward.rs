//! Passing a request on to the leader: once, within the request's time, over channels that are kept.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::service::{Call, Shared};
use super::status::Failure;
use crate::actors::raft_node::messages::Leader;
use crate::proto::dfs::meta_server_service_client::MetaServerServiceClient;

/// Metadata of a request that was passed on: the name of the node that did it.
pub const FORWARDED_KEY: &str = "minfs-forwarded";

/// Metadata of a request that was passed on: the IP address that it came from.
pub const PEER_KEY: &str = "minfs-peer";

/// Channels to the other gateways, by address. Each connects when it is first used and again after
/// it broke.
pub(super) struct PeerChannels(BTreeMap<String, Channel>);

impl PeerChannels {
    /// Needs a runtime; does nothing on the network.
    pub(super) fn to<'a>(addresses: impl Iterator<Item = &'a str>) -> Self {
        let channel = |address: &str| Some((address.to_owned(), channel_to(address).ok()?));
        PeerChannels(addresses.filter_map(channel).collect())
    }

    /// The kept channel, or a new one to an address that the configuration does not name.
    fn get(&self, address: &str) -> Result<Channel, tonic::transport::Error> {
        self.0
            .get(address)
            .cloned()
            .map_or_else(|| channel_to(address), Ok)
    }
}

fn channel_to(address: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        // A peer that vanished without a word is noticed before many requests have waited for it.
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(2));
    Ok(endpoint.connect_lazy())
}

impl Shared {
    /// What is needed to ask the leader the same.
    pub(super) fn forward<T>(
        &self,
        call: &Call,
        leader: &Leader,
        message: T,
    ) -> Result<(MetaServerServiceClient<Channel>, Request<T>), Failure> {
        let channel = self.peers.get(&leader.node.grpc_addr);
        let channel = channel.map_err(|error| unreachable(leader, error.to_string()))?;
        let client = MetaServerServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        let mut request = Request::new(message);
        request.set_timeout(
            call.deadline
                .for_neighbours()
                .saturating_duration_since(Instant::now()),
        );
        let metadata = request.metadata_mut();
        let name = MetadataValue::try_from(self.settings.node_name.as_str());
        metadata.insert(FORWARDED_KEY, name.unwrap_or(MetadataValue::from_static("peer")));
        if let Some(origin) = call
            .came_from()
            .and_then(|ip| MetadataValue::try_from(ip.to_string()).ok())
        {
            metadata.insert(PEER_KEY, origin);
        }
        Ok((client, request))
    }
}

/// Waits for the leader's answer.
pub(super) async fn outcome<T>(
    call: &Call,
    leader: Leader,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match timeout_at(call.deadline.for_handler().into(), answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) if is_transport(&status) => Err(unreachable(&leader, status.message().to_owned())),
        Ok(Err(status)) => Err(Failure::LeaderSays(status)),
        Err(_) => Err(unreachable(&leader, "no answer in time".to_owned())),
    }
}

/// Whether a status was made on this side, or tells of a broken connection: then the leader said
/// nothing. What is passed on can all be asked again.
fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
        || matches!(
            status.code(),
            Code::Cancelled | Code::Unknown | Code::Internal | Code::DeadlineExceeded
        )
}

fn unreachable(leader: &Leader, why: String) -> Failure {
    Failure::LeaderUnreachable {
        leader: leader.clone(),
        why,
    }
}
