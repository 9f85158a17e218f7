use d7y_chassis::{Fault, Validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The section `manager` of whoever belongs to a manager's cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagerConfig {
    /// host:port of the manager's gRPC; without a manager when empty.
    pub address: String,
    /// Name of the cluster that this belongs to; the manager's default one when empty.
    pub cluster: String,
}

impl ManagerConfig {
    pub fn is_set(&self) -> bool {
        !self.address.is_empty()
    }
}

impl Validate for ManagerConfig {
    fn validate(&self) -> Vec<Fault> {
        let sound = |address: &str| {
            address
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        let mut faults = Vec::new();
        if self.is_set() && !sound(&self.address) {
            faults.push(Fault::new("address", format!("{:?} is not of the form host:port", self.address)));
        }
        if !self.is_set() && !self.cluster.is_empty() {
            faults.push(Fault::new("cluster", "is of no use without manager.address"));
        }
        faults
    }
}
