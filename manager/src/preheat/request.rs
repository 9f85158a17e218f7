use std::fmt;
use std::str::FromStr;

use d7y_origin::image::{ImageName, Platform};
use d7y_proto::scheduler as wire;
use serde::{Deserialize, Serialize};

/// What a preheat is to do, as its row holds it. No credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PreheatArgs {
    /// With registry and tag or digest.
    pub url: String,
    pub platform: String,
    pub scope: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub percentage: Option<u32>,
}

/// Whose disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    SingleSeed,
    AllSeeds,
    /// Nodes and seeds.
    AllPeers,
    /// This many percent of the nodes.
    Share(u32),
}

impl PreheatArgs {
    pub fn new(image: &ImageName, platform: &Platform, scope: Scope) -> Self {
        let percentage = match scope {
            Scope::Share(percent) => Some(percent),
            _ => None,
        };
        Self { url: image.to_string(), platform: platform.to_string(), scope: scope.to_string(), percentage }
    }

    pub fn image(&self) -> Option<ImageName> {
        self.url.parse().ok()
    }

    pub fn platform(&self) -> Option<Platform> {
        self.platform.parse().ok()
    }

    pub fn scope(&self) -> Option<Scope> {
        Scope::parse(&self.scope, self.percentage).ok()
    }
}

impl Scope {
    /// Dragonfly's words (`single_seed_peer`, `all_seed_peers`, `all_peers` with a percentage) and the CLI's
    /// (`single-seed`, `all-seeds`, `all-peers`, `25%`). Nothing means one seed.
    pub fn parse(text: &str, percentage: Option<u32>) -> Result<Self, String> {
        let scope = match text {
            "" => Self::SingleSeed,
            "all_peers" => percentage.map_or(Self::AllPeers, Self::Share),
            other => other.parse()?,
        };
        match scope {
            Self::Share(percent) if !(1..=100).contains(&percent) => {
                Err("a share is from 1% to 100%".to_owned())
            }
            scope => Ok(scope),
        }
    }

    pub fn to_wire(self) -> (wire::Scope, u32) {
        match self {
            Self::SingleSeed => (wire::Scope::SingleSeed, 0),
            Self::AllSeeds => (wire::Scope::AllSeeds, 0),
            Self::AllPeers => (wire::Scope::AllPeers, 0),
            Self::Share(percent) => (wire::Scope::Share, percent),
        }
    }

    /// Who is missing when the scope names nobody.
    pub fn missing(self) -> &'static str {
        match self {
            Self::SingleSeed | Self::AllSeeds => {
                "no seed peer is connected; start d7y-peer with role: seed, or preheat with --scope all-peers"
            }
            Self::AllPeers => "no peer is connected; start d7y-peer on the nodes, and check its scheduler",
            Self::Share(_) => "no node is connected; start d7y-peer on the nodes, and check its scheduler",
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            let text: String = text.chars().take(32).collect();
            format!("{text:?} is no scope; it is single-seed, all-seeds, all-peers or a share such as 25%")
        };
        match text {
            "single-seed" | "single_seed_peer" => Ok(Self::SingleSeed),
            "all-seeds" | "all_seed_peers" => Ok(Self::AllSeeds),
            "all-peers" | "all_peers" => Ok(Self::AllPeers),
            share => {
                let percent = share.strip_suffix('%').and_then(|number| number.parse().ok());
                percent.map(Self::Share).ok_or_else(refuse)
            }
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SingleSeed => "single_seed_peer",
            Self::AllSeeds => "all_seed_peers",
            Self::AllPeers | Self::Share(_) => "all_peers",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_of_harbor_and_of_the_cli() {
        let table = [
            ("", None, Some(Scope::SingleSeed)),
            ("single_seed_peer", None, Some(Scope::SingleSeed)),
            ("all_seed_peers", None, Some(Scope::AllSeeds)),
            ("all_peers", None, Some(Scope::AllPeers)),
            ("all_peers", Some(30), Some(Scope::Share(30))),
            ("single-seed", None, Some(Scope::SingleSeed)),
            ("all-seeds", None, Some(Scope::AllSeeds)),
            ("all-peers", None, Some(Scope::AllPeers)),
            ("25%", None, Some(Scope::Share(25))),
            ("0%", None, None),
            ("101%", None, None),
            ("all_peers", Some(0), None),
            ("everything", None, None),
            ("%", None, None),
        ];
        for (text, percentage, expected) in table {
            assert_eq!(Scope::parse(text, percentage).ok(), expected, "{text}");
        }
        for scope in [Scope::SingleSeed, Scope::AllSeeds, Scope::AllPeers, Scope::Share(7)] {
            let args = PreheatArgs::new(&"app".parse().unwrap(), &Platform::own(), scope);
            let row: PreheatArgs = serde_json::from_str(&serde_json::to_string(&args).unwrap()).unwrap();
            assert_eq!(row.scope(), Some(scope));
            assert!(row.image().is_some() && row.platform().is_some());
        }
    }
}
