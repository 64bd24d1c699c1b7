//! A command that belongs to a service: a probe, a hook, or what asks it to end.

use crate::driver::exec;
use crate::driver::stderr;
use crate::machine::exit::ExitStatus;
use crate::machine::spec::Spec;

/// It may print so much to each of its streams. What prints more says something else than what it is asked.
const MOST_PRINTED: usize = 1 << 20;

/// How it ended, and what it printed.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// Runs it to its end. Cancel safe: it is killed, with all that it has started. The error names the program alone: its arguments may be secrets.
pub(super) async fn run(spec: &Spec) -> Result<Ended, String> {
    let name = spec.program_name();
    let mut running = exec::start(spec, None, MOST_PRINTED).await.map_err(|error| format!("{name}: {error}"))?;
    match running.ended().await {
        Ok(status) => {
            let (stdout, stderr) = running.printed();
            Ok(Ended { status, stdout, stderr })
        }
        Err((stream, _)) => {
            running.kill().await;
            Err(format!("{name}: it printed more than {MOST_PRINTED} bytes to {stream}"))
        }
    }
}

/// How it ended where that is a failure, with the last line of what it said.
pub(super) fn failure(spec: &Spec, status: ExitStatus, said: &[u8]) -> String {
    let last = stderr::last(said);
    let last = last.trim_end().rsplit('\n').next().filter(|line| !line.is_empty());
    format!("{}: {status}{}", spec.program_name(), last.map(|line| format!(" ({line})")).unwrap_or_default())
}
