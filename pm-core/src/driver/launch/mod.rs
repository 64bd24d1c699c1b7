//! Launching processes, and ending them with all that they started.
//!
//! [`launch`] starts a [`Command`] under a [`Guard`]:
//!
//! | | [`Guard::Keeper`] | [`Guard::Unguarded`] |
//! |---|---|---|
//! | needs | [`roles()`](run_if_keeper) in this program, or `pm` installed | nothing |
//! | the manager dies | everything is killed, whatever it did | the child is killed; what the child started lives on |
//! | the child ends | its group and its strays are killed | its group is killed; what left the group lives on |
//! | [`Child::kill_tree`] | all of it | the group and what descends from the child then |
//! | orphans are reparented to | the keeper | init |
//! | costs | one small process | one thread for each child |
//!
//! Both start the same way, with the same descriptors, limits, priority, user and signals. Neither frees itself from:
//! uninterruptible sleep, a debugger that holds a process, and programs that run as another user by a set-user-id bit, which
//! end with the manager only if they are found by the keeper.

mod child;
mod connection;
mod error;
mod keeper;
mod launcher;
#[cfg(feature = "service")]
pub(crate) mod meeting;
mod program;
mod unguarded;

pub use child::{Child, ChildState, Exit, SignalError, Usage};
pub use error::LaunchError;
pub use keeper::{KEEPER_ROLE, KEEPER_VARIABLE, roles_called, run_if_keeper, serve_as_keeper};
pub use launcher::{Guard, launch};
#[cfg(feature = "service")]
pub use meeting::{KeepError, end_kept, is_kept};
pub use program::{check_interpreter, resolve_program};

pub use crate::sys::inherited::keep_descriptors_private;

pub use crate::sys::command::{Command, MAX_DESCRIPTORS, Resource, UNIT_VARIABLE};
