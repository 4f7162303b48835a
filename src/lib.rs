//! Pipeline and expert parallelism: schedules checked, simulated and run; experts placed with a proof.
//!
//! Data flows down this table and comes back only as a recorded [`timeline::Timeline`]:
//! costs → schedule → program → run → timeline.
//!
//! A module uses only modules of a lower floor (`tests/tidy.rs` reads this table):
//!
//! | floor | modules            | what                                                        |
//! | ----- | ------------------ | ----------------------------------------------------------- |
//! | 0     | error ids picture random | no knowledge of pipelines                                   |
//! | 1     | op                 | the words of a schedule                                     |
//! | 1     | balance            | expert placement; knows nothing of pipelines                |
//! | 2     | placement          | which rank holds which stage                                |
//! | 3     | schedule           | who computes what in which order                            |
//! | 3     | timeline           | who did what when; drawn as text, SVG and Chrome trace      |
//! | 4     | cost               | time and bytes of each stage; the only place that adds them |
//! | 5     | sim                | schedule + costs → timeline, memory and a lower bound       |
//! | 5     | program            | a schedule lowered to receives, tasks, sends and frees      |
//! | 6     | execute            | runs programs: ranks, transports, devices, faults           |
//! | 6     | search             | the planner: the best schedule for given costs and memory   |
//! | 6     | verify             | proves or refutes schedules and messages from anywhere      |
//! | 7     | capi               | the C face: convert, check, call                            |

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![warn(missing_docs)]
#![deny(clippy::undocumented_unsafe_blocks)]
pub mod balance;
pub mod capi;
pub mod cost;
pub mod error;
pub mod execute;
pub mod ids;
pub mod op;
mod picture;
pub mod placement;
pub mod program;
mod random;
pub mod schedule;
pub mod search;
pub mod sim;
pub mod timeline;
pub mod verify;

pub use error::{Error, ErrorKind};
