//! How load reports are fetched and trusted.

use std::time::Duration;

/// How load reports are fetched and trusted.
#[derive(Clone, Debug, PartialEq)]
pub struct TelemetrySettings {
    /// Whether instances are scraped at all.
    pub enabled: bool,
    /// Path of the metrics page.
    pub metrics_path: String,
    /// Time between two scrapes of one instance.
    pub scrape_period: Duration,
    /// Time after which a scrape counts as failed.
    pub scrape_timeout: Duration,
    /// Up to this age a report is fully trusted.
    pub fresh: Duration,
    /// From this age on a report is not trusted at all; in between, trust falls linearly.
    pub max_age: Duration,
    /// Time after which another worker takes over the scraping of a silent one.
    pub lease: Duration,
    /// Whether instances are asked for load metrics in response headers.
    pub orca: bool,
}
