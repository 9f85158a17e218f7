use std::fmt;
use std::str::FromStr;

use d7y_manager_db::UserRole;

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Resource {
    Clusters,
    Schedulers,
    SeedPeers,
    Peers,
    Jobs,
    Users,
    Tokens,
    Credentials,
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Permission {
    /// Everybody, without a login.
    Open,
    Read(Resource),
    Write(Resource),
    /// Every user, for what is the user's own.
    Own(Resource),
}

const NAMES: [(Resource, &str); 8] = [
    (Resource::Clusters, "clusters"),
    (Resource::Schedulers, "schedulers"),
    (Resource::SeedPeers, "seed-peers"),
    (Resource::Peers, "peers"),
    (Resource::Jobs, "jobs"),
    (Resource::Users, "users"),
    (Resource::Tokens, "personal-access-tokens"),
    (Resource::Credentials, "registry-credentials"),
];

impl Permission {
    /// Whether a user of this role has it. Roles only ever grow: what is not named is refused.
    pub fn is_given_to(self, role: UserRole) -> bool {
        match (self, role) {
            (Self::Open | Self::Own(_), _) | (_, UserRole::Root) => true,
            // Names of tokens and credentials say much about an organisation.
            (Self::Read(Resource::Tokens | Resource::Credentials | Resource::Users), UserRole::Guest) => {
                false
            }
            (Self::Read(_), UserRole::Guest) => true,
            (Self::Write(_), UserRole::Guest) => false,
        }
    }

    /// Whether a token that is good for these resources has it; one without scopes is good for all.
    pub fn is_in(self, scopes: &[Resource]) -> bool {
        match self {
            Self::Open => true,
            Self::Read(resource) | Self::Write(resource) | Self::Own(resource) => {
                scopes.is_empty() || scopes.contains(&resource)
            }
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(resource, _)| resource == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Read(resource) => write!(f, "read {resource}"),
            Self::Write(resource) => write!(f, "write {resource}"),
            Self::Own(resource) => write!(f, "keep own {resource}"),
        }
    }
}

impl FromStr for Resource {
    type Err = String;

    /// Dragonfly's scopes are in the singular: `job`, `cluster`.
    fn from_str(text: &str) -> Result<Self, String> {
        let known = NAMES.iter().find(|(_, name)| *name == text || name.strip_suffix('s') == Some(text));
        known.map(|(resource, _)| *resource).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(_, name)| *name).collect();
            let text: String = text.chars().take(64).collect();
            format!("there is no scope {text:?}; scopes are {}", names.join(", "))
        })
    }
}
