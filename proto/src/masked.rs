use std::fmt;

use crate::scheduler::PullGrant;

impl fmt::Debug for PullGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullGrant")
            .field("registry", &self.registry)
            .field("repository", &self.repository)
            .field("authorization", &"***")
            .field("lives_ms", &self.lives_ms)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{PreheatRequest, SchedulerMessage, scheduler_message::Message};

    #[test]
    fn no_message_shows_its_token() {
        let grant = PullGrant { authorization: "Bearer s3cret".into(), ..PullGrant::default() };
        let request = PreheatRequest { grant: Some(grant.clone()), ..PreheatRequest::default() };
        let message = SchedulerMessage { message: Some(Message::Grant(grant)) };
        let shown = format!("{request:?} {message:?}");
        assert!(shown.contains("***") && !shown.contains("s3cret"), "{shown}");
    }
}
