//! Reads what daemons say under `/metrics`.

use std::net::SocketAddr;

use anyhow::Result;

use super::http;

/// All samples of one daemon at one time.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<(String, f64)>);

impl Samples {
    /// # Errors
    /// The daemon does not answer.
    pub fn of(address: SocketAddr) -> Result<Self> {
        Ok(Self::parse(&http::get(address, "/metrics")?))
    }

    /// Lines of the OpenMetrics text format that hold a sample.
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            // Label values of ours hold no spaces; a time stamp may follow the value.
            let (series, rest) = line.split_once(' ')?;
            Some((series.to_owned(), rest.split(' ').next()?.parse().ok()?))
        });
        Self(samples.collect())
    }

    /// The sum of all series of a name that have all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matches = |series: &str| {
            let (own, rest) = series.split_once('{').unwrap_or((series, ""));
            own == name && labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")))
        };
        self.0.iter().filter(|(series, _)| matches(series)).map(|(_, value)| value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_label() {
        let samples = Samples::parse(
            "# TYPE a counter\na_total{source=\"seed\"} 3\na_total{source=\"node\"} 4 1700000000\nab_total 9\nbad\n# EOF\n",
        );
        for (name, labels, sum) in [
            ("a_total", &[][..], 7.0),
            ("a_total", &[("source", "node")][..], 4.0),
            ("ab_total", &[][..], 9.0),
            ("b_total", &[][..], 0.0),
        ] {
            assert!((samples.sum(name, labels) - sum).abs() < 1e-9, "{name} {labels:?}");
        }
    }
}
