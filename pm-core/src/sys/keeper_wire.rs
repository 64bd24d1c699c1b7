//! What manager and keeper say to each other, in postcard, over one `seqpacket` socket.
//!
//! A request is one message. Its descriptors are those of the launch in the order of its targets; those of HELLO are one
//! pidfd, the manager's; those of STAY the socket at which the keeper waits; those of KEEP what is held. A reply message holds one or
//! more replies, one after the other: all that a turn of the keeper brought about. KEPT, with what is held, and ALL_KEPT, with the socket, are messages of their own.

use serde::{Deserialize, Serialize};

use super::command::{Launch, Text};
use super::spawn::Stage;
use super::wait::Counted;

/// The version of this module, and of the notes that are kept (`driver::service::keep`). Manager and keeper come from two installations if the keeper is `pm` on PATH.
pub(crate) const VERSION: u16 = 4;

/// The longest launch, in bytes, that travels in the message itself. Larger ones travel in a memfd, the last descriptor
/// of the message. 8 KiB hold most environments, and 16 of them fit into a socket's default send buffer (208 KiB).
pub(crate) const INLINE: usize = 8 * 1024;

/// The longest message either way, in bytes.
pub(crate) const MESSAGE: usize = 32 * 1024;

/// The longest launch that is worth sending, in bytes: the kernel's own limit for argv and environment together is a
/// quarter of the stack limit, at most 6 MiB.
pub(crate) const LAUNCH: usize = 8 * 1024 * 1024;

/// How many pids of killed strays travel in one reply. The count beside them is exact.
pub(crate) const NAMED_STRAYS: usize = 32;

/// What the keeper does with a descriptor that it holds for a unit, while there is no manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Holding {
    /// It reads what comes, and has it captured as this stream.
    Stream(u8),
    /// It takes the messages of sd_notify(3), and remembers whether a process of this user or root has said READY=1.
    Notify { uid: u32 },
    /// Nothing.
    Open,
}

/// The longest [`Greeting`], in bytes.
pub(crate) const GREETING: usize = 16;

/// The first message of one who connects to a keeper that has no manager. Its form is the same in all versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// It is the next manager, and speaks this version. With its pidfd.
    Adopt { version: u16 },
    /// All that is kept is to end.
    End,
}

impl Greeting {
    const ADOPT: &[u8] = b"pm adopt";
    const ALL_ENDS: &[u8] = b"pm end";

    #[cfg(any(feature = "service", test))]
    pub(crate) fn bytes(self) -> Vec<u8> {
        match self {
            Greeting::Adopt { version } => [Greeting::ADOPT, &version.to_be_bytes()[..]].concat(),
            Greeting::End => Greeting::ALL_ENDS.to_vec(),
        }
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        if bytes == Greeting::ALL_ENDS {
            return Some(Greeting::End);
        }
        let version = bytes.strip_prefix(Greeting::ADOPT)?.try_into().ok()?;
        Some(Greeting::Adopt { version: u16::from_be_bytes(version) })
    }
}

/// What the manager asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request<'a> {
    /// The first message, with the manager's pidfd. `prefix` begins the cookies of this manager.
    Hello {
        version: u16,
        #[serde(borrow)]
        prefix: Text<'a>,
    },
    /// Start a process. Answered by [`Reply::Started`] or [`Reply::Failed`].
    Launch {
        id: u64,
        #[serde(borrow)]
        launch: Launch<'a>,
    },
    /// The same, with the [`Launch`] in a memfd, the last descriptor of the message.
    LaunchFrom { id: u64, length: u64 },
    /// Send a signal to the unit's process group, if its leader has not been reaped.
    Signal { id: u64, signal: i32 },
    /// When the unit's leader ends, let those that it has started end as well, until KILL. Those that have left its group, and so have not had its
    /// signal, get this one; its group too, unless it `was_asked` already.
    Linger { id: u64, signal: i32, was_asked: bool },
    /// Kill all processes of the unit.
    Kill { id: u64 },
    /// Outlive this manager for the units that are kept, and wait for the next one at a socket, which has this path. When nothing of them lives any more,
    /// and nobody has come for so long, the keeper ends.
    Stay {
        #[serde(borrow)]
        path: Text<'a>,
        patience_ms: u64,
    },
    /// Outlive nobody: what was kept is not any more.
    KeepNothing,
    /// Let the unit outlive this manager, if the keeper does, and hold these descriptors for it. `note` is for the next manager, and for what captures its
    /// output until then.
    Keep {
        id: u64,
        #[serde(borrow)]
        note: Text<'a>,
        held: Vec<Holding>,
    },
    /// Another note for a unit that is kept.
    Note {
        id: u64,
        #[serde(borrow)]
        note: Text<'a>,
    },
    /// A unit is not to be kept any more.
    Unkeep { id: u64 },
    /// The manager knows how a kept unit has ended, and has read what it said last.
    Forget { id: u64 },
}

/// What the keeper tells.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The keeper is what it should be, and serves.
    Ready {
        version: u16,
    },
    /// The keeper could not become what it should be, and ends.
    Broken {
        step: Setup,
        errno: i32,
    },
    Started {
        id: u64,
        pid: u32,
    },
    Failed {
        id: u64,
        stage: Stage,
        errno: i32,
    },
    Stopped {
        id: u64,
        signal: i32,
    },
    Continued {
        id: u64,
    },
    /// The unit is not kept: its descriptors were lost, for the keeper has no number left for them.
    NotKept {
        id: u64,
    },
    /// A unit that has outlived its manager. Where it has ended meanwhile EXITED follows.
    Kept {
        id: u64,
        pid: u32,
        note: Vec<u8>,
        held: Vec<Holding>,
        /// It has said so while there was no manager.
        is_ready: bool,
        ended_ms_ago: Option<u64>,
    },
    /// These were all. Launches have numbers from `next` on.
    AllKept {
        prefix: Vec<u8>,
        next: u64,
    },
    /// The unit's leader has ended and no process of the unit is left, but for `survivors`.
    Exited {
        id: u64,
        status: Status,
        counted: Counted,
        strays: Vec<u32>,
        stray_count: u32,
        survivors: Vec<u32>,
    },
}

/// What a keeper does before it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Setup {
    Descriptors,
    Session,
    Subreaper,
    Signals,
    Stack,
    Version { keeper: u16 },
}

impl Setup {
    /// What failed, as a part of a sentence.
    pub(crate) fn text(self) -> String {
        match self {
            Setup::Descriptors => "it has no descriptors left, or could not open /dev/null".to_owned(),
            Setup::Session => "setsid was refused".to_owned(),
            Setup::Subreaper => "PR_SET_CHILD_SUBREAPER was refused".to_owned(),
            Setup::Signals => "signalfd was refused".to_owned(),
            Setup::Stack => "it got no memory for a stack".to_owned(),
            Setup::Version { keeper } => format!("it speaks version {keeper}, this program version {VERSION}"),
        }
    }
}

/// An exit status on the wire; the machine's own type knows no serde.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    Code(i32),
    Signal { signal: i32, core: bool },
    Lost,
}

/// Appends `reply` to a message of replies.
pub(crate) fn append(message: &mut Vec<u8>, reply: &Reply) {
    let taken = std::mem::take(message);
    // Into a Vec nothing can fail but what `Reply` cannot hold: a sequence of unknown length, or a custom error.
    *message = postcard::to_extend(reply, taken).unwrap_or_default();
}

/// The replies of one message, in order. Ends early at what is not a reply, which says that the keeper is none of ours.
pub(crate) fn replies(message: &[u8]) -> impl Iterator<Item = Result<Reply, postcard::Error>> + '_ {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match postcard::take_from_bytes(rest) {
            Ok((reply, after)) => {
                rest = after;
                Some(Ok(reply))
            }
            Err(error) => {
                rest = &[];
                Some(Err(error))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_follow_each_other_in_one_message() {
        let sent = [
            Reply::Started { id: 1, pid: 10 },
            Reply::Exited {
                id: 1,
                status: Status::Signal { signal: 9, core: false },
                counted: Counted::default(),
                strays: vec![11, 12],
                stray_count: 2,
                survivors: Vec::new(),
            },
            Reply::Failed { id: 2, stage: Stage::Program, errno: 2 },
        ];
        let mut message = Vec::new();
        for reply in &sent {
            append(&mut message, reply);
        }
        let received: Vec<_> = replies(&message).map(Result::unwrap).collect();
        assert_eq!(received, sent);
    }

    #[test]
    fn greetings_are_known_in_all_versions() {
        assert_eq!(Greeting::Adopt { version: 0x0102 }.bytes(), b"pm adopt\x01\x02");
        for greeting in [Greeting::Adopt { version: VERSION }, Greeting::End] {
            assert_eq!(Greeting::read(&greeting.bytes()), Some(greeting));
            assert!(greeting.bytes().len() <= GREETING);
        }
        for bytes in [&b""[..], b"pm adopt", b"pm adopt\x01", b"pm adopt\x01\x02\x03", b"pm ends"] {
            assert_eq!(Greeting::read(bytes), None);
        }
    }

    #[test]
    fn what_is_no_reply_ends_the_message() {
        assert!(replies(&[0xff; 8]).all(|reply| reply.is_err()));
        assert_eq!(replies(&[0xff; 8]).count(), 1);
    }
}
