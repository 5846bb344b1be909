//! `pools`: groups of backends, each with its own set, checks and limits.

use std::collections::{BTreeMap, BTreeSet};

use chassis::settings::{Place, Section};
use registry::{Member, PoolName};

use super::balance::Balance;
use super::health::{Health, HealthKind};
use super::routes::Route;
use super::upstream::UpstreamLimits;

/// What a pool is made from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolSettings {
    /// Its backends; none: those of its set in the registry.
    pub backends: BTreeSet<Member>,
    /// Which of them gets a request.
    pub balance: Balance,
    /// How they are checked.
    pub health: Health,
    /// What one may take.
    pub upstream: UpstreamLimits,
}

impl PoolSettings {
    fn read(mut section: Section<'_>, defaults: &Self) -> Self {
        let backends = section.list("backends", None, Vec::new(), |text| {
            text.parse()
                .map_err(|problem| format!("host:port, or https://host:port for TLS ({problem})"))
        });
        let mut part = section.section("health");
        let health = Health::read(&mut part, &defaults.health);
        if health.kind == HealthKind::Tcp {
            Health::remark_http(&part);
        }
        part.finish();
        let balance = Balance::read(&mut section);
        let upstream = UpstreamLimits::read(&mut section, &defaults.upstream);
        section.finish();
        Self {
            backends: backends.into_iter().collect(),
            balance,
            health,
            upstream,
        }
    }
}

/// The pools of a file, and where they stand.
pub(super) struct Pools {
    /// What each is made from.
    pub all: BTreeMap<PoolName, PoolSettings>,
    places: Vec<(PoolName, Place)>,
    place: Place,
}

impl Pools {
    /// Reads `pools`. Without any there is the default one. What a pool does not say is as in `defaults`.
    pub fn read(section: &mut Section<'_>, defaults: &PoolSettings) -> Self {
        let (mut all, mut places) = (BTreeMap::new(), Vec::new());
        for named in section.named("pools", str::parse::<PoolName>) {
            places.push((named.name.clone(), named.place));
            all.insert(named.name, PoolSettings::read(named.section, defaults));
        }
        if all.is_empty() {
            all.insert(PoolName::default(), defaults.clone());
        }
        let place = section.place("pools");
        Self { all, places, place }
    }

    /// Notes what is wrong or may surprise when requests take these `routes`.
    pub fn check(&self, section: &Section<'_>, routes: &[Route]) {
        let default = PoolName::default();
        if routes.is_empty() && !self.all.contains_key(&default) {
            section.settings().mistake(
                &self.place,
                format_args!("without routes requests go to the pool {default}, and there is none of that name; add it, or routes"),
            );
        }
        let used: BTreeSet<_> = routes.iter().flat_map(|route| route.action.pools()).collect();
        let is_used = |name: &PoolName| match routes {
            [] => *name == default,
            _ => used.contains(name),
        };
        for (_, place) in self.places.iter().filter(|(name, _)| !is_used(name)) {
            section
                .settings()
                .no_effect(place, "no request goes to this pool; name it in a route");
        }
    }
}
