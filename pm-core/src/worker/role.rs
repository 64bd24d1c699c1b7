//! Roles: a name, the types of a query and the handler that serves it, joined once.

use std::any::type_name;
use std::fmt::{Debug, Display};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{Codec, Json, Postcard, Verbatim};
use crate::driver::flow::Flow;
use crate::face::duplex::Duplex;
use crate::face::error::{HandlerError, HandlerErrorKind};
use crate::machine::handshake::MAX_CONCURRENCY;
use crate::machine::stream::Grant;

/// The default number of calls that an async role runs at the same time.
pub const ASYNC_CONCURRENCY: u32 = 64;

/// A handler without its types: encoded input in, encoded output out.
pub type BlockingHandler = Box<dyn Fn(&[u8], &mut Vec<u8>) -> Result<(), HandlerError> + Send + Sync>;

/// The same for a future.
pub type AsyncHandler = Box<dyn Fn(&[u8]) -> BoxFuture<Result<Vec<u8>, HandlerError>> + Send + Sync>;

/// A future on the heap.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How a role serves one codec.
pub enum Service {
    /// On one thread, one call after another.
    Blocking(BlockingHandler),
    /// As futures, many at the same time.
    Async {
        /// How many.
        concurrency: u32,
        /// The handler.
        handler: AsyncHandler,
    },
    /// Streams, each of them a future.
    Streams {
        /// How many at the same time.
        concurrency: u32,
        /// What a manager may send on each of them before anything is read.
        window: Grant,
        /// The handler.
        handler: StreamHandler,
    },
}

/// A handler of streams without their types.
pub type StreamHandler = Box<dyn Fn(Accepted) -> BoxFuture<Result<(), HandlerError>> + Send + Sync>;

/// A stream that a manager has opened.
#[derive(Debug)]
pub struct Accepted(pub(crate) Arc<Flow>);

impl Accepted {
    /// What it is about, as the manager says.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// This worker's end of it, with messages in this codec.
    pub fn duplex<S, R, C: Codec<S> + Codec<R>>(self, codec: C) -> Duplex<S, R> {
        Duplex::new(self.0, Arc::new(codec))
    }
}

/// Something that this program can do as a worker.
pub trait Role: Sync {
    /// The name by which the manager asks for it.
    fn name(&self) -> &'static str;

    /// The codecs that it speaks.
    fn codecs(&self) -> &[&'static str];

    /// Its handler for a codec; none where it does not speak it. It is dropped when the worker has been drained and has answered
    /// everything, and what it does then has the manager's stop grace to finish. In any other end of the worker it is not.
    fn service(&'static self, codec: &str) -> Option<Service>;
}

/// What a handler may return for an output `O`: `O` itself, or a `Result<O, E>` whose error reaches the caller as a
/// [`HandlerError`] with its type, message and `Debug` form.
pub trait Answer<O> {
    /// The output, or the error of the handler.
    ///
    /// # Errors
    /// The handler's own.
    fn into_answer(self) -> Result<O, HandlerError>;
}

impl<O> Answer<O> for O {
    fn into_answer(self) -> Result<O, HandlerError> {
        Ok(self)
    }
}

impl<O, E: Display + Debug> Answer<O> for Result<O, E> {
    fn into_answer(self) -> Result<O, HandlerError> {
        self.map_err(|error| HandlerError {
            kind: HandlerErrorKind::Error,
            type_name: type_name::<E>().to_string(),
            message: error.to_string(),
            trace: format!("{error:?}"),
            tries: 0,
        })
    }
}

/// A query that this program can serve: name, types and handler.
///
/// The handler returns the output, or a `Result` of it: with `Query<I, O>` an error becomes a
/// [`HandlerError`] with its message; with `Query<I, Result<O, E>>` the error travels as the value that it is.
///
/// ```
/// use pm_core::Query;
///
/// static PARSE: Query<String, i64> = Query::new("parse", &|text: String| text.parse::<i64>());
/// assert_eq!(PARSE.name(), "parse");
/// ```
///
/// `T` is the transport that its pools use unless they say otherwise; the facade's `pm::Query` has chosen one.
pub struct Query<I: 'static, O: 'static, T = ()> {
    name: &'static str,
    handler: Handler<I, O>,
    transport: PhantomData<fn() -> T>,
}

enum Handler<I: 'static, O: 'static> {
    Blocking(&'static dyn Handle<I, O>),
    Async(&'static dyn HandleAsync<I, O>, u32),
}

/// A blocking handler whose return type was brought to one form. Implemented for every fitting function.
pub trait Handle<I, O>: Sync {
    /// Runs it.
    ///
    /// # Errors
    /// The handler's own.
    fn handle(&self, input: I) -> Result<O, HandlerError>;
}

impl<H, I, O, R> Handle<I, O> for H
where
    H: Fn(I) -> R + Sync,
    R: Answer<O>,
{
    fn handle(&self, input: I) -> Result<O, HandlerError> {
        self(input).into_answer()
    }
}

/// The same for a handler that returns a future. Implemented for every fitting function.
pub trait HandleAsync<I, O>: Sync {
    /// Begins it.
    fn handle(&self, input: I) -> BoxFuture<Result<O, HandlerError>>;
}

impl<H, I, O, F, R> HandleAsync<I, O> for H
where
    H: Fn(I) -> F + Sync,
    F: Future<Output = R> + Send + 'static,
    R: Answer<O>,
{
    fn handle(&self, input: I) -> BoxFuture<Result<O, HandlerError>> {
        let future = self(input);
        Box::pin(async move { future.await.into_answer() })
    }
}

impl<I, O, T> Query<I, O, T> {
    /// A query that a blocking function serves, one call after another.
    pub const fn new<H: Handle<I, O>>(name: &'static str, handler: &'static H) -> Self {
        Query { name, handler: Handler::Blocking(handler), transport: PhantomData }
    }

    /// A query that an async function serves, up to [`ASYNC_CONCURRENCY`] calls at the same time, on one thread. A call that is
    /// cancelled is dropped at its next await.
    pub const fn new_async<H: HandleAsync<I, O>>(name: &'static str, handler: &'static H) -> Self {
        Query { name, handler: Handler::Async(handler, ASYNC_CONCURRENCY), transport: PhantomData }
    }

    /// How many calls an async query runs at the same time in one worker. At least 1.
    pub const fn concurrency(self, calls: u32) -> Self {
        let handler = match self.handler {
            Handler::Async(handler, _) => Handler::Async(handler, if calls == 0 { 1 } else { calls }),
            blocking => blocking,
        };
        Query { name: self.name, handler, transport: PhantomData }
    }

    /// The name.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

impl<I, O, T> Typed<I, O> for Query<I, O, T>
where
    I: DeserializeOwned + Send + 'static,
    O: Serialize + Send + 'static,
{
    fn serve_with<C>(&'static self, codec: C) -> Service
    where
        C: Codec<I> + Codec<O>,
    {
        match self.handler {
            Handler::Blocking(handler) => Service::Blocking(Box::new(move |input, output| {
                let input = Codec::<I>::decode(&codec, input).map_err(undecodable)?;
                let answer = handler.handle(input)?;
                Codec::<O>::encode(&codec, &answer, output).map_err(unencodable)
            })),
            Handler::Async(handler, concurrency) => Service::Async {
                concurrency,
                handler: Box::new(move |input| {
                    let codec = codec.clone();
                    let begun =
                        Codec::<I>::decode(&codec, input).map_err(undecodable).map(|input| handler.handle(input));
                    Box::pin(async move {
                        let answer = begun?.await?;
                        let mut output = Vec::new();
                        Codec::<O>::encode(&codec, &answer, &mut output).map_err(unencodable)?;
                        Ok(output)
                    })
                }),
            },
        }
    }
}

impl<I, O, T: 'static> Role for Query<I, O, T>
where
    I: Serialize + DeserializeOwned + Send + 'static,
    O: Serialize + DeserializeOwned + Send + 'static,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn codecs(&self) -> &[&'static str] {
        CODECS
    }

    fn service(&'static self, codec: &str) -> Option<Service> {
        in_codec(self, codec)
    }
}

/// The default number of streams that a worker has at the same time.
pub const STREAM_CONCURRENCY: u32 = 10_000;

/// What a peer may send on a stream before anything is read, where nothing else is said: 1024 messages, and 256 KiB in them. A reader grants more once it has taken half
/// of either, so a writer with up to 512 messages of up to 256 bytes under way never waits for credit.
pub const STREAM_WINDOW: Grant = Grant { messages: 1024, bytes: 256 << 10 };

/// A stream that this program can serve: name, types and handler. A manager sends messages of type `I` on it, and receives those of type `O`.
///
/// The handler is an async function of the worker's end. The stream lasts until it returns; it may return an error, which ends the stream for its reader.
/// Handlers of one worker share a thread.
///
/// ```
/// use pm_core::face::duplex::Duplex;
/// use pm_core::face::error::StreamError;
/// use pm_core::worker::role::Stream;
///
/// /// Sends the sum so far after each number.
/// async fn sum(mut numbers: Duplex<i64, i64>) -> Result<(), StreamError> {
///     let mut sum = 0;
///     while let Some(number) = numbers.next().await {
///         sum += number?;
///         numbers.write(&sum).await?;
///     }
///     Ok(())
/// }
///
/// static SUM: Stream<i64, i64> = Stream::new("sum", &sum);
/// assert_eq!(SUM.name(), "sum");
/// ```
///
/// `T` is the transport that its pools use unless they say otherwise; the facade's `pm::Stream` has chosen one.
pub struct Stream<I: 'static, O: 'static, T = ()> {
    name: &'static str,
    handler: &'static dyn HandleAsync<Duplex<O, I>, ()>,
    concurrency: u32,
    window: Grant,
    transport: PhantomData<fn() -> T>,
}

impl<I, O, T> Stream<I, O, T> {
    /// A stream that an async function serves.
    pub const fn new<H: HandleAsync<Duplex<O, I>, ()>>(name: &'static str, handler: &'static H) -> Self {
        Stream { name, handler, concurrency: STREAM_CONCURRENCY, window: STREAM_WINDOW, transport: PhantomData }
    }

    /// How many streams one worker has at the same time, at most: from 1 to 65,535, and 10,000 by default. Beyond that they wait for another worker, or in the queue
    /// of the pool.
    pub const fn concurrency(self, streams: u32) -> Self {
        let most = MAX_CONCURRENCY;
        let concurrency = match streams {
            0 => 1,
            streams if streams > most => most,
            streams => streams,
        };
        Stream { concurrency, ..self }
    }

    /// How many messages, and bytes in them, the worker holds of each stream that its handler has not read: 1024 and 256 KiB by default. Both from 1 to 2^31 - 1.
    pub const fn window(self, messages: u32, bytes: u32) -> Self {
        Stream { window: Grant { messages, bytes }.within_limits(), ..self }
    }

    /// The name.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

impl<I, O, T> Typed<I, O> for Stream<I, O, T>
where
    I: DeserializeOwned + Send + 'static,
    O: Serialize + Send + 'static,
{
    fn serve_with<C: Codec<I> + Codec<O>>(&'static self, codec: C) -> Service {
        let handler: StreamHandler = Box::new(move |accepted| self.handler.handle(accepted.duplex(codec.clone())));
        Service::Streams { concurrency: self.concurrency, window: self.window, handler }
    }
}

impl<I, O, T: 'static> Role for Stream<I, O, T>
where
    I: Serialize + DeserializeOwned + Send + 'static,
    O: Serialize + DeserializeOwned + Send + 'static,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn codecs(&self) -> &[&'static str] {
        CODECS
    }

    fn service(&'static self, codec: &str) -> Option<Service> {
        in_codec(self, codec)
    }
}

/// The codecs of typed roles.
const CODECS: &[&str] = &[
    "postcard",
    "json",
    #[cfg(feature = "bincode")]
    "bincode",
];

/// A role that any codec can serve that carries its types.
trait Typed<I, O> {
    fn serve_with<C: Codec<I> + Codec<O>>(&'static self, codec: C) -> Service;
}

/// How such a role serves the codec of this name.
fn in_codec<I, O>(role: &'static impl Typed<I, O>, codec: &str) -> Option<Service>
where
    I: Serialize + DeserializeOwned,
    O: Serialize + DeserializeOwned,
{
    match codec {
        "postcard" => Some(role.serve_with(Postcard)),
        "json" => Some(role.serve_with(Json)),
        #[cfg(feature = "bincode")]
        "bincode" => Some(role.serve_with(crate::codec::Bincode)),
        _ => None,
    }
}

/// A handler that reads and writes its payloads itself.
type ByteHandler = dyn Fn(&[u8], &mut Vec<u8>) -> Result<(), HandlerError> + Sync;

/// A query over bytes, whose handler reads and writes its payloads itself: a bridge to other programs, or a codec of its own.
pub struct ByteQuery {
    name: &'static str,
    codec: [&'static str; 1],
    handler: &'static ByteHandler,
}

impl ByteQuery {
    /// A query whose payloads are in the codec of this name.
    pub const fn new<H>(name: &'static str, codec: &'static str, handler: &'static H) -> Self
    where
        H: Fn(&[u8], &mut Vec<u8>) -> Result<(), HandlerError> + Sync,
    {
        ByteQuery { name, codec: [codec], handler }
    }
}

impl Role for ByteQuery {
    fn name(&self) -> &'static str {
        self.name
    }

    fn codecs(&self) -> &[&'static str] {
        &self.codec
    }

    fn service(&'static self, codec: &str) -> Option<Service> {
        (codec == self.codec[0]).then(|| Service::Blocking(Box::new(self.handler)))
    }
}

/// A stream over bytes, whose handler reads and writes its payloads itself: a bridge to other programs, or a codec of its own.
pub struct ByteStream {
    stream: Stream<Bytes, Bytes>,
    codec: [&'static str; 1],
}

impl ByteStream {
    /// A stream whose payloads are in the codec of this name.
    pub const fn new<H: HandleAsync<Duplex<Bytes, Bytes>, ()>>(
        name: &'static str,
        codec: &'static str,
        handler: &'static H,
    ) -> Self {
        ByteStream { stream: Stream::new(name, handler), codec: [codec] }
    }

    /// As [`Stream::concurrency`].
    pub const fn concurrency(self, streams: u32) -> Self {
        ByteStream { stream: self.stream.concurrency(streams), codec: self.codec }
    }

    /// As [`Stream::window`].
    pub const fn window(self, messages: u32, bytes: u32) -> Self {
        ByteStream { stream: self.stream.window(messages, bytes), codec: self.codec }
    }
}

impl Role for ByteStream {
    fn name(&self) -> &'static str {
        self.stream.name
    }

    fn codecs(&self) -> &[&'static str] {
        &self.codec
    }

    fn service(&'static self, codec: &str) -> Option<Service> {
        (codec == self.codec[0]).then(|| self.stream.serve_with(Verbatim(self.codec[0])))
    }
}

fn undecodable(error: crate::codec::CodecError) -> HandlerError {
    HandlerError {
        kind: HandlerErrorKind::Decode,
        type_name: String::new(),
        message: error.to_string(),
        trace: String::new(),
        tries: 0,
    }
}

fn unencodable(error: crate::codec::CodecError) -> HandlerError {
    HandlerError {
        kind: HandlerErrorKind::Error,
        type_name: type_name::<crate::codec::CodecError>().to_string(),
        message: format!("the output cannot be encoded: {error}"),
        trace: String::new(),
        tries: 0,
    }
}
