//! One stream, as one of its two ends sees it: who may still send, and how much.
//!
//! A stream carries messages both ways. Each way is closed on its own: by its writer, who sends nothing more (FIN, a half close), or by its reader, who wants
//! nothing more (RST). The end of the call that it is ends both.
//!
//! The reader grants credit, in messages and in bytes, and the writer spends it: a message may go while there is credit for a message and for one byte at least.
//! What is larger than the rest of the bytes goes all the same, and the next one waits until that is made up for. So a message of any size passes, and a
//! reader holds its window and one message at most.
//!
//! ```text
//!   reader: window ──take──▶ grant (once half the window was taken) ──CREDIT──▶ writer: credit ──wrote──▶ DATA
//! ```

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Credit for so many messages, and so many bytes in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Messages.
    pub messages: u32,
    /// Bytes of their payloads.
    pub bytes: u32,
}

/// The most credit that a writer may have of either, and the largest window. A peer that grants more miscounts.
pub const MAX_CREDIT: u32 = i32::MAX as u32;

impl Grant {
    /// None.
    pub const NONE: Grant = Grant { messages: 0, bytes: 0 };

    /// The same as a window: at least one of each, and at most [`MAX_CREDIT`].
    pub const fn within_limits(self) -> Self {
        const fn within(count: u32) -> u32 {
            match count {
                0 => 1,
                count if count > MAX_CREDIT => MAX_CREDIT,
                count => count,
            }
        }
        Grant { messages: within(self.messages), bytes: within(self.bytes) }
    }

    /// As it stands in the payload of CREDIT.
    pub const fn encode(self) -> [u8; 8] {
        let ([a, b, c, d], [e, f, g, h]) = (self.messages.to_be_bytes(), self.bytes.to_be_bytes());
        [a, b, c, d, e, f, g, h]
    }

    /// Reads such a payload. None where it has another length.
    ///
    /// ```
    /// use pm_core::machine::stream::Grant;
    ///
    /// let grant = Grant { messages: 16, bytes: 1 << 20 };
    /// assert_eq!(Grant::decode(&grant.encode()), Some(grant));
    /// assert_eq!(Grant::decode(b"16"), None);
    /// ```
    pub fn decode(payload: &[u8]) -> Option<Grant> {
        let (messages, bytes) = payload.split_first_chunk()?;
        let bytes = bytes.try_into().ok()?;
        Some(Grant { messages: u32::from_be_bytes(*messages), bytes: u32::from_be_bytes(bytes) })
    }

    /// Adds another one, which together do not exceed a window.
    pub fn add(&mut self, other: Grant) {
        self.messages = self.messages.saturating_add(other.messages);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// What a peer did that no honest one does. It ends the stream, and nothing but the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault {
    /// It sent a message for which it had no credit.
    #[error("a message for which it had no credit")]
    Overrun,
    /// It sent something after its end.
    #[error("something after its end")]
    AfterEnd,
    /// It granted more than [`MAX_CREDIT`].
    #[error("more credit than the 2^31 - 1 that there can be")]
    Overflow,
    /// Its frame cannot be read.
    #[error("a frame that cannot be read")]
    Malformed,
}

/// Whether a message may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It goes.
    Goes,
    /// It waits for credit.
    Waits,
    /// It never goes: this side has finished, the peer reads no more, or the stream is over.
    Never,
}

/// What is left of credit, on either side. Bytes are negative where the last message was larger than what there was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Messages.
    pub messages: u32,
    /// Bytes of their payloads.
    pub bytes: i64,
}

impl Credit {
    /// None.
    pub const NONE: Credit = Credit { messages: 0, bytes: 0 };

    fn new(grant: Grant) -> Self {
        Credit { messages: grant.messages, bytes: grant.bytes.into() }
    }

    /// Whether a message may go.
    pub fn is_there(&self) -> bool {
        self.messages > 0 && self.bytes > 0
    }

    /// A message of so many bytes goes.
    pub fn spend(&mut self, bytes: usize) {
        self.messages -= 1;
        self.bytes -= bytes as i64;
    }

    fn add(&mut self, grant: Grant) -> Result<(), Fault> {
        let (messages, bytes) = (self.messages.checked_add(grant.messages), self.bytes + i64::from(grant.bytes));
        match messages {
            Some(messages) if messages <= MAX_CREDIT && bytes <= i64::from(MAX_CREDIT) => {
                *self = Credit { messages, bytes };
                Ok(())
            }
            _ => Err(Fault::Overflow),
        }
    }
}

/// One end of a stream. See the [module](self).
#[derive(Clone, Debug)]
pub struct Stream {
    /// What this side may send.
    credit: Credit,
    /// What the peer may send.
    allowance: Credit,
    window: Grant,
    /// What was taken since the last grant.
    taken: Grant,
    has_finished: bool,
    peer_has_finished: bool,
    has_stopped: bool,
    peer_has_stopped: bool,
    is_over: bool,
}

impl Stream {
    /// A stream that has just begun. `window` is what the peer may send before anything is taken, and what it was told; `credit` is what the peer grants. Both
    /// are cut to [`MAX_CREDIT`], and a window is one message and one byte at least.
    pub fn new(window: Grant, credit: Grant) -> Self {
        let window = window.within_limits();
        let credit = Grant { messages: credit.messages.min(MAX_CREDIT), bytes: credit.bytes.min(MAX_CREDIT) };
        Stream {
            credit: Credit::new(credit),
            allowance: Credit::new(window),
            window,
            taken: Grant::NONE,
            has_finished: false,
            peer_has_finished: false,
            has_stopped: false,
            peer_has_stopped: false,
            is_over: false,
        }
    }

    /// Whether nothing more comes: the peer has finished, or the stream is over. Messages that came may still lie there.
    pub fn has_all(&self) -> bool {
        self.is_over || self.peer_has_finished
    }

    /// Whether the peer has said that nothing more comes.
    pub fn peer_has_finished(&self) -> bool {
        self.peer_has_finished
    }

    /// Whether neither side sends or reads anything more.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether this side has said that it sends nothing more.
    pub fn has_finished(&self) -> bool {
        self.has_finished
    }

    /// Whether the peer may send nothing before more is taken out: its reader holds it up.
    pub fn holds_up_peer(&self) -> bool {
        !self.has_all() && !self.has_stopped && !self.allowance.is_there()
    }

    /// Whether this side may send a message.
    pub fn may_write(&self) -> Write {
        match self.credit.is_there() {
            _ if self.is_over || self.has_finished || self.peer_has_stopped => Write::Never,
            true => Write::Goes,
            false => Write::Waits,
        }
    }

    /// Whether this side may answer a call. Whoever made it has room for the reply, and wants it though it may read nothing else: it needs no credit.
    pub fn may_reply(&self) -> Write {
        if self.is_over || self.has_finished { Write::Never } else { Write::Goes }
    }

    /// A message of so many bytes goes, which [`may_write`](Self::may_write) has allowed: its credit is spent.
    pub fn wrote(&mut self, bytes: usize) {
        debug_assert_eq!(self.may_write(), Write::Goes);
        self.credit.spend(bytes);
    }

    /// Takes all credit out, to be spent elsewhere: until it is [put back](Self::put_credit), [`may_write`](Self::may_write) knows nothing of it.
    pub fn take_credit(&mut self) -> Credit {
        std::mem::replace(&mut self.credit, Credit::NONE)
    }

    /// Puts back what is left of it.
    pub fn put_credit(&mut self, left: Credit) {
        self.credit.messages += left.messages;
        self.credit.bytes += left.bytes;
    }

    /// This side sends nothing more. False where the peer was told that already, or need not be.
    pub fn finish(&mut self) -> bool {
        !std::mem::replace(&mut self.has_finished, true) && !self.is_over
    }

    /// This side reads nothing more. False where the peer was told that already, or need not be: it sends nothing more.
    pub fn stop(&mut self) -> bool {
        !std::mem::replace(&mut self.has_stopped, true) && !self.has_all()
    }

    /// The call has ended, and both ways with it.
    pub fn end(&mut self) {
        self.is_over = true;
    }

    /// So many messages were taken out by their reader, and bytes in them. Gives the credit that the peer gets for what was taken, once that is
    /// [worth](Self::until_worth) a frame.
    pub fn take(&mut self, messages: usize, bytes: usize) -> Option<Grant> {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        self.taken.add(Grant { messages: count(messages), bytes: count(bytes) });
        // A writer without credit has spent its window: as soon as all of that is taken, this is true.
        let left = self.until_worth();
        let is_worth = left.messages == 0 || left.bytes == 0;
        if !is_worth || self.has_all() || self.has_stopped {
            return None;
        }
        let grant = std::mem::replace(&mut self.taken, Grant::NONE);
        // It never exceeds the window: all of it was spent before.
        self.allowance.messages += grant.messages;
        self.allowance.bytes += i64::from(grant.bytes);
        Some(grant)
    }

    /// How much more, of either, is to be taken until that is worth a frame: half the window together.
    pub fn until_worth(&self) -> Grant {
        let Grant { messages, bytes } = self.window;
        Grant {
            messages: messages.div_ceil(2).saturating_sub(self.taken.messages),
            bytes: bytes.div_ceil(2).saturating_sub(self.taken.bytes),
        }
    }

    /// The peer sent a message of so many bytes. False where nobody wants it: it was on its way when this side stopped, or the stream ended.
    ///
    /// # Errors
    /// [`Fault`], after which the stream is over.
    pub fn data(&mut self, bytes: usize) -> Result<bool, Fault> {
        if self.is_over {
            return Ok(false);
        }
        if self.peer_has_finished {
            return Err(self.fail(Fault::AfterEnd));
        }
        if !self.allowance.is_there() {
            return Err(self.fail(Fault::Overrun));
        }
        self.allowance.spend(bytes);
        Ok(!self.has_stopped)
    }

    /// The peer sends nothing more. False where that means nothing any more.
    ///
    /// # Errors
    /// [`Fault`], after which the stream is over.
    pub fn peer_finished(&mut self) -> Result<bool, Fault> {
        if self.is_over {
            return Ok(false);
        }
        if std::mem::replace(&mut self.peer_has_finished, true) {
            return Err(self.fail(Fault::AfterEnd));
        }
        Ok(!self.has_stopped)
    }

    /// The peer reads nothing more. False where that means nothing any more.
    pub fn peer_stopped(&mut self) -> bool {
        !std::mem::replace(&mut self.peer_has_stopped, true) && !self.is_over && !self.has_finished
    }

    /// The peer grants credit. True where a writer that had none can go on.
    ///
    /// # Errors
    /// [`Fault`], after which the stream is over.
    pub fn granted(&mut self, grant: Grant) -> Result<bool, Fault> {
        // A peer that has finished still reads.
        if self.is_over || self.has_finished || self.peer_has_stopped {
            return Ok(false);
        }
        let had = self.credit.is_there();
        self.credit.add(grant).map_err(|fault| self.fail(fault))?;
        Ok(!had && self.credit.is_there())
    }

    /// The peer has done this.
    pub fn fail(&mut self, fault: Fault) -> Fault {
        self.is_over = true;
        fault
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::machine::budget::SplitMix;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Frame {
        Data(u32, usize),
        Fin,
        Credit(Grant),
        Stop,
    }

    /// One end with its reader, and what it has sent that the other has not received.
    struct End {
        stream: Stream,
        window: Grant,
        out: VecDeque<Frame>,
        sent: u32,
        /// What came and was not taken.
        held: VecDeque<(u32, usize)>,
        seen: u32,
        has_end: bool,
        leased: Credit,
    }

    impl End {
        fn new(window: Grant, credit: Grant) -> Self {
            let stream = Stream::new(window, credit);
            End {
                stream,
                window,
                out: VecDeque::new(),
                sent: 0,
                held: VecDeque::new(),
                seen: 0,
                has_end: false,
                leased: Credit::NONE,
            }
        }

        /// As a flow writes: by the credit that was taken out, and by the stream once that is spent.
        fn write(&mut self, bytes: usize) -> Write {
            if self.leased.is_there() && self.stream.may_write() != Write::Never {
                self.leased.spend(bytes);
            } else {
                self.give_back();
                if self.stream.may_write() != Write::Goes {
                    return self.stream.may_write();
                }
                self.stream.wrote(bytes);
                self.leased = self.stream.take_credit();
            }
            self.out.push_back(Frame::Data(self.sent, bytes));
            self.sent += 1;
            Write::Goes
        }

        fn give_back(&mut self) {
            self.stream.put_credit(std::mem::replace(&mut self.leased, Credit::NONE));
        }

        fn take(&mut self) -> bool {
            let Some((number, bytes)) = self.held.pop_front() else { return false };
            assert_eq!(number, self.seen, "in order, and none lost");
            self.seen += 1;
            self.out.extend(self.stream.take(1, bytes).map(Frame::Credit));
            true
        }

        fn receive(&mut self, frame: Frame, largest: usize) -> Result<(), Fault> {
            match frame {
                Frame::Data(number, bytes) => {
                    if self.stream.data(bytes)? {
                        self.held.push_back((number, bytes));
                    }
                }
                Frame::Fin => self.has_end |= self.stream.peer_finished()?,
                Frame::Credit(grant) => {
                    self.give_back();
                    self.stream.granted(grant)?;
                }
                Frame::Stop => drop(self.stream.peer_stopped()),
            }
            assert!(self.held.len() <= self.window.messages as usize);
            let bytes: usize = self.held.iter().map(|(_, bytes)| bytes).sum();
            assert!(bytes < self.window.bytes as usize + largest.max(1), "{bytes} held of {:?}", self.window);
            Ok(())
        }
    }

    fn ends(random: &mut SplitMix) -> [End; 2] {
        let mut window = || Grant { messages: 1 + random.below(8) as u32, bytes: 1 + random.below(300) as u32 };
        let [a, b] = [window(), window()];
        [End::new(a, b), End::new(b, a)]
    }

    fn size(random: &mut SplitMix) -> usize {
        match random.below(4) {
            0 => 0,
            1 => random.below(1000) as usize,
            _ => random.below(60) as usize,
        }
    }

    const LARGEST: usize = 1000;

    #[test]
    fn all_messages_arrive_in_order_within_the_window_and_nobody_waits_for_ever() {
        for seed in 0..1000 {
            let mut random = SplitMix(seed);
            let mut ends = ends(&mut random);
            let wanted = [random.below(100) as u32, random.below(100) as u32];
            let mut idle = 0;
            while idle < 200 {
                let at = random.below(2) as usize;
                let moved = match random.below(3) {
                    0 if ends[at].sent < wanted[at] => ends[at].write(size(&mut random)) == Write::Goes,
                    0 => {
                        let finished = ends[at].stream.finish();
                        if finished {
                            ends[at].out.push_back(Frame::Fin);
                        }
                        finished
                    }
                    1 => ends[at].take(),
                    _ => match ends[1 - at].out.pop_front() {
                        Some(frame) => {
                            ends[at].receive(frame, LARGEST).unwrap_or_else(|fault| panic!("seed {seed}: {fault:?}"));
                            true
                        }
                        None => false,
                    },
                };
                idle = if moved { 0 } else { idle + 1 };
            }
            for at in [0, 1] {
                assert_eq!((ends[at].sent, ends[1 - at].seen), (wanted[at], wanted[at]), "seed {seed}");
                assert!(ends[at].has_end && ends[at].stream.has_all(), "seed {seed}");
                assert_eq!(ends[at].write(1), Write::Never);
            }
        }
    }

    /// Either end stops reading, or finishes, at any moment: no honest frame that is on its way then is taken for a fault, and no writer waits for one that
    /// reads no more.
    #[test]
    fn ends_that_stop_at_any_moment_harm_nobody() {
        for seed in 0..1000 {
            let mut random = SplitMix(seed);
            let mut ends = ends(&mut random);
            let mut stopped = [false; 2];
            for step in 0..400 {
                let at = random.below(2) as usize;
                match random.below(if step < 300 { 40 } else { 3 }) {
                    0..=13 => drop(ends[at].write(size(&mut random))),
                    14 if ends[at].stream.finish() => ends[at].out.push_back(Frame::Fin),
                    15 if ends[at].stream.stop() => {
                        (stopped[at], ends[at].held) = (true, VecDeque::new());
                        ends[at].out.push_back(Frame::Stop);
                    }
                    16..=25 if !stopped[at] => drop(ends[at].take()),
                    _ => {
                        if let Some(frame) = ends[1 - at].out.pop_front() {
                            ends[at].receive(frame, LARGEST).unwrap_or_else(|fault| panic!("seed {seed}: {fault:?}"));
                        }
                    }
                }
            }
            for at in [0, 1] {
                while let Some(frame) = ends[1 - at].out.pop_front() {
                    ends[at].receive(frame, LARGEST).unwrap();
                }
                assert!(!stopped[at] || ends[1 - at].write(1) == Write::Never, "seed {seed}: nobody reads that");
                assert!(!stopped[at] || ends[at].held.is_empty(), "seed {seed}: nobody wants that");
            }
        }
    }

    /// Frames that a hostile peer makes up between those of an honest one end the stream, and do no more.
    #[test]
    fn what_a_peer_makes_up_ends_the_stream_and_holds_nothing_beyond_the_window() {
        let (mut faults, mut left) = (0, 0);
        for seed in 0..2000 {
            let mut random = SplitMix(seed);
            let [mut end, _] = ends(&mut random);
            let mut over = false;
            for _ in 0..100 {
                match random.below(3) {
                    0 => drop(end.write(size(&mut random))),
                    1 => drop(end.take()),
                    _ => {
                        let frame = match random.below(6) {
                            0..=2 => Frame::Data(end.seen + end.held.len() as u32, size(&mut random)),
                            3 => Frame::Credit(Grant {
                                messages: [1, 7, MAX_CREDIT, u32::MAX][random.below(4) as usize],
                                bytes: [0, 9, MAX_CREDIT, u32::MAX][random.below(4) as usize],
                            }),
                            4 if random.below(10) == 0 => Frame::Fin,
                            _ => Frame::Stop,
                        };
                        if end.receive(frame, LARGEST).is_err() {
                            assert!(!over, "seed {seed}: what is over has no faults");
                            (faults, over) = (faults + 1, true);
                        }
                    }
                }
                assert!(!over || end.stream.has_all() && end.write(1) == Write::Never);
                end.give_back();
                assert!(end.stream.credit.bytes <= i64::from(MAX_CREDIT) && end.stream.credit.messages <= MAX_CREDIT);
            }
            left += u32::from(!over);
        }
        assert!(faults > 1000 && left > 0, "{faults} {left}");
    }

    #[test]
    fn either_way_ends_on_its_own_and_the_end_of_the_call_ends_both() {
        let grant = Grant { messages: 4, bytes: 100 };
        let mut stream = Stream::new(grant, grant);
        assert!(stream.finish() && !stream.finish());
        assert_eq!(stream.may_write(), Write::Never);
        assert_eq!(stream.data(1), Ok(true), "the other way goes on");
        assert_eq!(stream.peer_finished(), Ok(true));
        assert!(stream.has_all() && !stream.stop(), "whoever has finished need not be told that nobody reads");
        let mut stream = Stream::new(grant, grant);
        assert!(stream.stop() && !stream.stop());
        assert_eq!((stream.may_write(), stream.data(1), stream.take(1, 1)), (Write::Goes, Ok(false), None));
        assert!(stream.peer_stopped() && !stream.peer_stopped());
        assert_eq!(stream.may_reply(), Write::Goes);
        assert_eq!((stream.may_write(), stream.granted(grant)), (Write::Never, Ok(false)));
        let mut stream = Stream::new(grant, grant);
        stream.end();
        assert_eq!((stream.data(1), stream.peer_finished(), stream.granted(grant)), (Ok(false), Ok(false), Ok(false)));
        assert!(!stream.finish() && !stream.stop() && !stream.peer_stopped());
    }

    #[test]
    fn a_message_larger_than_the_window_passes_and_the_next_one_waits() {
        let grant = Grant { messages: 4, bytes: 100 };
        let (mut writer, mut reader) = (Stream::new(grant, grant), Stream::new(grant, grant));
        assert_eq!(writer.may_write(), Write::Goes);
        writer.wrote(1 << 20);
        assert_eq!(writer.may_write(), Write::Waits);
        assert_eq!(reader.data(1 << 20), Ok(true));
        let credit = reader.take(1, 1 << 20).expect("all of it was taken");
        assert_eq!(credit, Grant { messages: 1, bytes: 1 << 20 });
        assert_eq!(writer.granted(credit), Ok(true));
        assert_eq!(writer.may_write(), Write::Goes);
    }
}
