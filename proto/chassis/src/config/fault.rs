use std::fmt::{self, Write};

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key (`server.listen`), environment variable or flag that is at fault.
    pub place: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Fault {
    pub fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }

    /// The same fault one level further out: `listen` becomes `server.listen`.
    pub fn within(mut self, outer: &str) -> Self {
        self.place = format!("{outer}.{}", self.place);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

/// What types alone cannot check. Returns every fault, not only the first.
pub trait Validate {
    fn validate(&self) -> Vec<Fault>;
}

pub(super) fn list(faults: &[Fault]) -> String {
    faults.iter().fold(String::new(), |mut text, fault| {
        let _ = write!(text, "\n  {fault}");
        text
    })
}
