//! Who leads, who is there, and the DataServers' beats.
//!
//! Reports and beats live on the leader: another node passes the whole request on to it, once.

use std::net::IpAddr;

use super::forward;
use super::service::{Call, Shared, ask};
use super::status::Failure;
use crate::actors::data_servers::messages::{
    DataServerCommand, GetReports, HeartbeatReceived, Reports, ServerReport,
};
use crate::actors::raft_node::messages::{GetStatus, Leader, LeadershipChanged};
use crate::domain::command::Refusal;
use crate::proto::dfs::command::Action;
use crate::proto::dfs::{
    ClusterInfo, Command, DataServerMsg, GetClusterInfoRequest, GetClusterInfoResponse, GetLeaderResponse,
    HeartbeatRequest, HeartbeatResponse, MetaServerMsg,
};

/// Bytes in what the contract calls a MB.
const MB: u64 = 1 << 20;

/// Who has no answer when it is not the Raft node.
pub(super) const KEEPER: &str = "the DataServers' keeper";

/// The longest id of a DataServer, in bytes: it is kept for ever.
const MAX_SERVER_ID_BYTES: usize = 255;

impl Shared {
    /// Never fails and waits for nothing but the gateway's own actor.
    pub(super) async fn get_leader(&self, call: &Call) -> GetLeaderResponse {
        let (leader, followers) = self.meta_servers(&self.who_leads(call).await);
        GetLeaderResponse { leader, followers }
    }

    /// The leader, and everybody else.
    fn meta_servers(&self, news: &LeadershipChanged) -> (Option<MetaServerMsg>, Vec<MetaServerMsg>) {
        let leader = news.leader.as_ref();
        let others = self.settings.members();
        let others = others.filter(|(name, _)| leader.is_none_or(|leader| leader.node.name != *name));
        (
            leader.and_then(|leader| meta_server(&leader.node.grpc_addr)),
            others.filter_map(|(_, address)| meta_server(address)).collect(),
        )
    }

    /// `None` when this node leads, else the leader that the call is to be passed on to.
    pub(super) async fn elsewhere(&self, call: &Call) -> Result<Option<Leader>, Failure> {
        let news = self.who_leads(call).await;
        if news.is_leader() {
            return Ok(None);
        }
        let is_other = |leader: &Leader| leader.node.name != self.settings.node_name;
        match news.leader {
            Some(leader) if !call.is_forwarded() && is_other(&leader) => Ok(Some(leader)),
            leader => Err(Failure::NotLeader(leader)),
        }
    }

    /// This node must lead, and be sure of it: what is asked is not passed on, and a leader that was
    /// cut off finds out here.
    pub(super) async fn lead_for_sure(&self, call: &Call) -> Result<(), Failure> {
        let news = self.who_leads(call).await;
        match news.is_leader() {
            true => self.await_read(call).await,
            false => Err(Failure::NotLeader(news.leader)),
        }
    }

    /// What every DataServer reported last. This node must lead.
    pub(super) async fn reports(&self, call: &Call) -> Result<Reports, Failure> {
        let until = call.deadline.for_handler();
        let reports = ask(&self.neighbours.get_reports, GetReports, until)
            .await
            .map_err(|_| Failure::NoAnswer(KEEPER))?;
        // It has heard before this gateway that another node leads. No reports would look as if
        // every DataServer were dead.
        if reports.generation == 0 {
            return Err(Failure::NotLeader(None));
        }
        Ok(reports)
    }

    /// The cluster's id; empty while this node does not know it.
    async fn cluster_id(&self, call: &Call) -> String {
        if let Some(known) = self.cluster_id.get() {
            return known.clone();
        }
        let until = call.deadline.for_neighbours();
        let status = ask(&self.neighbours.get_status, GetStatus, until).await;
        match status.ok().and_then(|status| status.cluster_id) {
            Some(id) => self.cluster_id.get_or_init(|| id).clone(),
            None => String::new(),
        }
    }

    pub(super) async fn get_cluster_info(
        &self,
        call: &Call,
        request: GetClusterInfoRequest,
    ) -> Result<GetClusterInfoResponse, Failure> {
        if let Some(leader) = self.elsewhere(call).await? {
            let (mut client, request) = self.forward(call, &leader, request)?;
            return forward::outcome(call, leader, client.get_cluster_info(request)).await;
        }
        // A leader that was cut off finds out here.
        self.await_read(call).await?;
        let reports = self.reports(call).await?;
        let (master_meta_server, slave_meta_server) = self.meta_servers(&self.who_leads(call).await);
        Ok(GetClusterInfoResponse {
            cluster_info: Some(ClusterInfo {
                master_meta_server,
                slave_meta_server,
                data_server: reports
                    .servers
                    .iter()
                    .filter(|report| report.alive)
                    .filter_map(data_server)
                    .collect(),
            }),
        })
    }

    pub(super) async fn heartbeat(
        &self,
        call: &Call,
        request: HeartbeatRequest,
    ) -> Result<HeartbeatResponse, Failure> {
        let addr = checked(&request, call.came_from())?;
        if let Some(leader) = self.elsewhere(call).await? {
            let (mut client, request) = self.forward(call, &leader, request)?;
            return forward::outcome(call, leader, client.heartbeat(request)).await;
        }
        let beat = HeartbeatReceived {
            id: request.data_server_id,
            addr,
            blocks: request.block_ids_report,
            corrupt: request.corrupt_block_ids,
            block_count: request.block_count,
            free_space: request.free_space,
            total_capacity: request.total_capacity,
            deadline: call.deadline.for_neighbours(),
        };
        match ask(&self.neighbours.heartbeat, beat, call.deadline.for_handler()).await {
            Ok(Ok(commands)) => Ok(HeartbeatResponse {
                commands: commands.into_iter().map(command).collect(),
                cluster_id: self.cluster_id(call).await,
            }),
            Ok(Err(error)) => Err(Failure::Heartbeat(error)),
            // It will beat again, and a beat counts once however often it comes.
            Err(_) => Err(Failure::NoAnswer(KEEPER)),
        }
    }
}

fn command(command: DataServerCommand) -> Command {
    match command {
        DataServerCommand::Delete(block) => Command {
            action: Action::DeleteBlock.into(),
            block_id: block.0,
            targets: Vec::new(),
        },
        DataServerCommand::Copy { block, from } => Command {
            action: Action::CopyBlock.into(),
            block_id: block.0,
            targets: vec![from],
        },
    }
}

/// Host and port of `host:port`; an IPv6 host stands in brackets.
fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|&port| port != 0)?;
    Some((host, port))
}

fn meta_server(address: &str) -> Option<MetaServerMsg> {
    let (host, port) = host_and_port(address)?;
    Some(MetaServerMsg {
        host: host.to_owned(),
        port: port.into(),
    })
}

fn data_server(report: &ServerReport) -> Option<DataServerMsg> {
    let clamped = |count: u64| i32::try_from(count).unwrap_or(i32::MAX);
    let (host, port) = host_and_port(&report.addr)?;
    let used = report.total_capacity.saturating_sub(report.free_space);
    Some(DataServerMsg {
        host: host.to_owned(),
        port: port.into(),
        file_total: clamped(report.blocks.len() as u64),
        capacity: clamped(report.total_capacity / MB),
        use_capacity: clamped(used / MB),
    })
}

/// Checks a beat, and finds out where its sender can be reached.
fn checked(request: &HeartbeatRequest, origin: Option<IpAddr>) -> Result<String, Refusal> {
    let (id, addr) = (&request.data_server_id, &request.data_server_addr);
    if id.is_empty() || addr.is_empty() {
        return Err(Refusal::invalid_argument(
            "a heartbeat needs an id and an address",
        ));
    }
    if id.len() > MAX_SERVER_ID_BYTES {
        return Err(Refusal::invalid_argument(format!(
            "DataServer id has {} bytes",
            id.len()
        )));
    }
    reachable(addr, origin)
}

/// What names and addresses of hosts are made of.
fn of_a_host(c: char) -> bool {
    c.is_ascii_alphanumeric() || ".-_:[]%".contains(c)
}

/// A DataServer's address as others can use it. Old ones advertise what they listen on: where the
/// host is unspecified, it is the one that the beat came from.
fn reachable(addr: &str, origin: Option<IpAddr>) -> Result<String, Refusal> {
    let invalid =
        |why: &str| Refusal::invalid_argument(format!("DataServer address {why}: {}", addr.escape_debug()));
    let (host, port) = host_and_port(addr).ok_or_else(|| invalid("is not host:port"))?;
    if host.len() > 255 || !host.chars().all(of_a_host) {
        return Err(invalid("has no usable host"));
    }
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let unspecified = bare.is_empty() || bare.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
    if !unspecified {
        return Ok(addr.to_owned());
    }
    match origin.map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(ip)) => Ok(format!("{ip}:{port}")),
        Some(IpAddr::V6(ip)) => Ok(format!("[{ip}]:{port}")),
        None => Err(invalid("has no host, and where the beat came from is not known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_host_is_where_the_beat_came_from() {
        let v4: IpAddr = "10.1.2.3".parse().unwrap();
        let v6: IpAddr = "fd00::5".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().unwrap();
        for (addr, origin, expected) in [
            ("0.0.0.0:8001", Some(v4), "10.1.2.3:8001"),
            ("[::]:8001", Some(v4), "10.1.2.3:8001"),
            (":::8001", Some(v4), "10.1.2.3:8001"),
            (":8001", Some(v4), "10.1.2.3:8001"),
            (":8001", Some(mapped), "10.1.2.3:8001"),
            (":8001", Some(v6), "[fd00::5]:8001"),
            ("localhost:8001", Some(v4), "localhost:8001"),
            ("ds-1.example:8001", None, "ds-1.example:8001"),
            ("[fd00::7]:8001", Some(v4), "[fd00::7]:8001"),
        ] {
            assert_eq!(reachable(addr, origin).as_deref(), Ok(expected), "{addr}");
        }
    }

    #[test]
    fn an_address_of_no_use_is_refused() {
        let v4 = "10.1.2.3".parse().ok();
        for addr in [
            "",
            "localhost",
            "localhost:",
            "localhost:0",
            "localhost:70000",
            "a b:1",
            "a\n:1",
        ] {
            assert!(reachable(addr, v4).is_err(), "{addr}");
        }
        assert!(reachable("0.0.0.0:8001", None).is_err());
    }

    #[test]
    fn reports_are_shown_in_megabytes_and_never_overflow() {
        let report = |free, total| ServerReport {
            server: crate::domain::ids::ServerId(1),
            id: "ds-1".into(),
            status: crate::domain::state::ServerStatus::Healthy,
            reported_ms: Some(1),
            corrupt: [].into(),
            takes_blocks: true,
            addr: "localhost:8001".into(),
            blocks: [1, 2, 3].into(),
            free_space: free,
            total_capacity: total,
            alive: true,
        };
        let shown = data_server(&report(3 * MB, 10 * MB)).unwrap();
        assert_eq!((shown.file_total, shown.capacity, shown.use_capacity), (3, 10, 7));
        let shown = data_server(&report(5, u64::MAX)).unwrap();
        assert_eq!((shown.capacity, shown.use_capacity), (i32::MAX, i32::MAX));
        assert_eq!(data_server(&report(9, 8)).unwrap().use_capacity, 0);
    }
}
