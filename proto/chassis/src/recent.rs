//! The last warnings and errors of this process, for whoever looks at the daemon and not at its log.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// How many are kept; older ones are in the log.
const MAX_EVENTS: usize = 32;
/// A longer message is cut, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecentEvent {
    pub unix_ms: u64,
    /// `WARN` or `ERROR`.
    pub level: String,
    pub message: String,
}

/// The oldest first; clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Recent(Arc<Mutex<VecDeque<RecentEvent>>>);

impl Recent {
    pub fn all(&self) -> Vec<RecentEvent> {
        self.0.lock().iter().cloned().collect()
    }

    fn keep(&self, event: RecentEvent) {
        let mut events = self.0.lock();
        if events.len() == MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }
}

impl<S: Subscriber> Layer<S> for Recent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::WARN {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.keep(RecentEvent {
            unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            level: level.to_string(),
            message: text.cut(),
        });
    }
}

/// The message, then the fields as `name=value`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

impl Text {
    fn cut(self) -> String {
        let mut text = self.message + &self.fields;
        let end = (0..=MAX_MESSAGE_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
        text
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn the_last_warnings_are_kept_and_nothing_less() {
        let recent = Recent::default();
        let subscriber = tracing_subscriber::registry().with(recent.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("all is well");
            tracing::warn!(layer = 7, "slow");
            for number in 0..MAX_EVENTS {
                tracing::error!("{number}{}", "é".repeat(MAX_MESSAGE_BYTES));
            }
        });
        let kept = recent.all();
        assert_eq!(kept.len(), MAX_EVENTS);
        assert!(kept[0].message.starts_with("0é") && kept.iter().all(|event| event.level == "ERROR"));
        assert!(kept.iter().all(|event| event.message.len() <= MAX_MESSAGE_BYTES));
        let subscriber = tracing_subscriber::registry().with(recent.clone());
        tracing::subscriber::with_default(subscriber, || tracing::warn!(layer = 7, "slow"));
        assert_eq!(recent.all().last().unwrap().message, "slow layer=7");
    }
}
