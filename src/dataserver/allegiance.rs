//! Which cluster the blocks belong to: `<data dir>/cluster`.
//!
//! The first MetaServer that names its cluster decides. Used by the heartbeat: orders of another cluster are
//! never carried out, because to a stranger every block here is garbage.

use std::io;
use std::path::{Path, PathBuf};

use crate::durable;

/// Longer names are cut: nobody gives such ones.
const LONGEST: usize = 256;

/// What a MetaServer is to this DataServer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may give orders.
    Ours,
    /// It belongs to another cluster than `ours`.
    Stranger { ours: String },
}

/// The cluster of a data directory.
#[derive(Debug)]
pub(super) struct Allegiance {
    path: PathBuf,
    cluster: Option<String>,
}

impl Allegiance {
    /// Reads what was decided.
    ///
    /// # Errors
    /// Any of the system's, naming the file.
    pub fn open(dir: &Path) -> io::Result<Allegiance> {
        let path = dir.join("cluster");
        let cluster = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text.trim().to_owned()).filter(|name| !name.is_empty()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(durable::naming(&path, &e)),
        };
        Ok(Allegiance { path, cluster })
    }

    /// The cluster, once it is decided.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// Judges a MetaServer by the cluster that it names; decides for it if nothing was decided. A name that
    /// is empty says nothing: older MetaServers give none.
    ///
    /// # Errors
    /// The decision cannot be kept. Nothing is decided then.
    pub fn judge(&mut self, named: &str) -> io::Result<Standing> {
        let named: String = named.trim().chars().take(LONGEST).collect();
        match &self.cluster {
            _ if named.is_empty() => Ok(Standing::Ours),
            Some(ours) if *ours == named => Ok(Standing::Ours),
            Some(ours) => Ok(Standing::Stranger { ours: ours.clone() }),
            None => {
                durable::replace_file(&self.path, format!("{named}\n").as_bytes())?;
                log::info!("these blocks belong to cluster {named} from now on");
                self.cluster = Some(named);
                Ok(Standing::Ours)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_decides_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let mut allegiance = Allegiance::open(dir.path()).unwrap();
        assert_eq!(allegiance.judge("").unwrap(), Standing::Ours);
        assert_eq!(allegiance.cluster(), None);
        assert_eq!(allegiance.judge("c1").unwrap(), Standing::Ours);
        for mut allegiance in [allegiance, Allegiance::open(dir.path()).unwrap()] {
            assert_eq!(allegiance.cluster(), Some("c1"));
            assert_eq!(allegiance.judge("c1").unwrap(), Standing::Ours);
            assert_eq!(allegiance.judge("").unwrap(), Standing::Ours);
            let stranger = Standing::Stranger { ours: "c1".into() };
            assert_eq!(allegiance.judge("c2").unwrap(), stranger);
        }
    }

    #[test]
    fn what_cannot_be_kept_is_not_decided() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let mut allegiance = Allegiance::open(&gone).unwrap();
        assert!(allegiance.judge("c1").is_err());
        assert_eq!(allegiance.cluster(), None);
    }
}
