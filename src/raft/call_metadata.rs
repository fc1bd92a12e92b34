//! What every call between MetaServers says about itself: for which cluster, from whom, to whom.
//!
//! The clients of both peer services stamp their calls with [`stamp`], their servers check them with
//! [`check`] before they look at the message.
//!
//! Invariant: a node acts on no call that was meant for another cluster, or for a directory that was
//! once in its place (design rule 9).

use tonic::Status;
use tonic::codegen::http::HeaderMap;
use tonic::metadata::{MetadataMap, MetadataValue};

use super::identity::Identity;
use super::types::NodeId;

const CLUSTER: &str = "minfs-cluster";
const FROM: &str = "minfs-from";
const TARGET: &str = "minfs-target";

/// This node is fresh: it has no cluster to call for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node is in no cluster yet")]
pub struct InNoCluster;

/// Says that a call comes from `identity` and is for the node `target` of its cluster.
///
/// # Errors
/// The node is in no cluster.
pub fn stamp(identity: &Identity, target: NodeId, metadata: &mut MetadataMap) -> Result<(), InNoCluster> {
    let cluster = identity.cluster().ok_or(InNoCluster)?;
    let cluster = MetadataValue::try_from(cluster.to_string()).map_err(|_| InNoCluster)?;
    metadata.insert(CLUSTER, cluster);
    metadata.insert(FROM, identity.incarnation().into());
    metadata.insert(TARGET, target.into());
    Ok(())
}

/// Whether a call with these headers is for this node, in this cluster; the caller's node id if so.
///
/// # Errors
/// `FAILED_PRECONDITION`, naming both, when it is for another cluster or another incarnation, and
/// when this node is in no cluster; `INVALID_ARGUMENT` when the call does not say.
pub fn check(identity: &Identity, metadata: &HeaderMap) -> Result<NodeId, Status> {
    let cluster = text(metadata, CLUSTER)?;
    let from = number(metadata, FROM)?;
    let target = number(metadata, TARGET)?;
    let Some(ours) = identity.cluster() else {
        let message = format!(
            "{} is in no cluster, the call is for cluster {cluster}",
            identity.name()
        );
        return Err(Status::failed_precondition(message));
    };
    if cluster != ours.to_string() {
        let message = format!(
            "{} is in cluster {ours}, the call is for cluster {cluster}",
            identity.name()
        );
        return Err(Status::failed_precondition(message));
    }
    if target != identity.incarnation() {
        let message = format!(
            "{} is incarnation {}, the call is for incarnation {target}",
            identity.name(),
            identity.incarnation()
        );
        return Err(Status::failed_precondition(message));
    }
    Ok(from)
}

fn text<'m>(metadata: &'m HeaderMap, key: &'static str) -> Result<&'m str, Status> {
    metadata
        .get(key)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| Status::invalid_argument(format!("call without {key}")))
}

fn number(metadata: &HeaderMap, key: &'static str) -> Result<NodeId, Status> {
    let text = text(metadata, key)?;
    text.parse()
        .map_err(|_| Status::invalid_argument(format!("{key} is no number: {text}")))
}
