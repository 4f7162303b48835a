//! What a handle of a router stands for: a placement, and what has been made for each of its layers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::args;
use super::guard::BusyFlag;
use super::handle::{Kind, Object};
use super::route::dualpipe_router;
use super::status::{Failure, Outcome};
use crate::balance::route::{Router, Routing, TokenMap};
use crate::balance::Cluster;

/// A router that C has a handle of.
pub(super) struct RouterObject {
    pub(super) busy: BusyFlag,
    pub(super) placement: Placement,
    layers: Mutex<Vec<Layer>>,
}

impl Object for RouterObject {
    type Opaque = dualpipe_router;
    const KIND: Kind = Kind::Router;
}

/// What it routes on.
pub(super) struct Placement {
    pub(super) cluster: Cluster,
    pub(super) num_experts: usize,
    /// `[num_layers, num_slots]`
    pub(super) slot_to_expert: Vec<u32>,
    /// `[num_layers, num_slots]`
    pub(super) shares: Vec<f64>,
}

/// What has been made for a layer: a rank may have only some of the layers.
#[derive(Default)]
pub(super) struct Layer {
    router: Option<LayerRouter>,
    tokens: Option<TokenMap>,
}

pub(super) struct LayerRouter {
    pub(super) router: Router,
    pub(super) last: Last,
}

/// What a routing says beside its quotas, kept for who asks.
#[derive(Default)]
pub(super) struct Last {
    pub(super) source_quotas: Vec<u32>,
    pub(super) gpu_loads: Vec<u64>,
    pub(super) bottleneck: Vec<u32>,
}

impl RouterObject {
    pub(super) fn new(placement: Placement) -> RouterObject {
        let layers = (0..placement.num_layers()).map(|_| Layer::default()).collect();
        RouterObject { busy: BusyFlag::default(), placement, layers: Mutex::new(layers) }
    }

    pub(super) fn index(&self, name: &str, layer: u32) -> Outcome<usize> {
        args::index(name, layer, self.placement.num_layers())
    }

    /// Nobody waits here: whoever calls this has the busy flag.
    pub(super) fn layers(&self) -> MutexGuard<'_, Vec<Layer>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Placement {
    pub(super) fn num_layers(&self) -> usize {
        self.slot_to_expert.len() / self.cluster.num_slots()
    }

    fn of_layer(&self, layer: usize) -> &[u32] {
        let num_slots = self.cluster.num_slots();
        &self.slot_to_expert[layer * num_slots..][..num_slots]
    }
}

impl Layer {
    pub(super) fn router(&mut self, placement: &Placement, layer: usize) -> Outcome<&mut LayerRouter> {
        let Placement { cluster, num_experts, .. } = placement;
        made(&mut self.router, || {
            let router = Router::new(cluster, *num_experts, placement.of_layer(layer))?;
            Ok(LayerRouter { router, last: Last::default() })
        })
    }

    pub(super) fn tokens(&mut self, placement: &Placement, layer: usize) -> Outcome<&mut TokenMap> {
        let Placement { cluster, num_experts, .. } = placement;
        made(&mut self.tokens, || Ok(TokenMap::new(cluster, *num_experts, placement.of_layer(layer))?))
    }

    pub(super) fn last(&self, layer: u32) -> Outcome<&Last> {
        let last = self.router.as_ref().map(|layer| &layer.last).filter(|last| !last.gpu_loads.is_empty());
        last.ok_or_else(|| Failure::argument("layer", format!("is {layer}, which has not been routed")))
    }
}

fn made<T>(place: &mut Option<T>, make: impl FnOnce() -> Outcome<T>) -> Outcome<&mut T> {
    match place {
        Some(there) => Ok(there),
        none => Ok(none.insert(make()?)),
    }
}

impl Last {
    pub(super) fn keep(&mut self, routed: &Routing<'_>) {
        let Last { source_quotas, gpu_loads, bottleneck } = self;
        source_quotas.clear();
        source_quotas.extend_from_slice(routed.source_quotas);
        gpu_loads.clear();
        gpu_loads.extend_from_slice(routed.gpu_loads);
        bottleneck.clear();
        bottleneck.extend_from_slice(routed.bottleneck);
    }
}
