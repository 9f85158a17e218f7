use std::collections::BTreeMap;

use tokio::sync::watch;

use crate::discover::Discovered;

/// Passes on the settings of each answer, for as long as the daemon runs. Before the first answer what was kept holds.
pub async fn settings(
    mut known: watch::Receiver<Discovered>,
    say: watch::Sender<Option<BTreeMap<String, String>>>,
) {
    loop {
        let config = known.borrow_and_update().config.clone();
        say.send_if_modified(|said| {
            let is_news = match said {
                Some(said) => *said != config,
                None => !config.is_empty(),
            };
            if is_news {
                *said = Some(config);
            }
            is_news
        });
        if known.changed().await.is_err() {
            // Whoever asks the manager has ended: the daemon is stopping.
            return std::future::pending().await;
        }
    }
}
