//! The DataServers: who is alive, what each reported, and what each must do.

pub mod messages;
