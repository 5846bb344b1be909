//! Sends an admitted request to a backend and its response to the client.

pub mod kept;
