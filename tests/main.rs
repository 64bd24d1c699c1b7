//! What pm promises, tried with real processes: one file for each behaviour.
//!
//! The binary that runs these tests is also the program whose workers they start, so its `main` calls `pm::roles` first, and a
//! test that needs a whole process of its own (a manager to kill, a count of descriptors) starts this binary again.

#![expect(unreachable_pub, reason = "the modules of one binary")]

mod allocations;
mod batch;
mod blocking;
mod cluster;
mod config;
mod conformance;
mod deaths;
mod ends;
mod exec;
mod foreign;
mod health;
mod hostile;
mod kit_streams;
mod kits;
mod launch;
mod lifecycle;
mod manager_killed;
mod pipeline;
mod processes;
mod query;
mod raw;
mod recycling;
mod registry;
mod retry;
mod roles;
mod scaling;
mod services;
mod shared_memory;
mod showdown;
mod streams;
mod support;
mod temporary;
mod visitors;
mod wire;

use libtest_mimic::{Arguments, Trial};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

fn main() {
    launch::helper();
    processes::without_roles();
    hostile::helper();
    roles::before_ready();
    pm::roles([
        &roles::JOB,
        &roles::ASYNC_JOB,
        &roles::ZOO,
        &roles::TEXT,
        &roles::TIDY,
        &roles::ASYNC_TIDY,
        &allocations::COUNT,
        &streams::TALK,
        &streams::FEW,
        &streams::BACKWARDS,
        &cluster::WEB,
        &cluster::DOOR,
        &pipeline::ANALYSE,
        &pipeline::GENERATE,
        &pipeline::FORMAT,
        &raw::DESK,
        &raw::HASTY,
    ]);
    visitors::helper();
    cluster::helper();
    services::helper();
    manager_killed::helper();

    let arguments = Arguments::from_args();
    let outcome = |name: String, test: Box<dyn Fn() -> Result<(), String> + Send>| {
        Trial::test(name, move || test().map_err(Into::into))
    };
    let mut trials = Vec::new();
    trials.extend(conformance::tests().into_iter().map(|(name, test)| outcome(name, test)));
    trials.extend(
        launch::tests().into_iter().map(|(name, test)| support::alone(name, move || test().map_err(Into::into))),
    );
    trials.extend(query::tests());
    trials.extend(streams::tests());
    trials.extend(raw::tests());
    trials.extend(pipeline::tests());
    trials.extend(foreign::tests());
    trials.extend(cluster::tests());
    trials.extend(visitors::tests());
    trials.extend(allocations::tests());
    trials.extend(batch::tests());
    trials.extend(blocking::tests());
    trials.extend(lifecycle::tests());
    trials.extend(deaths::tests());
    trials.extend(ends::tests());
    trials.extend(exec::tests());
    trials.extend(temporary::tests());
    trials.extend(registry::tests());
    trials.extend(scaling::tests());
    trials.extend(config::tests());
    trials.extend(health::tests());
    trials.extend(recycling::tests());
    trials.extend(hostile::tests());
    trials.extend(shared_memory::tests());
    trials.extend(retry::tests());
    trials.extend(processes::tests());
    trials.extend(manager_killed::tests());
    trials.extend(kits::tests());
    trials.extend(kit_streams::tests());
    trials.extend(showdown::tests());
    trials.extend(services::tests());
    trials.extend(wire::tests());
    libtest_mimic::run(&arguments, trials).exit();
}
