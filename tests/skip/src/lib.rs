//! How a test says that it cannot run on this machine.
//!
//! To the harness such a test has passed, and what it prints is thrown away. So it is also written to a file that
//! `cargo xtask test` names, one line each, and counted at the end.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The environment variable with the file's path; without it nothing is written.
pub const FILE: &str = "D7Y_SKIPPED";

/// What was not tested.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skipped {
    pub extent: Extent,
    /// The test's binary and path, such as `cli units::systemd_takes_every_unit`.
    pub test: String,
    /// What is missing on this machine.
    pub want: String,
}

/// How much of a test was not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    Whole,
    /// The rest of it counts as a test.
    Part,
}

/// Nothing of the test that this thread runs is run, for want of this.
pub fn test(want: impl fmt::Display) {
    tell(Extent::Whole, want);
}

/// As [`test`], of one of its cases.
pub fn part(want: impl fmt::Display) {
    tell(Extent::Part, want);
}

/// So much of the test that this thread runs is not run, for want of this.
pub fn tell(extent: Extent, want: impl fmt::Display) {
    let want = want.to_string().replace(['\n', '\t'], " ");
    let skipped = Skipped { extent, test: this_test(), want };
    eprintln!("{skipped}");
    if let Some(file) = std::env::var_os(FILE)
        && let Err(error) = skipped.append(Path::new(&file))
    {
        panic!("cannot write to {}, which {FILE} names: {error}", file.display());
    }
}

/// The harness names each thread after its test; cargo adds a dash and 16 digits to the binary's name.
fn this_test() -> String {
    let program = std::env::current_exe().unwrap_or_default();
    let binary = program.file_name().unwrap_or(OsStr::new("test")).to_string_lossy().into_owned();
    let binary = binary.rsplit_once('-').map_or(binary.as_str(), |(name, _)| name);
    format!("{binary} {}", std::thread::current().name().unwrap_or("a test"))
}

impl Skipped {
    /// In one write, so that tests of several threads and processes do not mix their lines.
    fn append(&self, file: &Path) -> io::Result<()> {
        let extent = match self.extent {
            Extent::Whole => "whole",
            Extent::Part => "part",
        };
        let line = format!("{extent}\t{}\t{}\n", self.test, self.want);
        File::options().create(true).append(true).open(file)?.write_all(line.as_bytes())
    }

    fn parse(line: &str) -> Option<Self> {
        let [extent, test, want] = line.split('\t').collect::<Vec<_>>().try_into().ok()?;
        let extent = match extent {
            "whole" => Extent::Whole,
            "part" => Extent::Part,
            _ => return None,
        };
        Some(Self { extent, test: test.to_owned(), want: want.to_owned() })
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { extent, test, want } = self;
        let part = if *extent == Extent::Part { "a part of " } else { "" };
        write!(f, "SKIPPED for want of {want}: {part}{test}")
    }
}

/// What the tests of a run have written to the file. Each counts once, however often it said so.
///
/// # Errors
/// The file is there and cannot be read, or has lines of another kind.
pub fn read(file: &Path) -> io::Result<BTreeSet<Skipped>> {
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        read => read?,
    };
    let line = |line| Skipped::parse(line).ok_or_else(|| io::Error::other(format!("unknown line {line:?}")));
    text.lines().map(line).collect()
}

/// A file for the tests of this process's children.
pub fn file_in(directory: &Path) -> PathBuf {
    directory.join(format!("skipped-{}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(extent: Extent, want: &str) -> Skipped {
        Skipped { extent, test: this_test(), want: want.to_owned() }
    }

    #[test]
    fn what_is_written_is_read_once_each() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let file = file_in(directory.path());
        assert!(read(&file)?.is_empty(), "no test has skipped anything");
        let told =
            [skipped(Extent::Whole, "Go"), skipped(Extent::Part, "a disk"), skipped(Extent::Whole, "Go")];
        std::thread::scope(|scope| {
            told.iter().for_each(|one| {
                scope.spawn(|| one.append(&file));
            });
        });
        let [whole, part, _] = told;
        assert_eq!(read(&file)?, BTreeSet::from([whole, part]));
        std::fs::write(&file, "something else\n")?;
        assert!(read(&file).is_err());
        Ok(())
    }

    #[test]
    fn a_skip_names_its_test() {
        let said = skipped(Extent::Part, "Go").to_string();
        assert_eq!(said, "SKIPPED for want of Go: a part of d7y_skip tests::a_skip_names_its_test");
    }
}
