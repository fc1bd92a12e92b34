//! DataServers that exist as their reports only: each names the blocks that the records say it has, and nothing else,
//! so that there is nothing to mend or to delete.
//!
//! Made and driven by `disturbances`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use minfs::proto::dfs::{GetBlockLocationsRequest, HeartbeatRequest};
use tonic::transport::Channel;

use crate::cases::World;

/// Blocks of one file: as many as an answer of less than 4 MiB can name.
const BLOCKS_A_FILE: usize = 33_000;

/// The default.
const BLOCK_SIZE: i64 = 4 << 20;

/// Replicas of each block: the default, too.
const REPLICAS: usize = 3;

/// Between two reports of one DataServer: as often as those in the field.
const PERIOD: Duration = Duration::from_secs(5);

/// Nobody listens there.
const FIRST_PORT: u16 = 8001;

/// The DataServers.
pub struct Fleet {
    client: MetaServerServiceClient<Channel>,
    reports: Vec<HeartbeatRequest>,
}

impl Fleet {
    /// Makes files with so many blocks that each DataServer has `blocks` of them, more or less.
    pub async fn new(world: &World, servers: u16, blocks: usize) -> Result<Fleet, String> {
        let client = MetaServerServiceClient::new(world.cluster.channel(world.leader));
        let reports = (0..servers).map(|n| HeartbeatRequest {
            data_server_id: format!("ds-{n}"),
            data_server_addr: format!("0.0.0.0:{}", FIRST_PORT + n),
            free_space: 90 << 40,
            total_capacity: 100 << 40,
            ..HeartbeatRequest::default()
        });
        let mut fleet = Fleet {
            client,
            reports: reports.collect(),
        };
        // So that they are known.
        fleet.report(Duration::ZERO).await?;
        let mut left = blocks * usize::from(servers) / REPLICAS;
        let at: HashMap<String, usize> = (0..servers)
            .map(|n| (format!("127.0.0.1:{}", FIRST_PORT + n), usize::from(n)))
            .collect();
        let mut held = vec![Vec::new(); usize::from(servers)];
        let mut number = 0;
        while left > 0 {
            let count = left.min(BLOCKS_A_FILE);
            left -= count;
            number += 1;
            let request = GetBlockLocationsRequest {
                path: format!("/large-{number}"),
                size: count as i64 * BLOCK_SIZE,
                staged: false,
            };
            let answer = fleet.client.get_block_locations(request).await;
            for block in answer
                .map_err(|status| status.to_string())?
                .into_inner()
                .block_locations
            {
                for location in &block.locations {
                    let server = at
                        .get(location)
                        .ok_or_else(|| format!("nobody is at {location}"))?;
                    held[*server].push(block.block_id);
                }
            }
        }
        for (report, held) in fleet.reports.iter_mut().zip(held) {
            report.block_count = held.len() as u64;
            report.block_ids_report = held.into();
        }
        Ok(fleet)
    }

    /// Between two reports of one DataServer.
    pub fn period(&self) -> Duration {
        PERIOD
    }

    /// Every DataServer reports once, evenly spread over `period`; says how that went.
    pub async fn report(&self, period: Duration) -> Result<String, String> {
        let begun = tokio::time::Instant::now();
        let reports = self.reports.iter().enumerate().map(|(n, report)| {
            let mut client = self.client.clone();
            async move {
                tokio::time::sleep_until(begun + period / self.reports.len() as u32 * n as u32).await;
                let report = report.clone();
                let asked = Instant::now();
                let answer = client.heartbeat(report).await;
                let commands = answer.map_err(|status| status.to_string())?.into_inner().commands;
                Ok::<_, String>((asked.elapsed(), commands.len()))
            }
        });
        let mut answers = try_join_all(reports).await?;
        // Each is one of the period's.
        tokio::time::sleep_until(begun + period).await;
        answers.sort_unstable();
        let [median, most] = [answers[answers.len() / 2], answers[answers.len() - 1]];
        let commands: usize = answers.iter().map(|(_, commands)| commands).sum();
        Ok(format!(
            "a report was answered after {:.1?}, the slowest after {:.1?}; {commands} commands",
            median.0, most.0
        ))
    }
}
