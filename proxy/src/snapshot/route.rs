//! The rules of a route: where its requests go, and what that may take.

use std::sync::Arc;

use crate::config::{ForwardAuth, Shape, UpstreamLimits};
use crate::pool::Pool;
use crate::pool::auth_service::AuthService;

/// A route to one pool. A request keeps the one that it was admitted by.
pub struct Route {
    /// Its name, if it is one of `routes`.
    pub name: Option<Arc<str>>,
    /// The name of the pool, if there is more than one.
    pub pool_name: Option<Arc<str>>,
    /// The backends that serve its requests.
    pub pool: Arc<Pool>,
    /// What a backend may take.
    pub upstream: UpstreamLimits,
    /// The longest request body in bytes, if it is not `client.max_body`.
    pub max_body: Option<Option<u64>>,
    /// What it does to requests and responses, if it does anything.
    pub shape: Option<Arc<Shape>>,
    /// The service of its `forward_auth`.
    pub auth: Option<Arc<AuthService>>,
}

impl Route {
    /// Who says whether a request may pass.
    pub fn forward_auth(&self) -> Option<&ForwardAuth> {
        self.shape.as_ref()?.auth.as_ref()
    }
}
