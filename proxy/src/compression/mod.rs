//! Compresses the bodies of responses.
//!
//! - [`accept`]: the coding that a client prefers.
//! - [`content`]: which types of content are worth it.
//! - [`encoder`]: what compresses a body piece by piece.

pub mod accept;
pub mod content;
pub mod encoder;
