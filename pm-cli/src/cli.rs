//! The command line as it was written. [`Plan`](crate::plan::Plan) makes sense of it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand, ValueEnum};

pub mod project;

use crate::bench::place::Place;
use pm::core::units;

/// Run jobs through warm workers that may crash, hang or be killed, and never lose one.
#[derive(Debug, Parser)]
#[command(name = "pm", bin_name = "pm", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of `pm`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run each line of standard input as a job, in a pool of workers
    #[command(
        override_usage = POOL_USAGE,
        long_about = LONG_ABOUT,
        after_help = "The whole manual, with examples: pm pool --help",
        after_long_help = AFTER_LONG_HELP
    )]
    Pool(Box<PoolArgs>),
    /// Measure the transports side by side, and say which one to pick on this machine
    #[command(long_about = BENCH_ABOUT)]
    Bench(BenchArgs),
    /// Start the services of a project, in the order of their needs, and stay until they have ended
    Up(project::UpArgs),
    /// Show the services of a project that is up: what each is doing, and why
    Ps(project::ShowArgs),
    /// Show the services of a project that is up and what they print, and start and stop them, on a terminal
    #[command(after_help = "? shows the keys. q leaves, and the project stays up; Q stops it.")]
    Tui(project::FileArg),
    /// Show what services have printed
    Logs(project::LogsArgs),
    /// Connect the terminal, or pipes, to a service of a project that is up
    #[command(
        after_help = "From a terminal to a service with `tty`, Ctrl-P Ctrl-Q leaves, and the service goes on. Otherwise the end of the input does (Ctrl-D), once the service has all of it; with --close \
        it is the end of the service's input as well, and pm attach stays until the service has ended. The exit code is 0, or that of the service where it has ended."
    )]
    Attach(project::AttachArgs),
    /// Start services of a project that is up, with what they need
    Start(project::StartArgs),
    /// Stop services of a project that is up; others go on
    Stop(project::StopArgs),
    /// Stop services and start them again, with those that are restarted with them
    Restart(project::RestartArgs),
    /// Have so many processes of a service
    Scale(project::ScaleArgs),
    /// Stop all services of a project, and the project
    Down(project::DownArgs),
    /// Have a project that is up be what its file says now: start what was added or changed, stop what was removed, and leave the rest alone
    #[command(
        after_help = "A file that cannot be used changes nothing: the exit code is 2. SIGHUP has pm up do the same."
    )]
    Reload(project::ShowArgs),
    /// Wait until services are in a condition
    Wait(project::WaitArgs),
    /// Show what happens to services, as it happens
    Events(project::ShowArgs),
    /// Show which services need which
    Graph(project::GraphArgs),
    /// Say whether the file of a project can be used, and where it cannot
    Check(project::FileArg),
    /// Print the JSON schema of pm.toml, for editors
    Schema,
    /// Print what a shell needs to complete the commands and options of pm
    #[command(long_about = COMPLETIONS_ABOUT)]
    Completions {
        /// For which shell
        #[arg(value_name = "SHELL", value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each command, into a directory
    Man {
        /// The directory, which is made where it is missing: man/man1 below ~/.local/share, for one
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Hold the processes of another program; it starts this by itself
    #[command(hide = true)]
    Keeper,
}

/// The options of `pm pool`.
#[derive(Debug, Args)]
pub struct PoolArgs {
    /// Number of workers [default: the number of CPUs]
    #[arg(short, long = "jobs", visible_short_alias = 'P', value_name = "N", help_heading = "Pool")]
    pub jobs: Option<u32>,
    /// How pm talks to its workers: stdio (pipes), uds (a Unix socket) or shm (shared memory: for all but the workers of other languages)
    #[arg(short, long, value_name = "NAME", default_value = "uds", help_heading = "Pool")]
    pub transport: String,
    /// How COMMAND takes its jobs: it speaks pm's protocol, or it answers each line with a line
    #[arg(long = "as", value_name = "HOW", value_enum, help_heading = "Pool")]
    pub speaks: Option<Speaks>,
    /// How long one try of a job may take, from its start, as in 200ms, 90s or 1h30m; a bare number is seconds, 0 for as long as it likes. With --stream: how long a stream may be silent that is to take a line, or to end
    #[arg(long, value_name = "TIME", value_parser = units::duration, default_value = "15m", help_heading = "Pool")]
    pub timeout: Duration,
    /// How long a worker may take until it is ready
    #[arg(long, value_name = "TIME", value_parser = units::duration, default_value = "30s", help_heading = "Pool")]
    pub start_timeout: Duration,
    /// Kill a random worker at this interval, to see that nothing is lost
    #[arg(long, value_name = "TIME", value_parser = units::duration, help_heading = "Pool")]
    pub chaos: Option<Duration>,

    /// Try a job up to N times more. Only for jobs that may run twice
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Failures")]
    pub retry: u32,
    /// What is tried again: a lost worker, a timeout, an error of the job
    #[arg(
        long,
        value_name = "WHAT",
        value_enum,
        value_delimiter = ',',
        default_value = "lost",
        help_heading = "Failures"
    )]
    pub retry_on: Vec<RetryOn>,
    /// When to stop early: never; soon,fail=N (let jobs aboard finish); now,fail=N (kill them)
    #[arg(long, value_name = "WHEN", default_value = "never", help_heading = "Failures")]
    pub halt: String,

    /// Jobs end with NUL, not with a line break
    #[arg(short = '0', long = "null", help_heading = "Input")]
    pub null: bool,
    /// What a job is: the text of its line, or a JSON value
    #[arg(long = "in", value_name = "FORM", value_enum, default_value = "lines", help_heading = "Input")]
    pub input: Input,
    /// The longest line, at most 60M; a longer one gives an error for that job
    #[arg(long, value_name = "SIZE", value_parser = units::size, default_value = "16M", help_heading = "Input")]
    pub max_line: usize,

    /// Send each line as a message to the stream of its --key, and print what comes back as it comes: all lines of a key go to the same worker, in order
    #[arg(
        long,
        requires = "key",
        conflicts_with_all = ["retry", "retry_on", "halt", "unordered", "output_file"],
        help_heading = "Streams"
    )]
    pub stream: bool,
    /// What tells the stream of a line: the number of a word, from 1; with --in json the name of a member, such as user or user.id
    #[arg(long, value_name = "FIELD", requires = "stream", help_heading = "Streams")]
    pub key: Option<String>,
    /// How many streams are open at once; beyond that the one that was silent longest is ended, and its key begins anew
    #[arg(long, value_name = "N", requires = "stream", default_value_t = 10_000, help_heading = "Streams")]
    pub max_streams: usize,

    /// What a result is: the bare text, or one JSON object a job [default: plain; json with -o]
    #[arg(long = "out", value_name = "FORM", value_enum, help_heading = "Output")]
    pub output: Option<Output>,
    /// Put the input and a tab before each line of a plain result
    #[arg(long, help_heading = "Output")]
    pub tag: bool,
    /// Results as they come, not in the order of the input
    #[arg(long, help_heading = "Output")]
    pub unordered: bool,
    /// Write the results to FILE, which is the log for --resume as well
    #[arg(short, value_name = "FILE", help_heading = "Output")]
    pub output_file: Option<PathBuf>,
    /// Go on where FILE ends: skip the jobs that have a result there
    #[arg(long, requires = "output_file", help_heading = "Output")]
    pub resume: bool,
    /// The same, and do those again that failed
    #[arg(long, requires = "output_file", help_heading = "Output")]
    pub retry_failed: bool,
    /// Have results on the disk before they count (fsync, for many at a time)
    #[arg(long, requires = "output_file", help_heading = "Output")]
    pub sync: bool,
    /// The bar and the summary on standard error; auto: where that is a terminal
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", help_heading = "Output")]
    pub progress: Progress,

    /// The worker: @echo, @sha256, @wc, @count, @py FILE:FUNC, @node FILE:FUNC, or a program
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// The options of `pm bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The transports: stdio, uds, shm [default: all]
    #[arg(short, long, value_name = "NAMES", value_delimiter = ',')]
    pub transport: Vec<String>,
    /// Bytes of the payload, there and back
    #[arg(short, long, value_name = "SIZES", value_delimiter = ',', value_parser = units::size, default_value = "64")]
    pub size: Vec<usize>,
    /// Queries under way at once
    #[arg(short = 'n', long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,256")]
    pub in_flight: Vec<usize>,
    /// Where manager and worker run [default: two,one]
    #[arg(short, long, value_name = "PLACES", value_delimiter = ',', value_enum)]
    pub placement: Vec<Place>,
    /// How long each row is measured, after a warm-up; a bare number is seconds [default: what makes some 25 s together]
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub time: Option<Duration>,
    /// One JSON object a row, as soon as it is there
    #[arg(long)]
    pub json: bool,
    /// Draw the rows into FILE as well, as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// How a program takes its jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Speaks {
    /// In frames of docs/PROTOCOL.md.
    Protocol,
    /// A line for a line.
    Filter,
}

/// What is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RetryOn {
    /// The worker died.
    Lost,
    /// It took too long.
    Timeout,
    /// The job failed by itself.
    Error,
}

/// What a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Input {
    /// A JSON value.
    Json,
    /// Text.
    Lines,
}

/// What a result is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// An object for each job.
    Json,
    /// The text of the result.
    Plain,
}

/// When progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// On a terminal.
    Auto,
    /// A line now and then where there is no terminal.
    Always,
    /// Not at all.
    Never,
}

/// Says where the command stands, if a word of it stands among the options.
pub(crate) fn hinted(mut error: clap::Error) -> clap::Error {
    let takes_command = error.get(ContextKind::Usage).is_some_and(|usage| usage.to_string().contains(POOL_USAGE));
    if let (ErrorKind::UnknownArgument, Some(ContextValue::String(word))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
        && takes_command
        && !word.starts_with('-')
    {
        let tip = format!("COMMAND stands behind `--`, as in `pm pool -- {word}`");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

const POOL_USAGE: &str = "pm pool [OPTIONS] -- COMMAND [ARGS…]";

const COMPLETIONS_ABOUT: &str = "\
Print what a shell needs to complete the commands and options of pm.

  bash: pm completions bash > ~/.local/share/bash-completion/completions/pm
  zsh:  pm completions zsh > \"${fpath[1]}/_pm\"
  fish: pm completions fish > ~/.config/fish/completions/pm.fish";

const BENCH_ABOUT: &str = "\
Measure the transports side by side, and say which one to pick on this machine.

Each query is typed, goes through the whole manager to a worker that echoes it, and is checked. The ways to make them: await (each by a task \
of its own), blocking (each by a thread of its own) and batch (all that are under way sent together; the times are those of a whole batch). Beside \
them stand the limits: two threads that spin or wake each other, a bare tokio socket and pipe, and a channel between two tasks. Close what else \
uses the processor: a shared machine gives other figures every minute, and only the ratios within one run count. The limits are those of 64 bytes, one at a time, and of the channel with 256 at once; and for shm with other sizes the bare transfer through shared memory: there and back, and from 4 KiB on one way with 256 at once. Other rows have no ratio.

A line of --json has transport (or \"limit\"), placement, size, in_flight, mode, p50_ns, p99_ns, p999_ns, rate (queries a second), \
cpu_ns_per_query_manager and cpu_ns_per_query_worker.";

const LONG_ABOUT: &str = "\
Run each line of standard input as a job, in a pool of workers that stay warm.

A worker that crashes, hangs or is killed costs the jobs that it had aboard, each of which gets an error of its own (or, with \
--retry, another try), and is replaced at once. Results come in the order of the jobs. Memory does not grow with their number. \
Nothing that a worker starts outlives pm, however pm ends.";

const AFTER_LONG_HELP: &str = "\
COMMAND is one of
  PROGRAM [ARGS…] with {} in its words
        Any program; one process a job, no shell. {} is the job's text, as one argument or as a part of one, as often as it stands \
there. Standard output is the result, without its last line break, and an exit code other than 0 is the error. What it writes to \
standard error goes into the error, or to pm's standard error where the job went well.
  --as filter -- PROGRAM [ARGS…]
        A program that answers each line with exactly one line, and stays alive. It must write each answer at once: grep \
--line-buffered, sed -u, gawk with fflush(), mawk -W interactive, stdbuf -oL PROGRAM. One that never answers ends by --timeout. One that answers twice is out of step: \
once the surplus line is there, the next job is lost for it; before, a job may have got its neighbour's answer. After the last job it \
reads the end of its input, and has 10 s to end; what it still prints goes to standard error.
  @py FILE:FUNC, @node FILE:FUNC
        A function of a Python or Node.js file: func(\"text of the line\") or, with --in json, func(value); what it returns, as JSON, \
is the result.
  @echo, @sha256, @wc
        Built in: the job itself; the SHA-256 digest of the file that it names; lines, words and bytes of that file.
  PROGRAM [ARGS…]
        A program that speaks pm's protocol (docs/PROTOCOL.md, with kits in workers/). Lines come to it as JSON strings.

Streams
  With --stream --key FIELD each line is a message on one of many streams: that of its key. A stream begins with the first line of its key and ends with the input; the worker that serves it gets its lines in order and keeps what it likes between them, and answers when and as often as it likes. @count says how many lines of the key there were; func of @py and @node is a function of one stream, which is read in a loop (see workers/); a program that speaks the protocol serves streams.
  Results are written as they come: with --tag each line behind their key and a tab (a tab, line break or backslash of the key as \\t, \\n, \\r or \\\\), with --out json as {\"key\":\"…\",\"result\":…}, and errors as {\"key\":\"…\",\"error\":{…}}.
  A stream that a worker cannot take along, for it crashes or the handler fails, is an error of its key, and what was on its way there is lost; the next line of the key begins a new one. Beyond --max-streams, and where the workers have no room, the stream ends that had nothing to do for longest; what comes for its key waits for that end and begins anew.
  A stream that takes none of the lines that wait for it, or does not end once nothing more comes for it (at the end of the input, after a signal, or because another key wants its place), is cancelled when it has said nothing for --timeout: that is an error of its key, too. Whatever it takes or says starts the time anew. A worker that then does not even say that it lives, for 10 s after it is asked, is killed: its other keys get worker_lost, and their next lines begin new streams.
  A key that is slow holds up no other until 16 MiB of lines wait. Numbers and other values are keys by their JSON: 7 and \"7\" are the same key.
  Messages have no order among keys, are not tried again and are not numbered, so --retry, --retry-on, --halt, --unordered and -o (with --resume, --retry-failed and --sync) do not go with --stream; nor do --as filter and programs with {}.

Jobs
  A job is one line, counted from 0; an empty line is a job, too. The last one may lack its line break. Programs with {}, filters and \
built-in workers get the bytes of the line unchanged; the others get JSON, so a line that is no UTF-8 is an error for that job. With \
--in json, programs with {}, filters, @sha256 and @wc get the text of a string, and the JSON of any other value.

Times and sizes
  A TIME is 200ms, 1.5s, 2m, 3h, 1d, or several of those as in 1h30m; a bare number is seconds. A SIZE is a number of bytes, or 64K, 16M, \
1G in powers of 1,024.

Results
  --out plain: the bare text; a JSON string is written without quotes. A program with {} that prints nothing adds no line. Errors go to \
standard error, one line each.
  --out json: one object a job, on one line:
        {\"job\":7,\"input\":\"a.txt\",\"result\":\"…\"}
        {\"job\":8,\"input\":\"b.txt\",\"error\":{\"kind\":\"exit\",\"message\":\"exit code 3\",\"tries\":1,\"code\":3,\"stderr\":\"…\"}}
  kind is worker_lost, timed_out, error, panic, decode, exit, signal, start, output_too_large, bad_input, line_too_long or bad_answer. \
An input over 1 KiB is {\"sha256\":\"…\",\"bytes\":N}. Text that is no UTF-8, in input or result, is {\"base64\":\"…\"}.
  In order, pm takes jobs until 4,096 of them (or 1 MiB of text) wait for the slowest; then intake pauses. --unordered lifts that.

The result file (-o)
  One JSON object a job, as with --out json, each line written whole. After kill -9, --resume cuts a torn last line, skips the jobs \
whose number and input stand in the file, and does the rest; it remembers 8 bytes a job. --retry-failed first takes the failures out of \
the file, and then does the same. Where a job stands twice because its input has changed, the last line counts. Without either \
option a file that has something in it is not touched.

Signals and exit codes
  The first SIGINT or SIGTERM takes no further job and lets those finish that have begun (streams get the lines that have reached their key, and end); the second kills them. --halt soon does what \
the first does, --halt now what the second does.
  0  all jobs went well
  1  some failed, now or in earlier runs of a result file, or a result could not be written
  2  the command line cannot be carried out, or the workers cannot be started
  3  the pool gave up: workers died, more than 10 times in a minute, before they were ready or while they had nothing to do
  130, 143  SIGINT, SIGTERM
  141  nobody reads standard output any more, as after `| head -1`

Examples
  git ls-files | pm pool --tag -- @sha256
        A digest for every file of a repository.
  find . -name '*.png' -print0 | pm pool -0 -j8 -o done.jsonl --resume -- convert {} -resize 50% {}.small.png
        Converts files with 8 processes at a time, and can be ended and started again at any time.
  pm pool --in json --timeout 2s --retry 2 -- @py rules.py:check < teams.jsonl
        Calls a Python function with each JSON value; a call that takes over 2 s is killed.
  pm pool --as filter -- sed -u 's/a/b/' < lines.txt
        One sed for all lines, or rather one for each CPU.
  pm pool -o out.jsonl --retry-failed -- ./worker < jobs.txt
        Does again what failed the last time.
  pm pool --stream --key user --in json --tag -- @py game.py:play < moves.jsonl
        Each user's moves go to one stream of play, in order; thousands of users share a few workers.
  seq 1000 | pm pool --chaos 200ms --retry 10 -- @echo | cmp - <(seq 1000)
        Nothing is lost, whatever dies.";
