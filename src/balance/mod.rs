//! Expert placement: which slots hold which replicas of which experts, and a proof of how good that is.
//!
//! A layer of a mixture-of-experts model has E logical experts with a load each: tokens per step, or any measure
//! that adds up. The GPUs together have R >= E slots; an expert may have replicas in several, among which its load
//! is shared. A placement is good when no GPU carries much more than the mean; its [`LayerBalance`] says how much more,
//! and how much more nobody could have avoided.
//!
//! | file            | what                                                              |
//! | --------------- | ----------------------------------------------------------------- |
//! |                 | **what is asked**                                                 |
//! | `cluster`       | GPUs, their slots and nodes; who is alive                         |
//! | `goal`          | what a placement is to be                                         |
//! | `loads`         | loads of a step or of a window, checked                           |
//! | `problem`       | the sizes of DeepSeek's policy                                    |
//! |                 | **placing**                                                       |
//! | `planner`       | `balance`: which of the following, layer by layer                 |
//! | `refine`        | an equal split, as even as can be found                           |
//! | `weighted`      | weighted shares                                                   |
//! | `few_moves`     | from the placement that is there, with few moves                  |
//! | `layout`        | a layer under change                                              |
//! | `group_packing` | groups that stay whole, on nodes                                  |
//! | `deepseek`      | DeepSeek's policy (EPLB), number for number                       |
//! | `replicate`     | its first greedy: who gets the redundant slots                    |
//! | `pack`          | its second greedy: heaviest first onto the lightest               |
//! | `tournament`    | what makes both fast: the least of many keys, kept current        |
//! | `layers`        | layers shared out among threads; progress                         |
//! |                 | **the answer**                                                    |
//! | `plan`          | where everything is, and how good that is                         |
//! | `outside`       | a plan made of a placement from anywhere                          |
//! | `finish`        | what follows from where it is                                     |
//! | `evaluate`      | loads of GPUs and nodes, of any placement under any loads         |
//! | `bound`         | what no placement can beat                                        |
//! | `equal_bound`   | … that splits loads equally, with two slots on a GPU              |
//! | `node_bound`    | … that keeps groups on their node                                 |
//! |                 | **using it**                                                      |
//! | `route`         | one step's tokens among replicas                                  |
//! | `transfer`      | copies that lead from one placement to the next, in rounds        |
//! | `monitor`       | loads counted, step by step, on many ranks                        |
//! | `trigger`       | whether it pays to rebalance                                      |
//! | `history`       | recorded loads in the formats that engines write                  |
//! | `verify`        | whether a placement from anywhere can be trusted                  |
//! | `replay`        | policies run over a recorded history                              |
//! | `heat_map`      | GPU loads by layer, drawn                                         |

mod bound;
mod cluster;
mod deepseek;
mod equal_bound;
mod evaluate;
mod few_moves;
mod finish;
mod goal;
mod group_packing;
pub mod heat_map;
pub mod history;
mod layers;
mod layout;
mod loads;
pub mod monitor;
mod node_bound;
mod outside;
mod pack;
mod plan;
mod planner;
mod problem;
mod refine;
pub mod replay;
mod replicate;
pub mod route;
mod tournament;
pub mod transfer;
pub mod trigger;
pub mod verify;
mod weighted;

pub use bound::{bounds, lower_bounds};
pub use cluster::{Cluster, EMPTY};
pub use deepseek::deepseek;
pub use evaluate::{away, gpu_loads, imbalance, node_loads};
pub use few_moves::{move_curve, moves, MoveBudget, MoveCost, MovePoint, MovePrices};
pub use goal::{Goal, GroupRule, Split};
pub use heat_map::heat_map;
pub use history::LoadHistory;
pub use layers::{Options, THREADS_MAX};
pub use loads::Loads;
pub use monitor::LoadMonitor;
pub use plan::{ExpertPlan, ExpertToSlots, LayerBalance, LayerBound};
pub use planner::{balance, Current};
pub use problem::Problem;
pub use replay::replay;
pub use route::{Router, TokenMap};
pub use transfer::transfers;
pub use trigger::should_rebalance;
pub use verify::verify;
