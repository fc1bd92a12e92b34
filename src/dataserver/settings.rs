//! What a DataServer is told: the command line, and the checked settings made of it.
//!
//! `src/bin/dataserver.rs` parses [`Arguments`]; tests build [`Settings`] themselves. The invariant: a
//! [`Settings`] made from a command line needs no further checking.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::client::Source;
use crate::config::Logging;

/// Below this prefix the MetaServers look for DataServers, unless they are told otherwise.
pub const ETCD_PREFIX: &str = "/dfs/dataServers/";

/// How long anything may take that is given as a time.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// The DataServer of MinFS: keeps blocks on a disk, and serves them.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "dataserver",
    version,
    about = "Keeps blocks for a MinFS cluster and serves them to clients"
)]
pub struct Arguments {
    /// Port for clients and other DataServers; 0 takes a free one
    #[arg(long, default_value_t = 8001)]
    pub port: u16,
    /// Where the blocks lie
    #[arg(long)]
    pub data_dir: PathBuf,
    /// Name of this DataServer in the cluster [default: ds-PORT]
    #[arg(long)]
    pub id: Option<String>,
    /// Where others reach this DataServer [default: localhost:PORT]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Address to listen on [default: loopback, or all when --advertise names another host]
    #[arg(long, value_name = "IP")]
    pub listen: Option<IpAddr>,
    /// MetaServers to report to [default: those registered in etcd]
    #[arg(long, value_name = "HOST:PORT[,…]", required_unless_present = "etcd")]
    pub metaserver: Option<String>,
    /// etcd to register in, and to find the MetaServers in
    #[arg(long, value_name = "HOST:PORT[,…]")]
    pub etcd: Option<String>,
    /// Prefix of this DataServer's key in etcd
    #[arg(long, value_name = "KEY", default_value = ETCD_PREFIX)]
    pub etcd_prefix: String,
    /// Time between two reports to the leader
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    pub heartbeat_interval: Duration,
    /// Time between two looks at what others did to the files
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub rescan_interval: Duration,
    /// How much is read each second to find silent damage; 0: nothing
    #[arg(long, value_name = "BYTES", default_value = "8MiB", value_parser = bytes)]
    pub scrub_rate: u64,
    /// Time from the beginning of one search for silent damage to that of the next, at least
    #[arg(long, value_name = "TIME", default_value = "1day", value_parser = time)]
    pub scrub_interval: Duration,
    /// Room on the disk that blocks do not take [default: 1GiB, or a twentieth of a smaller disk]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub reserved_space: Option<u64>,
    /// Blocks copied from other DataServers at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub max_copies: u16,
    /// Blocks written at once; one more is refused
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_writes: u16,
    /// A level (error, warn, info, debug, trace), or directives as in RUST_LOG
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// Appended to, beside stderr
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

/// What a DataServer is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name; `None`: `ds-PORT`.
    pub id: Option<String>,
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// `host:port` where others reach it; `None`: `localhost:PORT`.
    pub advertise: Option<String>,
    /// Where the blocks lie.
    pub data_dir: PathBuf,
    /// The MetaServers; empty: those in etcd.
    pub metaservers: Vec<String>,
    /// The endpoints of etcd; empty: none.
    pub etcd: Vec<String>,
    /// Prefix of the key in etcd, with its last slash.
    pub etcd_prefix: String,
    /// Between two reports.
    pub heartbeat_interval: Duration,
    /// Between two looks at what others did to the files.
    pub rescan_interval: Duration,
    /// Bytes a second; 0: nothing is scrubbed.
    pub scrub_rate: u64,
    /// From the beginning of one pass of the scrubber to that of the next, at least.
    pub scrub_interval: Duration,
    /// Bytes of the disk that blocks do not take; `None`: the default of [`super::block_store::space`].
    pub reserved_space: Option<u64>,
    /// Blocks copied from others at once.
    pub max_copies: usize,
    /// Blocks written at once; one more is refused.
    pub max_writes: usize,
    /// A sender or receiver of block data that makes no progress for this long is given up.
    pub stall_timeout: Duration,
    /// How long a clean stop waits for what is under way.
    pub stop_timeout: Duration,
}

impl Settings {
    /// The defaults, on a free port of the loopback.
    pub fn new(data_dir: impl Into<PathBuf>, metaservers: Vec<String>) -> Settings {
        Settings {
            id: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            advertise: None,
            data_dir: data_dir.into(),
            metaservers,
            etcd: Vec::new(),
            etcd_prefix: ETCD_PREFIX.to_owned(),
            heartbeat_interval: Duration::from_secs(5),
            rescan_interval: Duration::from_secs(30),
            scrub_rate: 8 << 20,
            scrub_interval: Duration::from_secs(24 * 3600),
            reserved_space: None,
            max_copies: 4,
            max_writes: 256,
            stall_timeout: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(10),
        }
    }
}

/// A command line that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{argument}: {what}")]
pub struct UsageError {
    argument: &'static str,
    what: String,
}

impl Arguments {
    /// Checks everything, and gives what to log as well.
    ///
    /// # Errors
    /// Names the first argument that cannot work.
    pub fn settings(self) -> Result<(Settings, Logging), UsageError> {
        let wrong = |argument| move |what: String| UsageError { argument, what };
        let list = |argument, text: Option<&str>| match text {
            Some(text) => addresses(text).map_err(wrong(argument)),
            None => Ok(Vec::new()),
        };
        if let Some(id) = &self.id {
            check_id(id).map_err(wrong("--id"))?;
        }
        if let Some(advertise) = &self.advertise {
            check_advertise(advertise).map_err(wrong("--advertise"))?;
        }
        if !self.etcd_prefix.starts_with('/') || !self.etcd_prefix.ends_with('/') {
            let what = format!("must begin and end with a slash, is `{}`", self.etcd_prefix);
            return Err(wrong("--etcd-prefix")(what));
        }
        let ip = self
            .listen
            .unwrap_or_else(|| listen_ip(self.advertise.as_deref()));
        if ip.is_unspecified() && self.advertise.is_none() {
            let what = "needed when --listen takes every address: others must be told one".to_owned();
            return Err(wrong("--advertise")(what));
        }
        crate::logging::check(&self.log_level).map_err(wrong("--log-level"))?;
        let logging = Logging {
            level: self.log_level,
            file: self.log_file,
        };
        let settings = Settings {
            id: self.id,
            listen: SocketAddr::new(ip, self.port),
            advertise: self.advertise,
            metaservers: list("--metaserver", self.metaserver.as_deref())?,
            etcd: list("--etcd", self.etcd.as_deref())?,
            etcd_prefix: self.etcd_prefix,
            heartbeat_interval: self.heartbeat_interval,
            rescan_interval: self.rescan_interval,
            scrub_rate: self.scrub_rate,
            scrub_interval: self.scrub_interval,
            reserved_space: self.reserved_space,
            max_copies: self.max_copies.into(),
            max_writes: self.max_writes.into(),
            ..Settings::new(self.data_dir, Vec::new())
        };
        Ok((settings, logging))
    }
}

/// Whoever advertises another host than this one means to be reached from there.
fn listen_ip(advertise: Option<&str>) -> IpAddr {
    let host = advertise
        .and_then(|addr| addr.rsplit_once(':'))
        .map(|(host, _)| host);
    match host {
        Some(host) if !is_loopback(host) => Ipv4Addr::UNSPECIFIED.into(),
        Some("[::1]") => std::net::Ipv6Addr::LOCALHOST.into(),
        Some(_) | None => Ipv4Addr::LOCALHOST.into(),
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Reads `host:port[,host:port…]`.
pub(super) fn addresses(text: &str) -> Result<Vec<String>, String> {
    match Source::servers(text) {
        Ok(Source::Servers(list) | Source::Etcd(list)) => Ok(list),
        Err(error) => Err(error.to_string()),
    }
}

fn check_advertise(addr: &str) -> Result<(), String> {
    match addresses(addr)?.as_slice() {
        [one] if one == addr => (),
        _ => return Err(format!("must be one address, is `{addr}`")),
    }
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => Err(format!("others cannot reach this server at {host}")),
        _ => Ok(()),
    }
}

/// The name ends up in etcd's keys and in the MetaServers' records.
fn check_id(id: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !id.is_empty() && id.len() <= 64 && id.chars().all(plain) && !id.starts_with('.') {
        true => Ok(()),
        false => Err(format!(
            "must be 1 to 64 letters, digits, `-`, `_` and `.`, is `{id}`"
        )),
    }
}

fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("must be a time such as 500ms, 5s or 2m ({error})"))?;
    match (Duration::from_millis(1)..=LONGEST).contains(&time) {
        true => Ok(time),
        false => Err("must be between 1ms and 366days".to_owned()),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: Option<u64> = match text[split..].trim() {
        "" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "TiB" => Some(1 << 40),
        _ => None,
    };
    unit.zip(text[..split].parse::<u64>().ok())
        .and_then(|(unit, number)| number.checked_mul(unit))
        .ok_or_else(|| "must be a number of bytes such as 4194304 or 4MiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Settings, String> {
        let arguments = Arguments::try_parse_from(format!("dataserver {line}").split_whitespace());
        let arguments = arguments.map_err(|error| error.to_string())?;
        let settings = arguments.settings().map_err(|error| error.to_string())?;
        Ok(settings.0)
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let settings = parse("--data-dir /d --metaserver a:1,b:2").unwrap();
        assert_eq!(settings.listen, "127.0.0.1:8001".parse().unwrap());
        assert_eq!(settings.metaservers, ["a:1", "b:2"]);
        assert_eq!(settings.heartbeat_interval, Duration::from_secs(5));
        assert_eq!((settings.reserved_space, settings.scrub_rate), (None, 8 << 20));
        assert_eq!((settings.id, settings.advertise), (None, None));
        let settings = parse(
            "--data-dir /d --etcd e:1 --port 7 --id x --heartbeat-interval 500ms --reserved-space 2GiB \
             --scrub-rate 0 --max-copies 9",
        )
        .unwrap();
        assert_eq!((settings.listen.port(), settings.id.as_deref()), (7, Some("x")));
        assert_eq!(settings.heartbeat_interval, Duration::from_millis(500));
        assert_eq!(settings.reserved_space, Some(2 << 30));
        assert_eq!((settings.scrub_rate, settings.max_copies), (0, 9));
    }

    #[test]
    fn it_listens_where_it_says_that_it_is() {
        let listen = |more: &str| {
            let settings = parse(&format!("--data-dir /d --etcd e:1 {more}")).unwrap();
            settings.listen.ip().to_string()
        };
        assert_eq!(listen("--advertise localhost:9"), "127.0.0.1");
        assert_eq!(listen("--advertise 127.0.0.1:9"), "127.0.0.1");
        assert_eq!(listen("--advertise [::1]:9"), "::1");
        assert_eq!(listen("--advertise ds-1.local:9"), "0.0.0.0");
        assert_eq!(listen("--advertise ds-1:9 --listen 10.0.0.1"), "10.0.0.1");
    }

    #[test]
    fn what_cannot_work_is_named() {
        for (line, named) in [
            ("--metaserver a:1", "--data-dir"),
            ("--data-dir /d", "--metaserver"),
            ("--data-dir /d --metaserver a", "--metaserver: not an address"),
            ("--data-dir /d --etcd ,", "--etcd: not an address"),
            ("--data-dir /d --etcd e:1 --id a/b", "--id: must be 1 to 64"),
            (
                "--data-dir /d --etcd e:1 --advertise 0.0.0.0:1",
                "--advertise: others cannot",
            ),
            (
                "--data-dir /d --etcd e:1 --advertise a:1,b:1",
                "--advertise: must be one",
            ),
            ("--data-dir /d --etcd e:1 --listen 0.0.0.0", "--advertise: needed"),
            (
                "--data-dir /d --etcd e:1 --etcd-prefix x",
                "--etcd-prefix: must begin",
            ),
            (
                "--data-dir /d --etcd e:1 --heartbeat-interval 0s",
                "--heartbeat-interval",
            ),
            (
                "--data-dir /d --etcd e:1 --rescan-interval soon",
                "--rescan-interval",
            ),
            (
                "--data-dir /d --etcd e:1 --reserved-space 1GB",
                "--reserved-space",
            ),
            ("--data-dir /d --etcd e:1 --scrub-rate 1.5", "--scrub-rate"),
            ("--data-dir /d --etcd e:1 --max-copies 0", "--max-copies"),
            ("--data-dir /d --etcd e:1 --log-level inof", "--log-level: `inof`"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(named), "{line}: {error}");
        }
    }
}
