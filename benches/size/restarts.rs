//! How long a node is away: stopped, killed, all at once, or with an empty disk.
//!
//! Called by `main` with a site whose nodes all run. A node serves when health checking says SERVING *and* a
//! linearizable stat that is asked of it alone is answered; the clock begins with the start of its process.

use std::time::{Duration, Instant};

use minfs::proto::dfs::GetLeaderRequest;
use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::nodes::{DEFAULT, PATIENCE, Site};
use crate::system::Connection;
use crate::workload::path;

/// Between two questions.
const LOOK: Duration = Duration::from_millis(2);

/// How a node goes before it comes again.
#[derive(Clone, Copy, Debug)]
enum End {
    Stopped,
    Killed,
}

/// Restarts a follower in both ways, then all nodes in both ways; prints how long each took.
pub async fn restarts(site: &mut Site) -> Result<(), String> {
    for end in [End::Stopped, End::Killed] {
        let leader = site.complete().await?;
        let n = site.others(leader)[0];
        away(site, n, end).await?;
        let begun = Instant::now();
        site.start(n, DEFAULT, None)?;
        let served = serves(site, n, begun).await?;
        println!("restart: a follower, {end:?}: {served}");
        site.complete().await?;
    }
    for end in [End::Stopped, End::Killed] {
        match end {
            End::Stopped => site.stop().await?,
            End::Killed => (0..site.len()).for_each(|n| site.kill(n)),
        }
        let begun = Instant::now();
        for n in 0..site.len() {
            site.start(n, DEFAULT, None)?;
        }
        for n in 0..site.len() {
            let served = serves(site, n, begun).await?;
            println!("restart: all three, {end:?}, node {n}: {served}");
        }
        site.complete().await?;
    }
    Ok(())
}

async fn away(site: &mut Site, n: usize, end: End) -> Result<(), String> {
    match end {
        End::Stopped => site.terminate(n).await.map(|took| {
            println!("restart: stopping it takes {:.2} s", took.as_secs_f64());
        }),
        End::Killed => {
            site.kill(n);
            Ok(())
        }
    }
}

/// Waits until the node serves; says how long that took.
async fn serves(site: &Site, n: usize, begun: Instant) -> Result<String, String> {
    let channel = site.connect(n);
    let mut metadata = MetaServerServiceClient::new(channel.clone());
    let mut health = HealthClient::new(channel.clone());
    let mut connection = Connection::new(channel);
    let (mut leader, mut serving) = (None, None);
    while begun.elapsed() < PATIENCE {
        if leader.is_none() {
            let answer = metadata.get_leader(GetLeaderRequest {}).await;
            leader = answer.ok().and_then(|answer| answer.into_inner().leader);
            leader.as_ref().inspect(|_| ());
        }
        if leader.is_some() && serving.is_none() {
            let answer = health.check(HealthCheckRequest::default()).await;
            serving = answer
                .ok()
                .filter(|answer| answer.get_ref().status() == ServingStatus::Serving)
                .map(|_| begun.elapsed());
        }
        if let Some(serving) = serving
            && connection.stat(&path(0)).await.is_ok()
        {
            return Ok(format!(
                "SERVING and a leader known after {:.2} s, a stat answered after {:.2} s",
                serving.as_secs_f64(),
                begun.elapsed().as_secs_f64()
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(format!("node {n} does not serve"))
}

/// Wipes a follower, and prints how long it takes until it votes again with all that the leader has.
pub async fn refill(site: &mut Site) -> Result<(), String> {
    let leader = site.complete().await?;
    let n = site.others(leader)[0];
    site.terminate(n).await?;
    site.wipe(n)?;
    let begun = Instant::now();
    site.start(n, DEFAULT, None)?;
    let served = serves(site, n, begun).await?;
    println!("refill: {served}");
    site.complete().await?;
    println!(
        "refill: a wiped follower votes and has everything after {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}
