//! The label that tells pools apart in metrics, where there are several.
//!
//! Where there is one pool, metrics have the names and labels that they had when there could be no other, so that existing queries keep
//! working. The label is put on when the series are collected, because a reload can bring a second pool, and a registry of Prometheus
//! takes no other labels for a name once it is registered.

use prometheus::core::Collector;
use prometheus::proto::{LabelPair, MetricFamily};

/// The label.
const POOL: &str = "pool";

/// Collects the series of `pools`, each of which has a name and collectors.
pub fn collect<'c, C>(pools: &[(&str, C)]) -> Vec<MetricFamily>
where
    C: AsRef<[&'c dyn Collector]>,
{
    let several = pools.len() > 1;
    let mut families = Vec::new();
    for (name, collectors) in pools {
        for mut family in collectors.as_ref().iter().flat_map(|one| one.collect()) {
            for metric in family.mut_metric().iter_mut().filter(|_| several) {
                let mut label = LabelPair::default();
                label.set_name(POOL.into());
                label.set_value((*name).to_owned());
                let mut labels = metric.take_label();
                labels.push(label);
                // Prometheus has them in the order of their names.
                labels.sort();
                metric.set_label(labels);
            }
            families.push(family);
        }
    }
    families
}
