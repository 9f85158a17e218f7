//! What the rig's images are made of.

use sha2::{Digest, Sha256};

/// Changes whenever the building code would make another image from the same recipe.
const FORMAT: u32 = 2;

/// Images of Debian packages with one application layer on top.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    pub name: &'static str,
    pub suite: &'static str,
    /// One layer each, above the base system, in all versions.
    pub packages: &'static [Packages],
    /// The application layer's files: path and text, in which `@VERSION@` is replaced.
    pub files: &'static [(&'static str, &'static str)],
    pub command: &'static [&'static str],
    /// One image each.
    pub versions: &'static [Version],
    /// Adds what tar can hold and packages seldom do.
    pub corners: Corners,
}

/// What sets an image apart from the others of its recipe, besides the application layer.
#[derive(Clone, Copy, Debug)]
pub struct Version {
    pub tag: &'static str,
    /// One layer each, between the packages of all versions and the application layer.
    pub packages: &'static [Packages],
    /// In addition to the recipe's, or in their place.
    pub files: &'static [(&'static str, &'static str)],
}

/// What is installed together, as one layer.
#[derive(Clone, Copy, Debug)]
pub struct Packages {
    pub names: &'static [&'static str],
    /// Dependencies that no run needs, replaced by empty packages of that name.
    pub stand_ins: &'static [&'static str],
}

/// Whether the application layer has whiteouts, devices, capabilities, odd names and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corners {
    Present,
    Absent,
}

const PYTHON: Packages = Packages { names: &["python3"], stand_ins: &[] };

const V1: Version = Version { tag: "v1", packages: &[], files: &[] };

/// The demo's: a Python service with its interpreter and libraries.
pub const SERVICE: Recipe = Recipe {
    name: "service",
    suite: "bookworm",
    packages: &[
        PYTHON,
        Packages { names: &["python3-numpy"], stand_ins: &[] },
        Packages { names: &["python3-pandas", "python3-lxml", "python3-cryptography"], stand_ins: &[] },
    ],
    files: &[
        ("app/service.py", include_str!("../../../images/service.py")),
        ("app/report.py", include_str!("../../../images/report.py")),
    ],
    command: &["python3", "/app/service.py"],
    versions: &[
        V1,
        Version { tag: "v2", ..V1 },
        Version {
            tag: "v3",
            packages: &[Packages { names: &["python3-scipy"], stand_ins: &["python3-pythran"] }],
            files: &[("app/report.py", include_str!("../../../images/report-scipy.py"))],
        },
    ],
    corners: Corners::Present,
};

/// The image on which the neighbours (overlayfs, erofs, stargz, nydus) have been measured.
pub const LEARN: Recipe = Recipe {
    name: "learn",
    suite: "bookworm",
    packages: &[
        PYTHON,
        Packages {
            // scipy depends on pythran and so on a whole C++ compiler, 500 MB.
            names: &["libopenblas0-pthread", "python3-numpy", "python3-scipy"],
            stand_ins: &["python3-pythran"],
        },
        Packages { names: &["python3-pandas", "python3-sklearn"], stand_ins: &[] },
    ],
    files: &[("app/app.py", include_str!("../../../images/learn.py"))],
    command: &["python3", "/app/app.py"],
    versions: &[V1],
    corners: Corners::Absent,
};

impl Recipe {
    /// Names what building it gives: equal keys, equal images (of the packages of that day).
    pub fn key(&self) -> String {
        let digest = Sha256::digest(format!("{FORMAT} {self:?}"));
        format!("{}-{}", self.name, hex::encode(&digest[..6]))
    }
}
