//! What is to follow from an event of a service: code of the program, or a command.

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;

use super::command;
use crate::machine::spec::Spec;

/// How long a hook may take.
pub const HOOK_LIMIT: Duration = Duration::from_secs(30);

/// So many hooks of one process of a service may run at a time. A service that crashes again and again must not fill the machine with them.
pub(super) const MOST_AT_A_TIME: usize = 32;

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// A process of the service was made.
    Start,
    /// It has ended on request.
    Stop,
    /// Its process was made again after an end.
    Restart,
    /// It has ended otherwise than on request or with a success.
    Crash,
}

impl Moment {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Moment::Start => "start",
            Moment::Stop => "stop",
            Moment::Restart => "restart",
            Moment::Crash => "crash",
        }
    }
}

/// What a hook is told. Commands have it in their environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occasion {
    /// The service, with the number of the replica where there are several: `PM_SERVICE`.
    pub service: Arc<str>,
    /// What happened: `PM_EVENT`.
    pub moment: Moment,
    /// Its process, where there is or was one: `PM_PID`.
    pub pid: Option<u32>,
    /// Why it ended, where it has: `PM_CAUSE`.
    pub cause: Option<String>,
}

type Done = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Code or a command that follows from an event. It has [`HOOK_LIMIT`], and nothing waits for it: where it fails there is an event, and no more.
#[derive(Clone)]
pub(crate) enum Hook {
    Code(Arc<dyn Fn(Occasion) -> Done + Send + Sync>),
    Command(Box<Spec>),
}

impl Hook {
    /// Whether the same follows. Code cannot be looked into: it is the same where it is the very same.
    pub(crate) fn is_same(&self, other: &Hook) -> bool {
        match (self, other) {
            (Hook::Code(one), Hook::Code(other)) => Arc::ptr_eq(one, other),
            (Hook::Command(one), Hook::Command(other)) => one == other,
            (Hook::Code(_), Hook::Command(_)) | (Hook::Command(_), Hook::Code(_)) => false,
        }
    }

    /// Runs it. The error says what failed.
    pub(super) async fn run(self, occasion: Occasion) -> Result<(), String> {
        let done = async {
            match self {
                Hook::Code(code) => code(occasion).await,
                Hook::Command(spec) => run_command(&spec, occasion).await,
            }
        };
        let limited = tokio::time::timeout(HOOK_LIMIT, done);
        // In a task of its own, whose panic is an error like any other.
        match tokio::spawn(limited).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(format!("it took longer than {HOOK_LIMIT:?}")),
            Err(error) => Err(panicked(error)),
        }
    }
}

/// What a panic said.
fn panicked(error: JoinError) -> String {
    let Ok(payload) = error.try_into_panic() else { return "the runtime ends".into() };
    let said = payload.downcast_ref::<String>().map(String::as_str);
    let said = said.or_else(|| payload.downcast_ref::<&str>().copied());
    said.map_or_else(|| "it panicked".into(), |said| format!("it panicked: {said}"))
}

async fn run_command(spec: &Spec, occasion: Occasion) -> Result<(), String> {
    let mut variables: Vec<(OsString, OsString)> = vec![
        ("PM_SERVICE".into(), occasion.service.to_string().into()),
        ("PM_EVENT".into(), occasion.moment.name().into()),
    ];
    variables.extend(occasion.pid.map(|pid| ("PM_PID".into(), pid.to_string().into())));
    variables.extend(occasion.cause.map(|cause| ("PM_CAUSE".into(), cause.into())));
    let ended = command::run(&spec.with_variables(variables)).await?;
    if ended.status.success() { Ok(()) } else { Err(command::failure(spec, ended.status, &ended.stderr)) }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hook::Code(_) => f.write_str("Code"),
            Hook::Command(spec) => f.debug_tuple("Command").field(spec).finish(),
        }
    }
}
