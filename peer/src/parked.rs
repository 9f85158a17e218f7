//! Descriptors that the snapshotter parks here, so that its mounts outlive it.
//!
//! The service manager keeps a duplicate of each for the peer's next process: while no snapshotter runs (it was stopped, or
//! ends at each start because of its configuration or its data), nobody else has them, and a peer that dies or is restarted
//! then would end the mounts under running containers.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use d7y_chassis::Notifier;
use parking_lot::Mutex;

use crate::metrics::Metrics;

/// Descriptors at once; one per snapshotter is what is needed. As many as the unit's `FileDescriptorStoreMax=`.
const MOST: usize = 8;

pub struct Parked {
    descriptors: Mutex<HashMap<String, OwnedFd>>,
    manager: Notifier,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParkError {
    #[error("too many descriptors are parked already")]
    TooMany,
    #[error("a descriptor's name is made of letters, digits and dashes")]
    Name,
}

impl Parked {
    /// Begins with what the service manager kept of the peer before.
    pub fn new(inherited: Vec<(String, OwnedFd)>, metrics: Arc<Metrics>) -> Self {
        metrics.parked_descriptors.set(inherited.len() as i64);
        let descriptors = Mutex::new(inherited.into_iter().collect());
        Self { descriptors, manager: Notifier::from_environment(), metrics }
    }

    pub fn put(&self, name: String, descriptor: OwnedFd) -> Result<(), ParkError> {
        // It becomes a part of a message to the service manager.
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(ParkError::Name);
        }
        let mut descriptors = self.descriptors.lock();
        if descriptors.len() >= MOST && !descriptors.contains_key(&name) {
            return Err(ParkError::TooMany);
        }
        self.manager.remove_descriptor(&name);
        self.manager.store_descriptor(&name, descriptor.as_fd());
        descriptors.insert(name, descriptor);
        self.metrics.parked_descriptors.set(descriptors.len() as i64);
        Ok(())
    }

    /// A duplicate.
    pub fn get(&self, name: &str) -> Option<io::Result<OwnedFd>> {
        self.descriptors.lock().get(name).map(OwnedFd::try_clone)
    }
}
