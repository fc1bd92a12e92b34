//! What disturbs: a full load, snapshots, the reclaiming of a tree, the refilling of a follower, the DataServers'
//! reports.
//!
//! `cases` prepares one, and calls it once in each round for each phase but the first, which is undisturbed. A
//! disturbance with an end of its own ends with a fact: the last snapshot is there, the last record freed, the
//! follower votes again.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use futures::future::{LocalBoxFuture, join_all};
use minfs::proto::dfs::FileType;
use tokio::time::sleep;

use crate::cases::World;
use crate::cpu::Usage;
use crate::fleet::Fleet;
use crate::operation::Operation;
use crate::settings::{Case, Settings};
use crate::support::cluster::Setup;

/// A disturbance that has not come to its end within this time never will.
const BOUND: Duration = Duration::from_secs(120);

/// How often to look whether a snapshot is being made.
const LOOK: Duration = Duration::from_millis(5);

/// What follows a snapshot belongs to it: the log is shortened.
const AFTERMATH: Duration = Duration::from_millis(500);

/// Files in one directory of the tree.
const WIDTH: usize = 1000;

/// What a disturbance was.
#[derive(Default)]
pub struct Disturbed {
    /// When it disturbed.
    pub spans: Vec<(Instant, Instant)>,
    /// Processor time, and within how long, when it is not all that the processes of before used since.
    pub usage: Option<(Usage, Duration)>,
    /// What is worth a line.
    pub remark: Option<String>,
}

impl Disturbed {
    fn since(begun: Instant) -> Disturbed {
        Disturbed {
            spans: vec![(begun, Instant::now())],
            ..Disturbed::default()
        }
    }
}

/// Something that disturbs.
pub trait Disturbance {
    /// The cluster that it wants.
    fn setup(&self) -> Setup {
        Setup::default()
    }

    /// The names of its phases, the undisturbed one first.
    fn phases(&self) -> Vec<&'static str>;

    /// What has to be there, once.
    fn prepare<'a>(&'a mut self, world: &'a mut World) -> LocalBoxFuture<'a, Result<(), String>>;

    /// What has to be there for each round.
    fn make_ready<'a>(
        &'a mut self,
        world: &'a mut World,
        round: usize,
    ) -> LocalBoxFuture<'a, Result<(), String>>;

    /// Disturbs until it comes to its end, or for `length`.
    fn disturb<'a>(
        &'a mut self,
        world: &'a mut World,
        phase: usize,
        length: Duration,
    ) -> LocalBoxFuture<'a, Result<Disturbed, String>>;
}

/// The one of a case.
pub fn of(case: Case, settings: &Settings) -> Box<dyn Disturbance> {
    match case {
        Case::Writes => Box::new(FullLoad {
            clients: settings.writers,
        }),
        Case::Snapshot => Box::new(Snapshots {
            files: settings.state,
        }),
        Case::Reclaim => Box::new(Reclaim {
            files: settings.tree,
            round: 0,
        }),
        Case::Refill => Box::new(Refill {
            files: settings.state,
        }),
        Case::Reports => Box::new(Reports {
            fleet: None,
            servers: settings.data_servers,
            blocks: settings.blocks,
        }),
        Case::Failover => unreachable!("it has no windows"),
    }
}

fn ready<'a>() -> LocalBoxFuture<'a, Result<(), String>> {
    Box::pin(async { Ok(()) })
}

async fn until(what: &str, mut fact: impl AsyncFnMut() -> bool) -> Result<(), String> {
    let begun = Instant::now();
    while !fact().await {
        if begun.elapsed() > BOUND {
            return Err(format!("not within {BOUND:?}: {what}"));
        }
        sleep(LOOK).await;
    }
    Ok(())
}

// --- a full load ---

/// As many clients as keep the machine busy: first reading, to compare with, then creating.
struct FullLoad {
    clients: usize,
}

impl Disturbance for FullLoad {
    fn phases(&self) -> Vec<&'static str> {
        vec!["undisturbed", "full load of stats", "full load of creates"]
    }

    fn prepare<'a>(&'a mut self, _: &'a mut World) -> LocalBoxFuture<'a, Result<(), String>> {
        ready()
    }

    fn make_ready<'a>(&'a mut self, _: &'a mut World, _: usize) -> LocalBoxFuture<'a, Result<(), String>> {
        ready()
    }

    fn disturb<'a>(
        &'a mut self,
        world: &'a mut World,
        phase: usize,
        length: Duration,
    ) -> LocalBoxFuture<'a, Result<Disturbed, String>> {
        Box::pin(async move {
            let operation = if phase == 1 {
                Operation::Stat
            } else {
                Operation::Create
            };
            let warm_up = Duration::from_millis(500);
            let begun = Instant::now() + warm_up;
            let load = world.load(operation, self.clients);
            let window = load.measure(warm_up, length, &world.processes()).await?;
            let rate = window.latencies.len() as f64 / window.length.as_secs_f64();
            Ok(Disturbed {
                spans: vec![(begun, begun + window.length)],
                usage: Some((window.usage, window.length)),
                remark: Some(format!(
                    "{rate:.0} a second, p50 {:.2} ms, p99 {:.2} ms",
                    window.latencies.value_at_quantile(0.5) as f64 / 1e6,
                    window.latencies.value_at_quantile(0.99) as f64 / 1e6
                )),
            })
        })
    }
}

// --- snapshots ---

/// Every node makes snapshots of a large state, often.
struct Snapshots {
    files: usize,
}

/// The files in the nodes' folders of snapshots.
fn snapshots(world: &World) -> Vec<BTreeSet<String>> {
    let names = |n: usize| {
        let dir = world.cluster.data_dir(n).join("raft").join("snapshots");
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    world.cluster.all().into_iter().map(names).collect()
}

fn is_building(names: &BTreeSet<String>) -> bool {
    names.iter().any(|name| name.starts_with("building-"))
}

fn made(names: &BTreeSet<String>) -> Option<&String> {
    names.iter().rfind(|name| name.ends_with(".meta"))
}

impl Disturbance for Snapshots {
    fn setup(&self) -> Setup {
        Setup {
            snapshot_interval: "15s",
            snapshot_threshold: 1000,
            ..Setup::default()
        }
    }

    fn phases(&self) -> Vec<&'static str> {
        vec!["undisturbed", "snapshots"]
    }

    fn prepare<'a>(&'a mut self, world: &'a mut World) -> LocalBoxFuture<'a, Result<(), String>> {
        Box::pin(world.fill(self.files))
    }

    fn make_ready<'a>(
        &'a mut self,
        world: &'a mut World,
        round: usize,
    ) -> LocalBoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            if round == 0 {
                // From one end of all snapshots to the next there is time for an undisturbed window.
                self.disturb(world, 1, Duration::ZERO).await?;
            }
            Ok(())
        })
    }

    fn disturb<'a>(
        &'a mut self,
        world: &'a mut World,
        _: usize,
        _: Duration,
    ) -> LocalBoxFuture<'a, Result<Disturbed, String>> {
        Box::pin(async move {
            let before = snapshots(world);
            if before.iter().any(is_building) {
                return Err("a snapshot began within the undisturbed window".to_owned());
            }
            let mut spans: Vec<(Instant, Instant)> = Vec::new();
            let mut began = None::<(Instant, Usage)>;
            let mut building = false;
            until("every node makes a snapshot", async || {
                let (now, names) = (Instant::now(), snapshots(world));
                let was_building = std::mem::replace(&mut building, names.iter().any(is_building));
                match (was_building, building) {
                    (false, true) => {
                        spans.push((now, now));
                        if began.is_none() {
                            began = Usage::now(&world.processes()).ok().map(|usage| (now, usage));
                        }
                    }
                    (true, _) => spans.last_mut().unwrap().1 = now,
                    (false, false) => {}
                }
                let differ = before.iter().zip(&names).all(|(old, new)| made(old) != made(new));
                differ && !building
            })
            .await?;
            sleep(AFTERMATH).await;
            let usage = began.map(|(at, usage)| {
                Usage::now(&world.processes()).map(|now| (now.since(&usage), at.elapsed()))
            });
            let made: f64 = spans
                .iter()
                .map(|(begin, end)| (*end - *begin).as_secs_f64())
                .sum();
            for span in &mut spans {
                span.1 += AFTERMATH;
            }
            Ok(Disturbed {
                spans,
                usage: usage.transpose()?,
                remark: Some(format!("snapshots were being made for {made:.2} s")),
            })
        })
    }
}

// --- a tree is reclaimed ---

/// A tree is deleted, and its records are freed.
struct Reclaim {
    files: usize,
    round: usize,
}

impl Reclaim {
    fn tree(&self) -> String {
        format!("/tree-{}", self.round)
    }

    /// How often a node has said that nothing is left of what it reclaimed.
    fn ended(world: &World) -> usize {
        world.cluster.log(world.leader).matches("nothing is left").count()
    }
}

impl Disturbance for Reclaim {
    fn phases(&self) -> Vec<&'static str> {
        vec!["undisturbed", "reclaiming"]
    }

    fn prepare<'a>(&'a mut self, _: &'a mut World) -> LocalBoxFuture<'a, Result<(), String>> {
        ready()
    }

    fn make_ready<'a>(
        &'a mut self,
        world: &'a mut World,
        round: usize,
    ) -> LocalBoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            self.round = round;
            let tree = self.tree();
            let client = world.cluster.client(world.leader).await;
            let make = async |path: String, kind| client.create(&path, kind).await.map_err(|e| e.to_string());
            make(tree.clone(), FileType::Directory).await?;
            let directories = self.files.div_ceil(WIDTH);
            for d in 0..directories {
                make(format!("{tree}/{d}"), FileType::Directory).await?;
            }
            // One client for each directory.
            let made = join_all((0..directories).map(|d| {
                let (client, tree) = (client.clone(), &tree);
                let names = d * WIDTH..((d + 1) * WIDTH).min(self.files);
                async move {
                    for n in names {
                        let path = format!("{tree}/{d}/{n}");
                        client
                            .create(&path, FileType::File)
                            .await
                            .map_err(|e| e.to_string())?;
                    }
                    Ok::<(), String>(())
                }
            }));
            made.await.into_iter().collect()
        })
    }

    fn disturb<'a>(
        &'a mut self,
        world: &'a mut World,
        _: usize,
        _: Duration,
    ) -> LocalBoxFuture<'a, Result<Disturbed, String>> {
        Box::pin(async move {
            let client = world.cluster.client(world.leader).await;
            let (before, begun) = (Reclaim::ended(world), Instant::now());
            client
                .delete(&self.tree(), true)
                .await
                .map_err(|e| e.to_string())?;
            let answered = begun.elapsed();
            until("the tree is reclaimed", async || Reclaim::ended(world) > before).await?;
            Ok(Disturbed {
                remark: Some(format!(
                    "answered after {answered:.1?}, reclaimed after {:.2?}",
                    begun.elapsed()
                )),
                ..Disturbed::since(begun)
            })
        })
    }
}

// --- a follower is refilled ---

/// A follower loses its disk, and is refilled with a snapshot of a large state.
struct Refill {
    files: usize,
}

impl Disturbance for Refill {
    fn setup(&self) -> Setup {
        Setup {
            snapshot_interval: "15s",
            snapshot_threshold: 1000,
            ..Setup::default()
        }
    }

    fn phases(&self) -> Vec<&'static str> {
        vec!["undisturbed", "refilling"]
    }

    fn prepare<'a>(&'a mut self, world: &'a mut World) -> LocalBoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            world.fill(self.files).await?;
            // With a snapshot of nearly everything, and a log that begins behind it; from now on, nobody makes another.
            let before = snapshots(world);
            world.fill(10_000).await?;
            until("every node has made another snapshot", async || {
                let _ = world.fill(100).await;
                let now = snapshots(world);
                before.iter().zip(&now).all(|(old, new)| made(old) != made(new))
                    && !now.iter().any(is_building)
            })
            .await?;
            let (cluster, setup) = (&mut world.cluster, self.setup());
            let rare = fs::read_to_string(cluster.dir().join("config.yaml"))
                .map_err(|error| error.to_string())?
                .replace(
                    &format!("snapshot_interval: {}", setup.snapshot_interval),
                    "snapshot_interval: 10h",
                )
                .replace(
                    &format!("snapshot_threshold: {}", setup.snapshot_threshold),
                    "snapshot_threshold: 1000000",
                );
            fs::write(cluster.dir().join("rare.yaml"), rare).map_err(|error| error.to_string())?;
            for n in cluster.all() {
                cluster.terminate(n).await;
            }
            for n in cluster.all() {
                cluster.start_with(n, "rare.yaml", &[]);
            }
            world.find_leader().await;
            Ok(())
        })
    }

    fn make_ready<'a>(&'a mut self, _: &'a mut World, _: usize) -> LocalBoxFuture<'a, Result<(), String>> {
        ready()
    }

    fn disturb<'a>(
        &'a mut self,
        world: &'a mut World,
        _: usize,
        _: Duration,
    ) -> LocalBoxFuture<'a, Result<Disturbed, String>> {
        Box::pin(async move {
            let follower = world.cluster.others(world.leader)[0];
            let before = Usage::now(&world.processes())?;
            let begun = Instant::now();
            world.cluster.kill(follower);
            world.cluster.wipe(follower);
            world.cluster.start_with(follower, "rare.yaml", &[]);
            until("the follower votes again", async || {
                let Some(own) = world.cluster.status(follower).await else {
                    return false;
                };
                let Some(leader) = world.cluster.status(world.leader).await else {
                    return false;
                };
                let votes = |member: &minfs::proto::admin::Member| {
                    member.incarnation == own.incarnation && member.voter
                };
                leader.members.iter().any(votes) && own.applied_index >= leader.applied_index
            })
            .await?;
            let took = begun.elapsed();
            let mut usage = Usage::now(&world.processes())?.since(&before);
            // The process of before used this much until it was killed.
            usage.followers[0] += before.followers[0];
            Ok(Disturbed {
                remark: Some(format!("a voter again after {took:.2?}")),
                usage: Some((usage, took)),
                ..Disturbed::since(begun)
            })
        })
    }
}

// --- DataServers report ---

/// Every DataServer reports all its blocks every five seconds.
struct Reports {
    fleet: Option<Fleet>,
    servers: u16,
    blocks: usize,
}

impl Disturbance for Reports {
    fn phases(&self) -> Vec<&'static str> {
        vec!["undisturbed", "reports"]
    }

    fn prepare<'a>(&'a mut self, world: &'a mut World) -> LocalBoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let fleet = Fleet::new(world, self.servers, self.blocks).await?;
            // What the first reports are for is not what the later ones are.
            fleet.report(fleet.period()).await?;
            self.fleet = Some(fleet);
            Ok(())
        })
    }

    fn make_ready<'a>(&'a mut self, _: &'a mut World, _: usize) -> LocalBoxFuture<'a, Result<(), String>> {
        ready()
    }

    fn disturb<'a>(
        &'a mut self,
        _: &'a mut World,
        _: usize,
        _: Duration,
    ) -> LocalBoxFuture<'a, Result<Disturbed, String>> {
        Box::pin(async move {
            let fleet = self.fleet.as_ref().ok_or("no DataServers")?;
            let begun = Instant::now();
            let reports = fleet.report(fleet.period()).await?;
            Ok(Disturbed {
                remark: Some(reports),
                ..Disturbed::since(begun)
            })
        })
    }
}
