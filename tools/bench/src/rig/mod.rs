//! A cluster on one machine: links, a registry, containerd, d7y's daemons, images, clients, oracles.
//!
//! A [`lab::Lab`] owns everything that would outlive a process: network namespaces, mounts, child
//! processes, a directory. It ends them when it is dropped, on Ctrl-C, and, for runs that were
//! killed, when the next lab opens.

pub mod client;
pub mod cluster;
pub mod command;
pub mod compare;
pub mod config;
pub mod counter;
pub mod daemon;
pub mod host;
pub mod http;
pub mod image;
pub mod interrupt;
pub mod lab;
pub mod leftovers;
pub mod manager;
pub mod metrics;
pub mod node;
pub mod places;
pub mod registry;
pub mod service;
pub mod usage;
