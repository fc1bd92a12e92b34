//! What can become of an operation, seen from the client.
//!
//! Three things are kept apart, because a caller acts differently on each: a mistake of the user
//! (asking again changes nothing), a cluster that was not available (nothing happened, ask again),
//! and an outcome that nobody knows (it may have happened: look before asking again).

use tonic::{Code, Status};

/// Why an operation has no answer, or not the hoped-for one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The path, or the parent of a path to be created, does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request can never work: a relative path, a part that is too long, a negative size, ...
    #[error("{0}")]
    InvalidArgument(String),
    /// The request does not fit what is there: a directory that is not empty, a file as a parent, ...
    #[error("{0}")]
    FailedPrecondition(String),
    /// No server would take the request before the deadline. Nothing happened.
    #[error("{0}")]
    Unavailable(String),
    /// The deadline passed after an attempt whose fate is unknown. The change may have happened, or
    /// may still happen.
    #[error("{0}")]
    OutcomeUnknown(String),
    /// The server failed in a way that neither the user nor a retry can mend.
    #[error("server error {code:?}: {message}")]
    Server {
        /// The gRPC status code.
        code: Code,
        /// The server's own words.
        message: String,
    },
    /// What was given as a server's address is none.
    #[error("not an address of the form host:port: {0:?}")]
    Address(String),
}

impl Error {
    /// A server's answer that is final: asking again would get the same.
    pub(super) fn answer(status: &Status) -> Self {
        let message = match status.message() {
            "" => status.code().description(),
            message => message,
        };
        let message = message.to_string();
        match status.code() {
            Code::NotFound => Error::NotFound(message),
            Code::AlreadyExists => Error::AlreadyExists(message),
            Code::InvalidArgument => Error::InvalidArgument(message),
            Code::FailedPrecondition => Error::FailedPrecondition(message),
            Code::Unavailable => Error::Unavailable(message),
            code => Error::Server { code, message },
        }
    }

    /// A word for scripts, stable across versions.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::NotFound(_) => "not_found",
            Error::AlreadyExists(_) => "already_exists",
            Error::InvalidArgument(_) => "invalid_argument",
            Error::FailedPrecondition(_) => "failed_precondition",
            Error::Unavailable(_) => "unavailable",
            Error::OutcomeUnknown(_) => "outcome_unknown",
            Error::Server { .. } => "server",
            Error::Address(_) => "usage",
        }
    }

    /// Whether the caller asked for something that the tree does not allow.
    pub fn is_user_mistake(&self) -> bool {
        match self {
            Error::NotFound(_)
            | Error::AlreadyExists(_)
            | Error::InvalidArgument(_)
            | Error::FailedPrecondition(_) => true,
            Error::Unavailable(_) | Error::OutcomeUnknown(_) | Error::Server { .. } | Error::Address(_) => {
                false
            }
        }
    }
}
