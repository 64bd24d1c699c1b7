//! What says that a service is ready and well, and what follows where it is not.

use std::fs;
use std::path::Path;
use std::time::Duration;

use libtest_mimic::Trial;
use pm::service::{Condition, Event, Need, Probe, Restart, StartError, State, WaitError, When, web_server};
use pm::{ExitCause, Spec};

use super::{Events, RESTS, at_once, info, orchestrator, pid, python, sh, shell, state, wait, while_there};
use crate::kits::Kit;
use crate::support::{LONG, Scratch, contains, gone_within, one, within};

pub fn tests() -> Vec<Trial> {
    [
        one("services::health::a_slow_start_is_noticed_soon", a_slow_start_is_noticed_soon),
        one("services::health::a_web_server_that_is_slow_is_waited_for", a_web_server_that_is_slow),
        one("services::health::what_is_never_healthy_has_a_limit", what_is_never_healthy_has_a_limit),
        one("services::health::a_start_that_took_too_long_is_tried_again", a_start_that_took_too_long_is_tried_again),
        one("services::health::the_start_limit_is_none_to_its_life", the_start_limit_is_none_to_its_life),
        one("services::health::it_becomes_unhealthy_and_healthy_again", it_becomes_unhealthy_and_healthy_again),
        one("services::health::what_probes_say_is_told", what_probes_say_is_told),
        one("services::health::one_that_is_unhealthy_is_started_anew", one_that_is_unhealthy_is_started_anew),
        one("services::health::one_that_does_not_live_is_started_anew", one_that_does_not_live_is_started_anew),
        one("services::health::a_probe_that_hangs_fails_and_is_killed", a_probe_that_hangs),
        one("services::health::a_probe_dies_with_the_orchestrator", a_probe_dies_with_the_orchestrator),
        one("services::health::a_command_with_another_code", a_command_with_another_code),
        one("services::health::a_command_that_does_not_exist_says_so", a_command_that_does_not_exist_says_so),
        one("services::health::a_line_says_that_it_is_ready", a_line_says_that_it_is_ready),
        one("services::health::sd_notify_says_that_it_is_ready", sd_notify_says_that_it_is_ready),
        one("services::health::a_watchdog_that_is_fed_and_then_not", a_watchdog_that_is_fed_and_then_not),
        one("services::health::who_notifies_without_end_stops_nobody", who_notifies_without_end_stops_nobody),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// How much later than it was is it known that a service is ready, at most: an eighth of a second by the schedule, and the time of a probe.
const LATE: Duration = Duration::from_millis(300);

async fn a_slow_start_is_noticed_soon() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let ready = scratch.path("ready");
    let script = format!("sleep 1; echo > {}; {RESTS}", ready.display());
    let slow = shell("slow", &script).health(while_there(&ready).interval(LONG)).build().unwrap();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([slow])).await.unwrap();
    let was = fs::metadata(&ready).unwrap().modified().unwrap();
    let known = within(async {
        loop {
            let happening = events.0.recv().await.unwrap();
            if matches!(happening.event, Event::Healthy { .. }) {
                return happening.at;
            }
        }
    })
    .await;
    let late = known.duration_since(was).unwrap_or_default();
    assert!(late < LATE, "{late:?} late");
    assert_eq!(state(&orchestrator, "slow").await, State::Healthy);
}

/// A server that answers with 503 until so many requests have come, says its port to a file, and counts.
const SERVER: &str = r#"
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(200 if self.path == '/health' and Handler.asked > 3 else 503)
        self.send_header('Content-Length', '0')
        self.end_headers()
    def log_message(self, *rest): pass
http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
"#;

/// A port that nobody has now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn a_web_server_that_is_slow() {
    if !Kit::Python.is_installed() {
        return;
    }
    let orchestrator = orchestrator();
    let port = free_port();
    let interpreter = Kit::Python.interpreter().unwrap();
    let spec = Spec::program(interpreter).arg("-c").arg(SERVER).env("PORT", port.to_string()).build().unwrap();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([web_server("web", spec, port).build().unwrap()])).await.unwrap();
    assert_eq!(state(&orchestrator, "web").await, State::Healthy);
    events.healthy("web").await;
    let stopped = within(orchestrator.stop("web")).await.unwrap();
    assert!(stopped[0].is_clean(), "{stopped:?}");
}

async fn what_is_never_healthy_has_a_limit() {
    let orchestrator = orchestrator();
    let port = free_port();
    let never = shell("never", "echo trying; exec sleep 1000")
        .health(Probe::tcp(port))
        .start_limit(Duration::from_millis(300))
        .build()
        .unwrap();
    let mut events = Events::of(&orchestrator);
    let error = within(orchestrator.start_many([never])).await.unwrap_err();
    let StartError::Timeout { service, limit, said, output, .. } = &error else { panic!("{error:?}") };
    assert_eq!((service.as_str(), *limit), ("never", Duration::from_millis(300)));
    assert_eq!(said.as_deref(), Some(format!("127.0.0.1:{port}: connection refused").as_str()));
    assert_eq!(output, &["trying"]);
    let (cause, returns) = events.crashed("never").await;
    assert!(matches!(&cause, ExitCause::NotReady { limit: had, .. } if had == limit) && !returns, "{cause:?}");
    let never = info(&orchestrator, "never").await;
    assert_eq!((never.state, never.pid), (State::Failed, None), "it does not go on");
    assert!(never.lived < Duration::from_secs(5), "{never:?}");
}

async fn a_start_that_took_too_long_is_tried_again() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let tried = scratch.path("tried");
    let script = format!("test -e {0} && echo up; echo > {0}; {RESTS}", tried.display());
    let second = shell("second", &script).ready_line("up").start_limit(Duration::from_millis(300));
    within(orchestrator.start_many([second.restart(at_once(When::OnFailure)).build().unwrap()])).await.unwrap();
    let second = info(&orchestrator, "second").await;
    assert_eq!((second.state, second.restarts), (State::Healthy, 1));
}

async fn the_start_limit_is_none_to_its_life() {
    let orchestrator = orchestrator();
    let mut events = Events::of(&orchestrator);
    let limit = Duration::from_millis(400);
    let lasts = shell("lasts", "echo up; exec sleep 1000").ready_line("up").start_limit(limit).build().unwrap();
    within(orchestrator.start_many([lasts])).await.unwrap();
    within(async {
        while info(&orchestrator, "lasts").await.lived < 2 * limit {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(state(&orchestrator, "lasts").await, State::Healthy);
    assert!(!events.words().iter().any(|word| word == "lasts Stopping"));
}

async fn it_becomes_unhealthy_and_healthy_again() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let well = scratch.path("well");
    fs::write(&well, "").unwrap();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([shell("a", RESTS).health(while_there(&well)).build().unwrap()])).await.unwrap();
    let before = pid(&orchestrator, "a").await;
    for _ in 0..2 {
        fs::remove_file(&well).unwrap();
        let reason = events
            .next("a", |event| match event {
                Event::Unhealthy { reason } => Some(reason.clone()),
                _ => None,
            })
            .await;
        contains(&reason, "test");
        let a = info(&orchestrator, "a").await;
        assert_eq!((a.state, a.why), (State::Unhealthy, Some(reason)));
        fs::write(&well, "").unwrap();
        events.healthy("a").await;
        wait(&orchestrator, "a", Condition::Healthy).await;
    }
    assert_eq!(pid(&orchestrator, "a").await, before, "nothing more follows from that");
}

async fn what_probes_say_is_told() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let well = scratch.path("well");
    fs::write(&well, "").unwrap();
    let a = shell("a", RESTS).health(while_there(&well)).liveness(while_there(&scratch.path("")).interval(LONG));
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([a.build().unwrap(), shell("b", RESTS).build().unwrap()])).await.unwrap();
    let b = info(&orchestrator, "b").await;
    assert_eq!((b.readiness, b.liveness), (None, None), "it is asked nothing");
    let probes = async |name| {
        let a = info(&orchestrator, name).await;
        (a.readiness.expect("a health probe"), a.liveness.expect("a liveness probe"))
    };
    let (readiness, _) = probes("a").await;
    let last = readiness.last.expect("an answer");
    assert_eq!((last.result, readiness.failures), (Ok(()), 0));
    assert!(readiness.next_in.is_none_or(|next| next <= Duration::from_millis(20)), "{:?}", readiness.next_in);
    // It is asked once, and then not for long.
    let liveness = within(async {
        loop {
            let (_, liveness) = probes("a").await;
            if liveness.last.is_some() {
                return liveness;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let (ago, next) = (liveness.last.unwrap().ago, liveness.next_in.expect("it is not being asked"));
    assert!(next <= LONG && next + ago > LONG - Duration::from_millis(1), "{ago:?} ago, again in {next:?}");
    fs::remove_file(&well).unwrap();
    events.next("a", |event| matches!(event, Event::Unhealthy { .. }).then_some(())).await;
    let (readiness, _) = probes("a").await;
    assert!(readiness.failures >= 2, "{readiness:?}");
    contains(readiness.last.unwrap().result.unwrap_err(), "test");
    within(orchestrator.stop("a")).await.unwrap();
    let (readiness, liveness) = probes("a").await;
    assert!(readiness.last.is_some_and(|last| last.result.is_err()) && readiness.failures >= 2);
    assert_eq!((readiness.next_in, liveness.next_in), (None, None), "nothing is asked any more");
}

async fn one_that_is_unhealthy_is_started_anew() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let well = scratch.path("well");
    // It makes itself well, so each life begins so.
    let script = format!("echo > {}; {RESTS}", well.display());
    let restart = Restart { max: Some(1), ..at_once(When::Never) };
    let a = shell("a", &script).health(while_there(&well)).restart_unhealthy().restart(restart).build().unwrap();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([a])).await.unwrap();
    let first = events.started("a").await;
    events.healthy("a").await;
    fs::remove_file(&well).unwrap();
    let (cause, returns) = events.crashed("a").await;
    assert!(matches!(cause, ExitCause::Unhealthy { .. }) && returns, "{cause:?}");
    let second = events.started("a").await;
    events.healthy("a").await;
    assert_ne!(first, second);
    gone_within(first, Duration::ZERO);
    fs::remove_file(&well).unwrap();
    assert!(!events.crashed("a").await.1, "once is its limit");
    let a = info(&orchestrator, "a").await;
    assert_eq!((a.state, a.restarts), (State::GaveUp, 1));
    contains(a.why.unwrap(), "after 1 restarts");
}

async fn one_that_does_not_live_is_started_anew() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let lives = scratch.path("lives");
    let script = format!("echo > {}; echo up; {RESTS}", lives.display());
    let a = shell("a", &script).ready_line("up").liveness(while_there(&lives)).restart(at_once(When::OnFailure));
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([a.build().unwrap()])).await.unwrap();
    fs::remove_file(&lives).unwrap();
    let (cause, returns) = events.crashed("a").await;
    assert!(matches!(cause, ExitCause::Unhealthy { .. }) && returns, "{cause:?}");
    events.healthy("a").await;
    assert_eq!(info(&orchestrator, "a").await.restarts, 1);
}

/// A probe that never answers and says its pid to a file.
fn hangs(file: &Path) -> Probe {
    let script = format!("echo $$ >> {}; exec sleep 1000", file.display());
    Probe::command(sh(&script))
}

async fn a_probe_that_hangs() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let file = scratch.path("pids");
    let timeout = Duration::from_millis(100);
    let a = shell("a", RESTS).health(hangs(&file).timeout(timeout)).start_limit(Duration::from_millis(600));
    let error = within(orchestrator.start_many([a.build().unwrap()])).await.unwrap_err();
    let StartError::Timeout { said: Some(said), .. } = &error else { panic!("{error:?}") };
    contains(said, "no answer within 100ms");
    // A probe that was killed before it could say its pid has not said it.
    for pid in fs::read_to_string(&file).unwrap_or_default().lines() {
        gone_within(pid.parse().unwrap(), Duration::from_secs(1));
    }
}

async fn a_probe_dies_with_the_orchestrator() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let file = scratch.path("pids");
    let a = shell("a", RESTS).health(hangs(&file).timeout(LONG)).build().unwrap();
    orchestrator.add([a]).await.unwrap();
    let starting = tokio::time::timeout(Duration::from_millis(1), orchestrator.start_service("a")).await;
    assert!(starting.is_err());
    crate::support::eventually("it is asked", || fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')))
        .await;
    let probe = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    drop(orchestrator);
    gone_within(probe, Duration::from_secs(5));
}

async fn a_command_with_another_code() {
    let orchestrator = orchestrator();
    let asks = |script: &str| Probe::command(sh(script)).interval(LONG);
    let three = shell("three", RESTS).health(asks("exit 3").exit_code(3)).build().unwrap();
    within(orchestrator.start_many([three])).await.unwrap();
    assert_eq!(state(&orchestrator, "three").await, State::Healthy);
    // Success is another code as well.
    let limit = Duration::from_millis(300);
    let not = shell("not", RESTS).health(asks("echo well >&2").exit_code(3)).start_limit(limit).build().unwrap();
    let error = within(orchestrator.start_many([not])).await.unwrap_err();
    let StartError::Timeout { said: Some(said), .. } = &error else { panic!("{error:?}") };
    contains(said, "(well)");
}

async fn a_command_that_does_not_exist_says_so() {
    let orchestrator = orchestrator();
    let probe = Probe::command(Spec::program("/no/such/probe").build().unwrap());
    let a = shell("a", RESTS).health(probe).start_limit(Duration::from_millis(200)).build().unwrap();
    let error = within(orchestrator.start_many([a])).await.unwrap_err();
    contains(error.to_string(), "/no/such/probe");
    contains(error.to_string(), "was not found");
}

async fn a_line_says_that_it_is_ready() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let go = scratch.path("go");
    let script = format!(
        "echo 'not listening on 80'; until test -e {}; do sleep 0.01; done; printf 'Listening on 80\\r\\n' >&2; {RESTS}",
        go.display()
    );
    let mut events = Events::of(&orchestrator);
    orchestrator.add([shell("a", &script).ready_line(r"^Listening on \d+").build().unwrap()]).await.unwrap();
    let start = tokio::spawn({
        let orchestrator = orchestrator.clone();
        async move { orchestrator.start_service("a").await }
    });
    events.started("a").await;
    super::printed(&orchestrator, "a", 1).await;
    assert_eq!(state(&orchestrator, "a").await, State::Starting);
    fs::write(&go, "").unwrap();
    within(start).await.unwrap().unwrap();
    wait(&orchestrator, "a", Condition::LogReady).await;
}

/// What sd_notify(3) does.
const NOTIFY: &str = "
import os, socket, time
address = '\\0' + os.environ['NOTIFY_SOCKET'][1:]
notifier = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def notify(text): notifier.sendto(text.encode(), address)
";

async fn sd_notify_says_that_it_is_ready() {
    let orchestrator = orchestrator();
    let script = format!("{NOTIFY}\nnotify('STATUS=loading')\nnotify('READY=1\\nSTATUS=well')\ntime.sleep(1000)");
    let Some(a) = python("a", &script) else { return };
    let next = shell("next", RESTS).needs("a", Condition::Healthy).build().unwrap();
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([a.notify().build().unwrap(), next])).await.unwrap();
    let status = |event: &Event| match event {
        Event::Status { text } => Some(text.clone()),
        _ => None,
    };
    assert_eq!(events.next("a", status).await, "loading");
    assert_eq!(events.next("a", status).await, "well");
    let a = info(&orchestrator, "a").await;
    assert_eq!((a.state, a.status.as_deref()), (State::Healthy, Some("well")));
    within(orchestrator.stop("a")).await.unwrap();
    assert_eq!(info(&orchestrator, "a").await.status, None, "it does not do it any more");
}

async fn a_watchdog_that_is_fed_and_then_not() {
    let (orchestrator, scratch) = (orchestrator(), Scratch::new());
    let hungry = scratch.path("hungry");
    let script = format!(
        "{NOTIFY}\nnotify('READY=1')\npause = int(os.environ['WATCHDOG_USEC']) / 1e6 / 10\n\
         while not os.path.exists('{}'): notify('WATCHDOG=1'); time.sleep(pause)\ntime.sleep(1000)",
        hungry.display()
    );
    let Some(a) = python("a", &script) else { return };
    let limit = Duration::from_secs(1);
    let a = a.notify().watchdog(limit).restart(Restart { max: Some(0), ..at_once(When::OnFailure) });
    let mut events = Events::of(&orchestrator);
    within(orchestrator.start_many([a.stop_limit(Duration::ZERO).build().unwrap()])).await.unwrap();
    within(async {
        while info(&orchestrator, "a").await.lived < 2 * limit {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(state(&orchestrator, "a").await, State::Healthy, "it was fed: {:?}", events.words());
    fs::write(&hungry, "").unwrap();
    let (cause, returns) = events.crashed("a").await;
    let ExitCause::Unhealthy { reason } = &cause else { panic!("{cause:?}") };
    contains(reason, "WATCHDOG=1");
    assert!(!returns, "none is its limit");
    assert_eq!(state(&orchestrator, "a").await, State::GaveUp);
}

/// It says something all the time. Others are heard nevertheless, and it is stopped in its time.
async fn who_notifies_without_end_stops_nobody() {
    let orchestrator = orchestrator();
    let script = format!("{NOTIFY}\nnotify('READY=1')\nwhile True: notify('STATUS=again')");
    let Some(flood) = python("flood", &script) else { return };
    let need = Need::new("flood", Condition::Healthy);
    let quiet = shell("quiet", "echo up; exec sleep 1000").ready_line("up").need(need).build().unwrap();
    let limited = flood.notify().stop_limit(Duration::from_secs(2)).build().unwrap();
    within(orchestrator.start_many([limited, quiet])).await.unwrap();
    let stopped = within(orchestrator.stop_all(None)).await;
    assert_eq!(stopped.len(), 2);
    assert!(stopped.iter().all(|one| one.exit.is_some() && one.survivors.is_empty()), "{stopped:?}");
    assert!(matches!(within(orchestrator.wait("quiet", Condition::Running)).await, Err(WaitError::Never { .. })));
}
