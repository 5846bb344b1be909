//! The rules of a route: where its requests go, and what that may take.

use std::sync::Arc;

use crate::config::UpstreamLimits;
use crate::pool::Pool;

/// A route. A request keeps the one that it was admitted by.
pub struct Route {
    /// The backends that serve its requests.
    pub pool: Arc<Pool>,
    /// What a backend may take.
    pub upstream: UpstreamLimits,
}
