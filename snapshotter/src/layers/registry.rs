use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use d7y_types::{LayerRef, Sha256Digest};
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::meta::MetaError;

const MOUNTS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("mounts.1");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const NEXT_ID: &str = "next mount id";
/// Smaller numbers are the FUSE mount's own directories.
pub const FIRST_ID: u32 = 16;

/// The number of a mounted layer: the name of its device file, its mount point and its bootstrap, and its FUSE node
/// id. Never used twice, so that the kernel cannot take one layer for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MountId(pub u32);

impl fmt::Display for MountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What stands below a mounted layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Backing {
    /// A file of the FUSE mount, whose missing data is fetched when it is read. (Records without a backing are older
    /// than the other one.)
    #[default]
    Served,
    /// The complete device in the peer's store: no FUSE, and nobody to wait for.
    Direct,
}

/// What makes two mounts the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MountKey {
    pub layer: Sha256Digest,
    /// Of the index that the bootstrap came from.
    pub layout: Sha256Digest,
    /// Where directories take their attributes from the layers below, the chain they stand on; otherwise all images
    /// share the mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Sha256Digest>,
    #[serde(default)]
    pub backing: Backing,
}

/// A mount as it is remembered across restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountRecord {
    pub key: MountKey,
    pub layer: LayerRef,
    pub device_bytes: u64,
}

/// The numbers of mounts, durable.
pub struct Registry {
    database: Arc<Database>,
    state: Mutex<State>,
}

struct State {
    next: u32,
    records: HashMap<MountId, MountRecord>,
    ids: HashMap<MountKey, MountId>,
}

impl Registry {
    pub fn open(database: Arc<Database>) -> Result<Self, MetaError> {
        let transaction = database.begin_write()?;
        transaction.open_table(MOUNTS)?;
        transaction.open_table(COUNTERS)?;
        transaction.commit()?;
        let reading = database.begin_read()?;
        let next = reading.open_table(COUNTERS)?.get(NEXT_ID)?.map_or(FIRST_ID, |next| next.value() as u32);
        let mut state = State { next, records: HashMap::new(), ids: HashMap::new() };
        for row in reading.open_table(MOUNTS)?.iter()? {
            let (id, record) = row?;
            state.insert(MountId(id.value()), serde_json::from_slice(record.value())?);
        }
        Ok(Self { database, state: Mutex::new(state) })
    }

    pub fn records(&self) -> HashMap<MountId, MountRecord> {
        self.state.lock().records.clone()
    }

    /// The mount's number, made and stored when it has none. Blocks for the disk.
    pub fn id(&self, record: &MountRecord) -> Result<MountId, MetaError> {
        let mut state = self.state.lock();
        if let Some(id) = state.ids.get(&record.key) {
            return Ok(*id);
        }
        let id = MountId(state.next);
        let next = state.next.checked_add(1).ok_or(MetaError::NumbersExhausted)?;
        let transaction = self.database.begin_write()?;
        transaction.open_table(MOUNTS)?.insert(id.0, serde_json::to_vec(record)?.as_slice())?;
        transaction.open_table(COUNTERS)?.insert(NEXT_ID, u64::from(next))?;
        transaction.commit()?;
        state.next = next;
        state.insert(id, record.clone());
        Ok(id)
    }

    /// Forgets mounts that are no more. Blocks for the disk.
    pub fn forget(&self, ids: &[MountId]) -> Result<(), MetaError> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut state = self.state.lock();
        let transaction = self.database.begin_write()?;
        for id in ids {
            transaction.open_table(MOUNTS)?.remove(id.0)?;
        }
        transaction.commit()?;
        for id in ids {
            if let Some(record) = state.records.remove(id) {
                state.ids.remove(&record.key);
            }
        }
        Ok(())
    }
}

impl State {
    fn insert(&mut self, id: MountId, record: MountRecord) {
        self.ids.insert(record.key, id);
        self.records.insert(id, record);
    }
}

#[cfg(test)]
mod tests {
    use d7y_types::Compression;

    use super::*;

    fn record(layer: u8, chain: Option<u8>) -> MountRecord {
        let digest = |n| Sha256Digest([n; 32]);
        let key = MountKey {
            layer: digest(layer),
            layout: digest(9),
            chain: chain.map(digest),
            backing: Backing::Served,
        };
        let layer = LayerRef {
            registry: "r.example".into(),
            repository: "a".into(),
            digest: digest(layer),
            diff_id: digest(8),
            size: 1,
            compression: Compression::Gzip,
        };
        MountRecord { key, layer, device_bytes: 4096 }
    }

    #[test]
    fn numbers_survive_restarts_and_are_never_used_twice() {
        let directory = tempfile::tempdir().unwrap();
        let open =
            || Registry::open(Arc::new(Database::create(directory.path().join("db")).unwrap())).unwrap();
        let registry = open();
        let first = registry.id(&record(1, None)).unwrap();
        let chained = registry.id(&record(1, Some(7))).unwrap();
        let mut direct = record(1, None);
        direct.key.backing = Backing::Direct;
        let direct = registry.id(&direct).unwrap();
        assert_eq!(registry.id(&record(1, None)).unwrap(), first);
        assert!(first != chained && first != direct);
        drop(registry);
        let registry = open();
        assert_eq!(registry.id(&record(1, Some(7))).unwrap(), chained);
        assert_eq!(registry.records().len(), 3);
        registry.forget(&[first, chained, direct]).unwrap();
        drop(registry);
        let registry = open();
        assert!(registry.records().is_empty());
        assert!(registry.id(&record(1, None)).unwrap() > direct);
    }

    #[test]
    fn a_record_from_before_direct_mounts_is_of_a_served_one() {
        let mut text = serde_json::to_value(record(1, None)).unwrap();
        text["key"].as_object_mut().unwrap().remove("backing").unwrap();
        assert_eq!(serde_json::from_value::<MountRecord>(text).unwrap(), record(1, None));
    }
}
