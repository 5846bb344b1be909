//! The head of a request that was passed on, as Pingora's hooks see it.

use bytes::Bytes;
use gopherproxy::forward::session;
use gopherproxy::headers::request::Span;

use crate::model::Request;

/// Compares the head that Pingora gets, for either forwarder, with the `request` that was `written`.
pub fn agrees(request: &Request<'_>, method: &str, written: &Bytes, spans: &[Span]) {
    let is_uri = str::from_utf8(request.target).is_ok_and(|target| http::Uri::try_from(target).is_ok());
    for pingora_sends_it in [false, true] {
        let header = match session::header(written, method, spans, pingora_sends_it) {
            Ok(header) => header,
            // It sends only targets that are URIs.
            Err(_) if pingora_sends_it && !is_uri => continue,
            Err(error) => unreachable!("{error}"),
        };
        assert_eq!(header.method.as_str().as_bytes(), request.method);
        if is_uri || pingora_sends_it {
            assert_eq!(header.raw_path(), request.target);
        }
        assert_eq!(header.headers.len(), request.fields.len());
        for (name, value) in &request.fields {
            let name = str::from_utf8(name).expect("a name is text");
            assert!(
                header
                    .headers
                    .get_all(name)
                    .iter()
                    .any(|seen| seen.as_bytes() == *value)
            );
        }
        if pingora_sends_it {
            let mut cases: Vec<_> = header
                .case_header_iter()
                .map(|(name, _)| name.as_slice().to_vec())
                .collect();
            let mut names: Vec<_> = request.fields.iter().map(|(name, _)| name.to_vec()).collect();
            cases.sort_unstable();
            names.sort_unstable();
            assert_eq!(cases, names);
        }
    }
}
