//! The ring: one direction of a link, a byte stream in memory that two processes share.
//!
//! The stream goes in chunks. A chunk begins at a cache line, with one word that says all about it; its bytes follow:
//!
//! ```text
//! word 0: committed (1 bit) · processor of the producer (11) · length in bytes (20) · checksum (32)
//! word 1…: the bytes, the last word filled up with zeros
//! ```
//!
//! The consumer looks at the first word of the next chunk until it is not zero. So a chunk of up to 56 bytes costs both sides one cache
//! line. Before the producer commits a chunk it sets the first word after it to zero, so that what is left there from an earlier lap is
//! not taken for a chunk; the line after a chunk is therefore never one that the consumer has yet to read.
//!
//! The producer learns how far the consumer has read from a word that the consumer publishes now and then. Both sides keep their own
//! positions in private memory and count them from the beginning of the link in 64 bits, which never wrap.
//!
//! Whatever the peer wrote is checked after it was copied: lengths, the order of positions, and the checksum over the copy. It also
//! covers the place of the chunk in the stream. A peer that writes at random is found out; one that computes the checksum of
//! a lie can only lie about its own answers.

use std::io;
use std::mem::MaybeUninit;

use crate::bulk;
use crate::checksum::Sum;
use crate::sync::{AtomicU64, Ordering, fence};

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Bytes of a word.
pub const WORD: usize = 8;
pub(crate) const LINE_WORDS: usize = LINE / WORD;

pub(crate) const COMMITTED: u64 = 1 << 63;
const CPU_BITS: u32 = 11;
const LENGTH_BITS: u32 = 20;

/// The processor that a chunk names where the producer's is not known.
pub(crate) const NO_CPU: u32 = (1 << CPU_BITS) - 1;

/// The most bytes of a chunk: while the consumer copies one, the producer writes the next.
pub(crate) const MAX_CHUNK: usize = 16 << 10;

/// The largest ring, so that the length of each chunk fits its field.
pub(crate) const MAX_RING: usize = 1 << LENGTH_BITS;

/// Memory of 64-bit words that another process may write at any time.
pub(crate) trait Words {
    /// The words; always the same.
    fn words(&self) -> &[AtomicU64];
}

impl Words for Vec<AtomicU64> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

impl<W: Words> Words for std::sync::Arc<W> {
    fn words(&self) -> &[AtomicU64] {
        (**self).words()
    }
}

/// The peer wrote something that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Corrupt {
    /// The word at the beginning of a chunk.
    Chunk,
    /// The checksum of a chunk.
    Checksum,
    /// The position of the consumer.
    Position,
}

impl Corrupt {
    /// What is wrong.
    pub(crate) const fn what(self) -> &'static str {
        match self {
            Corrupt::Chunk => "a chunk of a length that the ring cannot hold",
            Corrupt::Checksum => "a chunk whose bytes do not fit its checksum",
            Corrupt::Position => "a reader that is ahead of its writer, or went back",
        }
    }
}

impl From<Corrupt> for io::Error {
    fn from(corrupt: Corrupt) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, corrupt.what())
    }
}

/// The lines of a chunk of so many bytes.
const fn lines(bytes: usize) -> usize {
    (WORD + bytes).div_ceil(LINE)
}

/// The first word of a chunk.
pub(crate) const fn header(length: usize, cpu: u32, checksum: u32) -> u64 {
    COMMITTED | (cpu as u64) << (32 + LENGTH_BITS) | (length as u64) << 32 | checksum as u64
}

/// Where a producer writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// Its processor; [`NO_CPU`] where it does not say.
    pub(crate) cpu: u32,
    /// The consumer runs on another one, as far as anybody knows.
    pub(crate) is_far: bool,
}

/// The writing side.
#[derive(Debug)]
pub(crate) struct Producer<W> {
    ring: W,
    /// Where the consumer publishes how far it has read, in lines.
    read: W,
    /// Lines written.
    tail: u64,
    /// Lines that the consumer had read when it was last asked.
    head: u64,
}

impl<W: Words> Producer<W> {
    /// The producer of an empty ring. The ring is a power of two of at least four lines; `read` is one word of the consumer's.
    pub(crate) fn new(ring: W, read: W) -> Self {
        let words = ring.words().len();
        assert!(words.is_power_of_two() && words >= 4 * LINE_WORDS && words * WORD <= MAX_RING);
        Producer { ring, read, tail: 0, head: 0 }
    }

    /// Writes a chunk of as many of these bytes as there is room for, and says how many that were: none where the ring is full.
    ///
    /// The consumer can see it from here on, but may be asleep.
    pub(crate) fn write(&mut self, bytes: &[u8], site: Site) -> Result<usize, Corrupt> {
        let bytes = &bytes[..bytes.len().min(MAX_CHUNK)];
        let wanted = lines(bytes.len());
        if (wanted as u64) > self.room() {
            self.refresh_head()?;
        }
        let length = bytes.len().min((self.room() as usize * LINE).saturating_sub(WORD));
        if length == 0 {
            return Ok(0);
        }
        let next = self.tail + lines(length) as u64;
        self.word(next).store(0, Ordering::Relaxed);
        let checksum = self.copy_in(&bytes[..length], site.is_far);
        // Pairs with the Acquire of `Consumer::read`: the bytes, and the zero behind them, are there before the chunk is.
        self.word(self.tail).store(header(length, site.cpu, checksum), Ordering::Release);
        self.tail = next;
        Ok(length)
    }

    /// Whether a chunk would find room. Asks the consumer's word.
    pub(crate) fn has_room(&mut self) -> Result<bool, Corrupt> {
        self.refresh_head()?;
        Ok(self.room() > 0)
    }

    /// Free lines, but for the one that stays zero.
    fn room(&self) -> u64 {
        (self.ring.words().len() / LINE_WORDS) as u64 - 1 - (self.tail - self.head)
    }

    fn refresh_head(&mut self) -> Result<(), Corrupt> {
        // Pairs with the Release of `Consumer::publish`: the consumer has read what is written over now. A fence, since memory that can only be
        // read is promised relaxed loads alone.
        let head = self.read.words()[0].load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if head < self.head || head > self.tail {
            return Err(Corrupt::Position);
        }
        self.head = head;
        Ok(())
    }

    fn word(&self, line: u64) -> &AtomicU64 {
        let words = self.ring.words();
        &words[(line as usize * LINE_WORDS) & (words.len() - 1)]
    }

    fn copy_in(&self, bytes: &[u8], is_far: bool) -> u32 {
        let mut sum = Sum::new(self.tail, bytes.len());
        let (chunks, rest) = bytes.as_chunks::<WORD>();
        let place = places(self.ring.words(), self.tail);
        let (first, second) = chunks.split_at(chunks.len().min(place.0.len()));
        for (words, chunks) in [(place.0, first), (place.1, second)] {
            store(&words[..chunks.len()], chunks, is_far, &mut sum);
        }
        if let (false, Some(word)) = (rest.is_empty(), after(place, chunks.len())) {
            let value = last_word(bytes, rest);
            word.store(value, Ordering::Relaxed);
            sum.add(value);
        }
        sum.finish()
    }
}

/// The word of the last bytes, filled up with zeros. Not by way of memory: a word that was just put together there from smaller pieces can be read
/// only after all stores before it, which go to lines that the consumer has.
fn last_word(bytes: &[u8], rest: &[u8]) -> u64 {
    let word = match bytes.last_chunk::<WORD>() {
        Some(last) => u64::from_le_bytes(*last) >> (8 * (WORD - rest.len())),
        None => rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    // In the order of bytes in which the other words are stored.
    u64::from_le(word)
}

/// The words behind the first one of the chunk that begins at a line: to the end of the ring, and from its beginning.
fn places(words: &[AtomicU64], line: u64) -> (&[AtomicU64], &[AtomicU64]) {
    let start = ((line as usize * LINE_WORDS) & (words.len() - 1)) + 1;
    let (before, after) = words.split_at(start);
    (after, before)
}

/// The word after so many of a chunk.
fn after<'a>((first, second): (&'a [AtomicU64], &'a [AtomicU64]), count: usize) -> Option<&'a AtomicU64> {
    first.get(count).or_else(|| second.get(count.checked_sub(first.len())?))
}

/// The reading side.
#[derive(Debug)]
pub(crate) struct Consumer<W> {
    ring: W,
    /// Where it publishes how far it has read.
    read: W,
    /// Lines read.
    head: u64,
    published: u64,
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Bytes.
    pub(crate) length: usize,
    /// Where the producer ran; [`NO_CPU`] where it does not say.
    pub(crate) cpu: u32,
}

impl<W: Words> Consumer<W> {
    /// The consumer of an empty ring.
    pub(crate) fn new(ring: W, read: W) -> Self {
        Consumer { ring, read, head: 0, published: 0 }
    }

    /// The same consumer, of a ring that is a copy of this one.
    #[cfg(test)]
    pub(crate) fn over(&self, ring: W, read: W) -> Self {
        Consumer { ring, read, head: self.head, published: self.published }
    }

    /// Whether a chunk is there.
    pub(crate) fn has_chunk(&self) -> bool {
        self.first().load(Ordering::Relaxed) != 0
    }

    /// Appends the next chunk to `into`; none where there is none yet.
    pub(crate) fn read(&mut self, into: &mut Vec<u8>) -> Result<Option<Chunk>, Corrupt> {
        let first = self.first().load(Ordering::Relaxed);
        if first == 0 {
            return Ok(None);
        }
        // Pairs with the Release of `Producer::write`.
        fence(Ordering::Acquire);
        let length = (first >> 32) as usize & ((1 << LENGTH_BITS) - 1);
        let cpu = (first >> (32 + LENGTH_BITS)) as u32 & NO_CPU;
        let taken = lines(length);
        if first & COMMITTED == 0 || length == 0 || taken >= self.ring.words().len() / LINE_WORDS {
            return Err(Corrupt::Chunk);
        }
        if self.copy_out(length, into) != first as u32 {
            into.truncate(into.len() - length);
            return Err(Corrupt::Checksum);
        }
        self.head += taken as u64;
        Ok(Some(Chunk { length, cpu }))
    }

    /// Whether enough was read since the last time that the producer should be told.
    pub(crate) fn should_publish(&self) -> bool {
        self.head - self.published >= (self.ring.words().len() / LINE_WORDS / 4) as u64
    }

    /// Tells the producer how far it has read. True where that is news.
    pub(crate) fn publish(&mut self) -> bool {
        if self.head == self.published {
            return false;
        }
        // Pairs with the Acquire of `Producer::refresh_head`.
        self.read.words()[0].store(self.head, Ordering::Release);
        self.published = self.head;
        true
    }

    fn first(&self) -> &AtomicU64 {
        let words = self.ring.words();
        &words[(self.head as usize * LINE_WORDS) & (words.len() - 1)]
    }

    #[expect(unsafe_code, reason = "what is about to be written need not be zero before")]
    fn copy_out(&self, length: usize, into: &mut Vec<u8>) -> u32 {
        let mut sum = Sum::new(self.head, length);
        into.reserve(length);
        let (chunks, rest) = into.spare_capacity_mut()[..length].as_chunks_mut::<WORD>();
        let place = places(self.ring.words(), self.head);
        let last = after(place, chunks.len());
        let (first, second) = chunks.split_at_mut(chunks.len().min(place.0.len()));
        for (words, chunks) in [(place.0, first), (place.1, second)] {
            load(&words[..chunks.len()], chunks, &mut sum);
        }
        if !rest.is_empty() {
            let value = last.expect("a chunk of the ring is within it").load(Ordering::Relaxed);
            rest.write_copy_of_slice(&value.to_ne_bytes()[..rest.len()]);
            sum.add(value);
        }
        // SAFETY: All these bytes were written: `load` gives each of the words its eight, and the rest has the last.
        unsafe { into.set_len(into.len() + length) };
        sum.finish()
    }
}

/// Writes whole words, many of them past the caches where the consumer has others.
fn store(words: &[AtomicU64], bytes: &[[u8; WORD]], is_far: bool, sum: &mut Sum) {
    if bytes.len() < bulk::BULK || !is_far {
        return store_words(words, bytes, sum);
    }
    let (before, lines) = bulk::whole_lines(words);
    let (first, rest) = words.split_at(before);
    let (middle, last) = rest.split_at(lines);
    store_words(first, bytes, sum);
    for (words, bytes) in middle.chunks(bulk::BLOCK).zip(bytes[before..before + lines].chunks(bulk::BLOCK)) {
        bulk::store(words, bytes);
        sum.add_all(bytes);
    }
    bulk::fence();
    store_words(last, &bytes[before + lines..], sum);
}

fn store_words(words: &[AtomicU64], bytes: &[[u8; WORD]], sum: &mut Sum) {
    for (word, bytes) in words.iter().zip(bytes) {
        let value = u64::from_ne_bytes(*bytes);
        word.store(value, Ordering::Relaxed);
        sum.add(value);
    }
}

/// Reads whole words, as many as there are in `bytes`.
fn load(words: &[AtomicU64], bytes: &mut [[MaybeUninit<u8>; WORD]], sum: &mut Sum) {
    if bytes.len() < bulk::BULK {
        return load_words(words, bytes, sum);
    }
    let (before, lines) = bulk::whole_lines(words);
    let (first, rest) = words.split_at(before);
    let (middle, last) = rest.split_at(lines);
    load_words(first, bytes, sum);
    for (words, bytes) in middle.chunks(bulk::BLOCK).zip(bytes[before..before + lines].chunks_mut(bulk::BLOCK)) {
        sum.add_all(bulk::load(words, bytes));
    }
    load_words(last, &mut bytes[before + lines..], sum);
}

fn load_words(words: &[AtomicU64], bytes: &mut [[MaybeUninit<u8>; WORD]], sum: &mut Sum) {
    for (word, bytes) in words.iter().zip(bytes) {
        let value = word.load(Ordering::Relaxed);
        *bytes = value.to_ne_bytes().map(MaybeUninit::new);
        sum.add(value);
    }
}

/// The order between a store of one side and a load of the other, of which at least one must see the other's: see [`bell`](crate::bell).
pub(crate) fn order() {
    fence(Ordering::SeqCst);
}
