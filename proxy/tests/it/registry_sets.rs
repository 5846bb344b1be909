//! The registry's sets in Redis, one for each pool, and the hash beside each that says more of its members.

use std::collections::BTreeMap;

use registry::{InProcess, Member, Meta, MetaChange, PoolName, RedisStore, RedisUrl, Registry};

use crate::support::Redis;

fn store(redis: &Redis, user: &str) -> RedisStore {
    let url = RedisUrl::parse(&format!("redis://{user}{}", redis.address())).expect("an address");
    RedisStore::new(&url).expect("a store")
}

fn members(texts: &[&str]) -> Vec<Member> {
    texts.iter().map(|text| text.parse().expect("a member")).collect()
}

async fn sorted(redis: &Redis, command: &str) -> Vec<String> {
    let mut lines = redis.command(command).await;
    lines.sort();
    lines
}

const DRAINED: Meta = Meta {
    weight: 1,
    backup: false,
    drain: true,
};

#[tokio::test]
async fn each_pool_has_its_own_set_and_meta_in_redis_as_in_process() {
    let redis = Redis::start().await;
    let in_redis = store(&redis, "");
    let in_process = InProcess::default();
    let pools: [PoolName; 2] = [PoolName::default(), "api".parse().expect("a name")];
    let [a, b] = ["a:1", "b:2"].map(|text| members(&[text]));
    for registry in [&in_redis as &dyn Registry, &in_process] {
        for (pool, present) in pools.iter().zip([&a, &b]) {
            registry.publish(pool, "me", present, &[]).await.expect("written");
            // Both targets belong to one pool only.
            registry
                .describe(pool, &a[0], MetaChange::Drain(true))
                .await
                .expect("written");
        }
        let undrained = registry.describe(&pools[1], &a[0], MetaChange::Drain(false)).await;
        assert_eq!(undrained, Ok(Meta::default()));
        for (pool, present, meta) in [
            (&pools[0], &a, BTreeMap::from([(a[0].clone(), DRAINED)])),
            (&pools[1], &b, BTreeMap::new()),
        ] {
            let snapshot = registry.members(pool).await.expect("read");
            assert_eq!(snapshot.members, present.iter().cloned().collect());
            assert_eq!(snapshot.meta, meta);
            assert_eq!((snapshot.malformed, snapshot.meta_error), (Vec::new(), None));
            let holdings = registry.holdings(pool, "me").await.expect("read");
            assert_eq!(holdings.registered, snapshot.members);
            assert!(holdings.contains(&present[0]));
        }
        assert_eq!(registry.pools_of("me").await, Ok([pools[1].clone()].into()));
        let nothing = registry.members(&"other".parse().expect("a name")).await;
        assert_eq!(nothing, Ok(registry::Snapshot::default()));
    }
    assert_eq!(
        sorted(&redis, "KEYS *").await,
        [
            "gopher_backends",
            "gopher_backends:api",
            "{gopher_backends:api}:registered:me",
            "{gopher_backends}:meta",
            "{gopher_backends}:pools:me",
            "{gopher_backends}:registered:me",
        ]
    );
    assert_eq!(redis.members().await, ["http://a:1"]);
    let meta = redis.command("HGETALL {gopher_backends}:meta").await;
    assert_eq!(meta, ["http://a:1", "drain"]);
}

#[tokio::test]
async fn a_hash_that_cant_be_read_takes_no_member_away() {
    let redis = Redis::start().await;
    redis.command("SADD gopher_backends http://a:1 http://b:2").await;
    redis.command("HSET {gopher_backends}:meta http://a:1 drain").await;
    let pool = PoolName::default();
    for (fault, named) in [
        ("ACL SETUSER v1 on >pass ~gopher_backends -@all +smembers", "NOPERM"),
        ("ACL SETUSER v1 reset on >pass ~gopher_backends +@all", "NOPERM"),
        ("SET {gopher_backends}:meta text", "WRONGTYPE"),
    ] {
        redis.command(fault).await;
        let user = if named == "NOPERM" { "v1:pass@" } else { "" };
        let store = store(&redis, user);
        // No pause follows.
        for _ in 0..3 {
            let snapshot = store.members(&pool).await.expect("the members");
            assert_eq!(snapshot.members, members(&["a:1", "b:2"]).into_iter().collect());
            assert_eq!(snapshot.meta, BTreeMap::new());
            let error = snapshot.meta_error.expect("an error");
            assert!(error.is_refusal() && error.to_string().contains(named), "{error}");
        }
        assert_eq!(redis.connections().await.len(), 1, "{fault}");
    }
}

#[tokio::test]
async fn a_set_and_its_hash_are_read_at_once_and_a_bad_entry_is_reported() {
    let redis = Redis::start().await;
    redis.command("SADD gopher_backends:api http://a:1 nonsense").await;
    redis
        .command("HSET {gopher_backends:api}:meta http://a:1 wieght=3 http://gone:1 \"weight=0 backup\" what drain")
        .await;
    let (store, pool) = (store(&redis, ""), "api".parse().expect("a name"));
    let snapshot = store.members(&pool).await.expect("read");
    assert_eq!(snapshot.members, members(&["a:1"]).into_iter().collect());
    let backup = Meta {
        weight: 0,
        backup: true,
        drain: false,
    };
    assert_eq!(snapshot.meta, [(members(&["gone:1"])[0].clone(), backup)].into());
    let mut malformed: Vec<String> = snapshot.malformed.iter().map(ToString::to_string).collect();
    malformed.sort();
    assert_eq!(malformed.len(), 3);
    for (problem, named) in malformed
        .iter()
        .zip(["\"nonsense\": ", "\"what\": ", "\"wieght=3\": in the :meta of a:1"])
    {
        assert!(problem.starts_with(named), "{problem}");
    }
    // It is replaced.
    let meta = store
        .describe(&pool, &members(&["a:1"])[0], MetaChange::Weight(3))
        .await;
    assert_eq!(meta.expect("written").to_string(), "weight=3");
    let field = redis.command("HGET {gopher_backends:api}:meta http://a:1").await;
    assert_eq!(field, ["weight=3"]);
}

#[tokio::test]
async fn changes_made_at_the_same_time_are_all_kept_and_another_spelling_is_merged() {
    let redis = Redis::start().await;
    let (pool, member) = (PoolName::default(), members(&["a:1"]).remove(0));
    redis
        .command("HSET {gopher_backends}:meta http://A:1/ drain http://b:1 drain")
        .await;
    for round in 0..20_u8 {
        let stores = [store(&redis, ""), store(&redis, ""), store(&redis, "")];
        let (weight, backup, drain) = tokio::join!(
            stores[0].describe(&pool, &member, MetaChange::Weight(2 + round)),
            stores[1].describe(&pool, &member, MetaChange::Backup(round % 2 == 0)),
            stores[2].describe(&pool, &member, MetaChange::Drain(round % 2 == 1)),
        );
        for changed in [weight, backup, drain] {
            changed.expect("changed");
        }
        let expected = Meta {
            weight: 2 + round,
            backup: round % 2 == 0,
            drain: round % 2 == 1,
        };
        let snapshot = stores[0].members(&pool).await.expect("read");
        assert_eq!(snapshot.meta.get(&member), Some(&expected), "round {round}");
    }
    let mut fields = redis.command("HKEYS {gopher_backends}:meta").await;
    fields.sort();
    assert_eq!(fields, ["http://a:1", "http://b:1"]);
}
