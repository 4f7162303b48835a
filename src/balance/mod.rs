//! Expert placement: which slots hold which replicas of which experts, and a proof of how good that is.
//!
//! A layer of a mixture-of-experts model has E logical experts with a load each: tokens per step, or any measure
//! that adds up. The GPUs together have R >= E slots; an expert may have replicas in several, among which its load
//! is shared equally. A placement is good when no GPU carries much more than the mean; its [`LayerBalance`] says
//! how much more, and how much more nobody could have avoided.
//!
//! | file         | what                                                         |
//! | ------------ | ------------------------------------------------------------ |
//! | `deepseek`   | DeepSeek's policy (EPLB), number for number                  |
//! | `replicate`  | its first greedy: who gets the redundant slots               |
//! | `pack`       | its second greedy: heaviest first onto the lightest          |
//! | `tournament` | what makes both fast: the least of many keys, kept current   |
//! | `bound`      | what no placement can beat                                   |
//! | `node_bound` | what no placement that keeps groups on their node can beat   |
//! | `problem`    | sizes and loads, checked before anything is allocated        |
//! | `plan`       | the answer                                                   |
//! | `layers`     | layers shared out among threads; progress                    |

mod bound;
mod deepseek;
mod layers;
mod node_bound;
mod pack;
mod plan;
mod problem;
mod replicate;
mod tournament;

pub use bound::lower_bounds;
pub use deepseek::deepseek;
pub use layers::{Options, THREADS_MAX};
pub use plan::{ExpertPlan, ExpertToSlots, LayerBalance, LayerBound};
pub use problem::Problem;
