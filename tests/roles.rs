//! What the workers of these tests can do: each fault is a job.

#![expect(clippy::zombie_processes, reason = "a worker that leaves children behind is the point")]

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use pm::Query;
use pm_core::Query as AnyQuery;
use pm_core::worker::role::Service;
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

pub static JOB: Query<Job, Said> = Query::new("job", &serve);
pub static ASYNC_JOB: Query<Job, Said> = Query::new_async("async-job", &serve_async);
pub static ZOO: Query<Zoo, Zoo> = Query::new("zoo", &|zoo: Zoo| zoo);
/// A job in the words of any codec: a text that is given back, or an order.
pub static TEXT: AnyQuery<String, String, pm::Uds> = AnyQuery::new("text", &text);

pub static TIDY: Tidy = Tidy("tidy");
pub static ASYNC_TIDY: Tidy = Tidy("async-tidy");

/// A role that has something to do when its worker leaves.
pub struct Tidy(&'static str);

struct Sweep;

impl Drop for Sweep {
    fn drop(&mut self) {
        pm::notice("swept");
        std::thread::sleep(Duration::from_millis(20));
        pm::notice("locked up");
    }
}

impl pm::Role for Tidy {
    fn name(&self) -> &'static str {
        self.0
    }

    fn codecs(&self) -> &[&'static str] {
        &["bytes"]
    }

    fn service(&'static self, _: &str) -> Option<Service> {
        let sweep = Sweep;
        Some(match self.0 {
            "tidy" => Service::Blocking(Box::new(move |input, output| {
                let _kept = &sweep;
                output.extend_from_slice(input);
                Ok(())
            })),
            _ => Service::Async {
                concurrency: 2,
                handler: Box::new(move |input| {
                    let _kept = &sweep;
                    let output = input.to_vec();
                    Box::pin(async { Ok(output) })
                }),
            },
        })
    }
}

/// Something for a worker to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Job {
    /// Gives the bytes back.
    Echo(Vec<u8>),
    /// Gives the text back, which is quicker than bytes where it is long.
    Say(String),
    /// Gives so many letters.
    Make(usize),
    /// Says which process it is.
    Pid,
    /// Sends a notice, then sleeps, whatever its caller does.
    Sleep(Duration),
    /// The same, but wakes when it is cancelled.
    Nap(Duration),
    /// Sends a notice, then waits until this file is there.
    Until(PathBuf),
    /// Sends a notice, then computes for ever.
    Spin,
    Panic(String),
    Fail(String),
    Abort,
    Segv,
    Exit(i32),
    /// Kills itself by this signal.
    Signal(i32),
    /// Prints to standard output and standard error.
    Print(String),
    /// Prints so many bytes to standard error, then exits with code 3.
    Flood(usize),
    Notice(String),
    /// Closes all descriptors but the standard ones, then sleeps.
    CloseDescriptors,
    /// Starts a process that inherits every descriptor and sleeps, and says its pid.
    Heir,
    /// The same, but it leaves the process group and the session, and forks twice.
    Stray,
    IgnoreTerm,
    /// Adds a line to a file, then does something else.
    Count(PathBuf, Box<Job>),
    /// The same if the file is not there yet, and nothing otherwise.
    Once(PathBuf, Box<Job>),
    /// Says how long its call has left.
    TimeLeft,
    Environment,
    Arguments,
    Directory,
    Nice,
    OpenFilesLimit,
    Descriptors,
    /// Begins to write random words at random places of all shared memory that it may write, so often, seeded by this number.
    Scribble(u64, usize),
    Allocate(usize),
    /// Keeps so many bytes for ever.
    Leak(usize),
    /// One thing after the other; the last one answers.
    Both(Box<Job>, Box<Job>),
    /// Sends a notice, then waits until somebody writes a byte into this pipe, or nobody has it open for writing any more.
    Wait(PathBuf),
    /// Adds a line to a file, `id pid nanoseconds`, then does the first of these the first time that the file has this id, the second one the
    /// second time, and the last one from then on.
    Log(PathBuf, u32, Vec<Job>),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Said {
    Done,
    Bytes(Vec<u8>),
    Pid(u32),
    Text(String),
    Lines(Vec<String>),
    Number(i64),
}

/// An error with a type of its own.
#[derive(Debug)]
pub struct Unhappy(pub String);

impl std::fmt::Display for Unhappy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unhappy about {}", self.0)
    }
}

/// Writes through the kernel, so that nothing but the memory is needed.
fn scribble(mut seed: u64, times: usize) {
    use std::os::unix::fs::FileExt;

    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let shared = maps.lines().filter(|line| line.contains("rw-s") && line.contains("memfd:pm-shm"));
    let ranges: Vec<(u64, u64)> = shared
        .filter_map(|line| {
            let (from, to) = line.split(' ').next()?.split_once('-')?;
            Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
        })
        .collect();
    let memory = std::fs::File::options().write(true).open("/proc/self/mem").expect("its own memory");
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 11
    };
    for _ in 0..times {
        let (from, to) = ranges[random() as usize % ranges.len()];
        // Mostly where chunks begin, or among the words of the first page: elsewhere little is looked at.
        let place = match random() % 4 {
            0 => random() % (to - from) / 8 * 8,
            1 => random() % 8 * 64,
            _ => random() % (to - from) / 64 * 64,
        };
        let _ = memory.write_at(&random().rotate_left(random() as u32 % 64).to_ne_bytes(), from + place);
    }
}

/// What a notice says once a job cannot be taken back.
pub const BEGUN: &str = "begun";

fn serve(job: Job) -> Result<Said, Unhappy> {
    Ok(match job {
        Job::Echo(bytes) => Said::Bytes(bytes),
        Job::Say(text) => Said::Text(text),
        Job::Make(count) => Said::Text("x".repeat(count)),
        Job::Pid => Said::Pid(std::process::id()),
        Job::Sleep(time) => {
            pm::notice(BEGUN);
            std::thread::sleep(time);
            Said::Done
        }
        Job::Nap(time) => {
            pm::notice(BEGUN);
            let (woken, wake) = std::sync::mpsc::channel();
            pm::on_cancel(move || woken.send(()).unwrap_or_default());
            let woken = wake.recv_timeout(time).is_ok();
            Said::Text(if woken { "cancelled" } else { "rested" }.to_string())
        }
        Job::Until(file) => {
            pm::notice(BEGUN);
            while !file.exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            Said::Done
        }
        Job::Spin => {
            pm::notice(BEGUN);
            spin()
        }
        Job::Panic(text) => panic!("{text}"),
        Job::Fail(text) => return Err(Unhappy(text)),
        Job::Abort => std::process::abort(),
        Job::Segv => segv(),
        Job::Exit(code) => std::process::exit(code),
        Job::Signal(signal) => {
            // SAFETY: both take numbers and touch no memory of this process.
            unsafe { libc::kill(libc::getpid(), signal) };
            sleep_for_ever()
        }
        Job::Print(text) => {
            println!("{text}");
            eprintln!("{text}");
            std::io::stdout().flush().map_err(|error| Unhappy(error.to_string()))?;
            Said::Done
        }
        Job::Flood(bytes) => {
            let line = [&[b'x'; 99][..], b"\n"].concat();
            let mut stderr = std::io::stderr().lock();
            for _ in 0..bytes / line.len() {
                stderr.write_all(&line).map_err(|error| Unhappy(error.to_string()))?;
            }
            let _ = stderr.write_all(b"the last words\n");
            std::process::exit(3)
        }
        Job::Notice(text) => {
            pm::notice(text);
            Said::Done
        }
        Job::CloseDescriptors => {
            for fd in open_descriptors().into_iter().filter(|fd| *fd > 2) {
                // SAFETY: a worker that misbehaves so is the point; nothing is done with a descriptor afterwards.
                unsafe { libc::close(fd) };
            }
            sleep_for_ever()
        }
        Job::Heir => {
            share_descriptors();
            Said::Pid(sleeper(&["sleep", "1000"]).id())
        }
        Job::Stray => {
            share_descriptors();
            let mut child = sleeper(&["sh", "-c", "setsid sh -c 'sleep 1000 & echo $!; wait' & read line"]);
            let mut line = String::new();
            let mut output = child.stdout.take().ok_or_else(|| Unhappy("no output".to_string()))?;
            let mut byte = [0];
            while output.read(&mut byte).unwrap_or(0) > 0 && byte != *b"\n" {
                line.push(char::from(byte[0]));
            }
            Said::Pid(line.parse().map_err(|error| Unhappy(format!("{line:?}: {error}")))?)
        }
        Job::IgnoreTerm => {
            // SAFETY: SIG_IGN is a disposition that runs no code.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            Said::Done
        }
        Job::Count(file, job) => {
            count(&file);
            return serve(*job);
        }
        Job::Once(file, _) if file.exists() => Said::Done,
        Job::Once(file, job) => {
            count(&file);
            return serve(*job);
        }
        Job::TimeLeft => Said::Number(pm::time_left().map_or(-1, |left| left.as_millis() as i64)),
        Job::Environment => Said::Lines(std::env::vars().map(|(name, value)| format!("{name}={value}")).collect()),
        Job::Arguments => Said::Lines(std::env::args().skip(1).collect()),
        Job::Directory => {
            Said::Text(std::env::current_dir().map_err(|error| Unhappy(error.to_string()))?.display().to_string())
        }
        // SAFETY: it takes numbers and touches no memory of this process.
        Job::Nice => Said::Number(unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }.into()),
        Job::OpenFilesLimit => Said::Number(getrlimit(Resource::Nofile).current.map_or(-1, |limit| limit as i64)),
        Job::Scribble(seed, times) => {
            std::thread::spawn(move || scribble(seed, times));
            Said::Done
        }
        Job::Descriptors => Said::Lines(open_descriptors().into_iter().filter_map(describe).collect()),
        Job::Allocate(bytes) => {
            let memory = vec![1_u8; bytes];
            Said::Number(memory.iter().map(|&byte| i64::from(byte)).sum())
        }
        Job::Leak(bytes) => {
            std::mem::forget(std::hint::black_box(vec![1_u8; bytes]));
            Said::Done
        }
        Job::Both(first, second) => {
            serve(*first)?;
            return serve(*second);
        }
        Job::Wait(pipe) => {
            pm::notice(BEGUN);
            let woken = std::fs::File::open(pipe).and_then(|mut pipe| pipe.read(&mut [0]));
            Said::Number(woken.map_err(|error| Unhappy(error.to_string()))? as i64)
        }
        Job::Log(file, id, jobs) => return serve(log(&file, id, jobs)),
    })
}

async fn serve_async(job: Job) -> Result<Said, Unhappy> {
    match job {
        Job::Sleep(time) => {
            pm::notice(BEGUN);
            tokio::time::sleep(time).await;
            Ok(Said::Done)
        }
        Job::Panic(text) => {
            tokio::task::yield_now().await;
            panic!("{text}")
        }
        Job::Log(file, id, jobs) => Box::pin(serve_async(log(&file, id, jobs))).await,
        job => serve(job),
    }
}

fn text(order: String) -> Result<String, Unhappy> {
    match order.as_str() {
        "fail" => Err(Unhappy("an order".to_string())),
        "die" => std::process::exit(9),
        _ => Ok(order),
    }
}

/// Adds one line to a file. Lines of this length are never torn.
pub fn count(file: &PathBuf) {
    let line = format!("{}\n", std::process::id());
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
    opened.and_then(|mut file| file.write_all(line.as_bytes())).expect("a line in the counter");
}

/// Adds the line of [`Job::Log`], and says what is to be done.
fn log(file: &PathBuf, id: u32, mut jobs: Vec<Job>) -> Job {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes into a local variable of the type that it wants.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let nanoseconds = now.tv_sec * 1_000_000_000 + now.tv_nsec;
    let line = format!("{id} {} {nanoseconds}\n", std::process::id());
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
    opened.and_then(|mut file| file.write_all(line.as_bytes())).expect("a line in the log");
    if jobs.len() > 1 {
        let prefix = format!("{id} ");
        let text = std::fs::read_to_string(file).expect("the log");
        let times = text.lines().filter(|line| line.starts_with(&prefix)).count();
        jobs.truncate(times);
    }
    jobs.pop().unwrap_or(Job::Pid)
}

pub fn spin() -> ! {
    let mut number = 1_u64;
    loop {
        number = std::hint::black_box(number.wrapping_mul(3));
    }
}

pub fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

/// A real fault, which the handler that Rust has for stack overflows passes on to the kernel.
pub fn segv() -> ! {
    // SAFETY: there is none; the first page is never mapped, and the process dies here.
    unsafe { std::hint::black_box(64 as *mut u8).write_volatile(1) };
    std::process::exit(1)
}

pub fn open_descriptors() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd");
    let mut numbers: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// What a descriptor is, by name; none for the one by which the others are listed.
fn describe(fd: i32) -> Option<String> {
    let target = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?.display().to_string();
    let kind = target.split_once(":[").map_or(target.as_str(), |(kind, _)| kind);
    (!target.contains("/fd")).then(|| format!("{fd} {kind}"))
}

/// Lets children inherit all descriptors, the link among them.
fn share_descriptors() {
    for fd in open_descriptors().into_iter().filter(|fd| *fd > 2) {
        // SAFETY: at worst the number is not open any more, which the call reports.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let _ = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty());
    }
}

fn sleeper(words: &[&str]) -> std::process::Child {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("a child");
    // Its end must not come with the end of this handle.
    std::mem::forget(child.stdin.take());
    child
}

/// What a worker does in place of becoming one, where a test says so: it dies, or waits, before READY.
pub const EARLY: &str = "PM_TEST_EARLY";

/// Does it. Only workers have the variable.
pub fn before_ready() {
    let Ok(what) = std::env::var(EARLY) else { return };
    // With a file the fault happens once: whoever creates it has it.
    let what = match what.split_once('@') {
        Some((what, token)) if std::fs::File::create_new(token).is_ok() => what.to_string(),
        Some(_) => return,
        None => what,
    };
    match what.as_str() {
        "exit" => std::process::exit(7),
        "abort" => std::process::abort(),
        "segv" => segv(),
        "print" => {
            print!("{}", "Loading the model, please wait. ".repeat(20));
            let _ = std::io::stdout().flush();
            sleep_for_ever()
        }
        "complain" => {
            eprintln!("cannot find the configuration");
            std::process::exit(2)
        }
        "hang" => sleep_for_ever(),
        "spin" => spin(),
        "kill" => {
            // SAFETY: it takes numbers and touches no memory of this process.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            sleep_for_ever()
        }
        other => panic!("{other:?} is no fault"),
    }
}

// --- values

/// One of each sort of value that serde knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Zoo {
    pub unit: (),
    pub truth: bool,
    pub small: (i8, i16, i32, i64),
    pub large: (u8, u16, u32, u64),
    pub huge: (i128, u128),
    pub floats: (f32, f64),
    pub letter: char,
    pub text: String,
    pub bytes: Vec<u8>,
    pub maybe: Option<u8>,
    pub nested: Option<Option<u8>>,
    pub list: Vec<Animal>,
    pub array: [u16; 3],
    pub names: HashMap<String, i32>,
    pub numbers: BTreeMap<u32, Vec<String>>,
    pub tuples: BTreeMap<String, (i32, Option<Animal>)>,
    pub boxed: Box<Animal>,
    pub result: Result<u8, String>,
    pub time: Duration,
    pub path: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Animal {
    Unit,
    Newtype(u64),
    Tuple(i32, String),
    Struct { legs: u8, name: Option<String> },
    Nested(Box<Animal>),
}

impl Zoo {
    pub fn new() -> Self {
        let animals = vec![
            Animal::Unit,
            Animal::Newtype(u64::MAX),
            Animal::Tuple(i32::MIN, "\u{0}\u{1F980} \" \\ \n é".to_string()),
            Animal::Struct { legs: 8, name: None },
            Animal::Nested(Box::new(Animal::Nested(Box::new(Animal::Struct { legs: 0, name: Some(String::new()) })))),
        ];
        Zoo {
            unit: (),
            truth: true,
            small: (i8::MIN, i16::MIN, i32::MIN, i64::MIN),
            large: (u8::MAX, u16::MAX, u32::MAX, u64::MAX),
            huge: (i128::MIN, u128::MAX),
            floats: (f32::MIN_POSITIVE, std::f64::consts::PI),
            letter: '\u{10FFFF}',
            text: "ünïcödé \u{202E} ✓".to_string(),
            bytes: (0..=255).collect(),
            maybe: Some(0),
            nested: Some(Some(1)),
            list: animals.clone(),
            array: [1, 2, 3],
            names: HashMap::from([(String::new(), -1), ("a".to_string(), 1)]),
            numbers: BTreeMap::from([(u32::MAX, vec![]), (0, vec!["zero".to_string()])]),
            tuples: BTreeMap::from([("x".to_string(), (1, Some(animals[2].clone())))]),
            boxed: Box::new(animals[4].clone()),
            result: Err("no".to_string()),
            time: Duration::new(1, 999_999_999),
            path: PathBuf::from("/tmp/ä b"),
        }
    }

    /// Values that some codecs cannot carry, or carry only in part.
    pub fn variations() -> Vec<Zoo> {
        let zoo = Zoo::new();
        vec![
            zoo.clone(),
            Zoo { floats: (f32::NAN, f64::NAN), ..zoo.clone() },
            Zoo { floats: (f32::INFINITY, f64::NEG_INFINITY), ..zoo.clone() },
            Zoo { floats: (-0.0, f64::MIN_POSITIVE / 2.0), ..zoo.clone() },
            Zoo { floats: (f32::MAX, 0.1 + 0.2), ..zoo.clone() },
            Zoo { nested: Some(None), ..zoo.clone() },
            Zoo { nested: None, maybe: None, ..zoo.clone() },
            Zoo { text: "x".repeat(100_000), bytes: vec![0; 100_000], ..zoo.clone() },
            Zoo { names: (0..500).map(|n| (format!("{n}"), n)).collect(), ..zoo.clone() },
            Zoo { result: Ok(7), list: vec![], ..zoo },
        ]
    }
}
