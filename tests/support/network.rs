//! A network of a test's own, whose cables can be pulled: each node lives in a network namespace with
//! two of them, one to the switch that the nodes share and one to the test. Needs to be root.
//!
//! Everything is named after the test's process and removed when the test ends; what a killed test
//! left behind is removed by the next.

use std::io::Write;
use std::process::Command;

use super::cluster::Place;

/// Namespaces on one bridge.
pub struct Network {
    tag: String,
    places: Vec<Place>,
}

impl Network {
    /// `count` places. `None` when that is not permitted, and the test is skipped; never so in CI.
    pub fn new(count: usize) -> Option<Network> {
        remove_leftovers();
        let tag = format!("{:x}", std::process::id());
        let mut network = Network {
            tag,
            places: Vec::new(),
        };
        match network.build(count) {
            Ok(()) => Some(network),
            Err(error) => {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "network namespaces do not work here: {error}"
                );
                let test = std::thread::current().name().unwrap_or("?").to_owned();
                // Not eprintln, which the test harness keeps to itself.
                let _ = writeln!(
                    std::io::stderr(),
                    "SKIPPED {test}: network namespaces do not work here (root is needed): {error}"
                );
                None
            }
        }
    }

    /// The places, for a cluster's setup.
    pub fn places(&self) -> Vec<Place> {
        self.places.clone()
    }

    /// Pulls the cable between a place and the switch; the one to the test stays.
    pub fn cut(&self, n: usize) {
        ip(&format!("link set {} down", self.peer_cable(n))).unwrap();
    }

    /// Puts it back.
    pub fn heal(&self, n: usize) {
        ip(&format!("link set {} up", self.peer_cable(n))).unwrap();
    }

    /// Nothing that a place sends reaches the others; what they send reaches it.
    pub fn mute(&self, n: usize) {
        let namespace = &self.places[n].namespace;
        tc(&format!("-n {namespace} qdisc replace dev peers root blackhole")).unwrap();
    }

    /// Nothing that the others send reaches a place; what it sends reaches them.
    pub fn deafen(&self, n: usize) {
        tc(&format!(
            "qdisc replace dev {} root blackhole",
            self.peer_cable(n)
        ))
        .unwrap();
    }

    /// What one place sends to one other is lost: it goes to a card that nobody has.
    pub fn lose(&self, from: usize, to: usize) {
        let namespace = &self.places[from].namespace;
        let to = &self.places[to].raft_host;
        ip(&format!(
            "-n {namespace} neigh replace {to} lladdr 02:00:00:00:00:01 dev peers nud permanent"
        ))
        .unwrap();
    }

    /// Packets between the places are delayed, and some are dropped.
    pub fn impair(&self) {
        for place in &self.places {
            let device = format!("-n {} qdisc replace dev peers root", place.namespace);
            // A kernel without netem: a thin cable, whose queue delays and, when it is full, drops.
            tc(&format!("{device} netem delay 40ms 20ms loss 3%"))
                .or_else(|_| tc(&format!("{device} tbf rate 250kbit burst 4kb latency 150ms")))
                .unwrap();
        }
    }

    /// Packets between a place and the test, the clients' host, are lost in both directions.
    pub fn cut_clients(&self, n: usize) {
        ip(&format!("link set {} down", self.test_cable(n))).unwrap();
    }

    /// Every cable and every direction is as it was in the beginning.
    pub fn heal_all(&self) {
        for (n, place) in self.places.iter().enumerate() {
            let namespace = &place.namespace;
            self.heal(n);
            ip(&format!("link set {} up", self.test_cable(n))).unwrap();
            // Fails where there is none.
            let _ = tc(&format!("-n {namespace} qdisc del dev peers root"));
            let _ = tc(&format!("qdisc del dev {} root", self.peer_cable(n)));
            for other in &self.places {
                let _ = ip(&format!("-n {namespace} neigh del {} dev peers", other.raft_host));
            }
        }
    }

    fn bridge(&self) -> String {
        format!("mfb{}", self.tag)
    }

    fn peer_cable(&self, n: usize) -> String {
        format!("mfp{}-{n}", self.tag)
    }

    fn test_cable(&self, n: usize) -> String {
        format!("mft{}-{n}", self.tag)
    }

    fn build(&mut self, count: usize) -> Result<(), String> {
        let bridge = self.bridge();
        let tests_net = free_net()?;
        for n in 0..count {
            let namespace = format!("{PREFIX}{}-{n}", self.tag);
            ip(&format!("netns add {namespace}"))?;
            // The addresses between the nodes exist nowhere but on their own switch.
            self.places.push(Place {
                raft_host: format!("10.99.0.{}", n + 1),
                grpc_host: format!("{tests_net}.{}", 4 * n + 2),
                namespace,
            });
        }
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("link set {bridge} up"))?;
        for (n, place) in self.places.iter().enumerate() {
            let (ns, peer, test) = (&place.namespace, self.peer_cable(n), self.test_cable(n));
            ip(&format!("link add {peer} type veth peer name peers netns {ns}"))?;
            ip(&format!("link set {peer} master {bridge}"))?;
            ip(&format!("link set {peer} up"))?;
            ip(&format!("link add {test} type veth peer name tests netns {ns}"))?;
            ip(&format!("addr add {tests_net}.{}/30 dev {test}", 4 * n + 1))?;
            ip(&format!("link set {test} up"))?;
            ip(&format!("-n {ns} addr add {}/24 dev peers", place.raft_host))?;
            ip(&format!("-n {ns} addr add {}/30 dev tests", place.grpc_host))?;
            for device in ["lo", "peers", "tests"] {
                ip(&format!("-n {ns} link set {device} up"))?;
            }
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for (n, place) in self.places.iter().enumerate() {
            // With the namespace goes one end of each cable, and with that the other.
            let _ = ip(&format!("netns del {}", place.namespace));
            let _ = ip(&format!("link del {}", self.peer_cable(n)));
            let _ = ip(&format!("link del {}", self.test_cable(n)));
        }
        let _ = ip(&format!("link del {}", self.bridge()));
    }
}

/// What the names of all namespaces begin with.
const PREFIX: &str = "minfs-test-";

/// The first three numbers of a network that this machine does not know yet.
fn free_net() -> Result<String, String> {
    let known = ip("-4 -o addr show")?;
    let nets = (0..250).map(|n| format!("10.213.{}", (n + std::process::id()) % 250));
    nets.into_iter()
        .find(|net| !known.contains(&format!("{net}.")))
        .ok_or_else(|| "no free network".to_owned())
}

/// Of tests whose process is gone.
fn remove_leftovers() {
    let Ok(namespaces) = ip("netns list") else { return };
    for line in namespaces.lines() {
        let Some(name) = line
            .split_whitespace()
            .next()
            .filter(|name| name.starts_with(PREFIX))
        else {
            continue;
        };
        let Some((tag, _)) = name[PREFIX.len()..].split_once('-') else {
            continue;
        };
        let Ok(process) = u32::from_str_radix(tag, 16) else {
            continue;
        };
        if !std::path::Path::new(&format!("/proc/{process}")).exists() {
            let _ = ip(&format!("netns del {name}"));
            let _ = ip(&format!("link del mfb{tag}"));
        }
    }
}

fn ip(arguments: &str) -> Result<String, String> {
    run("ip", arguments)
}

fn tc(arguments: &str) -> Result<String, String> {
    run("tc", arguments)
}

fn run(program: &str, arguments: &str) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .map_err(|error| format!("{program} {arguments}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!(
            "{program} {arguments}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}
