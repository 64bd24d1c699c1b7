//! `pm tui`: the services of a project that is up, and what they print, on a terminal. A client as the other commands are: it comes and goes, and the
//! project does not notice.
//!
//! Input, data and drawing are separate. A thread reads keys; another one has the connections to the project; the third owns the [`App`](app::App),
//! feeds it what the others send, and draws at most one frame in 33 ms of whatever is there by then. Nothing of that waits for a service: what floods is
//! dropped and counted by the project ([`output`](super::output)), kept in a ring here, and looked at line by line only where it is drawn.
//!
//! `app`, `view`, `lines`, `text` and `keys` know neither a terminal nor a socket: another program can feed an `App` and draw it into any buffer.
//!
//! | module | does |
//! |---|---|
//! | [`app`] | the machine: keys and data in, questions to the project out |
//! | [`view`] | draws it |
//! | [`lines`] | the last lines of a service |
//! | [`text`] | a line as it is drawn: colours, what is escaped, how wide it is |
//! | [`keys`] | what each key means |
//! | [`feed`] | the connections to the project |
//! | [`terminal`] | the terminal, taken and given back, and the loop |

pub mod app;
pub mod feed;
pub mod keys;
pub mod lines;
pub mod terminal;
pub mod text;
pub mod view;
