//! A pool whose size follows its load. Row Q15.

use std::time::Duration;

use libtest_mimic::Trial;
use pm::{AnyTransport, Autoscale, Event, StartError, WorkerId};
use tokio::sync::broadcast;

use crate::lifecycle::Load;
use crate::raw::{DESK, Order, Report};
use crate::roles::{Job, Said};
use crate::streams::{Heard, Say, TALK};
use crate::support::{Gate, Scratch, contains, error, event, eventually, jobs, over_all, pids, pool_of, within};

pub fn tests() -> Vec<Trial> {
    [
        over_all("scaling::it_grows_and_shrinks_with_its_load", it_grows_and_shrinks_with_its_load),
        over_all("scaling::the_idlest_goes", the_idlest_goes),
        over_all("scaling::changes_of_the_load_lose_no_query", changes_of_the_load_lose_no_query),
        over_all("scaling::open_streams_are_a_load", open_streams_are_a_load),
        over_all("scaling::the_program_says_the_load", the_program_says_the_load),
        over_all("scaling::by_hand_within_the_bounds", by_hand_within_the_bounds),
        over_all("scaling::the_first_query_starts_the_least_number", the_first_query_starts_the_least_number),
        over_all("scaling::settings_that_make_no_sense", settings_that_make_no_sense),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Up above two calls each, down below one, in steps of 50 ms.
fn quick(min: u32, max: u32) -> Autoscale {
    Autoscale::new().between(min, max).up_above(2.0).down_below(1.0).cool_down(Duration::from_millis(50))
}

/// Waits for the next step, and says from where to where it went.
async fn step(events: &mut broadcast::Receiver<Event>) -> (u32, u32) {
    let scaled = event(events, |event| match event {
        Event::Scaled { from, to, .. } => Some((*from, *to)),
        _ => None,
    });
    scaled.await
}

/// Waits until these steps have been taken, one after the other.
async fn steps(events: &mut broadcast::Receiver<Event>, sizes: &[u32]) {
    for pair in sizes.windows(2) {
        assert_eq!(step(events).await, (pair[0], pair[1]));
    }
}

async fn it_grows_and_shrinks_with_its_load(transport: AnyTransport) {
    let scratch = Scratch::new();
    let gate = Gate::new(&scratch);
    let pool = jobs(transport).autoscale(quick(1, 4)).start().await.unwrap();
    let mut events = pool.events();
    assert_eq!(pids(&pool).len(), 1, "it begins with the least number");
    // Twice, since it goes to sleep between the two.
    for _ in 0..2 {
        let queries: Vec<_> = (0..24).map(|_| tokio::spawn(pool.query(&gate.wait()))).collect();
        steps(&mut events, &[1, 2, 3, 4]).await;
        eventually("all serve", || pids(&pool).len() == 4).await;
        gate.open(24);
        for query in queries {
            assert_eq!(within(query).await.unwrap().unwrap(), Said::Number(1));
        }
        steps(&mut events, &[4, 3, 2, 1]).await;
        eventually("one is left", || pool.info().workers.active == 1 && pool.info().workers.releasing == 0).await;
    }
    assert!(matches!(pool.query(&Job::Pid).await, Ok(Said::Pid(_))));
    let info = pool.info();
    assert_eq!((info.crashes, info.load, info.queued), (0, 0, 0));
}

async fn the_idlest_goes(transport: AnyTransport) {
    let pool = pool_of::<Order, Report>(&DESK, transport).raw().autoscale(quick(1, 3)).start().await.unwrap();
    let mut events = pool.events();
    let first = pool.raw_workers().remove(0);
    first.set_load(9);
    steps(&mut events, &[1, 2, 3]).await;
    eventually("all serve", || pool.raw_workers().len() == 3).await;
    let third = pool.raw_workers().remove(2);
    // What comes first must not leave two idle ones for a moment.
    third.set_load(1);
    first.set_load(1);
    for idle in [WorkerId(2), first.id()] {
        let drained = event(&mut events, |event| match event {
            Event::Draining { worker, .. } => Some(*worker),
            _ => None,
        });
        assert_eq!(drained.await, idle, "the youngest goes only among equals");
        first.set_load(0);
    }
    eventually("it is alone", || pids(&pool) == [third.pid()]).await;
    assert!(!third.is_leaving());
}

async fn changes_of_the_load_lose_no_query(transport: AnyTransport) {
    let settings = quick(1, 3).up_above(1.0).down_below(0.9).cool_down(Duration::from_millis(20));
    let pool = jobs(transport).autoscale(settings).start().await.unwrap();
    let mut events = pool.events();
    for _ in 0..3 {
        let scratch = Scratch::new();
        let gate = Gate::new(&scratch);
        // Those in the line hold the load up, those behind them have to get through.
        let load = Load::on(&pool, 8);
        let held: Vec<_> = (0..3).map(|_| tokio::spawn(pool.query(&gate.wait()))).collect();
        while step(&mut events).await.1 < 3 {}
        gate.open(3);
        for query in held {
            assert_eq!(within(query).await.unwrap().unwrap(), Said::Number(1));
        }
        assert!(load.stop().await > 0);
        while step(&mut events).await.1 > 1 {}
    }
    assert_eq!(pool.info().crashes, 0);
}

async fn open_streams_are_a_load(transport: AnyTransport) {
    let pool = pool_of::<Say, Heard>(&TALK, transport).streams().autoscale(quick(1, 3)).start().await.unwrap();
    let mut events = pool.events();
    let mut streams = Vec::new();
    for _ in 0..9 {
        streams.push(within(pool.create_stream()).await.unwrap());
    }
    steps(&mut events, &[1, 2, 3]).await;
    // None of them moves, and all go on.
    for stream in &mut streams {
        stream.write(&Say::Echo(vec![7])).await.unwrap();
        assert!(within(stream.next()).await.unwrap().is_ok());
    }
    let last = streams.split_off(8);
    for stream in streams {
        within(stream.close()).await.unwrap();
    }
    steps(&mut events, &[3, 2, 1]).await;
    for mut stream in last {
        stream.write(&Say::Echo(vec![8])).await.unwrap();
        assert!(within(stream.next()).await.unwrap().is_ok());
        within(stream.close()).await.unwrap();
    }
}

async fn the_program_says_the_load(transport: AnyTransport) {
    let pool = pool_of::<Order, Report>(&DESK, transport).raw().autoscale(quick(1, 2)).start().await.unwrap();
    let mut events = pool.events();
    let worker = pool.raw_workers().remove(0);
    for _ in 0..2 {
        worker.set_load(9);
        steps(&mut events, &[1, 2]).await;
        worker.set_load(0);
        steps(&mut events, &[2, 1]).await;
        assert!(!worker.is_leaving(), "among idle ones the youngest go");
    }
}

async fn by_hand_within_the_bounds(transport: AnyTransport) {
    let pool = jobs(transport).autoscale(Autoscale::new().between(2, 4)).start().await.unwrap();
    assert_eq!(pids(&pool).len(), 2);
    within(pool.scale(4)).await.unwrap();
    assert_eq!(pids(&pool).len(), 4);
    for workers in [1, 5] {
        let refused = pool.scale(workers).await.unwrap_err();
        contains(refused.to_string(), &format!("workers is {workers}, not from 2 to 4"));
        assert!(pool.respawn_with(workers, None).await.is_err());
    }
    within(pool.respawn_with(3, None)).await.unwrap();
    assert_eq!(pids(&pool).len(), 3);
    // Nobody comes back before the program says so.
    within(pool.scale(0)).await.unwrap();
    error(pool.query(&Job::Pid).await);
    within(pool.scale(2)).await.unwrap();
    assert!(pool.query(&Job::Pid).await.is_ok());
    // What the program starts beyond the bounds goes again.
    let pool = jobs(transport).autoscale(quick(2, 2)).start().await.unwrap();
    let mut events = pool.events();
    within(pool.spawn_one()).await.unwrap();
    steps(&mut events, &[3, 2]).await;
}

async fn the_first_query_starts_the_least_number(transport: AnyTransport) {
    let pool = jobs(transport).autoscale(quick(3, 4)).workers(0).start().await.unwrap();
    let mut events = pool.events();
    assert!(matches!(within(pool.query(&Job::Pid)).await, Ok(Said::Pid(_))));
    assert_eq!(step(&mut events).await, (1, 3));
    eventually("all serve", || pids(&pool).len() == 3).await;
}

async fn settings_that_make_no_sense(transport: AnyTransport) {
    let failed = jobs(transport).autoscale(Autoscale::new().between(3, 2)).start().await.unwrap_err();
    contains(failed.to_string(), "autoscaling from 3 to 2 workers");
    assert!(matches!(failed, StartError::Autoscale(_)));
    let failed = jobs(transport).autoscale(Autoscale::new()).workers(9).start().await.unwrap_err();
    contains(failed.to_string(), "workers is 9, not from 1 to 8");
}
