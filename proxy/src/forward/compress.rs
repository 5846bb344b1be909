//! Begins responses, compressed where their route says so. Both forwarders do it here.

use bytes::BytesMut;

use crate::compression::accept::Coding;
use crate::compression::encoder::Encoder;
use crate::exchange::request::Request;
use crate::forward::client::ClientSide;
use crate::headers::origin_response::{Compressed, Delivery, Framing, ResponseHead};

/// Writes the head of a final response to `out`. Returns how its body is framed, and what compresses it.
pub(super) fn begin<C: ClientSide>(
    client: &mut C,
    request: &Request,
    head: &ResponseHead<'_>,
    delivery: &Delivery<'_>,
    out: &mut BytesMut,
) -> (Framing, Option<Box<Encoder>>) {
    if let Some(coding) = request.shaped.as_ref().and_then(|shaped| shaped.compress)
        && let Some((compressed, encoder)) = compress(head, coding, request, delivery)
    {
        let delivery = Delivery {
            edits: Some(compressed.edited()),
            ..*delivery
        };
        return (client.write_head(&compressed.head, &delivery, out), encoder);
    }
    (client.write_head(head, delivery, out), None)
}

/// The head for a client that accepts this `coding`, if any, and what compresses the body. `None`: compression changes nothing.
fn compress<'d>(
    head: &ResponseHead<'d>,
    coding: Option<Coding>,
    request: &Request,
    delivery: &Delivery<'d>,
) -> Option<(Box<Compressed<'d>>, Option<Box<Encoder>>)> {
    let edited = delivery.edits?;
    if head.status == 304 {
        let revalidated = coding.and_then(|_| head.revalidated(&request.head, edited))?;
        return Some((Box::new(revalidated), None));
    }
    let compressed = head.compressed(coding, edited)?;
    // After HEAD no body follows.
    let Some(coding) = compressed.coding.filter(|_| compressed.head.framing != Framing::None) else {
        return Some((Box::new(compressed), None));
    };
    match Encoder::new(coding, compressed.length) {
        Some(encoder) => Some((Box::new(compressed), Some(Box::new(encoder)))),
        // It goes as it is where there is no memory.
        None => Some((Box::new(head.compressed(None, edited)?), None)),
    }
}
