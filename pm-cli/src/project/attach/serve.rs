//! The side of a project: passes on what one who is attached sends, and what the service prints.

use std::io;

use pm::OutputStream;
use pm::service::{Attached, AttachedInput, AttachedOutput, Event, Happening, Orchestrator, WindowSize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;

use super::frame::{self, Frame, LONGEST};
use crate::project::server::Serving;
use crate::project::up;
use crate::project::wire::{self, Answer};

/// Answers, and passes on until the service has ended for good, or whoever is attached has left.
///
/// # Errors
/// Whoever is attached has gone, or sends what is no frame.
pub async fn serve(
    read: &mut (impl AsyncRead + Unpin),
    write: &mut (impl AsyncWrite + Unpin),
    serving: &Serving,
    label: &str,
) -> io::Result<()> {
    let orchestrator = &serving.orchestrator;
    // Heard before it is looked at: no end is missed.
    let events = orchestrator.events();
    let Attached { input, output, is_terminal, .. } = match orchestrator.attach(label).await {
        Ok(attached) => attached,
        Err(error) => return wire::write(write, &Answer::Failed { message: error.to_string() }).await,
    };
    if let Some((_, text)) = end_of(orchestrator, label).await {
        let message = format!("{label} is not up ({text}): pm start starts it");
        return wire::write(write, &Answer::Failed { message }).await;
    }
    wire::write(write, &Answer::Attached { is_terminal, takes_input: input.is_some() }).await?;
    let (sends, sent) = mpsc::channel(1);
    let (answers, answered) = mpsc::channel(1);
    tokio::select! {
        taken = take(read, input.as_ref(), sends) => taken,
        () = feed(input.as_ref(), sent, answers) => Ok(()),
        given = give(write, output, answered, until_end(orchestrator, label, events)) => given,
    }
}

/// Takes what comes of the one who is attached. What is for the service is passed on, and waited for elsewhere.
async fn take(
    read: &mut (impl AsyncRead + Unpin),
    input: Option<&AttachedInput>,
    sends: mpsc::Sender<Frame>,
) -> io::Result<()> {
    loop {
        match frame::read(read).await? {
            None => return Ok(()),
            Some(Frame::Resize { rows, columns }) => {
                if let Some(input) = input {
                    input.resize(WindowSize { rows, columns });
                }
            }
            Some(frame @ (Frame::Input(_) | Frame::Close)) => {
                // The one before it was not answered yet, and there is room for one more: whoever sends a third does not keep to the rules.
                sends.try_send(frame).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            }
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Waits for the service to take what was sent, and says so.
async fn feed(input: Option<&AttachedInput>, mut sent: mpsc::Receiver<Frame>, answers: mpsc::Sender<Frame>) {
    while let Some(frame) = sent.recv().await {
        let taken = match (input, frame) {
            (None, _) => Err("it takes no input".to_string()),
            (Some(input), Frame::Input(bytes)) => input.send(&bytes).await.map_err(|error| error.to_string()),
            (Some(input), _) => input.close().await.map_err(|error| error.to_string()),
        };
        // Whoever hears it goes together with this.
        let _ = answers.send(taken.map_or_else(Frame::Refused, |()| Frame::Taken)).await;
    }
}

/// Gives what the service prints, and at last how it ended.
async fn give(
    write: &mut (impl AsyncWrite + Unpin),
    mut output: AttachedOutput,
    mut answered: mpsc::Receiver<Frame>,
    end: impl Future<Output = (u8, String)>,
) -> io::Result<()> {
    tokio::pin!(end);
    let (code, text) = loop {
        let piece = tokio::select! {
            biased;
            Some(answer) = answered.recv() => {
                frame::write(write, &answer).await?;
                continue;
            }
            piece = output.next() => piece,
            ended = &mut end => break ended,
        };
        match piece {
            Some(piece) => print(write, piece).await?,
            // It was removed.
            None => break end.await,
        }
    };
    while let Some(piece) = output.take() {
        print(write, piece).await?;
    }
    frame::write(write, &Frame::Ended { code, text }).await
}

async fn print(write: &mut (impl AsyncWrite + Unpin), piece: pm::service::Printed) -> io::Result<()> {
    if piece.missed > 0 {
        frame::write(write, &Frame::Missed(piece.missed)).await?;
    }
    let is_stderr = piece.stream == OutputStream::Stderr;
    for bytes in piece.bytes.chunks(LONGEST) {
        frame::write(write, &Frame::Printed { is_stderr, bytes: bytes.into() }).await?;
    }
    Ok(())
}

/// Waits until the service has ended and nothing will start it again by itself: its exit code, and how it ended in words.
async fn until_end(
    orchestrator: &Orchestrator,
    label: &str,
    mut events: broadcast::Receiver<Happening>,
) -> (u8, String) {
    loop {
        let may_be_over = match events.recv().await {
            Ok(happening) => *happening.label == *label && !matches!(happening.event, Event::Status { .. }),
            // Some were missed.
            Err(RecvError::Lagged(_)) => true,
            Err(RecvError::Closed) => return (0, "its project has ended".into()),
        };
        if may_be_over && let Some(end) = end_of(orchestrator, label).await {
            return end;
        }
    }
}

/// How a process of a service ended, if it has and does not come back by itself.
async fn end_of(orchestrator: &Orchestrator, label: &str) -> Option<(u8, String)> {
    let all = orchestrator.list().await;
    let Some(info) = all.iter().find(|info| *info.label == *label) else { return Some((0, "it was removed".into())) };
    info.state.is_over().then(|| {
        let how = info.exit.map(|exit| format!(", {exit}")).unwrap_or_default();
        (up::exit_code(info), format!("{}{how}", info.state))
    })
}
