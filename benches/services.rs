//! Services: how soon a system is up, how soon it is gone, what it costs while nothing happens, and how fast what services print reaches their logs.
//!
//! `cargo bench -p pm-benches --bench services [-- SECONDS]`, where the seconds are those in which idle services are watched. The targets stand beside the figures.

#[path = "services_rivals/process.rs"]
mod process;

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use pm::service::{Condition, LogFile, Need, Orchestrator, Probe, Restart, Service, ServiceBuilder, When};
use pm::{Signal, Spec};
use pm_cli::bench::measure::{Asked, asked};
use rustix::process::Pid;

/// The word that makes this program a service that takes connections on a port after so many milliseconds.
const LISTEN: &str = "listen-on";

/// The variable that makes this program the command `pm`.
const AS_PM: &str = "PM_BENCH_AS_PM";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, word, port, after] = args.as_slice()
        && word == LISTEN
    {
        listen(port.parse().expect("a port"), after.parse().expect("milliseconds"));
    }
    pm::roles(pm_cli::roles::ALL);
    if std::env::var_os(AS_PM).is_some() {
        return pm_cli::run(std::env::args_os(), pm_cli::Stdout::Open);
    }
    let Asked { is_test, time } = asked(60.0, Duration::from_millis(300));
    let scratch = Scratch::new();
    for processes in [1, 50] {
        samples(processes, if is_test { 10 } else { 1000 });
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        layers(if is_test { 2 } else { 5 }).await;
        crashes(if is_test { 20 } else { 10_000 }).await;
        logs(&scratch.0, if is_test { 20_000 } else { 2_000_000 }).await;
    });
    project(&scratch.0, if is_test { 5 } else { 100 }, time);
    ExitCode::SUCCESS
}

/// A service that is ready when it takes connections.
fn listen(port: u16, after: u64) -> ! {
    std::thread::sleep(Duration::from_millis(after));
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port");
    loop {
        drop(listener.accept());
    }
}

fn listener(name: String, port: u16, after: u64) -> ServiceBuilder {
    let own = std::env::current_exe().expect("the path of this program");
    let spec = Spec::program(own).arg(LISTEN).arg(port.to_string()).arg(after.to_string()).build().expect("a Spec");
    Service::new(name, spec).health(Probe::tcp(port))
}

/// Ports that are free now.
fn free_ports(count: usize) -> Vec<u16> {
    let bound: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    bound.iter().map(|listener| listener.local_addr().expect("an address").port()).collect()
}

/// Ten services a layer, each ready 100 ms after its start and needing one of the layer before.
async fn layers(count: usize) {
    let ports = free_ports(10 * count);
    let named = |layer: usize, at: usize| format!("s{layer}-{at}");
    let services: Vec<Service> = (0..10 * count)
        .map(|number| {
            let (layer, at) = (number / 10, number % 10);
            let service = listener(named(layer, at), ports[number], 100);
            let need = (layer > 0).then(|| Need::new(named(layer - 1, at), Condition::Healthy));
            need.into_iter().fold(service, ServiceBuilder::need).build().expect("a service")
        })
        .collect();
    let orchestrator = Orchestrator::start().expect("an orchestrator");
    // The keeper is started with the first process, and is not what is measured.
    let first = Service::new("first", Spec::program("true").build().expect("a Spec")).build().expect("a service");
    orchestrator.start_many([first]).await.expect("it starts");
    let began = Instant::now();
    orchestrator.start_many(services).await.expect("all are healthy");
    let healthy = began.elapsed();
    let ideal = 100 * count;
    println!(
        "{} services in {count} layers, each ready after 100 ms: healthy after {healthy:.0?} (ideal: {ideal} ms; target for 5 layers: 700)",
        10 * count
    );
    let began = Instant::now();
    let stopped = orchestrator.stop_all(None).await;
    assert!(stopped.iter().all(|one| one.is_clean()), "{stopped:?}");
    println!("stopped in reverse after {:.0?}", began.elapsed());
}

/// One that dies again and again, without a delay.
async fn crashes(count: u32) {
    let restart = Restart { max: None, delay: Duration::ZERO, ..Restart::when(When::Always) };
    let spec = Spec::program("sleep").arg("1000").build().expect("a Spec");
    let service = Service::new("a", spec).restart(restart).build().expect("a service");
    let orchestrator = Orchestrator::start().expect("an orchestrator");
    let mut events = orchestrator.events();
    orchestrator.start_many([service]).await.expect("it starts");
    let (mut times, mut killed) = (Vec::new(), None);
    let mut before = None;
    while times.len() < count as usize {
        let Ok(happening) = events.recv().await else { continue };
        if let pm::service::Event::Started { .. } = happening.event {
            times.extend(killed.take().map(|at: Instant| at.elapsed()));
            if times.len() == count as usize / 10 {
                before = Some(own());
            }
            killed = Some(Instant::now());
            orchestrator.signal("a", Signal::KILL).await.expect("it is there");
        }
    }
    times.sort_unstable();
    let (memory, descriptors) = before.map_or((0.0, 0), |(memory, descriptors)| {
        let (memory_now, descriptors_now) = own();
        (memory_now - memory, descriptors_now - descriptors)
    });
    println!(
        "killed {count} times: running again after {:.1?} in the median, {:.1?} at p99 (target: 20 ms); since the first tenth {memory:+.1} MB and {descriptors:+} descriptors",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
    );
    orchestrator.stop_all(None).await;
}

/// Memory in MB and descriptors of this process.
fn own() -> (f64, i64) {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = status.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0.0);
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as i64);
    (pages * rustix::param::page_size() as f64 / 1e6, descriptors)
}

/// What it costs to measure what a tree of processes uses, as metrics do once in an interval.
fn samples(processes: u32, rounds: u32) {
    let script = format!("i=1; while test $i -lt {processes}; do sleep 1000 & i=$((i+1)); done; echo; exec sleep 1000");
    let mut shell = Command::new("setsid");
    let mut root = shell.args(["sh", "-c", &script]).stdout(Stdio::piped()).spawn().expect("a shell");
    std::io::Read::read_exact(root.stdout.as_mut().expect("a pipe"), &mut [0]).expect("a line");
    let (before, began) = (own_cpu(), Instant::now());
    for _ in 0..rounds {
        assert_eq!(pm::service::usage_of(root.id()).map(|usage| usage.processes), Some(processes));
    }
    let (took, used) = (began.elapsed() / rounds, (own_cpu() - before) / rounds);
    println!("a sample of a tree of {processes}: {took:.1?}, {used:.1?} of processor time");
    let group = Pid::from_child(&root);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).expect("it is there");
    root.wait().expect("it ends");
}

/// Lines of 88 bytes through a pipe into a log, beside the same through a pipe into a file.
async fn logs(scratch: &Path, count: usize) {
    let (input, log) = (scratch.join("input"), scratch.join("a.log"));
    let line = [b"0123456789".repeat(9)[..87].to_vec(), b"\n".to_vec()].concat();
    let mut file = std::io::BufWriter::new(std::fs::File::create(&input).expect("a file"));
    for _ in 0..count {
        file.write_all(&line).expect("a line");
    }
    drop(file.into_inner().expect("all lines"));
    let script = format!("cat {} | cat > {}", input.display(), scratch.join("raw").display());
    let began = Instant::now();
    assert!(Command::new("sh").args(["-c", &script]).status().expect("a shell").success());
    let raw = count as f64 / began.elapsed().as_secs_f64();

    let orchestrator = Orchestrator::start().expect("an orchestrator");
    let spec = Spec::program("cat").arg(&input).build().expect("a Spec");
    let service =
        Service::new("a", spec).log(LogFile { max_bytes: 0, ..LogFile::new(&log) }).build().expect("a service");
    let began = Instant::now();
    orchestrator.start_many([service]).await.expect("it starts");
    orchestrator.wait("a", Condition::CompletedSuccessfully).await.expect("it completes");
    let logged = count as f64 / began.elapsed().as_secs_f64();
    let lines = std::fs::read(&log).expect("the log").split(|byte| *byte == b'\n').count() - 1;
    assert_eq!(lines, count, "none is lost");
    println!(
        "{count} lines of 88 B into a log: {:.2} M/s (target: 1; cat | cat > file: {:.2})",
        logged / 1e6,
        raw / 1e6
    );
}

/// Many services of a project that do nothing: what pm uses meanwhile, how long `pm ps` takes, and how soon all are gone.
fn project(scratch: &Path, count: usize, watched: Duration) {
    let own = std::env::current_exe().expect("the path of this program");
    let own = own.display();
    let service = |(at, port): (usize, &u16)| {
        format!(
            "[service.s{at}]\ncommand = [\"{own}\", \"{LISTEN}\", \"{port}\", \"0\"]\nhealth = {{ tcp = {port} }}\n"
        )
    };
    let text: String = free_ports(count).iter().enumerate().map(service).collect();
    std::fs::write(scratch.join("pm.toml"), text).expect("a file");
    let pm = |args: &[&str]| {
        let mut command = Command::new("/proc/self/exe");
        command.args(args).current_dir(scratch).env(AS_PM, "1").env("XDG_RUNTIME_DIR", scratch);
        let began = Instant::now();
        let output = command.output().expect("pm");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (began.elapsed(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (up, _) = pm(&["up", "--wait"]);
    println!("{count} services of a project: up after {up:.0?}");
    let managers = children_of_pm(scratch);
    let before: Duration = managers.iter().map(|pid| process::cpu(*pid)).sum();
    let began = Instant::now();
    std::thread::sleep(watched);
    let used: Duration = managers.iter().map(|pid| process::cpu(*pid)).sum::<Duration>() - before;
    let memory: f64 = managers.iter().map(|pid| process::memory(*pid).0).sum();
    let part = 100.0 * used.as_secs_f64() / began.elapsed().as_secs_f64();
    println!(
        "pm and its keeper meanwhile: {memory:.1} MB (target: 25), {part:.2} % of a CPU over {watched:.0?} (target: 0.2)"
    );
    let mut times: Vec<Duration> = (0..20).map(|_| pm(&["ps"]).0).collect();
    times.sort_unstable();
    println!("pm ps: {:.1?} in the median, {:.1?} at most (target: 20 ms)", times[10], times[19]);
    let (down, _) = pm(&["down"]);
    println!("pm down: {down:.0?} (target for 100: 300 ms)");
}

/// The process of the project, and its keeper.
fn children_of_pm(scratch: &Path) -> Vec<u32> {
    let wanted = scratch.display().to_string();
    let is_ours = |pid: &u32| {
        process::variable(*pid, "XDG_RUNTIME_DIR").as_ref() == Some(&wanted) && !process::has_argument(*pid, LISTEN)
    };
    process::all().into_iter().filter(is_ours).collect()
}

/// How long this thread has been on a processor.
fn own_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("pm-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
