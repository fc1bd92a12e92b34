//! How many connections the system lets this process have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// File descriptors for what is no client's connection: files of the state, the log and snapshots, connections
/// to other nodes and to etcd, listeners, and the peers' connections.
const KEPT: u64 = 768;

/// For every so many connections that are served, one more may be open to be refused.
const EXCESS_SHARE: u64 = 16;

/// Clients' connections, as they fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// To be served.
    pub served: usize,
    /// To be refused with a status.
    pub excess: usize,
}

/// Raises the number of file descriptors that this process may open as far as that is allowed, and says how
/// many of `wanted` connections fit; with a warning when it is fewer.
pub fn fit(wanted: usize) -> Fit {
    let open = raised_to(wanted as u64 + wanted as u64 / EXCESS_SHARE + KEPT);
    let fit = fit_into(wanted, open);
    if fit.served < wanted {
        log::warn!(
            "{} connections at once instead of {wanted} (server.max_connections): the system allows this process {open} \
             open files; raise it (ulimit -n, LimitNOFILE)",
            fit.served
        );
    }
    fit
}

/// The limit, after it was raised to what is needed or to what is allowed.
fn raised_to(needed: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // None: there is no limit.
    let soft = limit.current.unwrap_or(u64::MAX);
    let possible = needed.min(limit.maximum.unwrap_or(u64::MAX));
    let raised = Rlimit {
        current: Some(possible),
        maximum: limit.maximum,
    };
    match soft < possible && setrlimit(Resource::Nofile, raised).is_ok() {
        true => possible,
        false => soft,
    }
}

fn fit_into(wanted: usize, open: u64) -> Fit {
    let room = open.saturating_sub(KEPT).max(open / 4);
    let most = room - room.div_ceil(EXCESS_SHARE + 1);
    let served = (wanted as u64).min(most).max(1);
    let excess = (served / EXCESS_SHARE).max(16).min(room.saturating_sub(served));
    let small = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    Fit {
        served: small(served),
        excess: small(excess),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wanted_where_there_is_room() {
        let fit = Fit {
            served: 16_384,
            excess: 1024,
        };
        assert_eq!(fit_into(16_384, 20_000), fit);
        assert_eq!(fit_into(16_384, 1 << 20), fit);
        assert_eq!(fit_into(16_384, 1 << 40), fit);
    }

    #[test]
    fn otherwise_what_fits() {
        for open in [64, 256, 1024, 4096, 16_384] {
            let Fit { served, excess } = fit_into(16_384, open);
            let rest = open - served as u64 - excess as u64;
            assert!(served < 16_384 && served as u64 >= open / 5, "{open}: {served}");
            assert!(rest >= KEPT.min(open / 2), "{open}: {rest} for the rest");
        }
    }

    #[test]
    fn the_limit_is_raised_as_far_as_allowed_and_never_lowered() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let soft = || getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let needed = (soft() + 1).min(hard);
        assert_eq!((raised_to(needed), soft()), (needed, needed));
        assert_eq!((raised_to(10), soft()), (needed, needed));
        if hard < u64::MAX {
            assert_eq!((raised_to(u64::MAX), soft()), (hard, hard));
        }
    }
}
