//! What the commands about DataServers do to the state. Called by [`super::namespace::apply`].

use super::command::{Applied, Outcome, Refusal};
use super::ids::ServerId;
use super::state::{DataServer, ServerStatus, Tables};

/// Makes a DataServer known, or its new address; it counts as healthy from then on.
pub(super) fn register<T: Tables>(tables: &mut T, id: &str, addr: &str) -> Result<Applied, T::Error> {
    if id.is_empty() || addr.is_empty() {
        return Ok(Err(Refusal::invalid_argument(
            "a DataServer needs an id and an address",
        )));
    }
    let mut known = None;
    for mut other in tables.servers()? {
        if other.id == id {
            known = Some(other.server);
        } else if other.addr == addr && other.status != ServerStatus::Down {
            // Two servers cannot listen on one address: the one that spoke last is the one there.
            other.status = ServerStatus::Down;
            tables.put_server(&other)?;
        }
    }
    let server = match known {
        Some(server) => server,
        None => {
            let mut counters = tables.counters()?;
            let server = ServerId(counters.next_server);
            counters.next_server += 1;
            tables.put_counters(counters)?;
            server
        }
    };
    let record = DataServer {
        server,
        id: id.to_owned(),
        addr: addr.to_owned(),
        status: ServerStatus::Healthy,
    };
    tables.put_server(&record)?;
    Ok(Ok(Outcome::DataServerRegistered { server }))
}

/// Records what the leader thinks of a DataServer's health.
pub(super) fn set_status<T: Tables>(
    tables: &mut T,
    server: ServerId,
    status: ServerStatus,
) -> Result<Applied, T::Error> {
    let Some(mut record) = tables.server(server)? else {
        return Ok(Err(Refusal::not_found(format!(
            "no DataServer has number {server}"
        ))));
    };
    record.status = status;
    tables.put_server(&record)?;
    Ok(Ok(Outcome::StatusSet))
}
