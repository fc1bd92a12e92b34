//! The gRPC server: which services are served, and within which bounds.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::server::Builder as Reflection;

use super::admin::AdminDesk;
use super::limits::{Limited, Limits};
use super::receipts::{Receipted, Receipts};
use super::service::{MetaService, Shared};
use crate::proto::DESCRIPTORS;
use crate::proto::admin::admin_service_server::AdminServiceServer;
use crate::proto::dfs::meta_server_service_server::MetaServerServiceServer;

/// The contract's service, as tonic serves it.
pub(super) type ContractService = MetaServerServiceServer<MetaService>;

/// The largest request, in bytes: a beat with some millions of blocks. (tonic's own limit of 4 MiB is
/// less than a DataServer with 500,000 blocks needs.) Answers may have any size.
const MAX_REQUEST_BYTES: usize = 64 << 20;

/// Serves until `stop` is there, and then until every request is answered.
pub(super) fn serve(
    shared: Arc<Shared>,
    receipts: Arc<Receipts>,
    health: HealthReporter,
    incoming: TcpIncoming,
    stop: impl Future<Output = ()>,
) -> impl Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>> {
    let limits = Limits::new(shared.settings.max_in_flight, shared.settings.request_timeout);
    let contract =
        ContractService::new(MetaService(shared.clone())).max_decoding_message_size(MAX_REQUEST_BYTES);
    let admin = AdminServiceServer::new(AdminDesk(shared.clone()));
    async move {
        Server::builder()
            // A client that has all its streams refused must still be able to ask who leads.
            .max_concurrent_streams(u32::MAX)
            // Finds clients that vanished without a word.
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .add_service(Limited::new(Receipted::new(contract, receipts), limits.clone()))
            .add_service(Limited::new(admin, limits))
            .add_service(HealthServer::new(HealthService::from_health_reporter(health)))
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .serve_with_incoming_shutdown(incoming, stop)
            .await?;
        Ok(())
    }
}

fn reflection() -> Reflection<'static> {
    let ours =
        Reflection::configure().register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    DESCRIPTORS
        .into_iter()
        .fold(ours, Reflection::register_encoded_file_descriptor_set)
}
