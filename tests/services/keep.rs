//! Services that are to outlive their program, in a program that is not killed. What happens to one that is stands in the tests of `pm up --keep`.

use std::path::Path;

use libtest_mimic::Trial;
use pm::service::{KeepError, Orchestrator, is_kept};

use super::{RESTS, pid, shell};
use crate::support::{Scratch, contains, eventually, one, state, within};

pub fn tests() -> Vec<Trial> {
    [
        one("services::keep::who_drops_its_orchestrator_keeps_nothing", who_drops_its_orchestrator_keeps_nothing),
        one("services::keep::one_program_has_a_meeting_point", one_program_has_a_meeting_point),
        one("services::keep::a_place_that_cannot_be_is_named", a_place_that_cannot_be_is_named),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A program has one meeting point at a time, and these tests are one program.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn keeping(path: &Path) -> Orchestrator {
    Orchestrator::builder().keep(path).expect("a meeting point").start().expect("an orchestrator")
}

fn lives(pid: u32) -> bool {
    state(pid).is_some_and(|(letter, _)| letter != 'Z')
}

async fn who_drops_its_orchestrator_keeps_nothing() {
    let _turn = TURN.lock().await;
    let scratch = Scratch::new();
    let path = scratch.path("deep/services");
    for says_so in [false, true] {
        let orchestrator = keeping(&path);
        within(orchestrator.start_many([shell("a", RESTS).build().unwrap()])).await.unwrap();
        let a = pid(&orchestrator, "a").await;
        assert!(is_kept(&path));
        if says_so {
            orchestrator.keep_no_more().await;
            assert!(!path.exists() && lives(a));
        }
        drop(orchestrator);
        eventually("it is gone", || !lives(a) && !path.exists()).await;
        assert!(!is_kept(&path));
    }
    // What is not there is nothing to take over, and nobody makes it.
    let orchestrator = Orchestrator::builder().adopt(&path).unwrap().start().unwrap();
    assert!(orchestrator.left_behind().await.is_empty() && !path.exists());
    assert!(orchestrator.end_left_behind(None).await.is_empty());
}

async fn one_program_has_a_meeting_point() {
    let _turn = TURN.lock().await;
    let scratch = Scratch::new();
    let path = scratch.path("services");
    let first = keeping(&path);
    let second = Orchestrator::builder().keep(&path).unwrap_err();
    assert!(matches!(&second, KeepError::InUse { path: named } if *named == path), "{second:?}");
    contains(second.to_string(), "is in use: another program keeps its services there");
    assert!(matches!(Orchestrator::builder().adopt(&path), Err(KeepError::InUse { .. })));
    let other = Orchestrator::builder().keep(scratch.path("other")).unwrap_err();
    assert!(matches!(other, KeepError::Another), "{other:?}");
    drop(first);
    eventually("the place is free", || Orchestrator::builder().keep(&path).is_ok()).await;
}

async fn a_place_that_cannot_be_is_named() {
    let _turn = TURN.lock().await;
    let scratch = Scratch::new();
    let long = scratch.path("x".repeat(120));
    let error = Orchestrator::builder().keep(&long).unwrap_err();
    assert!(matches!(&error, KeepError::Path { path, .. } if *path == long), "{error:?}");
    let file = scratch.path("file");
    std::fs::write(&file, "precious").unwrap();
    let error = Orchestrator::builder().keep(&file).unwrap_err();
    assert!(matches!(error, KeepError::Path { .. }), "{error:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}
