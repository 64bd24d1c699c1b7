//! The worker's side: what runs in the process that serves.
//!
//! | module | holds |
//! |---|---|
//! | [`link`] | the byte stream to the manager |
//! | [`role`] | a name, two types and a handler, joined once |
//! | `desk` | the calls that came and have not been answered |
//! | `streams` | those of them that are streams |
//! | `serve` | the loop that runs a blocking handler, and its attendant |
//! | `intake` | how a thread that runs futures hears of what comes |
//! | `serve_async` | the same for handlers that are futures |
//! | [`error`] | why a worker cannot serve |
//! | [`context`] | what a handler can ask and say while it runs |
//! | [`listeners`] | what a worker was given to accept connections from |
//!
//! A program becomes a worker in [`roles_over`] (which the facade calls as `pm::roles`), when the environment says so.

pub mod context;
mod desk;
pub mod error;
mod intake;
pub mod link;
pub mod listeners;
pub mod role;
mod serve;
mod serve_async;
mod streams;

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use self::desk::Job;
use self::error::ServeError;
use self::link::WorkerLink;
use self::role::{Accepted, BoxFuture, Role, Service};
use crate::driver::launch;
use crate::driver::listeners::LISTEN_VARIABLES;
use crate::face::error::HandlerError;
use crate::machine::handshake::{Hello, Ready, VERSION};
use crate::machine::stream::Grant;
use crate::sys::inherited;
use crate::sys::outbox::Outbox;
use crate::transport::{
    Connect, LINK_FD_VARIABLE, LINK_VARIABLE, LINK_VARIABLES, OUTBOX_FD_VARIABLE, ROLE_VARIABLE, SOCKET_VARIABLE,
};

/// The descriptor that the environment names as this worker's link, for a [`Connect`]. It is taken out of the reach of children.
///
/// # Errors
/// `NotFound` where no variable names one, `InvalidData` where it is no number, and what the kernel says of a descriptor that is not open.
pub fn inherited_link() -> io::Result<OwnedFd> {
    inherited_descriptor(LINK_FD_VARIABLE)
}

fn inherited_descriptor(variable: &str) -> io::Result<OwnedFd> {
    let value = std::env::var(variable).map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?;
    let number = value.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    inherited::take_descriptor(number)
}

/// The exit code of a worker that cannot serve what it was started for: `EX_USAGE` of sysexits.
pub(crate) const CANNOT_SERVE: i32 = 64;

/// Becomes a worker, or the keeper, where the environment says so, and never returns then. Returns otherwise. A manager that names no role, as
/// `pm pool` does, gets the only one; where there are several the worker ends with an error that says so.
///
/// Call it first in `main`, before any thread, runtime or logger: a worker needs none of them, and the environment can be
/// changed safely only while there is one thread.
///
/// # Panics
/// Never. A worker that cannot serve says why on its standard error and ends with exit code 64.
pub fn roles_over(roles: &[&'static dyn Role], transports: &[&dyn Connect]) {
    launch::run_if_keeper();
    let Some(scheme) = scheme() else { return };
    let name = match (std::env::var_os(ROLE_VARIABLE), roles) {
        (Some(name), _) => name,
        // Whoever starts a worker that is a program of its own names no role: where there is one, that is it.
        (None, [only]) => only.name().into(),
        // Such a program may go on to `serve`.
        (None, []) => return,
        (None, _) => OsString::new(),
    };
    let result = become_worker(roles, transports, scheme, &name);
    match result {
        Ok(never) => match never {},
        Err(why) => {
            eprintln!("pm worker {name:?}: {why}");
            std::process::exit(CANNOT_SERVE);
        }
    }
}

/// Serves one role over the link that the environment names, in a program that is nothing but a worker. Returns an error
/// where it cannot, and never returns otherwise.
///
/// # Errors
/// [`ServeError`]: there is no link, for the program was started by hand, or it cannot be opened.
pub fn serve_over(role: &'static dyn Role, transports: &[&dyn Connect]) -> Result<Infallible, ServeError> {
    let scheme = scheme().ok_or(ServeError::NoManager)?;
    let (link, outbox) = connect(transports, scheme)?;
    serve(link, outbox, &|_| Ok(role))
}

/// The transport that the environment names. Pools that take visitors have sockets.
fn scheme() -> Option<OsString> {
    std::env::var_os(LINK_VARIABLE).or_else(|| std::env::var_os(SOCKET_VARIABLE).map(|_| "uds".into()))
}

fn become_worker(
    roles: &[&'static dyn Role],
    transports: &[&dyn Connect],
    scheme: OsString,
    name: &OsString,
) -> Result<Infallible, ServeError> {
    let (link, outbox) = connect(transports, scheme)?;
    let find = |asked: Option<&str>| {
        let asked = asked.map_or_else(|| name.clone(), OsString::from);
        let known = || roles.iter().map(|role| role.name()).collect();
        match roles.iter().copied().find(|role| *asked == *role.name()) {
            Some(role) => Ok(role),
            None if asked.is_empty() => Err(ServeError::NoRoleNamed { known: known() }),
            None => Err(ServeError::NoRole { asked: asked.to_string_lossy().into_owned(), known: known() }),
        }
    };
    serve(link, outbox, &find)
}

fn connect(transports: &[&dyn Connect], asked: OsString) -> Result<(Box<dyn WorkerLink>, Option<Outbox>), ServeError> {
    if tokio::runtime::Handle::try_current().is_ok() {
        return Err(ServeError::InRuntime);
    }
    let Some(transport) = transports.iter().find(|transport| *asked == *transport.scheme()) else {
        let known = transports.iter().map(|transport| transport.scheme()).collect();
        return Err(ServeError::NoTransport { asked, known });
    };
    let link = transport.connect().map_err(|source| ServeError::Link { scheme: transport.scheme(), source })?;
    // An outbox that cannot be used is done without.
    let outbox = inherited_descriptor(OUTBOX_FD_VARIABLE).and_then(|fd| Outbox::map(&fd)).ok();
    listeners::inherit();
    // No child of this process shall believe that it is a worker.
    inherited::forget_variables(&LINK_VARIABLES);
    inherited::forget_variables(&[ROLE_VARIABLE]);
    inherited::forget_variables(&LISTEN_VARIABLES);
    Ok((link, outbox))
}

fn serve(
    link: Box<dyn WorkerLink>,
    outbox: Option<Outbox>,
    find: &dyn Fn(Option<&str>) -> Result<&'static dyn Role, ServeError>,
) -> Result<Infallible, ServeError> {
    let desk = desk::Desk::open(link, outbox, desk::AtEnd::Exit);
    let hello = desk.hello()?;
    let role = find(hello.role.as_deref())?;
    name_process(role.name());
    context::set_process(&desk);
    serve_until_the_end(&desk, role, hello)?;
    std::process::exit(0)
}

/// Where process lists would have `exe`, for it was started as `/proc/self/exe`, they have the role.
fn name_process(role: &str) {
    let is_nameless = rustix::thread::name().is_ok_and(|name| name.as_bytes() == b"exe");
    if is_nameless && let Ok(name) = CString::new(role) {
        // The kernel cuts it to 15 bytes. Without it nothing is worse than before.
        let _ = rustix::thread::set_name(&name);
    }
}

/// Serves a role in this thread of the manager itself, until its link ends.
pub(crate) fn serve_in_thread(link: Box<dyn WorkerLink>, role: &'static dyn Role) -> Result<(), ServeError> {
    let desk = desk::Desk::open(link, None, desk::AtEnd::Return);
    let hello = desk.hello()?;
    serve_until_the_end(&desk, role, hello)
}

/// Answers HELLO, serves until the link ends, lets the handler go, and says BYE.
fn serve_until_the_end(desk: &Arc<desk::Desk>, role: &'static dyn Role, hello: Hello) -> Result<(), ServeError> {
    match accept(desk, role, hello)? {
        Service::Blocking(handler) => serve::serve(desk, &handler)?,
        Service::Async { concurrency, handler } => {
            serve_async::serve(desk, concurrency, &|job| handler(&job.input))?;
        }
        Service::Streams { concurrency, handler, .. } => {
            let begin = |job: &mut Job| -> BoxFuture<Result<Vec<u8>, HandlerError>> {
                let stream = job.flow.take().map(|flow| handler(Accepted(flow)));
                Box::pin(async move {
                    match stream {
                        Some(stream) => stream.await.map(|()| Vec::new()),
                        None => Ok(Vec::new()),
                    }
                })
            };
            serve_async::serve(desk, concurrency, &begin)?;
        }
    }
    desk.bye();
    Ok(())
}

/// Answers HELLO. A codec that the role does not speak is the manager's to report: READY names what it would speak.
fn accept(desk: &desk::Desk, role: &'static dyn Role, hello: Hello) -> Result<Service, ServeError> {
    let service = role.service(&hello.codec);
    let codec = if service.is_some() { hello.codec.clone() } else { role.codecs().join(" or ") };
    let (concurrency, streams) = match &service {
        Some(Service::Async { concurrency, .. }) => (*concurrency, None),
        Some(Service::Streams { concurrency, window, .. }) => (*concurrency, Some(*window)),
        Some(Service::Blocking(_)) | None => (1, None),
    };
    if let Some(window) = streams {
        desk.take_streams(window, hello.streams.unwrap_or(Grant::NONE));
    }
    let ready = Ready {
        version: VERSION,
        codec,
        role: Some(role.name().to_string()),
        concurrency,
        ahead: concurrency,
        streams,
    };
    desk.ready(&ready)?;
    let known = || role.codecs().to_vec();
    service.ok_or_else(|| ServeError::NoCodec { role: role.name(), asked: hello.codec, known: known() })
}
