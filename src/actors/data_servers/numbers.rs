//! Which number a DataServer has in the replicated state, by the id that it gives in its beats.
//!
//! The actor asks for every beat. With a thousand DataServers, going through all their records would be the
//! most of what a beat costs.
//!
//! Invariant: what is kept here is a hint and nothing else. A record is believed because it bears the
//! id that was asked for, whoever has changed it meanwhile, and however: a registration of an earlier leader
//! that is applied only now, a snapshot in place of the whole state. So nobody has to tell of changes.

use std::collections::HashMap;

use crate::domain::ids::ServerId;
use crate::domain::state::{DataServer, ReadTables};
use crate::storage::{StateReader, StorageError};

/// See the module. As large as there are registered DataServers.
#[derive(Debug, Default)]
pub struct Numbers(HashMap<String, ServerId>);

impl Numbers {
    /// The replicated record of the DataServer `id`, as it is now; `None` when it was never registered.
    pub fn find(&mut self, id: &str, state: &StateReader) -> Result<Option<DataServer>, StorageError> {
        let hint = self.0.get(id).copied();
        state.read(|view| {
            if let Some(number) = hint {
                let hinted = view.server(number)?;
                if hinted.as_ref().is_some_and(|known| known.id == id) {
                    return Ok(hinted);
                }
            }
            let servers = view.servers()?;
            self.0 = servers
                .iter()
                .map(|known| (known.id.clone(), known.server))
                .collect();
            Ok(servers.into_iter().find(|known| known.id == id))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::testing::TestState;
    use crate::domain::command::Op;
    use crate::domain::state::ServerStatus;

    fn register(state: &TestState, id: &str, addr: &str) {
        let op = Op::RegisterDataServer {
            id: id.to_owned(),
            addr: addr.to_owned(),
        };
        state.apply(op).unwrap();
    }

    #[test]
    fn what_changes_in_the_state_is_seen_without_a_word() {
        let (state, mut numbers) = (TestState::empty(), Numbers::default());
        let reader = state.reader();
        assert_eq!(numbers.find("a", &reader).unwrap(), None);
        register(&state, "a", "host-a:1");
        register(&state, "b", "host-b:1");
        for round in 0..2 {
            for (id, number) in [("a", 1), ("b", 2)] {
                let known = numbers.find(id, &reader).unwrap().unwrap();
                assert_eq!(
                    (known.id.as_str(), known.server),
                    (id, ServerId(number)),
                    "{round}"
                );
            }
        }
        register(&state, "a", "host-a:2");
        state
            .apply(Op::SetDataServerStatus {
                server: ServerId(2),
                status: ServerStatus::Unhealthy,
            })
            .unwrap();
        register(&state, "c", "host-c:1");
        assert_eq!(numbers.find("a", &reader).unwrap().unwrap().addr, "host-a:2");
        let status = numbers.find("b", &reader).unwrap().unwrap().status;
        assert_eq!(status, ServerStatus::Unhealthy);
        assert_eq!(numbers.find("c", &reader).unwrap().unwrap().server, ServerId(3));
        assert_eq!(numbers.find("d", &reader).unwrap(), None);
    }

    #[test]
    fn a_hint_that_leads_to_another_or_to_nobody_is_not_believed() {
        let state = TestState::empty();
        register(&state, "a", "host-a:1");
        register(&state, "b", "host-b:1");
        for wrong in [1, 9] {
            let mut numbers = Numbers([("b".to_owned(), ServerId(wrong))].into());
            let known = numbers.find("b", &state.reader()).unwrap().unwrap();
            assert_eq!((known.id.as_str(), known.server), ("b", ServerId(2)));
            assert_eq!(numbers.0["b"], ServerId(2));
        }
    }
}
