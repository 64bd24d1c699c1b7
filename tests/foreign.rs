//! Programs that do not speak the protocol: lines, Node.js's own channel, and nothing at all. Rows R1 and T11; faults 1, 15, 18, 19.

use std::time::Duration;

use libtest_mimic::Trial;
use pm::foreign::{Calls, Dialect, Out, Said};
use pm::{
    Bytes, ExitCause, ExitStatus, HandlerError, Json, Lines, NodeChannel, PoolBuilder, Postcard, QueryError,
    QueryErrorKind, RawEvent, RawManager, RawWorker, Silent, Spec, SpecBuilder, StartError, Stderr, StreamReceiver,
    Verbatim,
};
use serde_json::{Value, json};

use crate::kits::Kit;
use crate::support::{LONG, Scratch, contains, error, gone_within, one, within};

/// A worker as Node's documentation of `child_process.fork` has it: it knows nothing of pm.
const FORKED: &str = r#"
let count = 0;
process.on('message', (message) => {
  count++;
  if (message === 'pid') return process.send(process.pid);
  if (message === 'count') return process.send(count);
  if (message && message.flood) {
    for (let number = 0; number < message.flood; number++) process.send(number);
    return;
  }
  if (message === 'die') process.exit(3);
  if (message === 'print') console.log('this is no message');
  process.send({ echo: message });
});
"#;

pub fn tests() -> Vec<Trial> {
    [
        one("foreign::lines_are_messages", lines_are_messages),
        one("foreign::a_last_line_needs_no_newline", a_last_line_needs_no_newline),
        one("foreign::a_newline_cannot_be_said", a_newline_cannot_be_said),
        one(
            "foreign::all_that_comes_after_the_end_of_the_input_is_read",
            all_that_comes_after_the_end_of_the_input_is_read,
        ),
        one("foreign::what_nobody_reads_waits_in_the_program", what_nobody_reads_waits_in_the_program),
        one("foreign::a_line_without_end_ends_its_program", a_line_without_end_ends_its_program),
        one("foreign::a_death_is_told_with_its_cause", a_death_is_told_with_its_cause),
        one("foreign::a_dialect_answers_queries", a_dialect_answers_queries),
        one("foreign::a_dialect_has_the_deadlines_of_any_pool", a_dialect_has_the_deadlines_of_any_pool),
        one("foreign::a_program_that_talks_nonsense_is_replaced", a_program_that_talks_nonsense_is_replaced),
        one("foreign::a_silent_program_leaves_by_a_signal", a_silent_program_leaves_by_a_signal),
        one("foreign::a_silent_program_has_until_the_deadline", a_silent_program_has_until_the_deadline),
        one("foreign::it_is_not_told_of_pm", it_is_not_told_of_pm),
        one("foreign::roles_have_their_own_transports", roles_have_their_own_transports),
        node("foreign::node::a_channel_of_json_takes_no_other_codec", a_channel_of_json_takes_no_other_codec),
        node("foreign::node::a_forked_worker_works_unchanged", a_forked_worker_works_unchanged),
        node("foreign::node::what_nobody_reads_waits", what_nobody_reads_waits),
        node("foreign::node::a_death_is_told_with_its_cause", a_forked_worker_dies),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A test that needs Node.js.
fn node<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Vec<Trial> {
    vec![Trial::test(name, move || {
        if Kit::Node.is_installed() {
            crate::support::run(test());
        }
        Ok(())
    })]
}

type Text = RawManager<String, Bytes>;
type Received = StreamReceiver<String, Bytes>;

fn shell(script: &str) -> SpecBuilder {
    Spec::program("sh").args(["-c", script]).stderr(Stderr::Quiet)
}

/// Lines as text, of what this script does with them.
async fn lines(script: &str) -> Text {
    let builder = PoolBuilder::program("lines", shell(script), Lines::default(), Verbatim("text"));
    builder.raw().start().await.unwrap()
}

fn only<I, O>(pool: &RawManager<I, O>) -> (RawWorker<I, O>, StreamReceiver<I, O>) {
    let [worker] = <[_; 1]>::try_from(pool.raw_workers()).expect("one worker");
    let receiver = worker.take_receiver().expect("nobody else reads");
    (worker, receiver)
}

async fn next(received: &mut Received) -> Bytes {
    within(received.next()).await.expect("it goes on").unwrap()
}

async fn lines_are_messages() {
    let pool = lines("echo hello; echo not here >&2; exec cat").await;
    let (worker, mut received) = only(&pool);
    assert_eq!(next(&mut received).await, "hello");
    for text in ["", "one", "  two\t\r", "\u{1b}[2J\0", &"x".repeat(1 << 20)] {
        within(worker.send(&text.to_string())).await.unwrap();
        assert_eq!(next(&mut received).await, text.to_string());
    }
    // To be released is to have its standard input closed.
    within(worker.release(None)).await.unwrap();
    assert!(within(received.next()).await.is_none());
    assert_eq!(worker.ended().await, ExitCause::Requested);
    within(pool.shutdown()).await;
}

async fn a_last_line_needs_no_newline() {
    let pool = lines("while read -r line; do echo \"$line\"; done; printf 'the end'").await;
    let (worker, mut received) = only(&pool);
    within(worker.send(&"one".to_string())).await.unwrap();
    let release = tokio::spawn({
        let worker = worker.clone();
        async move { worker.release(None).await }
    });
    assert_eq!(next(&mut received).await, "one");
    assert_eq!(next(&mut received).await, "the end");
    assert!(within(received.next()).await.is_none());
    within(release).await.unwrap().unwrap();
    within(pool.shutdown()).await;
}

async fn a_newline_cannot_be_said() {
    let pool = lines("exec cat").await;
    let (worker, mut received) = only(&pool);
    within(worker.send(&"two\nlines".to_string())).await.unwrap();
    let error = within(received.next()).await.unwrap().unwrap_err();
    contains(error.to_string(), "cannot hold a newline");
    assert!(!error.is_final());
    within(worker.send(&"one line".to_string())).await.unwrap();
    assert_eq!(next(&mut received).await, "one line");
    within(pool.shutdown()).await;
}

async fn all_that_comes_after_the_end_of_the_input_is_read() {
    let script = "cat > /dev/null; i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo $i; done; printf 'the end'";
    let builder = PoolBuilder::program("lines", shell(script), Lines::default(), Verbatim("text"));
    let pool: Text = builder.raw().window(16, 64).start().await.unwrap();
    let (worker, mut received) = only(&pool);
    let release = tokio::spawn({
        let worker = worker.clone();
        async move { worker.release(None).await }
    });
    for number in 1..=5000 {
        assert_eq!(next(&mut received).await, number.to_string());
    }
    assert_eq!(next(&mut received).await, "the end");
    assert!(within(received.next()).await.is_none());
    within(release).await.unwrap().unwrap();
    assert_eq!(worker.ended().await, ExitCause::Requested);
    within(pool.shutdown()).await;
}

async fn what_nobody_reads_waits_in_the_program() {
    let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); echo $i; done; cat";
    let builder = PoolBuilder::program("lines", shell(script), Lines::default(), Verbatim("text"));
    let pool: Text = builder.raw().window(16, 4096).start().await.unwrap();
    let (worker, mut received) = only(&pool);
    for number in 1..=200_000 {
        assert_eq!(next(&mut received).await, number.to_string());
    }
    // And the other way: 100,000 lines to a program that does not read until it has slept, and has to be woken for that.
    within(pool.shutdown()).await;
    drop(worker);
    let pool = lines("read -r first; kill -STOP $$; exec cat").await;
    let (worker, mut received) = only(&pool);
    let pid = worker.pid();
    let mut events = pool.events();
    let writer = tokio::spawn(async move {
        for number in 0..100_000 {
            worker.send(&number.to_string()).await.unwrap();
        }
    });
    crate::support::event(&mut events, |event| matches!(event, pm::Event::Stopped { .. }).then_some(())).await;
    assert!(!writer.is_finished());
    crate::support::kill(pid, rustix::process::Signal::CONT);
    for number in 1..100_000 {
        assert_eq!(next(&mut received).await, number.to_string());
    }
    within(writer).await.unwrap();
    within(pool.shutdown()).await;
}

async fn a_line_without_end_ends_its_program() {
    let pool = lines("exec tr '\\n' x < /dev/zero").await;
    let (worker, mut received) = only(&pool);
    let cause = within(worker.ended()).await;
    contains(cause.to_string(), "a line of more than 64 MiB");
    assert!(within(received.next()).await.unwrap().is_err());
    within(pool.shutdown()).await;
}

async fn a_death_is_told_with_its_cause() {
    let pool = lines("echo last words >&2; read -r line; echo \"$line\"; exit 7").await;
    let (worker, mut received) = only(&pool);
    let mut events = pool.subscribe();
    assert!(matches!(within(events.next()).await, Some(RawEvent::Serves(_))));
    within(worker.send(&"a word".to_string())).await.unwrap();
    assert_eq!(next(&mut received).await, "a word");
    let error = within(received.next()).await.unwrap().unwrap_err();
    let Some(QueryError::WorkerLost(lost)) = error.failed() else { panic!("{error}") };
    assert_eq!(lost.cause, ExitCause::Exited(ExitStatus::Code(7)));
    contains(&lost.stderr, "last words");
    assert!(matches!(within(events.next()).await, Some(RawEvent::Leaves(_))));
    assert!(matches!(within(events.next()).await, Some(RawEvent::Serves(_))));
    within(pool.shutdown()).await;
}

/// `7 WORD` is answered by `7 LENGTH`, or by `7 !WHY`. `7 stop` cancels.
#[derive(Clone, Debug)]
struct Counter;

impl Dialect for Counter {
    fn calls(&self) -> Calls {
        Calls::Queries { at_once: 4 }
    }

    fn say(&mut self, said: Said<'_>, out: &mut Out) {
        if let Said::Query { id, input } = said {
            out.send(format!("{id} {}", String::from_utf8_lossy(input)));
        }
    }

    fn hear(&mut self, message: &[u8], out: &mut Out) -> Result<(), String> {
        let text = String::from_utf8_lossy(message);
        let (id, answer) = text.split_once(' ').ok_or_else(|| format!("{text:?} has no number"))?;
        let id = id.parse().map_err(|_| format!("{id:?} is no number"))?;
        match answer.strip_prefix('!') {
            Some(why) => out.fail(id, &HandlerError { message: why.to_string(), ..HandlerError::default() }),
            None => out.answer(id, answer),
        }
        Ok(())
    }
}

const COUNTING: &str = "while read -r id word; do case \"$word\" in \
    bad) echo \"$id !a bad word\";; hang) sleep 1000;; garbage) echo garbage;; *) echo \"$id ${#word}\";; esac; done";

fn counters(script: &str) -> PoolBuilder<String, Bytes, Verbatim, Lines<Counter>> {
    PoolBuilder::program("counter", shell(script), Lines::speaking(Counter), Verbatim("text"))
}

async fn a_dialect_answers_queries() {
    let pool = counters(COUNTING).workers(2).start().await.unwrap();
    let words: Vec<String> = (0..500).map(|length| "w".repeat(length)).collect();
    for (word, answer) in words.iter().zip(within(pool.query_batch(&words)).await) {
        assert_eq!(answer.unwrap(), word.len().to_string());
    }
    let failed = error(within(pool.query(&"bad".to_string())).await);
    assert_eq!(failed.kind(), QueryErrorKind::Handler);
    contains(failed.to_string(), "a bad word");
    let failed = error(within(pool.query(&"two\nlines".to_string())).await);
    contains(failed.to_string(), "cannot hold a newline");
    assert_eq!(within(pool.query(&"four".to_string())).await.unwrap(), "4");
    within(pool.shutdown()).await;
    assert!(counters(COUNTING).streams().start().await.is_err(), "it serves no streams");
}

async fn a_dialect_has_the_deadlines_of_any_pool() {
    let grace = Duration::from_millis(20);
    let pool = counters(COUNTING).timeout(Duration::from_millis(50)).cancel_grace(grace).start().await.unwrap();
    let pid = pool.workers()[0].pid;
    let failed = error(within(pool.query(&"hang".to_string())).await);
    assert_eq!(failed.kind(), QueryErrorKind::TimedOut);
    // It cannot be told, so it is replaced.
    gone_within(pid, crate::support::LIMIT);
    let again = pm::QueryOptions::new().timeout(Some(LONG));
    assert_eq!(within(pool.query_with(&"four".to_string(), again)).await.unwrap(), "4");
    within(pool.shutdown()).await;
}

async fn a_program_that_talks_nonsense_is_replaced() {
    let pool = counters(COUNTING).start().await.unwrap();
    let lost = crate::support::lost(within(pool.query(&"garbage".to_string())).await);
    contains(lost.cause.to_string(), "\"garbage\" has no number");
    assert_eq!(within(pool.query(&"four".to_string())).await.unwrap(), "4");
    within(pool.shutdown()).await;
}

fn silent(script: &str) -> PoolBuilder<Bytes, Bytes, Verbatim, Silent, pm::Raw> {
    PoolBuilder::program("silent", shell(script), Silent, Verbatim("nothing")).raw()
}

async fn a_silent_program_leaves_by_a_signal() {
    let scratch = Scratch::new();
    let ready = scratch.path("ready");
    let scripts = [
        "READY; exec sleep 1000",
        "trap 'exit 0' TERM; sleep 1000 & READY; wait",
        "trap : TERM; sleep 1000 & READY; wait; exit 143",
    ];
    for script in scripts {
        let pool = silent(&script.replace("READY", &format!(": > '{}'", ready.display()))).start().await.unwrap();
        // There is no other way by which it could say that it listens for the signal.
        crate::support::eventually("it listens for the signal", || ready.exists()).await;
        std::fs::remove_file(&ready).unwrap();
        let worker = pool.raw_workers().remove(0);
        worker.set_load(1);
        let release = tokio::spawn({
            let worker = worker.clone();
            async move { worker.release(None).await }
        });
        crate::support::eventually("it was told to leave", || pool.raw_workers().is_empty()).await;
        assert!(crate::support::state(worker.pid()).is_some() && !release.is_finished(), "its load holds it");
        worker.set_load(0);
        within(release).await.unwrap().unwrap();
        assert_eq!(worker.ended().await, ExitCause::Requested);
        within(pool.shutdown()).await;
    }
}

async fn a_silent_program_has_until_the_deadline() {
    // It says when it is ready to ignore the signal by the only way that it has.
    let scratch = Scratch::new();
    let ready = scratch.path("ready");
    let script = format!("trap '' TERM; : > '{}'; while :; do sleep 1000; done", ready.display());
    let pool = silent(&script).start().await.unwrap();
    crate::support::eventually("it ignores the signal", || ready.exists()).await;
    let worker = pool.raw_workers().remove(0);
    let begun = std::time::Instant::now();
    within(worker.release(Some(Duration::from_millis(200)))).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert_eq!(worker.ended().await, ExitCause::Requested);
    gone_within(worker.pid(), Duration::ZERO);
    within(pool.shutdown()).await;
}

async fn it_is_not_told_of_pm() {
    let pool = lines("env | sort; echo .; exec cat").await;
    let (worker, mut received) = only(&pool);
    let mut names = Vec::new();
    loop {
        let line = String::from_utf8_lossy(&next(&mut received).await).into_owned();
        if line == "." {
            break;
        }
        names.extend(line.split_once('=').map(|(name, _)| name.to_string()).filter(|name| name.starts_with("PM_")));
    }
    names.retain(|name| !name.starts_with("PM_TEST"));
    assert_eq!(names, ["PM_UNIT", "PM_WORKER"]);
    within(worker.release(None)).await.unwrap();
    within(pool.shutdown()).await;
}

async fn roles_have_their_own_transports() {
    let refused = crate::raw::DESK.pool().raw().transport(Lines::default()).start().await;
    let Err(StartError::Setting { value, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(value, "lines");
}

async fn a_channel_of_json_takes_no_other_codec() {
    let node = Kit::Node.interpreter().expect("the interpreter was found before");
    let spec = Spec::program(node).arg("-e").arg(FORKED).stderr(Stderr::Quiet);
    let builder: PoolBuilder<String, String, _, _> =
        PoolBuilder::program("forked", spec, NodeChannel::default(), Postcard);
    let error = builder.raw().start().await.unwrap_err();
    contains(error.to_string(), "the manager uses the codec \"postcard\", the worker \"json\"");
}

type Forked = RawManager<Value, Value>;

async fn forked() -> Forked {
    let node = Kit::Node.interpreter().expect("the interpreter was found before");
    let spec = Spec::program(node).arg("-e").arg(FORKED).stderr(Stderr::Quiet);
    PoolBuilder::program("forked", spec, NodeChannel::default(), Json).raw().start().await.unwrap()
}

async fn a_forked_worker_works_unchanged() {
    let pool = forked().await;
    let (worker, mut received) = only(&pool);
    let values =
        [json!(null), json!("a\nb\u{1}é"), json!([1, {"a": [true, 2.5]}]), json!("x".repeat(300_000)), json!("print")];
    for value in values {
        within(worker.send(&value)).await.unwrap();
        assert_eq!(within(received.next()).await.unwrap().unwrap(), json!({ "echo": value }));
    }
    within(worker.send(&json!("pid"))).await.unwrap();
    assert_eq!(within(received.next()).await.unwrap().unwrap(), json!(worker.pid()));
    // It hears `disconnect`, and has nothing else to live for.
    within(worker.release(None)).await.unwrap();
    assert!(within(received.next()).await.is_none());
    assert_eq!(worker.ended().await, ExitCause::Requested);
    within(pool.shutdown()).await;
}

async fn what_nobody_reads_waits() {
    let pool = forked().await;
    let (worker, mut received) = only(&pool);
    within(worker.send(&json!({ "flood": 50_000 }))).await.unwrap();
    within(worker.send(&json!("count"))).await.unwrap();
    for number in 0..50_000 {
        assert_eq!(within(received.next()).await.unwrap().unwrap(), json!(number));
    }
    assert_eq!(within(received.next()).await.unwrap().unwrap(), json!(2));
    within(pool.shutdown()).await;
}

async fn a_forked_worker_dies() {
    let pool = forked().await;
    let (worker, mut received) = only(&pool);
    within(worker.send(&json!("die"))).await.unwrap();
    let error = within(received.next()).await.unwrap().unwrap_err();
    assert_eq!(error.failed().map(QueryError::kind), Some(QueryErrorKind::WorkerLost));
    assert_eq!(within(worker.ended()).await, ExitCause::Exited(ExitStatus::Code(3)));
    within(pool.shutdown()).await;
}
