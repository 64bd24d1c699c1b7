//! `pm attach`: a terminal, or pipes, connected to a service over the socket of its project.
//!
//! The question and its answer are those of [`wire`](super::wire). From there on frames pass both ways: what is typed, how large the terminal is, what the service
//! prints, and at the end how it ended.
//!
//! | module | does |
//! |---|---|
//! | [`frame`] | what passes |
//! | [`serve`] | the side of the project |
//! | [`client`] | the side of the user |
//! | `keys` | finds the keys that leave |
//! | `modes` | knows what a terminal has to be freed from |

pub mod client;
pub mod frame;
mod keys;
mod modes;
pub mod serve;
