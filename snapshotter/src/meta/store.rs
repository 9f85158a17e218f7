use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use crate::meta::snapshot::{Chained, Kind, Labels, RemoteLayer, Snapshot, SnapshotId, Timestamp, Usage};
use crate::meta::{Filters, MetaError};

const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots.1");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const NEXT_ID: &str = "next snapshot id";

/// The snapshots. Writing operations commit to disk before they return: call them where blocking is allowed.
pub struct Store {
    database: Arc<Database>,
    rows: RwLock<Rows>,
    /// Held over check, commit and change of `rows`.
    writing: Mutex<NextId>,
}

struct NextId(u64);

#[derive(Default)]
struct Rows {
    by_name: BTreeMap<String, Arc<Snapshot>>,
    /// How many snapshots have this one as their parent.
    children: HashMap<String, usize>,
}

/// A snapshot to be made.
#[derive(Debug, Default)]
pub struct NewSnapshot {
    pub name: String,
    /// Empty for none.
    pub parent: String,
    pub labels: Labels,
}

/// An active snapshot to be committed.
#[derive(Debug, Default)]
pub struct Committing {
    pub key: String,
    pub name: String,
    /// They replace the active snapshot's.
    pub labels: Labels,
    /// The parent as containerd 2.2 names it at commit; empty when it was given at Prepare.
    pub parent: String,
    pub usage: Usage,
}

/// Which labels change.
#[derive(Debug)]
pub struct Updating {
    pub name: String,
    pub labels: Labels,
    /// `labels` or `labels.<key>`; empty for all that can change.
    pub paths: Vec<String>,
}

impl Store {
    pub fn open(path: &Path) -> Result<Self, MetaError> {
        let database = Database::create(path)?;
        let transaction = database.begin_write()?;
        transaction.open_table(SNAPSHOTS)?;
        transaction.open_table(COUNTERS)?;
        transaction.commit()?;
        let (mut rows, reading) = (Rows::default(), database.begin_read()?);
        for row in reading.open_table(SNAPSHOTS)?.iter()? {
            rows.insert(serde_json::from_slice(row?.1.value())?);
        }
        let next = reading.open_table(COUNTERS)?.get(NEXT_ID)?.map_or(1, |next| next.value());
        Ok(Self { database: Arc::new(database), rows: RwLock::new(rows), writing: Mutex::new(NextId(next)) })
    }

    /// The file, for tables of other parts of the snapshotter.
    pub fn database(&self) -> Arc<Database> {
        Arc::clone(&self.database)
    }

    pub fn get(&self, name: &str) -> Result<Arc<Snapshot>, MetaError> {
        self.rows.read().get(name)
    }

    /// The snapshot and its ancestors; for a snapshot that exists the chain is complete.
    pub fn chain(&self, name: &str) -> Result<Chained, MetaError> {
        let rows = self.rows.read();
        let mut chain = vec![rows.get(name)?];
        while let Some(parent) =
            chain.last().map(|row| row.parent.as_str()).filter(|parent| !parent.is_empty())
        {
            chain.push(rows.get(parent)?);
        }
        Ok(chain)
    }

    pub fn list(&self, filters: &Filters) -> Vec<Arc<Snapshot>> {
        self.rows.read().by_name.values().filter(|row| filters.matches(row)).cloned().collect()
    }

    /// Makes an active snapshot or a view.
    pub fn create(&self, kind: Kind, new: NewSnapshot) -> Result<Arc<Snapshot>, MetaError> {
        self.insert(kind, new, None)
    }

    /// Makes a committed snapshot of a layer that the peer supplies.
    pub fn create_remote(&self, new: NewSnapshot, remote: RemoteLayer) -> Result<Arc<Snapshot>, MetaError> {
        self.insert(Kind::Committed, new, Some(remote))
    }

    fn insert(
        &self,
        kind: Kind,
        new: NewSnapshot,
        remote: Option<RemoteLayer>,
    ) -> Result<Arc<Snapshot>, MetaError> {
        let NewSnapshot { name, parent, labels } = new;
        let mut next = self.writing.lock();
        self.rows.read().vacant(&name)?;
        self.rows.read().committed_parent(&parent)?;
        let now = Timestamp::now();
        let row = Snapshot {
            id: SnapshotId(next.0),
            name,
            kind,
            parent,
            labels: without_empty(labels),
            created: now,
            updated: now,
            usage: None,
            remote,
        };
        self.write(|transaction| {
            put(transaction, &row)?;
            transaction.open_table(COUNTERS)?.insert(NEXT_ID, row.id.0 + 1)?;
            Ok(())
        })?;
        next.0 += 1;
        Ok(self.rows.write().insert(row))
    }

    pub fn commit(&self, committing: Committing) -> Result<Arc<Snapshot>, MetaError> {
        let Committing { key, name, labels, parent, usage } = committing;
        let _writing = self.writing.lock();
        self.rows.read().vacant(&name)?;
        let active = self.get(&key)?;
        if active.kind != Kind::Active {
            return Err(MetaError::NotActive(key));
        }
        let parent = match (active.parent.as_str(), parent.as_str()) {
            ("", given) => given.to_owned(),
            (has, "") => has.to_owned(),
            (has, given) if has == given => has.to_owned(),
            (has, _) => return Err(MetaError::OtherParent { key, has: has.to_owned(), given: parent }),
        };
        self.rows.read().committed_parent(&parent)?;
        let now = Timestamp::now();
        let row = Snapshot {
            id: active.id,
            name,
            kind: Kind::Committed,
            parent,
            labels: without_empty(labels),
            created: now,
            updated: now,
            usage: Some(usage),
            remote: None,
        };
        self.write(|transaction| {
            transaction.open_table(SNAPSHOTS)?.remove(key.as_str())?;
            put(transaction, &row)
        })?;
        let mut rows = self.rows.write();
        rows.remove(&key);
        Ok(rows.insert(row))
    }

    /// Removes a snapshot without children. Its directory is garbage from then on.
    pub fn remove(&self, name: &str) -> Result<Arc<Snapshot>, MetaError> {
        let _writing = self.writing.lock();
        let row = self.get(name)?;
        if self.rows.read().children.contains_key(name) {
            return Err(MetaError::HasChildren(name.into()));
        }
        self.write(|transaction| {
            transaction.open_table(SNAPSHOTS)?.remove(name)?;
            Ok(())
        })?;
        self.rows.write().remove(name);
        Ok(row)
    }

    pub fn update(&self, updating: Updating) -> Result<Arc<Snapshot>, MetaError> {
        let Updating { name, labels, paths } = updating;
        let _writing = self.writing.lock();
        let mut row = Snapshot::clone(&*self.get(&name)?);
        if paths.is_empty() {
            row.labels = labels.clone();
        }
        for path in paths {
            match path.strip_prefix("labels.") {
                Some(key) => {
                    row.labels.insert(key.into(), labels.get(key).cloned().unwrap_or_default());
                }
                None if path == "labels" => row.labels = labels.clone(),
                None => return Err(MetaError::Immutable(path)),
            }
        }
        row.labels = without_empty(row.labels);
        row.updated = Timestamp::now();
        self.write(|transaction| put(transaction, &row))?;
        let row = Arc::new(row);
        self.rows.write().by_name.insert(name, Arc::clone(&row));
        Ok(row)
    }

    fn write(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), MetaError>,
    ) -> Result<(), MetaError> {
        let transaction = self.database.begin_write()?;
        change(&transaction)?;
        transaction.commit()?;
        Ok(())
    }
}

impl Rows {
    fn get(&self, name: &str) -> Result<Arc<Snapshot>, MetaError> {
        self.by_name.get(name).cloned().ok_or_else(|| MetaError::NotFound(name.into()))
    }

    fn vacant(&self, name: &str) -> Result<(), MetaError> {
        match name {
            "" => Err(MetaError::NoName),
            taken if self.by_name.contains_key(taken) => Err(MetaError::AlreadyExists(taken.into())),
            _ => Ok(()),
        }
    }

    fn committed_parent(&self, parent: &str) -> Result<(), MetaError> {
        match parent {
            "" => Ok(()),
            parent if self.get(parent)?.kind == Kind::Committed => Ok(()),
            parent => Err(MetaError::ParentNotCommitted(parent.into())),
        }
    }

    fn insert(&mut self, row: Snapshot) -> Arc<Snapshot> {
        if !row.parent.is_empty() {
            *self.children.entry(row.parent.clone()).or_default() += 1;
        }
        let row = Arc::new(row);
        self.by_name.insert(row.name.clone(), Arc::clone(&row));
        row
    }

    fn remove(&mut self, name: &str) {
        let Some(row) = self.by_name.remove(name) else { return };
        if let Some(count) = self.children.get_mut(&row.parent) {
            *count -= 1;
            if *count == 0 {
                self.children.remove(&row.parent);
            }
        }
    }
}

fn put(transaction: &WriteTransaction, row: &Snapshot) -> Result<(), MetaError> {
    let encoded = serde_json::to_vec(row)?;
    transaction.open_table(SNAPSHOTS)?.insert(row.name.as_str(), encoded.as_slice())?;
    Ok(())
}

/// A label without a value is no label (containerd, `boltutil.WriteLabels`).
fn without_empty(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}
