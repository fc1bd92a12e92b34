//! The gRPC server: which services are served, and within which bounds.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::server::Builder as Reflection;

use super::admin::AdminDesk;
use super::limits::{Limited, Limits, MAX_REQUEST_BYTES};
use super::receipts::{Receipted, Receipts};
use super::service::{MetaService, Shared};
use crate::connections::{self, AnswerBounds, Bounds, Fit, Threads};
use crate::proto::DESCRIPTORS;
use crate::proto::admin::admin_service_server::AdminServiceServer;
use crate::proto::dfs::meta_server_service_server::MetaServerServiceServer;

/// The contract's service, as tonic serves it.
pub(super) type ContractService = MetaServerServiceServer<MetaService>;

/// Those who watch health, and those who ask for descriptions, at once.
const WATCHERS: usize = 1024;
const READERS_OF_DESCRIPTIONS: usize = 64;

/// Streams of one connection beside the requests that it may have under way: refusals on their way out, and
/// questions who leads.
const SPARE_STREAMS: u32 = 1024;

/// Bytes under way to this server. Only reports of blocks are larger, and they come over short distances.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// How long a connection may be silent until it is asked whether it is alive, and how long it may take to
/// say so: finds clients that vanished without a word.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// How long a connection may take to say that it speaks HTTP/2.
const GREETING: Duration = Duration::from_secs(10);

/// How long a connection beyond the bound is there: long enough for a request and its refusal.
const EXCESS_TIME: Duration = Duration::from_secs(10);

/// How long an answer may wait for its client to read it.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Bytes of answers that wait to be read: a listing of a million entries has some 70 MiB.
const ANSWERS: AnswerBounds = AnswerBounds {
    each: 64 << 20,
    total: 256 << 20,
};

/// Serves, on `threads`, until `stop` is there, and then until every request is answered.
///
/// # Errors
/// The descriptions of the services cannot be read, which a build decides once and for all.
pub(super) fn serve(
    shared: Arc<Shared>,
    receipts: Arc<Receipts>,
    health: HealthReporter,
    listener: TcpListener,
    threads: Threads,
    stop: impl Future<Output = ()>,
) -> Result<impl Future<Output = ()>, tonic_reflection::server::Error> {
    let settings = &shared.settings;
    let bounds = bounds(settings.connections, settings.max_in_flight);
    let time = settings.request_timeout;
    let limits = Limits::new(settings.max_in_flight, time);
    let of_watchers = Limits::new(WATCHERS, time);
    let of_readers = Limits::new(READERS_OF_DESCRIPTIONS, time).of_whole_answers();
    let contract =
        ContractService::new(MetaService(shared.clone())).max_decoding_message_size(MAX_REQUEST_BYTES);
    let admin = AdminServiceServer::new(AdminDesk(shared));
    let health = HealthServer::new(HealthService::from_health_reporter(health));
    let routes = Routes::new(Limited::new(Receipted::new(contract, receipts), limits.clone()))
        .add_service(Limited::new(admin, limits))
        .add_service(Limited::new(health, of_watchers))
        .add_service(Limited::new(reflection().build_v1()?, of_readers.clone()))
        .add_service(Limited::new(reflection().build_v1alpha()?, of_readers));
    Ok(connections::serve(listener, routes, bounds, threads, stop))
}

fn bounds(connections: Fit, max_in_flight: usize) -> Bounds {
    Bounds {
        connections: connections.served,
        excess: connections.excess,
        excess_time: EXCESS_TIME,
        // A client may fill the server on one connection, and still ask who leads.
        streams: u32::try_from(max_in_flight)
            .unwrap_or(u32::MAX)
            .saturating_add(SPARE_STREAMS),
        stream_window: STREAM_WINDOW,
        connection_window: CONNECTION_WINDOW,
        keepalive: KEEPALIVE,
        greeting: GREETING,
        strangers: None,
        answer_time: ANSWER_TIME,
        answers: ANSWERS,
    }
}

fn reflection() -> Reflection<'static> {
    let ours =
        Reflection::configure().register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    DESCRIPTORS
        .into_iter()
        .fold(ours, Reflection::register_encoded_file_descriptor_set)
}
