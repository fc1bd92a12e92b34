//! The registrar: this node's place in etcd.
