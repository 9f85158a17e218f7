use std::fmt;
use std::time::Duration;

use d7y_proto::scheduler as wire;
use tokio::time::Instant;

/// A token and the names of what it opens.
const MAX_BYTES: usize = 32 << 10;

/// What opens the layers of a preheat to peers, for as long as it lives. In memory only.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    message: wire::PullGrant,
    ends: Instant,
}

impl Grant {
    pub fn parse(message: wire::PullGrant) -> Option<Self> {
        let bytes = message.registry.len() + message.repository.len() + message.authorization.len();
        let sound = message.authorization.starts_with("Bearer ") && bytes <= MAX_BYTES;
        let ends = Instant::now() + Duration::from_millis(u64::from(message.lives_ms));
        sound.then_some(Self { message, ends })
    }

    /// Whether the other is the same token, whatever is left of its life.
    pub fn is_same(&self, other: &Self) -> bool {
        self.message.authorization == other.message.authorization
    }

    pub fn place(&self) -> (String, String) {
        (self.message.registry.clone(), self.message.repository.clone())
    }

    pub fn is_over(&self) -> bool {
        self.ends <= Instant::now()
    }

    /// With what is left of its life.
    pub fn to_wire(&self) -> wire::PullGrant {
        let left = self.ends.saturating_duration_since(Instant::now());
        let lives_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        wire::PullGrant { lives_ms, ..self.message.clone() }
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
