use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::config::RetryConfig;
use crate::error::{OriginError, Wait};

/// Connections that one read may lose, however much each of them brought: a host that breaks off every few bytes must
/// not see more requests than plain pulls would cost it.
const MAX_RECONNECTS: u32 = 256;
/// Less than this is no progress: neither between two failures, nor within the time allowed without it.
const PROGRESS_BYTES: u64 = 64 << 10;

/// How much more waiting and how many more attempts a read is worth. Only waiting for the network counts, not the time
/// that the reader takes between two calls, nor waiting for a connection slot of our own.
#[derive(Debug)]
pub(crate) struct Patience {
    retry: RetryConfig,
    no_progress: Duration,
    waited: Duration,
    arrived_bytes: u64,
    advanced_bytes: u64,
    attempts: u32,
    reconnects: u32,
}

impl Patience {
    pub fn new(retry: RetryConfig, no_progress: Duration) -> Self {
        Self {
            retry,
            no_progress,
            waited: Duration::ZERO,
            arrived_bytes: 0,
            advanced_bytes: 0,
            attempts: 0,
            reconnects: 0,
        }
    }

    /// Runs `work` for at most `limit` and for at most what is left of the time without progress.
    pub async fn run<T>(
        &mut self,
        host: &str,
        wait: Wait,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, OriginError> {
        let left = self.no_progress.saturating_sub(self.waited);
        let (limit, wait) = if left < limit { (left, Wait::Progress) } else { (limit, wait) };
        let _watch = Stopwatch::start(&mut self.waited);
        timeout(limit, work).await.map_err(|_| OriginError::Timeout { host: host.to_owned(), wait })
    }

    /// Bytes came, be they new or such as are skipped: the host is alive.
    pub fn arrived(&mut self, bytes: u64) {
        self.arrived_bytes = self.arrived_bytes.saturating_add(bytes);
        if self.arrived_bytes >= PROGRESS_BYTES {
            self.arrived_bytes = 0;
            self.waited = Duration::ZERO;
        }
    }

    /// Bytes came that the reader had not seen: the read is worth further attempts.
    pub fn advanced(&mut self, bytes: u64) {
        self.advanced_bytes = self.advanced_bytes.saturating_add(bytes);
        if self.advanced_bytes >= PROGRESS_BYTES {
            self.advanced_bytes = 0;
            self.attempts = 0;
        }
    }

    /// Before each attempt. Counted here and not at its failure: a reader may drop it half-way, and come again.
    pub fn begin(&mut self, host: &str) -> Result<(), OriginError> {
        if self.is_spent() {
            return Err(OriginError::Timeout { host: host.to_owned(), wait: Wait::Progress });
        }
        self.attempts += 1;
        self.reconnects += 1;
        Ok(())
    }

    /// How long to wait before the next attempt after one that failed with `error`; none when there should be no
    /// further one. `jitter` is in `0.0..1.0`.
    pub fn next_delay(&self, error: &OriginError, jitter: f64) -> Option<Duration> {
        if !error.is_transient() || self.is_spent() {
            return None;
        }
        let doublings = self.attempts.saturating_sub(1).min(16);
        let backoff = self.retry.initial_delay.saturating_mul(1 << doublings).min(self.retry.max_delay);
        let asked = error.retry_after().unwrap_or_default().min(self.retry.max_retry_after);
        let delay = backoff.mul_f64(0.5 + jitter / 2.0).max(asked);
        (self.waited + delay < self.no_progress).then_some(delay)
    }

    /// Waits for the time of the next attempt.
    pub async fn rest_until(&mut self, time: Instant) {
        let _watch = Stopwatch::start(&mut self.waited);
        tokio::time::sleep_until(time).await;
    }

    fn is_spent(&self) -> bool {
        self.attempts >= self.retry.attempts.get() || self.reconnects >= MAX_RECONNECTS
    }
}

/// Adds the time for which it lived, also when the future around it is dropped: a reader that comes again and again for
/// a moment must not wait for ever.
pub(crate) struct Stopwatch<'a> {
    total: &'a mut Duration,
    start: Instant,
}

impl<'a> Stopwatch<'a> {
    pub fn start(total: &'a mut Duration) -> Self {
        Self { total, start: Instant::now() }
    }
}

impl Drop for Stopwatch<'_> {
    fn drop(&mut self) {
        *self.total += self.start.elapsed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Detail;

    fn refused(status: u16, retry_after_s: Option<u64>) -> OriginError {
        OriginError::Refused {
            host: "registry.example".into(),
            status: http::StatusCode::from_u16(status).unwrap(),
            retry_after: retry_after_s.map(Duration::from_secs),
            detail: Detail::default(),
        }
    }

    fn patience() -> Patience {
        Patience::new(RetryConfig::default(), Duration::from_secs(120))
    }

    #[test]
    fn delays_double_to_a_limit_and_attempts_end() {
        let mut patience = patience();
        let delays: Vec<_> = std::iter::from_fn(|| {
            patience.begin("registry.example").ok()?;
            patience.next_delay(&refused(500, None), 1.0)
        })
        .map(|delay| delay.as_millis())
        .collect();
        assert_eq!(delays, [200, 400, 800, 1600, 3200]);
    }

    #[test]
    fn one_delay() {
        let cases = [
            (refused(500, None), 0.0, Some(100)),
            (refused(503, Some(7)), 0.0, Some(7_000)),
            (refused(503, Some(86_400)), 0.0, Some(30_000)),
            (refused(404, None), 0.0, None),
        ];
        for (error, jitter, expected_ms) in cases {
            let mut patience = patience();
            patience.begin("registry.example").unwrap();
            let delay = patience.next_delay(&error, jitter).map(|delay| delay.as_millis());
            assert_eq!(delay, expected_ms, "{error}");
        }
    }

    #[test]
    fn only_real_progress_buys_new_attempts_and_reconnects_stay_bounded() {
        let count = |bytes: u64| {
            let mut patience = patience();
            let mut attempts = 0;
            while patience.begin("registry.example").is_ok() {
                attempts += 1;
                patience.advanced(bytes);
            }
            attempts
        };
        assert_eq!(count(0), 6);
        assert_eq!(count(1), 6);
        assert_eq!(count(PROGRESS_BYTES), MAX_RECONNECTS);
    }

    #[tokio::test]
    async fn waiting_ends_when_nothing_advances_over_several_attempts() {
        let ms = Duration::from_millis;
        let mut patience = Patience::new(RetryConfig::default(), ms(50));
        for expected in [Wait::Body, Wait::Progress] {
            let stalled = std::future::pending::<()>();
            let error = patience.run("registry.example", Wait::Body, ms(30), stalled).await.unwrap_err();
            assert!(matches!(error, OriginError::Timeout { wait, .. } if wait == expected), "{error}");
        }
        assert_eq!(patience.next_delay(&refused(500, None), 0.0), None);
    }
}
