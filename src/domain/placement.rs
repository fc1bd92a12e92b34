//! Where the replicas of a file's blocks go.
