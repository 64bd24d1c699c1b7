//! What the messages of a program mean.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;
use std::sync::Arc;

use pm_core::face::error::HandlerError;
use pm_core::machine::frame::{Header, Kind, flag};

/// How the calls of a pool are said in messages of a program's own protocol, and what its messages mean for them.
///
/// Each link has a clone of its own, so a dialect may keep what it needs to know of one program. It does nothing but translate: deadlines, credit and
/// the end of the program are seen to elsewhere.
///
/// # Contract
/// It runs while the link is locked: it returns soon, and calls nothing of its pool. Where it panics, the call that it was to say has failed, or the program whose
/// message it was to hear is replaced.
///
/// ```
/// use pm_core::face::error::HandlerError;
/// use pm_transport_foreign::{Calls, Dialect, Out, Said};
///
/// /// A program that answers `7 WORD` by `7 LENGTH`, in any order.
/// #[derive(Clone, Debug)]
/// struct Counter;
///
/// impl Dialect for Counter {
///     fn calls(&self) -> Calls {
///         Calls::Queries { at_once: 16 }
///     }
///
///     fn say(&mut self, said: Said<'_>, out: &mut Out) {
///         if let Said::Query { id, input } = said {
///             out.send(format!("{id} {}", String::from_utf8_lossy(input)));
///         }
///     }
///
///     fn hear(&mut self, message: &[u8], out: &mut Out) -> Result<(), String> {
///         let text = String::from_utf8_lossy(message);
///         let (id, length) = text.split_once(' ').ok_or("an answer without a number")?;
///         out.answer(id.parse().map_err(|_| format!("{id:?} is no number"))?, length);
///         Ok(())
///     }
/// }
/// ```
pub trait Dialect: Clone + Debug + Send + Sync + 'static {
    /// What such a program serves.
    fn calls(&self) -> Calls;

    /// Says something to the program, if there is something to say.
    fn say(&mut self, said: Said<'_>, out: &mut Out);

    /// Takes a message of the program.
    ///
    /// # Errors
    /// Why it is no message of this protocol. The program is replaced.
    fn hear(&mut self, message: &[u8], out: &mut Out) -> Result<(), String>;

    /// Whether the program can serve. A program that says so itself is heard until then.
    fn is_ready(&self) -> bool {
        true
    }

    /// Whether messages of the program can be taken now. Until then they wait.
    fn can_hear(&self) -> bool {
        true
    }

    /// Whether payloads are messages as they are. Then those of a [`NodeChannel`](crate::NodeChannel) have to be JSON, and so has the codec of its pool.
    fn is_verbatim(&self) -> bool {
        false
    }

    /// The program sends nothing more.
    fn over(&mut self, out: &mut Out) {
        let _ = out;
    }
}

/// What a program serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Queries: so many at once, from 1 to 65,535.
    Queries {
        /// How many.
        at_once: u32,
    },
    /// Streams: so many at once, from 1 to 65,535. A program whose protocol has no credit cannot be told to hold back one of them, so a stream that is not read holds
    /// up the others of its program once it has sent what its window takes.
    Streams {
        /// How many.
        at_once: u32,
    },
}

/// What a program is to be told. Calls are known by numbers, which no two calls of a link share; they fit into the integers that JavaScript has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// A query.
    Query {
        /// Its number.
        id: u64,
        /// Its input, as the codec of the pool writes it.
        input: &'a [u8],
    },
    /// A stream begins.
    Open {
        /// Its number.
        id: u64,
        /// What it is about; may be empty.
        name: &'a str,
    },
    /// A message of a stream. What was on its way when the dialect ended the stream, it is not told any more.
    Message {
        /// The stream.
        id: u64,
        /// The message, as the codec of the pool writes it.
        payload: &'a [u8],
    },
    /// No further message of this stream follows.
    End {
        /// The stream.
        id: u64,
    },
    /// Nobody waits for this call any more. It counts as one that the program has until the dialect says that it is [cancelled](Out::cancelled), or
    /// the program answers all the same. A program that does neither within the cancel grace of a pool of queries is replaced.
    Cancel {
        /// The call.
        id: u64,
    },
}

/// What comes of it: messages for the program, and news of calls for the manager.
#[derive(Debug, Default)]
pub struct Out {
    /// Lines for the program.
    pub(crate) lines: Vec<u8>,
    /// No further line will follow them.
    pub(crate) is_finished: bool,
    pub(crate) frames: VecDeque<(Header, Vec<u8>)>,
    /// A message held a newline.
    pub(crate) has_newline: bool,
    /// The calls whose ends are among the frames.
    pub(crate) ended: BTreeSet<u64>,
}

impl Out {
    /// Sends a message to the program.
    pub fn send(&mut self, message: impl AsRef<[u8]>) {
        let message = message.as_ref();
        if message.contains(&b'\n') {
            self.has_newline = true;
        } else {
            self.lines.extend_from_slice(message);
            self.lines.push(b'\n');
        }
    }

    /// Tells the program that no message follows, after those that were sent.
    pub fn finish(&mut self) {
        self.is_finished = true;
    }

    /// A query has its output, or a stream has come to its end.
    pub fn answer(&mut self, id: u64, output: impl Into<Vec<u8>>) {
        self.frame(Header::call(Kind::Resp, id), output.into());
    }

    /// A query or a stream has failed.
    pub fn fail(&mut self, id: u64, error: &HandlerError) {
        self.frame(Header::call(Kind::Err, id), error.to_payload());
    }

    /// A call that was cancelled is over.
    pub fn cancelled(&mut self, id: u64) {
        self.frame(Header { flags: flag::CANCELLED, ..Header::call(Kind::Err, id) }, Vec::new());
    }

    /// A message of a stream.
    pub fn message(&mut self, id: u64, payload: impl Into<Vec<u8>>) {
        self.frame(Header::call(Kind::Data, id), payload.into());
    }

    /// An error on a stream that goes on.
    pub fn error(&mut self, id: u64, error: &HandlerError) {
        self.frame(Header { flags: flag::ERROR, ..Header::call(Kind::Data, id) }, error.to_payload());
    }

    /// No further message of this stream follows; the stream goes on the other way.
    pub fn end(&mut self, id: u64) {
        self.frame(Header::call(Kind::Fin, id), Vec::new());
    }

    /// A notice of the program.
    pub fn notice(&mut self, text: &str) {
        self.frame(Header::new(Kind::Notice), text.as_bytes().to_vec());
    }

    fn frame(&mut self, header: Header, payload: Vec<u8>) {
        if matches!(Kind::from_wire(header.kind), Some(Kind::Resp | Kind::Err)) {
            self.ended.insert(header.id);
        }
        self.frames.push_back((header, payload));
    }
}

/// All messages belong to one conversation, as they are: that of a raw worker.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    id: Option<u64>,
    is_finished: bool,
    /// What the program says when it is ready, until it has.
    ready: Option<Arc<[u8]>>,
}

impl Conversation {
    /// The program is ready once it has sent this message, and not before: `"ready"`, with its quotes, for one that calls `process.send('ready')`. What it sends
    /// before that goes to the hook for notices. It has the start timeout of its Spec.
    pub fn ready_on(message: impl AsRef<[u8]>) -> Self {
        Conversation { ready: Some(message.as_ref().into()), ..Conversation::default() }
    }
}

impl Dialect for Conversation {
    fn is_verbatim(&self) -> bool {
        true
    }

    fn calls(&self) -> Calls {
        Calls::Streams { at_once: 1 }
    }

    fn say(&mut self, said: Said<'_>, out: &mut Out) {
        match said {
            Said::Open { id, .. } => self.id = Some(id),
            Said::Message { payload, .. } => out.send(payload),
            Said::End { .. } => {
                self.is_finished = true;
                out.finish();
            }
            // Its program has nothing else to do, and the pool ends it.
            Said::Cancel { id } => out.cancelled(id),
            Said::Query { .. } => {}
        }
    }

    fn hear(&mut self, message: &[u8], out: &mut Out) -> Result<(), String> {
        match (self.id, &self.ready) {
            (_, Some(ready)) if **ready == *message => self.ready = None,
            (_, Some(_)) => out.notice(&String::from_utf8_lossy(message)),
            (Some(id), None) => out.message(id, message),
            (None, None) => {}
        }
        Ok(())
    }

    fn is_ready(&self) -> bool {
        self.ready.is_none()
    }

    fn can_hear(&self) -> bool {
        self.id.is_some() || !self.is_ready()
    }

    fn over(&mut self, out: &mut Out) {
        if let (Some(id), true) = (self.id, self.is_finished) {
            out.answer(id, Vec::new());
        }
    }
}
