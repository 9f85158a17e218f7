use std::fmt;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// A version of containerd, as far as its configuration depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// What the program says of itself.
    pub fn of(program: &Path) -> Result<Self> {
        let shown = program.display();
        let output = Command::new(program).arg("--version").output().with_context(|| {
            format!("cannot run {shown} to learn its version; install containerd, or name it with --containerd, or its version with --containerd-version")
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        Self::in_banner(&text).with_context(|| format!("{shown} --version does not say a version: {text:?}"))
    }

    /// `containerd github.com/containerd/containerd/v2 v2.2.0 1c4457e...`
    fn in_banner(text: &str) -> Option<Self> {
        text.split_whitespace().nth(2)?.parse().ok()
    }
}

impl FromStr for Version {
    type Err = anyhow::Error;

    /// `1.6.20~ds1`, `v2.2.0`, `2.4.0-beta.1`, `1.7`.
    fn from_str(text: &str) -> Result<Self> {
        let mut numbers = text.trim_start_matches('v').splitn(3, '.').map(|part| {
            let digits = part.find(|c: char| !c.is_ascii_digit()).map_or(part, |end| &part[..end]);
            digits.parse::<u32>().ok()
        });
        match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(major), Some(minor)) => Ok(Self { major, minor }),
            _ => bail!("{text:?} is not a version such as 1.7 or 2.2.0"),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banners_of_builds_in_the_wild() {
        let table = [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", Some((1, 6))),
            (
                "containerd github.com/containerd/containerd/v2 v2.2.0 1c4457e00facac03ce1d75f7b6777a7a851e5c41",
                Some((2, 2)),
            ),
            ("containerd github.com/containerd/containerd/v2 2.4.2+unknown ", Some((2, 4))),
            ("containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da", Some((1, 7))),
            ("containerd github.com/containerd/containerd/v2 v2.4.0-beta.1", Some((2, 4))),
            ("containerd github.com/containerd/containerd/v2 unknown", None),
            ("", None),
        ];
        for (banner, expected) in table {
            let found = Version::in_banner(banner).map(|version| (version.major, version.minor));
            assert_eq!(found, expected, "{banner}");
        }
    }
}
