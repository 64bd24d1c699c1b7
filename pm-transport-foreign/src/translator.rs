//! The worker's side of a link whose worker knows nothing of links: says READY for it, keeps its credit, and has its [`Dialect`] translate. Without I/O.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use pm_core::face::error::HandlerError;
use pm_core::machine::frame::{Header, Kind, flag};
use pm_core::machine::handshake::{Hello, Ready};
use pm_core::machine::stream::Grant;

use crate::dialect::{Calls, Dialect, Out, Said};

/// What the manager may send on a stream before it hears that it was taken. It is taken as soon as there is room for it, so this bounds nothing: the room does.
const WINDOW: Grant = Grant { messages: 1024, bytes: 1 << 20 };

/// So much that waits to be written leaves no room for more: as for other links over descriptors.
const SEND_LIMIT: usize = 128 << 10;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Translator<D> {
    dialect: D,
    codec: Option<&'static str>,
    out: Out,
    /// READY, until the program is.
    ready: Option<Ready>,
    /// What may be sent on a stream before anything of it is read.
    window: Grant,
    /// The streams that are open.
    streams: BTreeMap<u64, Flow>,
    /// Streams of which the manager is to hear that messages were taken. That waits for no message which the manager has no room for.
    granted: VecDeque<(u64, Grant)>,
}

/// What is known of one stream.
#[derive(Debug)]
struct Flow {
    /// What may still be sent to the manager. Bytes are negative where the last message was larger than what there was.
    messages: u32,
    bytes: i64,
    /// What was taken from the manager since it was last told.
    taken: Grant,
    /// The manager reads nothing more.
    is_unread: bool,
}

impl<D: Dialect> Translator<D> {
    /// `codec` is what all payloads have to be in, where that is so.
    pub(crate) fn new(dialect: D, codec: Option<&'static str>) -> Self {
        let (out, window) = (Out::default(), Grant::NONE);
        Translator { dialect, codec, out, ready: None, window, streams: BTreeMap::new(), granted: VecDeque::new() }
    }

    /// What is to be written to the program.
    pub(crate) fn lines(&mut self) -> &mut Vec<u8> {
        &mut self.out.lines
    }

    /// Whether nothing follows what is to be written.
    pub(crate) fn is_finished(&self) -> bool {
        self.out.is_finished
    }

    /// Takes a frame of the manager; false where there is no room. `unwritten` is what was said before it and is still to be written.
    pub(crate) fn say(&mut self, header: Header, payload: &[u8], unwritten: usize) -> bool {
        let kind = Kind::from_wire(header.kind);
        let is_large = matches!(kind, Some(Kind::Req | Kind::Data | Kind::Open));
        if is_large && unwritten + self.out.lines.len() >= SEND_LIMIT {
            return false;
        }
        let id = header.id;
        match kind {
            Some(Kind::Hello) => self.hello(payload),
            // The program has no word for it. It must not wait behind messages that nobody reads.
            Some(Kind::Ping) => self.out.frames.push_front((Header::new(Kind::Pong), payload.to_vec())),
            Some(Kind::Req) => self.tell(id, Said::Query { id, input: payload }),
            Some(Kind::Open) => {
                let Grant { messages, bytes } = self.window;
                let flow = Flow { messages, bytes: bytes.into(), taken: Grant::NONE, is_unread: false };
                self.streams.insert(id, flow);
                self.tell(id, Said::Open { id, name: &String::from_utf8_lossy(payload) });
            }
            Some(Kind::Data) if header.flags & (flag::CALL | flag::ERROR | flag::REPLY) != 0 => {
                self.refuse(id, "the program's own protocol has neither calls nor errors on a stream");
            }
            Some(Kind::Data) => {
                if self.is_open(id) {
                    self.tell(id, Said::Message { id, payload });
                }
                self.take(id, payload.len());
            }
            Some(Kind::Fin) if self.is_open(id) => self.tell(id, Said::End { id }),
            Some(Kind::Cancel) => {
                // Its messages have no reader any more, and must hold up nobody.
                self.set_unread(id);
                if !self.out.ended.contains(&id) {
                    self.tell(id, Said::Cancel { id });
                }
            }
            Some(Kind::Rst) => self.set_unread(id),
            Some(Kind::Credit) => {
                let grant = Grant::decode(payload).unwrap_or_default();
                if let Some(flow) = self.streams.get_mut(&id) {
                    flow.messages = flow.messages.saturating_add(grant.messages);
                    flow.bytes += i64::from(grant.bytes);
                }
            }
            // A program that has begun with all that it was given gives nothing back, and how it learns that it should leave is not for the link to say.
            _ => {}
        }
        true
    }

    /// Takes a message of the program.
    pub(crate) fn hear(&mut self, message: &[u8]) -> Result<(), String> {
        let Translator { dialect, out, .. } = self;
        let heard = catch_unwind(AssertUnwindSafe(|| dialect.hear(message, out)));
        self.say_ready();
        heard.unwrap_or_else(|_| Err("the dialect of this program panicked at one of its messages".to_string()))
    }

    /// The program sends nothing more.
    pub(crate) fn over(&mut self) {
        self.dialect.over(&mut self.out);
    }

    /// Whether a message of the program can be taken: none waits for the manager to read what came before it.
    pub(crate) fn can_hear(&self) -> bool {
        self.out.frames.is_empty() && self.dialect.can_hear()
    }

    /// Whether the manager has been told everything.
    pub(crate) fn has_said_all(&self) -> bool {
        self.out.frames.is_empty() && self.granted.is_empty()
    }

    /// Whether there is a frame for the manager, for which it has room.
    pub(crate) fn has_frame(&self) -> bool {
        !self.granted.is_empty() || self.out.frames.front().is_some_and(|(header, _)| self.may_go(header))
    }

    /// The next frame for the manager.
    pub(crate) fn next_frame(&mut self) -> Option<(Header, Vec<u8>)> {
        if let Some((id, grant)) = self.granted.pop_front() {
            return Some((Header::call(Kind::Credit, id), grant.encode().to_vec()));
        }
        while self.has_frame() {
            let (header, payload) = self.out.frames.pop_front()?;
            match Kind::from_wire(header.kind) {
                Some(Kind::Resp | Kind::Err) => {
                    self.out.ended.remove(&header.id);
                    self.streams.remove(&header.id);
                }
                Some(Kind::Data) => match self.streams.get_mut(&header.id) {
                    Some(flow) if !flow.is_unread => {
                        flow.messages -= 1;
                        flow.bytes -= payload.len() as i64;
                    }
                    // Nobody wants it.
                    _ => continue,
                },
                _ => {}
            }
            return Some((header, payload));
        }
        None
    }

    fn may_go(&self, header: &Header) -> bool {
        let flow = self.streams.get(&header.id).filter(|_| header.kind == Kind::Data as u8);
        flow.is_none_or(|flow| flow.is_unread || flow.messages > 0 && flow.bytes > 0)
    }

    /// READY, as a worker that fits would say it.
    fn hello(&mut self, payload: &[u8]) {
        let Ok(hello) = Hello::decode(payload) else { return };
        let (concurrency, streams) = match self.dialect.calls() {
            Calls::Queries { at_once } => (at_once, None),
            Calls::Streams { at_once } => (at_once, Some(WINDOW)),
        };
        self.window = hello.streams.unwrap_or(Grant::NONE);
        let ready = Ready {
            version: hello.version,
            // A manager with another one finds that it does not fit.
            codec: self.codec.filter(|_| self.dialect.is_verbatim()).map_or(hello.codec, str::to_string),
            role: hello.role,
            concurrency,
            ahead: concurrency,
            streams,
        };
        self.ready = Some(ready);
        self.say_ready();
    }

    fn say_ready(&mut self) {
        if self.dialect.is_ready()
            && let Some(ready) = self.ready.take()
        {
            self.out.frames.push_back((Header::new(Kind::Ready), ready.encode()));
        }
    }

    /// Whether this stream has begun, and its dialect has not ended it.
    fn is_open(&self, id: u64) -> bool {
        self.streams.contains_key(&id) && !self.out.ended.contains(&id)
    }

    fn set_unread(&mut self, id: u64) {
        if let Some(flow) = self.streams.get_mut(&id) {
            flow.is_unread = true;
        }
    }

    fn tell(&mut self, id: u64, said: Said<'_>) {
        let Translator { dialect, out, .. } = self;
        // Whoever calls has other calls, which must not suffer.
        if catch_unwind(AssertUnwindSafe(|| dialect.say(said, out))).is_err() {
            return self.refuse(id, "the dialect of this program panicked");
        }
        if std::mem::take(&mut self.out.has_newline) {
            let why = "a message to this program cannot hold a newline: each is a line";
            match said {
                // The stream goes on without it.
                Said::Message { .. } => self.out.error(id, &error(why)),
                _ => self.refuse(id, why),
            }
        }
    }

    /// Ends a call because of something that cannot be said.
    fn refuse(&mut self, id: u64, why: &str) {
        self.out.fail(id, &error(why));
    }

    /// A message of the manager was taken: it may send another one.
    fn take(&mut self, id: u64, bytes: usize) {
        let Some(flow) = self.streams.get_mut(&id) else { return };
        flow.taken.add(Grant { messages: 1, bytes: u32::try_from(bytes).unwrap_or(u32::MAX) });
        if flow.taken.messages >= WINDOW.messages / 2 || flow.taken.bytes >= WINDOW.bytes / 2 {
            let grant = std::mem::take(&mut flow.taken);
            self.granted.push_back((id, grant));
        }
    }
}

fn error(why: &str) -> HandlerError {
    HandlerError { message: why.to_string(), ..HandlerError::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Conversation;

    const ID: u64 = 65_536;

    /// A conversation that is open, whose manager has room for so many messages.
    fn open(messages: u32) -> Translator<Conversation> {
        let mut translator = Translator::new(Conversation::default(), None);
        let streams = Some(Grant { messages, bytes: 100 });
        let hello = Hello { version: 1, codec: "text".into(), role: None, max_frame: 1 << 20, streams };
        assert!(translator.say(Header::new(Kind::Hello), &hello.encode(), 0));
        assert_eq!(kinds(&mut translator), [Kind::Ready]);
        assert!(!translator.can_hear());
        assert!(translator.say(Header::call(Kind::Open, ID), b"", 0));
        translator
    }

    fn kinds<D: Dialect>(translator: &mut Translator<D>) -> Vec<Kind> {
        std::iter::from_fn(|| translator.next_frame())
            .map(|(header, _)| Kind::from_wire(header.kind).unwrap())
            .collect()
    }

    #[test]
    fn messages_wait_for_credit_and_so_does_the_end() {
        let mut translator = open(2);
        for n in 0..3 {
            translator.hear(format!("line {n}").as_bytes()).unwrap();
        }
        assert!(translator.say(Header::call(Kind::Fin, ID), b"", 0));
        assert!(translator.is_finished());
        translator.over();
        assert_eq!(kinds(&mut translator), [Kind::Data, Kind::Data]);
        assert!(!translator.can_hear() && !translator.has_frame() && !translator.has_said_all());
        // Whether it lives is no message.
        assert!(translator.say(Header::new(Kind::Ping), b"", 0));
        assert_eq!(kinds(&mut translator), [Kind::Pong]);
        let grant = Grant { messages: 1, bytes: 10 };
        assert!(translator.say(Header::call(Kind::Credit, ID), &grant.encode(), 0));
        assert_eq!(kinds(&mut translator), [Kind::Data, Kind::Resp]);
        assert!(translator.has_said_all());
    }

    #[test]
    fn what_nobody_wants_holds_up_nothing() {
        for kind in [Kind::Rst, Kind::Cancel] {
            let mut translator = open(1);
            translator.hear(b"one").unwrap();
            translator.hear(b"two").unwrap();
            assert_eq!(kinds(&mut translator), [Kind::Data]);
            assert!(translator.say(Header::call(kind, ID), b"", 0));
            let left = kinds(&mut translator);
            assert!(!left.contains(&Kind::Data) && translator.can_hear(), "{left:?}");
        }
    }

    #[test]
    fn what_comes_for_a_stream_that_its_dialect_has_ended_is_not_told() {
        let mut translator = open(1);
        // It cannot be said, and ends the stream; the manager does not know yet.
        assert!(translator.say(Header { flags: flag::CALL, ..Header::call(Kind::Data, ID) }, b"a call", 0));
        for has_heard in [false, true] {
            for kind in [Kind::Data, Kind::Fin] {
                assert!(translator.say(Header::call(kind, ID), b"x", 0));
            }
            assert!(translator.lines().is_empty() && !translator.is_finished());
            assert_eq!(kinds(&mut translator).is_empty(), has_heard);
        }
    }

    #[test]
    fn credit_is_given_for_what_was_taken() {
        let mut translator = open(1);
        for _ in 0..WINDOW.messages / 2 {
            assert!(translator.say(Header::call(Kind::Data, ID), b"x", 0));
        }
        // Before what waits for the manager.
        translator.hear(b"one").unwrap();
        translator.hear(b"two").unwrap();
        assert_eq!(kinds(&mut translator), [Kind::Credit, Kind::Data]);
        assert_eq!(translator.lines().len(), WINDOW.messages as usize);
        assert!(!translator.say(Header::call(Kind::Data, ID), b"x", SEND_LIMIT));
    }

    /// Panics at whatever it is given.
    #[derive(Clone, Debug)]
    struct Nervous;

    impl Dialect for Nervous {
        fn calls(&self) -> Calls {
            Calls::Queries { at_once: 1 }
        }

        fn say(&mut self, _: Said<'_>, _: &mut Out) {
            panic!("I cannot say that");
        }

        fn hear(&mut self, _: &[u8], _: &mut Out) -> Result<(), String> {
            panic!("I cannot hear that");
        }
    }

    #[test]
    fn a_dialect_that_panics_costs_its_own_call_or_program() {
        let mut translator = Translator::new(Nervous, None);
        assert!(translator.say(Header::call(Kind::Req, ID), b"x", 0));
        assert_eq!(kinds(&mut translator), [Kind::Err]);
        assert!(translator.hear(b"x").unwrap_err().contains("panicked"));
    }
}
