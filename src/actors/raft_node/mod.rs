//! The Raft node: proposes, answers "may I read?", forwards to the leader, tells who leads.

pub mod messages;
