//! `pm up` and the commands that speak to it.
//!
//! | module | does |
//! |---|---|
//! | `commands` | from a command line to what carries it out |
//! | [`meeting`] | where a project that is up is reached: a socket of its own |
//! | [`wire`] | what is said there |
//! | [`server`] | the side of the project |
//! | [`output`] | the part of it that passes on what services print |
//! | [`client`] | the side of `pm ps`, `pm stop` and the others |
//! | [`up`] | `pm up`: starts a project, and stays until it ends |
//! | [`watching`] | starts services anew when what they are made of changes |
//! | [`background`] | `pm up -d`: the same in the background |
//! | [`reload`] | `pm reload` and SIGHUP: the file is read again |
//! | [`screen`] | what services print, for people |
//! | [`history`] | `pm logs`: what services have printed |
//! | [`attach`] | `pm attach`: a terminal or pipes, connected to a service |
//! | [`terminal`] | the terminal of the user, taken and given back whatever happens |
//! | [`tui`] | `pm tui`: all of it, for people who stay |
//! | [`graph`] | `pm graph`: who needs whom |

pub mod attach;
pub mod background;
pub mod client;
mod commands;
pub mod graph;
pub mod history;
pub mod meeting;
pub mod output;
pub mod reload;
pub mod screen;
pub mod server;
pub mod terminal;
pub mod tui;
pub mod up;
pub mod watching;
pub mod wire;

pub use commands::run;
