//! tarpc over a Unix socket, with bincode. Payloads are `Bytes`, which serde takes in one piece.

use std::hint::black_box;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::process::Stdio;

use ::tarpc::server::{BaseChannel, Channel};
use ::tarpc::tokio_serde::formats::Bincode;
use ::tarpc::{client, context, serde_transport};
use bytes::Bytes;
use futures::StreamExt;
use tokio::net::UnixStream;

use crate::cli::Args;
use crate::error::{PeerError, Step};
use crate::measure::{alone_and_crowd, payload, runtime};
use crate::rival::Rival;
use crate::role::Worker;
use crate::row::{Row, SIZES};

#[::tarpc::service]
trait Echo {
    async fn echo(bytes: Bytes) -> Bytes;
}

/// The manager.
pub(crate) fn measure(args: &Args) -> Result<Vec<Row>, PeerError> {
    let (ours, theirs) = StdStream::pair().step("open a socket")?;
    let _worker = Worker::start(Rival::Tarpc, args.placement, "", Stdio::from(OwnedFd::from(theirs)), Stdio::null())?;
    let runtime = runtime(args.placement)?;
    let time = args.seconds;
    let work = async move {
        let transport = serde_transport::Transport::from((stream(ours)?, Bincode::default()));
        let client = EchoClient::new(client::Config::default(), transport).spawn();
        let mut rows = Vec::new();
        for bytes in SIZES {
            let payload = Bytes::from(payload(bytes));
            let client = client.clone();
            let call = move || {
                let (client, payload) = (client.clone(), payload.clone());
                async move { round_trip(&client, &payload).await }
            };
            let (alone, crowd) = alone_and_crowd(time, None, call).await;
            rows.push(Row::new(bytes, alone, crowd));
        }
        Ok(rows)
    };
    runtime.block_on(async { tokio::spawn(work).await }).step("measure tarpc")?
}

async fn round_trip(client: &EchoClient, payload: &Bytes) {
    let answer = client.echo(context::current(), black_box(payload.clone())).await;
    assert_eq!(answer.as_ref().ok(), Some(payload), "{answer:?}");
}

/// The worker, which has the socket as its standard input.
pub(crate) fn serve() -> Result<(), PeerError> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().step("take the socket")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().step("start a runtime")?;
    runtime.block_on(async {
        let transport = serde_transport::Transport::from((stream(socket.into())?, Bincode::default()));
        let answers = BaseChannel::with_defaults(transport).execute(Echoing.serve());
        answers.for_each(async |answer| drop(tokio::spawn(answer))).await;
        Ok(())
    })
}

#[derive(Clone)]
struct Echoing;

impl Echo for Echoing {
    async fn echo(self, _: context::Context, bytes: Bytes) -> Bytes {
        black_box(bytes)
    }
}

fn stream(stream: StdStream) -> Result<UnixStream, PeerError> {
    stream.set_nonblocking(true).step("set up the socket")?;
    UnixStream::from_std(stream).step("set up the socket")
}
