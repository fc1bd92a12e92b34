//! The numbers that name things. Drawn from counters inside the replicated state, never reused.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A file or directory. The root is [`InodeId::ROOT`]; numbers stay below 2^63.
    InodeId(u64)
}

id! {
    /// A block of a file. Numbers start at 1 and stay below 2^63.
    BlockId(u64)
}

id! {
    /// A DataServer's number in the replicated state, given at its first registration. Records
    /// name DataServers by it, so that a new address changes one record.
    ServerId(u32)
}

impl InodeId {
    /// Where the root's own entry lies: the parent of the root, which is no inode.
    pub const NONE: InodeId = InodeId(0);
    /// The root directory.
    pub const ROOT: InodeId = InodeId(1);
}

/// One past the largest number an [`InodeId`] or [`BlockId`] may take: clients keep them in signed
/// 64-bit integers.
pub const ID_LIMIT: u64 = 1 << 63;
