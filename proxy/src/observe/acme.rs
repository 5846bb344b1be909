//! The metrics of certificates that the proxy gets itself.

use std::collections::BTreeMap;

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

/// What came of an order for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The certificate is there.
    Issued,
    /// The authority's directory can't be reached, or answers nothing that makes sense.
    Directory,
    /// The authority wants fewer orders.
    RateLimited,
    /// The authority does not believe that the host is this proxy's.
    Challenge,
    /// The authority refuses for another reason.
    Refused,
    /// `acme.storage` can't be read or written.
    Storage,
}

/// Clones share the same series.
#[derive(Debug, Clone)]
pub struct AcmeMetrics {
    /// By [`Order`].
    orders: [IntCounter; 6],
    /// By host.
    failures: IntGaugeVec,
}

impl AcmeMetrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When one of the names is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let orders = IntCounterVec::new(
            Opts::new(
                "gopherproxy_acme_orders_total",
                "Orders for certificates, by result: issued; or directory, rate_limited, challenge, refused or storage, which say what failed.",
            ),
            &["result"],
        )?;
        let failures = IntGaugeVec::new(
            Opts::new(
                "gopherproxy_acme_failures",
                "Orders for the certificate of a host that have failed since the last that did not. More than 0 until one succeeds.",
            ),
            &["host"],
        )?;
        registry.register(Box::new(orders.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        let results = ["issued", "directory", "rate_limited", "challenge", "refused", "storage"];
        Ok(Self {
            orders: results.map(|result| orders.with_label_values(&[result])),
            failures,
        })
    }

    /// Counts an order.
    pub fn ordered(&self, result: Order) {
        self.orders[result as usize].inc();
    }

    /// Notes how often each host has failed, in place of what was noted before.
    pub fn failures(&self, hosts: &BTreeMap<&str, u32>) {
        self.failures.reset();
        for (host, failures) in hosts {
            self.failures.with_label_values(&[host]).set((*failures).into());
        }
    }
}
