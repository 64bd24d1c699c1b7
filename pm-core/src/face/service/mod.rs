//! Services: long-running processes that need each other, and the orchestrator that keeps them.
//!
//! A [`Service`] says what runs, what it needs, how it is known to be ready and well, and what follows from its end. An
//! [`Orchestrator`] starts services in the order of their needs, watches them, starts them again, and stops them in reverse, with all that
//! they have started.
//!
//! ```no_run
//! use pm_core::face::service::{Orchestrator, Probe, Service};
//! use pm_core::machine::service::Condition;
//! use pm_core::machine::spec::Spec;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let db = Service::new("db", Spec::program("redis-server").build()?).health(Probe::tcp(6379)).build()?;
//! let api = Service::new("api", Spec::program("node").arg("api.js").build()?)
//!     .needs("db", Condition::Healthy)
//!     .health(Probe::http("http://127.0.0.1:3000/health"))
//!     .build()?;
//! let orchestrator = Orchestrator::start()?;
//! orchestrator.start_many([db, api]).await?; // both are healthy now
//! for stopped in orchestrator.stop_all(None).await {
//!     println!("{stopped}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `service` | the builder of a service |
//! | `probe` | what it is asked |
//! | `patterns` | services of common sorts |
//! | `attach` | its two ends, for who is attached to it |
//! | `orchestrator` | what keeps them |
//! | `shutdown` | the end of a program with its services |
//! | `info` | what is told of them |
//! | `error` | what can go wrong |

mod attach;
mod error;
mod info;
mod orchestrator;
mod patterns;
mod probe;
#[expect(clippy::module_inception, reason = "a service is what the module is about")]
mod service;
mod shutdown;

pub use attach::{AttachError, Attached, AttachedInput, AttachedOutput, InputError};
pub use error::{BadService, NoService, RemoveError, ReplaceError, StartError, WaitError};
pub use info::{Answered, Happening, Info, LeftBehind, Measured, ProbeInfo, Stopped};
pub use orchestrator::{Orchestrator, OrchestratorBuilder, orchestrator};
pub use patterns::{blockchain_node, database, web_server, worker};
pub use probe::Probe;
pub(crate) use probe::{HttpRequest, Target};
pub(crate) use service::Definition;
pub use service::{MOST_REPLICAS, Service, ServiceBuilder, Stdin, StopBy};
pub use shutdown::Shutdown;

pub use crate::driver::launch::{KeepError, end_kept, is_kept};
pub use crate::driver::service::hook::{HOOK_LIMIT, Moment, Occasion};
pub use crate::driver::service::log::{LogEntry, LogFile};
pub use crate::driver::service::output::Output;
pub use crate::driver::service::tap::{MOST_ATTACHED, Printed};
pub use crate::driver::service::terminal::WindowSize;
pub use crate::driver::usage::{TreeUsage, tree as usage_of};
pub use crate::machine::supervisor::Replaced;
