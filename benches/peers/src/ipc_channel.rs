//! ipc-channel: a channel of bytes each way, which is the quickest that it has.

use std::hint::black_box;
use std::panic::resume_unwind;
use std::process::Stdio;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use ::ipc_channel::ipc::{IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcSender, bytes_channel};

use crate::cli::Args;
use crate::error::{PeerError, Step};
use crate::measure::{alone, check, payload, rate};
use crate::rival::Rival;
use crate::role::{Worker, address};
use crate::row::{CROWD, Row, SIZES};

/// What the worker sends when it is there: where requests go to, and where answers come from.
type Ends = (IpcBytesSender, IpcBytesReceiver);

/// The manager.
pub(crate) fn measure(args: &Args) -> Result<Vec<Row>, PeerError> {
    let (server, name) = IpcOneShotServer::<Ends>::new().step("open a server")?;
    let _worker = Worker::start(Rival::IpcChannel, args.placement, &name, Stdio::null(), Stdio::null())?;
    let (_, (requests, answers)) = server.accept().step("hear from the worker")?;
    let rows = SIZES.map(|bytes| {
        let payload = payload(bytes);
        let call = || {
            requests.send(black_box(&payload)).step("send a request")?;
            check(&answers.recv().step("receive an answer")?, &payload)
        };
        let (p50, p99) = alone(args.seconds, call)?;
        let rate = rate(args.seconds, |time| crowd(time, requests.clone(), &answers, &payload))?;
        Ok(Row { bytes, p50, p99, rate, cpu: None })
    });
    rows.into_iter().collect()
}

/// A thread sends, as a full socket makes it wait; this one receives.
fn crowd(
    time: Duration,
    requests: IpcBytesSender,
    answers: &IpcBytesReceiver,
    payload: &[u8],
) -> Result<u64, PeerError> {
    let end = Instant::now() + time;
    let (under_way, done) = sync_channel(CROWD);
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            while Instant::now() < end && under_way.send(()).is_ok() {
                requests.send(black_box(payload)).step("send a request")?;
            }
            Ok(())
        });
        let mut count = 0;
        for () in done {
            check(&answers.recv().step("receive an answer")?, payload)?;
            count += 1;
        }
        sender.join().unwrap_or_else(|panic| resume_unwind(panic)).map(|()| count)
    })
}

/// The worker.
pub(crate) fn serve() -> Result<(), PeerError> {
    let manager = IpcSender::connect(address()?).step("connect to the manager")?;
    let (to_worker, requests) = bytes_channel().step("open a channel")?;
    let (answers, to_manager) = bytes_channel().step("open a channel")?;
    manager.send((to_worker, to_manager)).step("greet the manager")?;
    // Until the manager has gone.
    while let Ok(request) = requests.recv() {
        answers.send(black_box(&request)).step("send an answer")?;
    }
    Ok(())
}
