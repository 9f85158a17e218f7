//! Whole clusters on one machine: real daemons, containerd, clients, registry, kernel, links.
//!
//! Every test needs root and is below `privileged`; without root, and for `cargo xtask test
//! --unprivileged`, nothing of it runs. Tests take turns: a lab has about ten processes.

mod images;
mod privileged;
mod reads;
mod stage;
mod tar;
