//! Streams in workers in Python and Node.js, through the kits under `workers`. Rows S1 to S5, S7; faults 1, 18.

use std::time::Duration;

use libtest_mimic::Trial;
use pm::{AnyTransport, Duplex, Json, PoolBuilder, QueryError, StreamError, StreamManager, Streams};
use rustix::process::Signal as Kill;
use serde_json::{Value, json};

use crate::kits::{Kit, each};
use crate::support::{contains, eventually, kill, within};

const PYTHON: &str = r#"
def talk(stream):
    stream.on_call = handle
    for order in stream:
        what, rest = order[0], order[1:]
        if what == "count":
            for number in range(rest[0]): stream.write(number)
        elif what == "complain": stream.error(ValueError(rest[0]))
        elif what == "hush": stream.end()
        elif what == "leave": return
        elif what == "name": stream.write(stream.name)
        elif what == "deafen":
            while not stream.cancelled: time.sleep(0.01)
            return
        elif what == "ignore":
            time.sleep(rest[0])
            return
        else: stream.write(handle(order))
    if order[0] != "hush": stream.write("end")

pm_worker.serve(pm_worker.streams(talk, messages=16))
"#;

const NODE: &str = r#"
const { streams } = require('KIT/pm_worker.js');

async function talk(stream) {
  stream.onCall = handle;
  let last;
  for await (const [what, ...rest] of stream) {
    last = what;
    if (what === 'count') for (let number = 0; number < rest[0]; number++) await stream.write(number);
    else if (what === 'complain') await stream.error(new RangeError(rest[0]));
    else if (what === 'hush') stream.end();
    else if (what === 'leave') return;
    else if (what === 'name') await stream.write(stream.name);
    else if (what === 'deafen') await new Promise(done => stream.signal.addEventListener('abort', done));
    else if (what === 'ignore') return new Promise(done => setTimeout(done, 1000 * rest[0]));
    else await stream.write(await handle([what, ...rest], stream));
  }
  if (last !== 'hush') await stream.write('end');
}

serve(streams(talk, { messages: 16 }));
"#;

type Talks = StreamManager<Value, Value, Json>;
type Talk = Duplex<Value, Value>;

pub fn tests() -> Vec<Trial> {
    [
        each("kits::streams::messages_go_both_ways", messages_go_both_ways),
        each("kits::streams::either_end_closes_its_half", either_end_closes_its_half),
        each("kits::streams::errors_end_it_or_do_not", errors_end_it_or_do_not),
        each("kits::streams::calls_have_replies", calls_have_replies),
        each("kits::streams::both_ways_wait_for_room", both_ways_wait_for_room),
        each("kits::streams::many_in_one_worker", many_in_one_worker),
        each("kits::streams::a_death_ends_them_all", a_death_ends_them_all),
        each("kits::streams::a_cancel_is_heard", a_cancel_is_heard),
        each("kits::streams::whoever_is_slow_to_end_one_is_left_alone", whoever_is_slow_to_end_one_is_left_alone),
        each("kits::streams::queries_and_streams_do_not_mix", queries_and_streams_do_not_mix),
    ]
    .into_iter()
    .flatten()
    .collect()
}

type Builder = PoolBuilder<Value, Value, Json, AnyTransport, Streams>;

async fn talks(kit: Kit, transport: AnyTransport) -> Talks {
    builder(kit, transport).start().await.unwrap()
}

fn builder(kit: Kit, transport: AnyTransport) -> Builder {
    let serve = if kit == Kit::Python { PYTHON } else { NODE };
    PoolBuilder::program(kit.to_string(), kit.spec(serve), transport, Json).streams().window(16, 1 << 20)
}

async fn ask(stream: &mut Talk, order: Value) -> Value {
    within(stream.write(&order)).await.unwrap();
    within(stream.next()).await.expect("it goes on").unwrap()
}

async fn messages_go_both_ways(kit: Kit, transport: AnyTransport) {
    let pool = talks(kit, transport).await;
    let mut stream = pool.create_stream_named("Kärcher ✓").await.unwrap();
    assert_eq!(ask(&mut stream, json!(["name"])).await, json!("Kärcher ✓"));
    for value in [json!(null), json!([1, {"a": "ü"}]), json!("x".repeat(300_000)), json!("")] {
        assert_eq!(ask(&mut stream, json!(["echo", value])).await, value);
    }
    within(stream.write(&json!(["count", 1000]))).await.unwrap();
    for number in 0..1000 {
        assert_eq!(within(stream.next()).await.unwrap().unwrap(), json!(number));
    }
    within(stream.close()).await.unwrap();
    eventually("it has ended", || pool.info().load == 0).await;
    within(pool.shutdown()).await;
    assert_eq!(pool.info().crashes, 0);
}

async fn either_end_closes_its_half(kit: Kit, transport: AnyTransport) {
    let pool = talks(kit, transport).await;
    let mut stream = pool.create_stream().await.unwrap();
    within(stream.write(&json!(["echo", 1]))).await.unwrap();
    stream.end();
    assert_eq!(within(stream.next()).await.unwrap().unwrap(), json!(1));
    assert_eq!(within(stream.next()).await.unwrap().unwrap(), json!("end"));
    assert!(within(stream.next()).await.is_none());
    let mut stream = pool.create_stream().await.unwrap();
    within(stream.write(&json!(["hush"]))).await.unwrap();
    assert!(within(stream.next()).await.is_none());
    within(stream.close()).await.unwrap();
    let mut stream = pool.create_stream().await.unwrap();
    within(stream.write(&json!(["leave"]))).await.unwrap();
    assert!(within(stream.next()).await.is_none());
    within(stream.close()).await.unwrap();
    // Nobody reads what it counts: it finds out, and ends.
    let mut stream = pool.create_stream().await.unwrap();
    within(stream.write(&json!(["count", 100_000]))).await.unwrap();
    within(stream.next()).await.unwrap().unwrap();
    drop(stream);
    eventually("it has ended", || pool.info().load == 0).await;
    assert_eq!(pool.info().crashes, 0);
}

async fn errors_end_it_or_do_not(kit: Kit, transport: AnyTransport) {
    let pool = talks(kit, transport).await;
    let name = if kit == Kit::Python { "ValueError" } else { "RangeError" };
    let mut stream = pool.create_stream().await.unwrap();
    within(stream.write(&json!(["complain", "ünhappy"]))).await.unwrap();
    match within(stream.next()).await.unwrap().unwrap_err() {
        StreamError::Sent(error) => assert_eq!((&*error.type_name, &*error.message), (name, "ünhappy")),
        other => panic!("{other:?}"),
    }
    assert_eq!(ask(&mut stream, json!(["echo", 2])).await, json!(2));
    within(stream.write(&json!(["fail", "over"]))).await.unwrap();
    match within(stream.next()).await.unwrap().unwrap_err() {
        StreamError::Failed(QueryError::Handler(error)) => {
            assert_eq!((&*error.type_name, &*error.message), (name, "over"));
            contains(&error.trace, "handle");
        }
        other => panic!("{other:?}"),
    }
    assert!(within(stream.next()).await.is_none());
    let mut stream = pool.create_stream().await.unwrap();
    assert_eq!(ask(&mut stream, json!(["echo", 3])).await, json!(3), "the worker lives on");
    assert_eq!(pool.info().crashes, 0);
}

async fn calls_have_replies(kit: Kit, transport: AnyTransport) {
    let pool = talks(kit, transport).await;
    let mut stream = pool.create_stream().await.unwrap();
    let calls: Vec<_> = (0..50).map(|number| tokio::spawn(stream.call(&json!(["echo", number])))).collect();
    within(stream.write(&json!(["echo", "between"]))).await.unwrap();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(within(call).await.unwrap().unwrap(), json!(number));
    }
    assert_eq!(within(stream.next()).await.unwrap().unwrap(), json!("between"));
    match within(stream.call(&json!(["fail", "no"]))).await.unwrap_err() {
        StreamError::Sent(error) => assert_eq!(error.message, "no"),
        other => panic!("{other:?}"),
    }
    within(stream.close()).await.unwrap();
}

/// A hundred times the window each way, while the other side does not read.
async fn both_ways_wait_for_room(kit: Kit, transport: AnyTransport) {
    let pool = talks(kit, transport).await;
    let mut slow = pool.create_stream().await.unwrap();
    let mut other = pool.create_stream().await.unwrap();
    within(slow.write(&json!(["count", 2000]))).await.unwrap();
    let (mut sender, mut receiver) = slow.split();
    let mut sent = 0;
    let writes = async {
        loop {
            sender.write(&json!(["echo", "x"])).await.unwrap();
            sent += 1;
        }
    };
    let never: Result<(), _> = tokio::time::timeout(Duration::from_millis(200), writes).await;
    assert!(never.is_err());
    assert!(sent <= 48, "{sent} were taken by a worker that reads nothing");
    assert_eq!(ask(&mut other, json!(["echo", 1])).await, json!(1), "others go on");
    for number in 0..2000 {
        assert_eq!(within(receiver.next()).await.unwrap().unwrap(), json!(number));
    }
    for _ in 0..sent {
        assert_eq!(within(receiver.next()).await.unwrap().unwrap(), json!("x"));
    }
}

async fn many_in_one_worker(kit: Kit, transport: AnyTransport) {
    let pool = talks(kit, transport).await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(within(pool.create_stream()).await.unwrap());
    }
    let mut process = None;
    for (number, stream) in streams.iter_mut().enumerate() {
        within(stream.write(&json!(["echo", number]))).await.unwrap();
        within(stream.write(&json!(["pid"]))).await.unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        assert_eq!(within(stream.next()).await.unwrap().unwrap(), json!(number));
        let pid = within(stream.next()).await.unwrap().unwrap();
        assert_eq!(process.get_or_insert(pid.clone()), &pid);
    }
    for stream in streams {
        within(stream.close()).await.unwrap();
    }
    within(pool.shutdown()).await;
    assert_eq!(pool.info().crashes, 0);
}

async fn a_death_ends_them_all(kit: Kit, transport: AnyTransport) {
    let pool = talks(kit, transport).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(within(pool.create_stream()).await.unwrap());
    }
    let pid = ask(&mut streams[0], json!(["pid"])).await.as_u64().unwrap() as u32;
    kill(pid, Kill::KILL);
    for mut stream in streams {
        let error = within(stream.next()).await.unwrap().unwrap_err();
        assert!(matches!(error.failed(), Some(QueryError::WorkerLost(lost)) if lost.pid == pid), "{error:?}");
    }
}

async fn a_cancel_is_heard(kit: Kit, transport: AnyTransport) {
    let pool = talks(kit, transport).await;
    let mut stream = pool.create_stream().await.unwrap();
    within(stream.write(&json!(["deafen"]))).await.unwrap();
    stream.cancel();
    let waits = pool.create_stream().await.unwrap();
    waits.cancel();
    eventually("both have ended", || pool.info().load == 0).await;
    assert_eq!(pool.info().crashes, 0);
}

/// It answers when it is asked whether it lives, so its other streams go on. A processor that is busy with others may keep it from that for one or two seconds.
async fn whoever_is_slow_to_end_one_is_left_alone(kit: Kit, transport: AnyTransport) {
    let pool = builder(kit, transport).cancel_grace(Duration::from_secs(3)).start().await.unwrap();
    let (mut slow, mut other) = (pool.create_stream().await.unwrap(), pool.create_stream().await.unwrap());
    within(slow.write(&json!(["ignore", 7]))).await.unwrap();
    assert_eq!(ask(&mut other, json!(["echo", 1])).await, json!(1));
    slow.cancel();
    // Nothing but the answer to that question comes meanwhile.
    eventually("it has ended", || pool.info().load != 2).await;
    assert_eq!(pool.info().load, 1, "{:?} {:?}", pool.info(), within(other.next()).await);
    assert_eq!(ask(&mut other, json!(["echo", 2])).await, json!(2));
    assert_eq!(pool.info().crashes, 0);
}

async fn queries_and_streams_do_not_mix(kit: Kit, transport: AnyTransport) {
    let serve = if kit == Kit::Python { PYTHON } else { NODE };
    let queries = PoolBuilder::<Value, Value, _, _>::program("kit", kit.spec(serve), transport, Json);
    let failed = queries.start().await.unwrap_err();
    contains(failed.to_string(), "the manager has queries for the worker, which serves streams");
    let failed = kit.pool::<Value>(transport).streams().start().await.unwrap_err();
    contains(failed.to_string(), "the manager has streams for the worker, which serves queries");
}
