//! HELLO and READY: what manager and worker say of themselves before the first call.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::stream::{Grant, MAX_CREDIT};

/// The protocol version of this crate.
pub const VERSION: u32 = 1;

/// The largest HELLO or READY, in bytes.
pub const MAX_HANDSHAKE: usize = 64 << 10;

/// The most calls that a worker may run at once.
pub const MAX_CONCURRENCY: u32 = 65_535;

/// The manager's opening.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol version.
    pub version: u32,
    /// The codec of all payloads.
    pub codec: String,
    /// The role to serve, where the worker has several.
    pub role: Option<String>,
    /// The largest `rest` field that the manager sends and accepts.
    pub max_frame: u32,
    /// The calls are streams, and this is what the worker may send on each of them before the manager has read anything. None where they are queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<Grant>,
}

/// The worker's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The protocol version.
    pub version: u32,
    /// The codec that the worker will use.
    pub codec: String,
    /// The role that it serves.
    #[serde(default)]
    pub role: Option<String>,
    /// How many calls it runs at once.
    pub concurrency: u32,
    /// How many calls it may have started beyond those that it has answered.
    pub ahead: u32,
    /// It serves streams, and this is what the manager may send on each of them before the worker has read anything. None where it serves queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<Grant>,
}

/// HELLO is not the JSON that it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the manager's HELLO cannot be read: {0}")]
pub struct BadHello(String);

/// A worker whose READY does not fit the manager's HELLO.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// The first frame was something else, or bytes that are no frame.
    #[error("the worker's first bytes are no READY: {what}; it sent \"{first}\"{}", hint(.first))]
    NotReady {
        /// What is wrong with them.
        what: String,
        /// The first bytes that came, up to 200, with everything unprintable escaped.
        first: String,
    },
    /// READY is not the JSON that it should be.
    #[error("the worker's READY cannot be read: {0}")]
    BadReady(String),
    /// Another protocol version.
    #[error("the manager speaks version {manager} of the protocol, the worker version {worker}; update the older one")]
    Version {
        /// The manager's.
        manager: u32,
        /// The worker's.
        worker: u32,
    },
    /// Another codec.
    #[error(
        "the manager uses the codec {manager:?}, the worker {worker:?}; choose one that both have with `.codec(…)` or in `serve`"
    )]
    Codec {
        /// The manager's.
        manager: String,
        /// The worker's.
        worker: String,
    },
    /// Another role.
    #[error("the manager asked for the role {manager:?}, the worker serves {worker:?}")]
    Role {
        /// What the manager asked for.
        manager: Option<String>,
        /// What the worker serves.
        worker: Option<String>,
    },
    /// The manager has streams for a worker that serves queries, or the other way round.
    #[error("the manager has {} for the worker, which serves {}: start it from a pool of those, or ask for another role", calls(*.streams), calls(!*.streams))]
    Calls {
        /// The manager has streams.
        streams: bool,
    },
    /// A window that makes no sense.
    #[error(
        "the worker's READY says streams of {} messages and {} bytes; both must be between 1 and {MAX_CREDIT}",
        window.messages,
        window.bytes
    )]
    Window {
        /// As the worker said it.
        window: Grant,
    },
    /// A number that makes no sense.
    #[error(
        "the worker's READY says concurrency {concurrency} and ahead {ahead}; they must be 1 ≤ concurrency ≤ ahead ≤ 65535"
    )]
    Concurrency {
        /// As the worker said it.
        concurrency: u32,
        /// As the worker said it.
        ahead: u32,
    },
}

impl Hello {
    /// The payload of HELLO.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the payload of HELLO.
    ///
    /// # Errors
    /// [`BadHello`], which says what is wrong with it.
    pub fn decode(payload: &[u8]) -> Result<Self, BadHello> {
        serde_json::from_slice(payload).map_err(|error| BadHello(error.to_string()))
    }

    /// Checks READY against this HELLO.
    ///
    /// # Errors
    /// [`Mismatch`], which names both sides.
    pub fn check(&self, ready: &Ready) -> Result<(), Mismatch> {
        if ready.version != self.version {
            return Err(Mismatch::Version { manager: self.version, worker: ready.version });
        }
        if ready.codec != self.codec {
            return Err(Mismatch::Codec { manager: self.codec.clone(), worker: ready.codec.clone() });
        }
        if self.role.is_some() && ready.role != self.role {
            return Err(Mismatch::Role { manager: self.role.clone(), worker: ready.role.clone() });
        }
        if ready.streams.is_some() != self.streams.is_some() {
            return Err(Mismatch::Calls { streams: self.streams.is_some() });
        }
        if let Some(window) = ready.streams
            && [window.messages, window.bytes].iter().any(|part| !(1..=MAX_CREDIT).contains(part))
        {
            return Err(Mismatch::Window { window });
        }
        let Ready { concurrency, ahead, .. } = *ready;
        if concurrency == 0 || ahead < concurrency || ahead > MAX_CONCURRENCY {
            return Err(Mismatch::Concurrency { concurrency, ahead });
        }
        Ok(())
    }
}

impl Ready {
    /// The payload of READY.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the payload of READY.
    ///
    /// # Errors
    /// [`Mismatch::BadReady`], which says what is wrong.
    pub fn decode(payload: &[u8]) -> Result<Self, Mismatch> {
        if payload.len() > MAX_HANDSHAKE {
            return Err(Mismatch::BadReady(format!("{} bytes; at most {MAX_HANDSHAKE} are read", payload.len())));
        }
        serde_json::from_slice(payload).map_err(|error| Mismatch::BadReady(error.to_string()))
    }
}

impl Mismatch {
    /// The mismatch of a worker that began with something else than READY.
    pub fn not_ready(what: impl ToString, bytes: &[u8]) -> Self {
        let first = &bytes[..bytes.len().min(200)];
        Mismatch::NotReady { what: what.to_string(), first: first.escape_ascii().to_string() }
    }
}

fn calls(streams: bool) -> &'static str {
    if streams { "streams" } else { "queries" }
}

/// Most programs that open with something else are plain programs that print.
fn hint(first: &str) -> &'static str {
    if first.is_empty() {
        ""
    } else {
        ". A program that does not speak the protocol is run by `pm pool -- PROGRAM {}` or `pm pool --as filter -- PROGRAM`; \
         a worker opens its link before it prints"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello { version: VERSION, codec: "json".into(), role: None, max_frame: 1000, streams: None }
    }

    fn ready() -> Ready {
        Ready { version: VERSION, codec: "json".into(), role: None, concurrency: 1, ahead: 1, streams: None }
    }

    #[test]
    fn a_mismatch_names_both_sides() {
        assert_eq!(hello().check(&ready()), Ok(()));
        let other = Ready { codec: "postcard".into(), ..ready() };
        let message = hello().check(&other).unwrap_err().to_string();
        assert!(message.contains("json") && message.contains("postcard"), "{message}");
        let other = Ready { version: 9, ..ready() };
        assert_eq!(hello().check(&other), Err(Mismatch::Version { manager: 1, worker: 9 }));
        for (concurrency, ahead) in [(0, 1), (2, 1), (1, 65_536), (u32::MAX, u32::MAX)] {
            let other = Ready { concurrency, ahead, ..ready() };
            assert_eq!(hello().check(&other), Err(Mismatch::Concurrency { concurrency, ahead }));
        }
    }

    #[test]
    fn streams_and_queries_do_not_mix() {
        let grant = Grant { messages: 8, bytes: 100 };
        let streams = Hello { streams: Some(grant), ..hello() };
        assert_eq!(streams.check(&ready()), Err(Mismatch::Calls { streams: true }));
        assert_eq!(hello().check(&Ready { streams: Some(grant), ..ready() }), Err(Mismatch::Calls { streams: false }));
        assert_eq!(streams.check(&Ready { streams: Some(grant), ..ready() }), Ok(()));
        for window in [Grant { messages: 0, ..grant }, Grant { bytes: 1 << 31, ..grant }] {
            let other = Ready { streams: Some(window), ..ready() };
            assert_eq!(streams.check(&other), Err(Mismatch::Window { window }));
        }
        assert_eq!(Hello::decode(&streams.encode()), Ok(streams));
        assert!(!String::from_utf8(hello().encode()).unwrap().contains("streams"));
    }

    #[test]
    fn unknown_members_are_ignored_and_missing_ones_are_named() {
        let more = br#"{"version":1,"codec":"json","concurrency":1,"ahead":1,"kit":"x"}"#;
        assert_eq!(Ready::decode(more), Ok(ready()));
        let Err(Mismatch::BadReady(what)) = Ready::decode(br#"{"version":1}"#) else { panic!() };
        assert!(what.contains("codec"), "{what}");
        assert!(Ready::decode(&vec![b'['; 100_000]).is_err());
        assert!(Ready::decode(&vec![b'['; 60_000]).is_err(), "nested deeply");
        assert!(Ready::decode(b"\xff\xfe").is_err());
    }

    #[test]
    fn printed_bytes_are_shown_escaped() {
        let message = Mismatch::not_ready("bad length", b"Loading\x1b[31m model...\n").to_string();
        assert!(message.contains(r#"it sent "Loading\x1b[31m model...\n""#), "{message}");
        assert!(message.contains("{}"), "{message}");
    }
}
