//! Which file holds which block: `blocks/<2 hex digits>/<2 hex digits>/<block id>.dat`.
//!
//! The digits are bits 16 to 23 and 8 to 15 of the block id: 256 blocks that were allocated one after the
//! other share a folder, so that writing a file seldom makes a new one, and a million blocks make about
//! 4,000 folders. A damaged block's file is called `<block id>.corrupt`, so that it is known as damaged
//! after a restart.

use std::io;
use std::path::{Path, PathBuf};

use crate::domain::ids::{BlockId, ID_LIMIT};
use crate::durable;

/// What a file in the folders is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A block that can be served.
    Good,
    /// One that was found damaged and set aside.
    Corrupt,
}

/// The folders of a data directory.
#[derive(Debug)]
pub(super) struct Layout {
    pub blocks: PathBuf,
    /// Where blocks are written before they are complete.
    pub aside: PathBuf,
}

impl Layout {
    pub fn new(dir: &Path) -> Layout {
        Layout {
            blocks: dir.join("blocks"),
            aside: dir.join("tmp"),
        }
    }

    /// The folder of a block.
    pub fn folder(&self, block: BlockId) -> PathBuf {
        let byte = |shift: u32| format!("{:02x}", (block.0 >> shift) & 0xff);
        self.blocks.join(byte(16)).join(byte(8))
    }

    pub fn file(&self, block: BlockId, kind: Kind) -> PathBuf {
        let ending = match kind {
            Kind::Good => "dat",
            Kind::Corrupt => "corrupt",
        };
        self.folder(block).join(format!("{block}.{ending}"))
    }

    /// Calls `see` for every block file in its right place, and `strange` for everything else. Folders
    /// that vanish meanwhile are passed over.
    pub fn walk(
        &self,
        mut see: impl FnMut(BlockId, Kind, &std::fs::DirEntry) -> io::Result<()>,
        mut strange: impl FnMut(&Path),
    ) -> io::Result<()> {
        for outer in entries(&self.blocks)? {
            for inner in entries(&outer?.path())? {
                let folder = inner?.path();
                for file in entries(&folder)? {
                    let file = file?;
                    match parse(&file.file_name().to_string_lossy()) {
                        Some((block, kind)) if self.folder(block) == folder => see(block, kind, &file)?,
                        _ => strange(&file.path()),
                    }
                }
            }
        }
        Ok(())
    }
}

type Entries = Box<dyn Iterator<Item = io::Result<std::fs::DirEntry>>>;

/// The entries of a folder; none when it is not there (any more), or no folder.
fn entries(folder: &Path) -> io::Result<Entries> {
    match std::fs::read_dir(folder) {
        Ok(entries) => Ok(Box::new(entries)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Box::new(std::iter::empty()))
        }
        Err(e) => Err(durable::naming(folder, &e)),
    }
}

/// Reads a file's name, which must be exactly as [`Layout::file`] makes it.
fn parse(name: &str) -> Option<(BlockId, Kind)> {
    let (digits, ending) = name.split_once('.')?;
    let kind = match ending {
        "dat" => Kind::Good,
        "corrupt" => Kind::Corrupt,
        _ => return None,
    };
    let id = digits
        .parse::<u64>()
        .ok()
        .filter(|id| (1..ID_LIMIT).contains(id))?;
    (id.to_string() == digits).then_some((BlockId(id), kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_folder() {
        let layout = Layout::new(Path::new("/d"));
        let file = |id| layout.file(BlockId(id), Kind::Good).display().to_string();
        assert_eq!(file(7), "/d/blocks/00/00/7.dat");
        assert_eq!(file(255), "/d/blocks/00/00/255.dat");
        assert_eq!(file(256), "/d/blocks/00/01/256.dat");
        assert_eq!(file(0x12_34_56), "/d/blocks/12/34/1193046.dat");
        assert_eq!(file(0xff_12_34_56), "/d/blocks/12/34/4279383126.dat");
        let corrupt = layout.file(BlockId(7), Kind::Corrupt);
        assert_eq!(corrupt, Path::new("/d/blocks/00/00/7.corrupt"));
    }

    #[test]
    fn only_names_as_they_are_made_are_read() {
        assert_eq!(parse("7.dat"), Some((BlockId(7), Kind::Good)));
        assert_eq!(parse("7.corrupt"), Some((BlockId(7), Kind::Corrupt)));
        let largest = format!("{}.dat", ID_LIMIT - 1);
        assert_eq!(parse(&largest), Some((BlockId(ID_LIMIT - 1), Kind::Good)));
        for name in [
            "0.dat",
            "07.dat",
            "+7.dat",
            "7",
            "7.DAT",
            "7.dat~",
            "7.dat.tmp",
            ".dat",
            "x.dat",
            "9223372036854775808.dat",
            "99999999999999999999.dat",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
