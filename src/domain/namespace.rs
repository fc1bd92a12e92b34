//! What each command does to the state.
