//! One order: from the account to the certificate.
//!
//! The key is made, and kept with the order, before the order is proved. So a process that ends in the middle leaves an order that
//! the next one finishes, instead of one more that counts against the authority's limits.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType, Error,
    Identifier, NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::Der;
use serde::Deserialize as _;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::challenge::is_token;
use super::client::{Client, NoAnswer};
use super::store::{Answer, Pending, SavedAccount, Store};
use crate::config::{Acme, Challenge};
use crate::observe::acme::Order as Counted;
use crate::tls::certificates::Certificate;

/// How an order that the authority works on is asked after.
const POLL: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));
/// How many characters of what an authority says are repeated.
const MOST_REPEATED: usize = 300;

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// As what it is counted.
    pub counted: Counted,
    /// In words, in one line.
    pub why: String,
    /// The authority does not want to be asked before, in seconds since 1970.
    pub retry_after: Option<u64>,
    /// The authority knows no such account.
    pub no_account: bool,
}

impl Failure {
    fn new(counted: Counted, why: impl fmt::Display) -> Self {
        Self {
            counted,
            why: one_line(&why.to_string()),
            retry_after: None,
            no_account: false,
        }
    }

    /// The storage has failed.
    pub fn of_storage(error: impl fmt::Display) -> Self {
        Self::new(Counted::Storage, format_args!("acme.storage: {error}"))
    }

    /// What is configured can't be used.
    pub fn of_setting(error: impl fmt::Display) -> Self {
        Self::new(Counted::Directory, error)
    }

    /// The certificate is there, and would have to be renewed at once.
    pub fn of_life() -> Self {
        let why = "the certificate that has come is due for renewal already: is this machine's clock right, and does the authority give \
                   certificates that are valid for longer than a moment?";
        Self::new(Counted::Refused, why)
    }

    fn of_problem(problem: &Problem) -> Self {
        let kind = problem.r#type.as_deref().unwrap_or_default();
        let kind = kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind);
        let details = problem.subproblems.iter().filter_map(|part| part.detail.as_deref());
        let details: Vec<_> = problem.detail.as_deref().into_iter().chain(details).collect();
        let counted = match kind {
            "rateLimited" => Counted::RateLimited,
            "connection" | "dns" | "incorrectResponse" | "tls" | "unauthorized" => Counted::Challenge,
            _ => Counted::Refused,
        };
        let text = format!("the authority says {kind}: {}", details.join("; "));
        Self {
            no_account: kind == "accountDoesNotExist",
            ..Self::new(counted, text)
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(problem) => Self::of_problem(&problem),
            Error::Other(error) => match error.downcast_ref::<NoAnswer>() {
                Some(no_answer) => Self {
                    retry_after: no_answer.retry_after.map(seconds),
                    ..Self::new(
                        if no_answer.limited {
                            Counted::RateLimited
                        } else {
                            Counted::Directory
                        },
                        no_answer,
                    )
                },
                None => Self::new(Counted::Directory, error),
            },
            other => Self::new(Counted::Directory, other),
        }
    }
}

/// `text` without what would break a line, and no longer than anybody reads.
fn one_line(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(MOST_REPEATED).collect()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// The name that the authority of a certificate knows it by (RFC 9773, section 4.1).
pub fn identifier(certificate: &Certificate) -> Option<CertificateIdentifier<'static>> {
    let (_, parsed) = X509Certificate::from_der(certificate.leaf()?).ok()?;
    let key = parsed
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(authority) => authority.key_identifier.as_ref(),
            _ => None,
        })?;
    let serial = Der::from_slice(parsed.raw_serial());
    Some(CertificateIdentifier::new(Der::from_slice(key.0), serial).into_owned())
}

/// The account at the authority: the one in `store`, or a new one.
pub async fn account(acme: &Acme, client: &Client, store: &Store) -> Result<Account, Failure> {
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let contacts: Vec<_> = acme.emails.iter().map(|email| format!("mailto:{email}")).collect();
    let contacts: Vec<_> = contacts.iter().map(String::as_str).collect();
    let saved = store.read_account().filter(|saved| saved.directory == acme.directory);
    if let Some(mut saved) = saved
        && let Ok(credentials) = AccountCredentials::deserialize(&saved.credentials)
    {
        let account = builder.from_credentials(credentials).await?;
        if saved.emails != acme.emails {
            account.update_contacts(&contacts).await?;
            saved.emails.clone_from(&acme.emails);
            store.write_account(&saved).map_err(Failure::of_storage)?;
        }
        return Ok(account);
    }
    let wanted = NewAccount {
        contact: &contacts,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let (account, credentials) = builder.create(&wanted, acme.directory.clone(), None).await?;
    let saved = SavedAccount {
        directory: acme.directory.clone(),
        emails: acme.emails.clone(),
        credentials: serde_json::to_value(&credentials).map_err(Failure::of_storage)?,
    };
    store.write_account(&saved).map_err(Failure::of_storage)?;
    Ok(account)
}

/// A certificate for `host` and its key, both PEM: from an order that an earlier process has begun, or from a new one, which may replace the
/// certificate of this name. Whoever has kept it then forgets the order.
pub async fn obtain(
    acme: &Acme,
    account: &Account,
    store: &Store,
    host: &str,
    replaces: Option<CertificateIdentifier<'_>>,
) -> Result<Vec<u8>, Failure> {
    let (mut order, key) = match begun(acme, account, store, host).await? {
        Some(begun) => begun,
        None => begin(acme, account, store, host, replaces).await?,
    };
    let result = finish(acme, store, host, &mut order, &key).await;
    // One that takes its time, or whose authority can't be reached, is finished later. Any other that failed will not change any more.
    if result
        .as_ref()
        .is_err_and(|failure| !matches!(failure.counted, Counted::Directory | Counted::RateLimited))
    {
        store.forget_order(host);
    }
    result
}

/// The order that is not finished yet, if it still can be.
async fn begun(acme: &Acme, account: &Account, store: &Store, host: &str) -> Result<Option<(Order, KeyPair)>, Failure> {
    let Some(pending) = store
        .read_order(host)
        .filter(|pending| pending.directory == acme.directory)
    else {
        return Ok(None);
    };
    let Ok(key) = KeyPair::from_pem(&pending.key) else {
        return Ok(None);
    };
    match account.order(pending.url).await {
        Ok(mut order) => {
            let can_be = order.state().status != OrderStatus::Invalid;
            Ok(can_be.then_some((order, key)))
        }
        // It has expired, or is another account's.
        Err(Error::Api(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn begin(
    acme: &Acme,
    account: &Account,
    store: &Store,
    host: &str,
    replaces: Option<CertificateIdentifier<'_>>,
) -> Result<(Order, KeyPair), Failure> {
    let key = KeyPair::generate().map_err(|error| Failure::new(Counted::Refused, error))?;
    let identifiers = [Identifier::Dns(host.to_owned())];
    let mut wanted = NewOrder::new(&identifiers);
    if let Some(replaces) = replaces {
        wanted = wanted.replaces(replaces);
    }
    let order = account.new_order(&wanted).await?;
    let pending = Pending {
        directory: acme.directory.clone(),
        url: order.url().to_owned(),
        key: key.serialize_pem(),
    };
    store.write_order(host, &pending).map_err(Failure::of_storage)?;
    Ok((order, key))
}

/// Proves that the host is ours, and has the certificate made.
async fn finish(acme: &Acme, store: &Store, host: &str, order: &mut Order, key: &KeyPair) -> Result<Vec<u8>, Failure> {
    if order.state().status == OrderStatus::Pending {
        let answers = prove(acme, store, host, order).await?;
        let ready = order.poll_ready(&POLL).await;
        drop(answers);
        match ready {
            Ok(OrderStatus::Invalid) | Err(Error::Api(_)) => return Err(unproved(order).await),
            ready => drop(ready?),
        }
    }
    if order.state().status == OrderStatus::Ready {
        let request = request(host, key).map_err(|error| Failure::new(Counted::Refused, error))?;
        order.finalize_csr(&request).await?;
    }
    let chain = order.poll_certificate(&POLL).await?;
    let both = [key.serialize_pem().as_bytes(), chain.as_bytes()].concat();
    match Certificate::parse(&both, &both) {
        Ok(certificate) if certificate.names.iter().any(|name| name == host) => Ok(both),
        Ok(_) => Err(Failure::new(
            Counted::Refused,
            "the authority has given a certificate for another host",
        )),
        Err(_) => Err(Failure::new(
            Counted::Refused,
            "the authority has given a certificate that can't be used",
        )),
    }
}

/// The request for the certificate (PKCS #10).
fn request(host: &str, key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::new([host.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// Makes the proofs that the order takes, and says that they are there. They stay while the result is kept.
async fn prove(acme: &Acme, store: &Store, host: &str, order: &mut Order) -> Result<Vec<Answer>, Failure> {
    let mut answers = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        let (name, kind) = match acme.challenge {
            Challenge::Http01 => ("http-01", ChallengeType::Http01),
            Challenge::TlsAlpn01 => ("tls-alpn-01", ChallengeType::TlsAlpn01),
        };
        let Some(mut challenge) = authorization.challenge(kind) else {
            let why = format_args!("the authority does not offer the challenge {name} (acme.challenge)");
            return Err(Failure::new(Counted::Refused, why));
        };
        let proof = challenge.key_authorization();
        let answer = match acme.challenge {
            Challenge::Http01 if is_token(&challenge.token) => {
                store.answer(&challenge.token, proof.as_str().as_bytes())
            }
            Challenge::Http01 => return Err(Failure::new(Counted::Refused, "the authority's token is none")),
            Challenge::TlsAlpn01 => {
                let proof = super::challenge::certificate(host, proof.digest().as_ref());
                let proof = proof.map_err(|error| Failure::new(Counted::Refused, error))?;
                store.answer(&super::challenge::file(host), proof.as_bytes())
            }
        };
        answers.push(answer.map_err(Failure::of_storage)?);
        // An earlier process may have said so already.
        if challenge.status == ChallengeStatus::Pending {
            challenge.set_ready().await?;
        }
    }
    Ok(answers)
}

/// Why the authority does not believe that the host is ours.
async fn unproved(order: &mut Order) -> Failure {
    let of_order = order.state().error.clone();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            break;
        }
        let problem = authorization
            .challenges
            .iter()
            .find_map(|challenge| challenge.error.as_ref());
        if let Some(problem) = problem {
            return Failure {
                counted: Counted::Challenge,
                ..Failure::of_problem(problem)
            };
        }
    }
    match of_order {
        Some(problem) => Failure {
            counted: Counted::Challenge,
            ..Failure::of_problem(&problem)
        },
        None => Failure::new(
            Counted::Challenge,
            "the authority does not say why the challenge failed",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: &str) -> Problem {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_failure_says_in_one_line_what_the_authority_says() {
        let failure = Failure::of_problem(&problem(
            r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many\nfor a.example","status":429}"#,
        ));
        assert_eq!(failure.counted, Counted::RateLimited);
        assert_eq!(failure.why, "the authority says rateLimited: too many for a.example");
        let failure = Failure::of_problem(&problem(
            r#"{"type":"urn:ietf:params:acme:error:rejectedIdentifier","detail":"no",
                "subproblems":[{"type":"x","detail":"a.example is blocked"}]}"#,
        ));
        assert_eq!((failure.counted, failure.no_account), (Counted::Refused, false));
        assert!(failure.why.ends_with("no; a.example is blocked"), "{}", failure.why);
        let unknown = Failure::of_problem(&problem(r#"{"type":"urn:ietf:params:acme:error:accountDoesNotExist"}"#));
        assert!(unknown.no_account);
        assert_eq!(one_line(&"x".repeat(5000)).len(), MOST_REPEATED);
    }

    #[test]
    fn what_the_client_understood_is_passed_on() {
        let later = UNIX_EPOCH + Duration::from_secs(5000);
        let no_answer = NoAnswer {
            why: "ca.example: it answers 429".into(),
            limited: true,
            retry_after: Some(later),
        };
        let failure = Failure::from(Error::Other(Box::new(no_answer)));
        assert_eq!(
            (failure.counted, failure.retry_after),
            (Counted::RateLimited, Some(5000))
        );
        let failure = Failure::from(Error::Str("no nonce"));
        assert_eq!((failure.counted, failure.retry_after), (Counted::Directory, None));
    }
}
