//! The manager is killed, and everything that it started is gone within a second, whatever it was doing. Fault 10.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pm::{AnyTransport, SpecBuilder};
use rustix::process::Signal as Kill;
use serde_json::{Value, json};

use crate::kits::Kit;
use crate::processes::{PROCESS, TRANSPORT, has, helper_transport};
use crate::roles::{BEGUN, Job};
use crate::services;
use crate::support::{ALL, LIMIT, LONG, MARK, TRANSPORTS, again, eventually, jobs, kill, mark, marked, run, state};

/// How soon everything is gone once the manager is. That is the promise; a loaded machine may be slower, and the time is printed.
const PROMISED: Duration = Duration::from_secs(1);

/// And this is what no load explains.
const TOO_LATE: Duration = Duration::from_secs(5);

/// What the workers of a manager do while it is killed, with the number of processes that are there then, the manager and its
/// keeper included.
const SCENES: [(&str, usize); 8] = [
    ("idle", 4),
    ("spin", 4),
    ("sleep", 4),
    ("nap", 4),
    ("stray", 8),
    ("write", 4),
    ("unguarded-idle", 3),
    ("unguarded-spin", 3),
];

/// The same for workers in other languages.
const KIT_SCENES: [(&str, usize); 3] = [("sleep", 4), ("spin", 4), ("stray", 6)];

pub fn tests() -> Vec<Trial> {
    let mut trials = Vec::new();
    for transport in ALL {
        for (scene, least) in SCENES {
            let test = move || {
                if scene != "stray" || has("setsid") {
                    manager_killed(scene, least, transport);
                }
                Ok(())
            };
            trials.push(Trial::test(format!("manager_killed::{scene}::{transport}"), test));
        }
    }
    trials.push(Trial::test("manager_killed::services", || {
        if has("setsid") {
            // The transport is of no matter to them.
            manager_killed("services", 11, ALL[0]);
        }
        Ok(())
    }));
    for transport in TRANSPORTS {
        for kit in [Kit::Python, Kit::Node] {
            for (scene, least) in KIT_SCENES {
                let test = move || {
                    if kit.is_installed() && (scene != "stray" || has("setsid")) {
                        manager_killed(&format!("{kit}-{scene}"), least, transport);
                    }
                    Ok(())
                };
                trials.push(Trial::test(format!("manager_killed::{kit}_{scene}::{transport}"), test));
            }
        }
    }
    trials
}

/// What this binary is where it is a manager that is to be killed.
pub fn helper() {
    let Ok(process) = std::env::var(PROCESS) else { return };
    let scene = process.strip_prefix("manager-").unwrap_or_else(|| panic!("{process:?} is no helper"));
    // No limit of time: it ends when it is killed.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let _pools = play(scene, helper_transport()).await;
        std::future::pending::<()>().await;
    });
}

/// Brings the workers of this manager where the test wants them, and says so.
async fn play(scene: &str, transport: AnyTransport) -> Box<dyn std::any::Any> {
    let (heard, begun) = mpsc::channel();
    let hook = move |_, text: &str| {
        if text == BEGUN {
            let _ = heard.send(());
        }
    };
    let both_have_begun = || (0..2).for_each(|_| begun.recv_timeout(LIMIT).expect("a job begins"));
    if let Some((kit, order)) = scene.split_once('-')
        && let Some(kit) = Kit::named(kit)
    {
        let pool = kit.pool::<Value>(transport).workers(2).on_notice(hook).start().await.unwrap();
        for _ in 0..2 {
            tokio::spawn(pool.query(&json!([order, 1000])));
        }
        both_have_begun();
        up();
        return Box::new(pool);
    }
    if scene == "services" {
        let orchestrator = services::to_be_killed().await;
        up();
        return Box::new(orchestrator);
    }
    let (guarded, scene) = scene.strip_prefix("unguarded-").map_or((true, scene), |scene| (false, scene));
    let builder = jobs(transport).workers(2).on_notice(hook);
    let builder = if guarded { builder } else { builder.spec(SpecBuilder::unguarded) };
    let pool = builder.start().await.unwrap();
    let notice = || Job::Notice(BEGUN.into()).into();
    match scene {
        "idle" => drop(pool.query(&Job::Pid).await.unwrap()),
        "stray" => {
            for (_, stray) in pool.query_all(&Job::Stray).await {
                stray.unwrap();
            }
        }
        _ => {
            let jobs = match scene {
                "spin" => [Job::Spin, Job::Spin],
                "sleep" => [Job::Sleep(LONG), Job::Sleep(LONG)],
                "nap" => [Job::Nap(LONG), Job::Nap(LONG)],
                "write" => {
                    [Job::Both(notice(), Job::Flood(1 << 30).into()), Job::Both(notice(), Job::Make(60 << 20).into())]
                }
                other => panic!("{other:?} is no scene"),
            };
            for job in jobs {
                tokio::spawn(pool.query(&job));
            }
            both_have_begun();
        }
    }
    up();
    if scene == "write" {
        // Nobody reads any more, so both workers block in what they write.
        kill(std::process::id(), Kill::STOP);
    }
    Box::new(pool)
}

fn up() {
    println!("up");
    std::io::stdout().flush().expect("standard output");
}

/// A manager in a process of its own, which does not outlive its test.
struct Manager(Child);

impl Manager {
    fn start(process: &str, transport: AnyTransport, mark: &str) -> Self {
        let mut command = again();
        command.env(PROCESS, process).env(TRANSPORT, transport.to_string()).env(MARK, mark);
        Manager(command.stdout(Stdio::piped()).spawn().expect("a manager"))
    }

    /// Waits until it says that everything is where it should be.
    fn wait_until_up(&mut self) {
        let output = self.0.stdout.take().expect("its output");
        let (said, line) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(output).read_line(&mut line);
            let _ = said.send(line);
        });
        assert_eq!(line.recv_timeout(LIMIT).expect("it says something"), "up\n");
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn manager_killed(scene: &str, least: usize, transport: AnyTransport) {
    let mark = mark();
    let mut manager = Manager::start(&format!("manager-{scene}"), transport, &mark);
    manager.wait_until_up();
    let pid = manager.0.id();
    if scene == "write" {
        run(eventually("the manager is stopped, and its workers block", || {
            let sleeps = |pid: &u32| state(*pid).is_some_and(|(state, _)| state == 'S');
            state(pid).is_some_and(|(state, _)| state == 'T')
                && marked(&mark).iter().filter(|worker| **worker != pid).all(sleeps)
        }));
    }
    // A process that is just being executed has no environment to be known by.
    run(eventually("all processes are there", || marked(&mark).len() >= least));
    let before = marked(&mark);
    assert!(before.len() >= least && before.contains(&pid), "{before:?}, of which {pid} is the manager");
    manager.0.kill().unwrap();
    manager.0.wait().unwrap();
    let died = Instant::now();
    let gone = run(async {
        while !marked(&mark).is_empty() {
            if died.elapsed() > TOO_LATE {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Some(died.elapsed())
    });
    match gone {
        Some(took) => {
            let late = if took > PROMISED { ", LATER THAN PROMISED" } else { "" };
            println!("{scene} over {transport}: {} processes gone after {took:?}{late}", before.len());
        }
        None => {
            let left: Vec<_> =
                marked(&mark).into_iter().map(|pid| (pid, state(pid), crate::support::command_line(pid))).collect();
            for (pid, ..) in &left {
                kill(*pid, Kill::KILL);
            }
            panic!("{scene} over {transport}: alive {TOO_LATE:?} after the manager: {left:?}");
        }
    }
}
