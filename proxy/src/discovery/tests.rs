use registry::{InProcess, MetaChange};

use super::*;
use crate::observe::pools::PoolsMetrics;

fn metrics() -> Arc<PoolMetrics> {
    PoolsMetrics::new().unwrap().of(&PoolName::default()).unwrap()
}

fn discovery(registry: Arc<dyn Registry>, state_store: Option<StateStore>) -> PoolDiscovery {
    let source = Source::Registry(registry, state_store);
    PoolDiscovery::new(PoolName::default(), source, Resolver::default(), metrics())
}

#[test]
fn a_name_keeps_the_addresses_it_last_had_until_it_leaves() {
    let discovery = discovery(Arc::new(InProcess::default()), None);
    let name: Member = "origin:80".parse().unwrap();
    let members = BTreeSet::from([name.clone()]);
    let addresses: [SocketAddr; 2] = ["192.0.2.1:80", "[2001:db8::1]:80"].map(|address| address.parse().unwrap());
    let failed = || vec![(name.clone(), Err(registry::Error::new("no answer")))];

    assert!(discovery.remember(failed(), &members).is_empty(), "it never had any");
    let both = discovery.remember(vec![(name.clone(), Ok(addresses.into()))], &members);
    assert_eq!(both.len(), 1, "one member, whatever the number of its addresses");
    assert_eq!(both.addresses_of("origin:80"), addresses);
    assert_eq!(discovery.remember(failed(), &members), both);
    assert!(discovery.remember(vec![], &BTreeSet::new()).is_empty());
    assert!(discovery.remember(failed(), &members).is_empty(), "it has left since");
}

/// A registry that answers with this, or never.
struct Stub(Option<Snapshot>);

#[async_trait]
impl Registry for Stub {
    async fn members(&self, _: &PoolName) -> Result<Snapshot, registry::Error> {
        match &self.0 {
            Some(snapshot) => Ok(snapshot.clone()),
            None => std::future::pending().await,
        }
    }

    async fn holdings(&self, _: &PoolName, _: &str) -> Result<registry::Holdings, registry::Error> {
        std::future::pending().await
    }

    async fn pools_of(&self, _: &str) -> Result<BTreeSet<PoolName>, registry::Error> {
        std::future::pending().await
    }

    async fn publish(&self, _: &PoolName, _: &str, _: &[Member], _: &[Member]) -> Result<(), registry::Error> {
        std::future::pending().await
    }

    async fn describe(&self, _: &PoolName, _: &Member, _: MetaChange) -> Result<Meta, registry::Error> {
        std::future::pending().await
    }
}

/// The address that a start with this registry begins with, where an earlier process saved 192.0.2.1.
async fn first_address(registry: Arc<dyn Registry>) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backends");
    let mut saved = Members::default();
    saved.insert(&"192.0.2.1:80".into(), ["192.0.2.1:80".parse().unwrap()]);
    crate::discovery::state_file::write(&path, &saved).unwrap();
    let state_store = StateStore::open(path, metrics()).unwrap();
    let discovery = discovery(registry, Some(state_store));
    let (backends, _) = discovery.discover().await.unwrap();
    backends.first().unwrap().addr.to_string()
}

#[tokio::test]
async fn the_registry_has_a_moment_before_the_saved_set_serves() {
    let member = ["192.0.2.2:80".parse().unwrap()];
    let quick = Arc::new(InProcess::default());
    quick.publish(&PoolName::default(), "test", &member, &[]).await.unwrap();
    assert_eq!(first_address(quick).await, "192.0.2.2:80");

    let filled_soon = Arc::new(InProcess::default());
    let (address, ()) = tokio::join!(first_address(Arc::clone(&filled_soon) as _), async {
        sleep(FIRST_READ_RETRY).await;
        filled_soon
            .publish(&PoolName::default(), "test", &member, &[])
            .await
            .unwrap();
    });
    assert_eq!(address, "192.0.2.2:80");

    assert_eq!(first_address(Arc::new(Stub(None))).await, "192.0.2.1:80");
    assert_eq!(first_address(Arc::new(InProcess::default())).await, "192.0.2.1:80");
}

#[tokio::test]
async fn what_the_first_read_can_not_find_out_is_as_an_earlier_process_saved_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backends");
    let drained = Meta {
        drain: true,
        ..Meta::default()
    };
    let mut saved = Members::default();
    // The last has left the set since.
    let names = ["192.0.2.1:80", "name.invalid:80", "192.0.2.3:80"];
    for (name, address) in names.into_iter().zip(["192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80"]) {
        saved.insert(&name.into(), [address.parse().unwrap()]);
        saved.describe(&name.into(), drained);
    }
    crate::discovery::state_file::write(&path, &saved).unwrap();
    let members = names[..2].iter().map(|name| name.parse().unwrap());
    let registry = Arc::new(Stub(Some(Snapshot {
        members: members.collect(),
        meta_error: Some(registry::Error::new("NOPERM")),
        ..Snapshot::default()
    })));
    let state_store = StateStore::open(path.clone(), metrics()).unwrap();
    let discovery = discovery(registry, Some(state_store));
    for read in ["first", "second"] {
        discovery.discover().await.unwrap();
        let members = discovery.members();
        for name in &names[..2] {
            assert_eq!(members.addresses_of(name), saved.addresses_of(name), "{read}");
            assert_eq!(members.meta(name), drained, "{read}: {name}");
        }
    }
    assert_eq!(discovery.members().len(), 2);
    let is_saved = || crate::discovery::state_file::read(&path).unwrap() == Some((*discovery.members()).clone());
    let written = async {
        while !is_saved() {
            sleep(FIRST_READ_RETRY).await;
        }
    };
    timeout(Duration::from_secs(30), written).await.unwrap();
}
