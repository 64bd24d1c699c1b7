//! What is to be done, checked and resolved: from a [`Plan`] on, nothing can be a usage error.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pm::core::driver::launch::{check_interpreter, resolve_program};
use pm::{AnyTransport, Role, Spec, SpecBuilder};

use crate::cli::{Input, Output, PoolArgs, Progress, RetryOn, Speaks};
use crate::error::CliError;
use crate::pool::key::Key;
use crate::roles::{builtin, exec, filter};

/// The most workers that a pool can have.
const MAX_WORKERS: u32 = pm::core::face::builder::MAX_WORKERS;

/// The most streams that can be open: some KiB of memory each, here and in the workers.
const MAX_STREAMS: usize = 1_000_000;

/// The longest line that can be asked for: what a frame carries, quoted.
const MAX_LINE: usize = 60 << 20;

/// What runs the function of a file.
#[derive(Clone, Copy, Debug)]
struct Interpreter {
    worker: &'static str,
    program: &'static str,
    ending: &'static str,
    kit: &'static str,
    /// What has it run the kit.
    words: &'static [&'static str],
}

/// The variable that brings a kit to its interpreter, which takes it out of the environment: among the arguments it would stand in each line of `ps`.
const KIT_VARIABLE: &str = "PM_KIT";

const PYTHON: Interpreter = Interpreter {
    worker: "@py",
    program: "python3",
    ending: "py",
    kit: include_str!("../../workers/python/pm_worker.py"),
    words: &["-c", r#"import os;exec(compile(os.environb.pop(b"PM_KIT"),"<pm_worker>","exec"))"#],
};

const NODE: Interpreter = Interpreter {
    worker: "@node",
    program: "node",
    ending: "js",
    kit: concat!(include_str!("../../workers/node/pm_worker.js"), "//# sourceURL=pm_worker.js"),
    words: &["-e", "{const kit=process.env.PM_KIT;delete process.env.PM_KIT;eval(kit)}", "--"],
};

/// What the kernel takes for one variable or argument, its end included (`MAX_ARG_STRLEN`, on pages of 4 KiB).
const MAX_STRING: usize = 128 << 10;

const _: () = assert!(PYTHON.kit.len() + KIT_VARIABLE.len() + 2 <= MAX_STRING);
const _: () = assert!(NODE.kit.len() + KIT_VARIABLE.len() + 2 <= MAX_STRING);

/// A `pm pool` that can be carried out.
#[derive(Debug)]
pub struct Plan {
    /// How many workers.
    pub workers: u32,
    /// How they are talked to.
    pub transport: AnyTransport,
    /// What they are.
    pub worker: Worker,
    /// How long a worker may take until READY.
    pub start_timeout: Duration,
    /// How long a try may take.
    pub timeout: Option<Duration>,
    /// The interval of chaos.
    pub chaos: Option<Duration>,
    /// What is tried again.
    pub retry: Retry,
    /// When to stop early.
    pub halt: Halt,
    /// What ends a job on standard input.
    pub delimiter: u8,
    /// The longest line.
    pub max_line: usize,
    /// What a line is.
    pub input: Input,
    /// What a result is.
    pub output: Output,
    /// Whether the input stands before a plain result.
    pub tag: bool,
    /// Whether results keep the order of the jobs.
    pub ordered: bool,
    /// Each line is a message on the stream of its key. None where it is a job.
    pub streams: Option<Streams>,
    /// Where results go, if not to standard output.
    pub log: Option<Log>,
    /// What is shown on standard error.
    pub progress: Shown,
}

/// What the workers of the pool are.
#[derive(Debug)]
pub struct Worker {
    /// The name of the pool.
    pub name: String,
    /// What is started.
    pub program: Program,
    /// What goes to a worker and comes back.
    pub wire: Wire,
    /// How long it may take to end a call that nobody waits for any more.
    pub cancel_grace: Duration,
    /// Whether a worker is known to run one job at a time.
    pub one_at_a_time: bool,
    /// Whether COMMAND itself is to speak pm's protocol.
    pub speaks_protocol: bool,
}

/// What is started.
pub enum Program {
    /// This program, in a role.
    Role(&'static dyn Role, Vec<OsString>),
    /// Another one.
    Other(Box<SpecBuilder>),
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Program::Role(role, args) => f.debug_tuple("Role").field(&role.name()).field(args).finish(),
            Program::Other(spec) => f.debug_tuple("Other").field(spec).finish(),
        }
    }
}

/// What goes to a worker and comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Text, as bytes.
    Text,
    /// The same; the result is what a program printed.
    Printed,
    /// One JSON value.
    Json,
}

/// What lines are messages on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Streams {
    /// Which stream a line belongs to.
    pub key: Key,
    /// How many are open at the same time at most.
    pub most: usize,
}

/// What is tried again, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    /// How often.
    pub times: u32,
    /// After the death of a worker.
    pub lost: bool,
    /// After a timeout.
    pub timeout: bool,
    /// After an error of the job.
    pub error: bool,
}

/// When to stop early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// Not before all jobs are done.
    Never,
    /// At so many failures, once the jobs aboard are finished.
    Soon(u64),
    /// At so many failures, at once.
    Now(u64),
}

/// The result file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Where it is.
    pub path: PathBuf,
    /// Whether what stands in it is done.
    pub resume: bool,
    /// Whether failures in it are to be done again.
    pub retry_failed: bool,
    /// Whether results count once they are on the disk.
    pub sync: bool,
}

/// What is shown on standard error while jobs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nothing but errors.
    Nothing,
    /// A line now and then, and the summary.
    Lines,
    /// The bar, and the summary.
    Bar,
}

impl Plan {
    /// Checks the arguments, and finds the program.
    ///
    /// # Errors
    /// What cannot be carried out, and what could.
    pub fn new(args: PoolArgs) -> Result<Self, CliError> {
        let option = |option, problem: String| CliError::Option { option, problem };
        if args.output_file.as_ref().is_some_and(|path| path.as_os_str() == "-") {
            let problem =
                "standard output is no result file; leave -o out, and write --out json for its lines".to_string();
            return Err(option("-o", problem));
        }
        let workers = match args.jobs {
            None => std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
            Some(workers @ 1..=MAX_WORKERS) => workers,
            Some(other) => return Err(option("--jobs", format!("a pool has 1 to {MAX_WORKERS} workers, not {other}"))),
        };
        let transport = args.transport.parse::<AnyTransport>();
        let transport = transport.map_err(|error| option("--transport", error.to_string()))?;
        if args.start_timeout.is_zero() {
            return Err(option("--start-timeout", "no worker is ready in no time; write 30s, for example".to_string()));
        }
        if args.chaos.is_some_and(|interval| interval.is_zero()) {
            return Err(option("--chaos", "write an interval, as in 200ms".to_string()));
        }
        if !(1..=MAX_LINE).contains(&args.max_line) {
            return Err(option("--max-line", format!("a line has 1 to {MAX_LINE} bytes (60M), not {}", args.max_line)));
        }
        let is_log = args.output_file.is_some();
        let output = match (args.output, is_log) {
            (Some(Output::Plain), true) => {
                let problem = "a result file is JSON; leave out --out plain, or -o and write `> FILE`";
                return Err(option("-o", problem.to_string()));
            }
            (output, false) => output.unwrap_or(Output::Plain),
            (_, true) => Output::Json,
        };
        if args.tag && output == Output::Json {
            return Err(option(
                "--tag",
                "an object of --out json and -o holds the input anyway; leave out --tag".to_string(),
            ));
        }
        let streams = match &args.key {
            Some(key) => {
                if !(1..=MAX_STREAMS).contains(&args.max_streams) {
                    let problem = format!("1 to {MAX_STREAMS} streams can be open, not {}", args.max_streams);
                    return Err(option("--max-streams", problem));
                }
                let key = Key::new(key, args.input).map_err(|problem| option("--key", problem))?;
                Some(Streams { key, most: args.max_streams })
            }
            None => None,
        };
        Ok(Plan {
            workers,
            transport,
            streams,
            worker: Worker::new(&args)?,
            start_timeout: args.start_timeout,
            timeout: Some(args.timeout).filter(|limit| !limit.is_zero()),
            chaos: args.chaos,
            retry: Retry {
                times: args.retry,
                lost: args.retry_on.contains(&RetryOn::Lost),
                timeout: args.retry_on.contains(&RetryOn::Timeout),
                error: args.retry_on.contains(&RetryOn::Error),
            },
            halt: halt(&args.halt).map_err(|problem| option("--halt", problem))?,
            delimiter: if args.null { 0 } else { b'\n' },
            max_line: args.max_line,
            input: args.input,
            output,
            tag: args.tag,
            ordered: !args.unordered,
            log: args.output_file.map(|path| Log {
                path,
                resume: args.resume || args.retry_failed,
                retry_failed: args.retry_failed,
                sync: args.sync,
            }),
            progress: match (args.progress, std::io::stderr().is_terminal()) {
                (Progress::Never, _) | (Progress::Auto, false) => Shown::Nothing,
                (Progress::Always, false) => Shown::Lines,
                (Progress::Auto | Progress::Always, true) => Shown::Bar,
            },
        })
    }
}

fn halt(text: &str) -> Result<Halt, String> {
    let help = "write never, soon,fail=N or now,fail=N, with N at least 1";
    let failures = |text: &str| match text.strip_prefix("fail=").and_then(|number| number.parse().ok()) {
        Some(failures @ 1..) => Ok(failures),
        _ => Err(help.to_string()),
    };
    match text.split_once(',') {
        None if text == "never" => Ok(Halt::Never),
        Some(("soon", rest)) => failures(rest).map(Halt::Soon),
        Some(("now", rest)) => failures(rest).map(Halt::Now),
        _ => Err(help.to_string()),
    }
}

impl Worker {
    fn new(args: &PoolArgs) -> Result<Self, CliError> {
        let (first, rest) = args.command.split_first().map_or((OsStr::new(""), &[][..]), |(first, rest)| (first, rest));
        if first.as_bytes().starts_with(b"@") {
            if args.speaks.is_some() {
                let problem = "a built-in worker takes its jobs in its own way; leave out --as".to_string();
                return Err(CliError::Option { option: "--as", problem });
            }
            return Worker::built_in(&first.to_string_lossy(), rest, args);
        }
        let name = Path::new(first).file_name().unwrap_or(first).to_string_lossy().into_owned();
        let has_hole = args.command.iter().any(|word| exec::Template::has_hole(word));
        if has_hole && args.speaks.is_some() {
            let problem = "{} stands for a program that is started for each job, and --as for one that stays; leave out one of the two";
            return Err(CliError::Option { option: "--as", problem: problem.to_string() });
        }
        let path = std::env::var_os("PATH");
        let find = || {
            let program = resolve_program(first, path.as_deref()).map_err(CliError::Program)?;
            check_interpreter(&program).map_err(CliError::Program)?;
            Ok(program)
        };
        let words = |program: PathBuf| std::iter::once(program.into()).chain(args.command.iter().cloned()).collect();
        // Such a worker holds nothing that is worth keeping: what does not end with its job ends with its worker, at once.
        let role = |role, words, wire| Worker {
            name: name.clone(),
            program: Program::Role(role, words),
            wire,
            cancel_grace: Duration::ZERO,
            one_at_a_time: true,
            speaks_protocol: false,
        };
        if args.stream && (has_hole || args.speaks == Some(Speaks::Filter)) {
            let problem = "a program with {} or --as filter takes lines one by one; --stream is for workers that serve streams: @count, @echo, @py, @node, or a program that speaks the protocol";
            return Err(CliError::Option { option: "--stream", problem: problem.to_string() });
        }
        if has_hole {
            let program = if exec::Template::has_hole(first) { PathBuf::new() } else { find()? };
            return Ok(role(&exec::EXEC, words(program), Wire::Printed));
        }
        if args.speaks == Some(Speaks::Filter) {
            return Ok(role(&filter::FILTER, words(find()?), Wire::Text));
        }
        let program = Spec::program(find()?).args(rest.iter().cloned());
        Ok(Worker {
            name: name.clone(),
            program: Program::Other(Box::new(program)),
            wire: Wire::Json,
            cancel_grace: pm::core::face::builder::DEFAULT_CANCEL_GRACE,
            one_at_a_time: false,
            speaks_protocol: true,
        })
    }

    fn built_in(worker: &str, rest: &[OsString], args: &PoolArgs) -> Result<Self, CliError> {
        let role: &'static dyn Role = match worker {
            "@echo" if args.stream => &builtin::ECHO_STREAM,
            "@count" if args.stream => &builtin::COUNT,
            "@count" => {
                let problem = "it counts the messages of a stream; write --stream --key FIELD".to_string();
                return Err(CliError::Option { option: "@count", problem });
            }
            "@sha256" | "@wc" if args.stream => {
                let problem = format!("{worker} answers jobs, and serves no streams; @count and @echo do");
                return Err(CliError::Option { option: "--stream", problem });
            }
            "@echo" => &builtin::ECHO,
            "@sha256" => &builtin::SHA256,
            "@wc" => &builtin::WC,
            "@py" => return Worker::script(&PYTHON, args.stream, rest),
            "@node" => return Worker::script(&NODE, args.stream, rest),
            _ => return Err(CliError::NoBuiltIn(worker.to_string())),
        };
        if !rest.is_empty() {
            return Err(CliError::BuiltInArgs {
                worker: worker.to_string(),
                takes: "no arguments",
                got: rest.to_vec(),
            });
        }
        // An echo of a JSON value is that value.
        let is_json = worker == "@echo" && args.input == Input::Json;
        Ok(Worker {
            name: role.name().to_string(),
            program: Program::Role(role, Vec::new()),
            wire: if is_json { Wire::Json } else { Wire::Text },
            cancel_grace: pm::core::face::builder::DEFAULT_CANCEL_GRACE,
            one_at_a_time: true,
            speaks_protocol: false,
        })
    }

    fn script(interpreter: &Interpreter, is_stream: bool, rest: &[OsString]) -> Result<Self, CliError> {
        let Interpreter { worker, program: name, ending, kit, words } = *interpreter;
        let takes = "one argument, FILE:FUNC";
        let wrong = || CliError::BuiltInArgs { worker: worker.to_string(), takes, got: rest.to_vec() };
        let [target] = rest else { return Err(wrong()) };
        let colon = target.as_bytes().iter().rposition(|&byte| byte == b':').ok_or_else(wrong)?;
        let (file, function) = (&target.as_bytes()[..colon], &target.as_bytes()[colon + 1..]);
        if file.is_empty() || function.is_empty() {
            return Err(wrong());
        }
        let path = PathBuf::from(OsStr::from_bytes(file));
        let readable = File::open(&path).and_then(|file| match file.metadata()?.is_dir() {
            true => Err(std::io::ErrorKind::IsADirectory.into()),
            false => Ok(()),
        });
        readable.map_err(|source| CliError::NoScript { worker, path: path.clone(), ending, source })?;
        let search = std::env::var_os("PATH");
        let program = resolve_program(name, search.as_deref()).map_err(|source| CliError::NoInterpreter {
            worker,
            program: name,
            source,
        })?;
        // So the kit knows that a plain function is one of a stream.
        let of_stream = is_stream.then_some("streams");
        let spec = Spec::program(program).args(words).arg(target.clone()).args(of_stream).env(KIT_VARIABLE, kit);
        Ok(Worker {
            name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            program: Program::Other(Box::new(spec)),
            wire: Wire::Json,
            cancel_grace: pm::core::face::builder::DEFAULT_CANCEL_GRACE,
            one_at_a_time: true,
            speaks_protocol: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halts_are_read() {
        assert_eq!(halt("never"), Ok(Halt::Never));
        assert_eq!(halt("soon,fail=3"), Ok(Halt::Soon(3)));
        assert_eq!(halt("now,fail=1"), Ok(Halt::Now(1)));
        for bad in ["", "soon", "now,fail=0", "never,fail=1", "soon,fail=-1", "soon,fail=10%", "later,fail=1"] {
            assert!(halt(bad).is_err(), "{bad:?}");
        }
    }
}
