//! Routing one step: how many tokens of each expert go to each of its replicas, the heaviest GPU being as light as can
//! be; and which token goes where, so that every rank finds the same.
//!
//! | file        | what                                                             |
//! | ----------- | ---------------------------------------------------------------- |
//! | `placement` | a placement from anywhere, checked                               |
//! | `links`     | which GPUs an expert is on                                       |
//! | `flow`      | flow along shortest paths                                        |
//! | `level`     | the heaviest GPU as light as can be                              |
//! | `local`     | of the splits that do it, one that keeps tokens near senders     |
//! | `router`    | the two for a step's counts: quotas of slots and of each sender  |
//! | `shares`    | the same for loads that are no counts                            |
//! | `tokens`    | token → slot by quotas or by shares                              |
//!
//! docs/routing.md has the algorithm with its proof.

mod flow;
pub(super) mod level;
pub(super) mod links;
mod local;
mod placement;
mod router;
pub(super) mod shares;
mod tokens;

pub use router::{RouteOptions, Router, Routing};
pub use tokens::{ExpertId, TokenMap};
