//! A client that is no test of pm's own making: battles and team validation of the npm package pokemon-showdown, behind the kit for Node.js and as the
//! package's own workers. Rows S1, S3 to S5, Q1 and T11; fault 1.

#[path = "../examples/showdown/battle.rs"]
mod battle;
#[path = "../examples/showdown/dialect.rs"]
mod dialect;
#[path = "../examples/showdown/dice.rs"]
mod dice;
#[path = "../examples/showdown/digest.rs"]
mod digest;
#[path = "../examples/showdown/host.rs"]
mod host;
#[path = "../examples/showdown/options.rs"]
mod options;
#[path = "../examples/showdown/player.rs"]
mod player;
#[path = "../examples/showdown/season.rs"]
mod season;
#[path = "../examples/showdown/validate.rs"]
mod validate;

use std::fs::{self, File};
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;

use battle::{Battle, Failure, Outcome};
use dice::Dice;
use host::{AT_ONCE, Battles, Host};
use libtest_mimic::Trial;
use pm::{AnyTransport, QueryError, StreamError};
use rustix::process::Signal as Kill;
use season::{Report, Season};

use crate::kits::Kit;
use crate::support::{contains, eventually, kill, pids, run, within};

const BATTLES: u32 = 6;

/// Their battles are short.
const SEED: u64 = 5;

const STDIO: Host = Host::Kit(AnyTransport::Stdio(pm::Stdio));
const UDS: Host = Host::Kit(AnyTransport::Uds(pm::Uds));

/// How long npm may take.
const INSTALL_LIMIT: Duration = Duration::from_secs(300);

type Test = Pin<Box<dyn Future<Output = ()>>>;

pub fn tests() -> Vec<Trial> {
    let everywhere =
        [("uds", UDS), ("stdio", STDIO), ("package", Host::Package)].into_iter().flat_map(|(name, host)| {
            [1, 2].map(|workers| {
                let name = format!("showdown::the_same_everywhere::{name}::{workers}");
                trial(name, move || Box::pin(the_same_everywhere(host, workers)))
            })
        });
    let hosts = [("kit", UDS), ("package", Host::Package)].into_iter().flat_map(|(name, host)| {
        [
            trial(format!("showdown::{name}::chaos_changes_nothing"), move || Box::pin(chaos_changes_nothing(host))),
            trial(format!("showdown::{name}::a_death_ends_its_own_battles"), move || Box::pin(a_death(host))),
            trial(format!("showdown::{name}::a_battle_harms_no_other"), move || {
                Box::pin(a_battle_harms_no_other(host))
            }),
        ]
    });
    everywhere.chain(hosts).chain([Trial::test("showdown::help_is_no_mistake", help_is_no_mistake)]).collect()
}

fn help_is_no_mistake() -> Result<(), libtest_mimic::Failed> {
    let parse = |words: &[&str]| options::parse(words.iter().map(|word| (*word).to_string()));
    for words in [&["--help"][..], &["--seed", "3", "-h"]] {
        assert!(parse(words)?.is_none(), "{words:?}");
    }
    for option in ["--battles", "--seed", "--workers", "--transport", "--foreign", "--unread", "--chaos"] {
        assert!(options::HELP.contains(option), "{option} is not in the help");
        let refusal = parse(&[option]).err();
        assert!(refusal.is_none_or(|text| text.contains("lacks its value")), "{option} is in the help alone");
    }
    assert!(parse(&["--seed"]).is_err() && parse(&["--sead", "3"]).is_err());
    Ok(())
}

/// A test that needs the package, which it installs where there is npm.
fn trial(name: String, test: impl FnOnce() -> Test + Send + 'static) -> Trial {
    Trial::test(name, move || {
        if is_there()? {
            run(test());
        }
        Ok(())
    })
}

/// Whether the package is there, in the end. Says so where it cannot be.
fn is_there() -> Result<bool, String> {
    static FOUND: OnceLock<Result<bool, String>> = OnceLock::new();
    let find = || {
        if !Kit::Node.is_installed() {
            return Ok(false);
        }
        if host::check().is_err() && !host::has_npm() {
            println!("skipped: there is no npm on PATH");
            return Ok(false);
        }
        install().map_err(|error| error.to_string())?;
        host::check().map(|()| true)
    };
    FOUND.get_or_init(find).clone()
}

/// Installs the package unless it is there. Of several processes that want to, one does.
fn install() -> Result<(), Box<dyn std::error::Error>> {
    let directory = host::directory();
    let lock = File::open(directory.join("package.json"))?;
    lock.lock()?;
    if host::check().is_ok() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let npm = pm::exec(host::INSTALL).spec(|spec| spec.cwd(&directory)).timeout(INSTALL_LIMIT);
    let installed = runtime.block_on(npm.output()).and_then(|output| output.check());
    if installed.is_err() {
        // Half of a package would pass for one the next time.
        let _ = fs::remove_dir_all(directory.join("node_modules"));
    }
    installed?;
    Ok(())
}

fn season(host: Host, workers: u32) -> Season {
    Season { battles: BATTLES, seed: SEED, workers, host, unread: 256, chaos: None }
}

async fn play(season: Season) -> Report {
    match season.play().await {
        Ok(report) => report,
        Err(error) => panic!("{season:?}: {error}"),
    }
}

/// What everything else is compared with: one worker, over Unix sockets.
async fn reference() -> &'static Report {
    static REFERENCE: tokio::sync::OnceCell<Report> = tokio::sync::OnceCell::const_new();
    REFERENCE.get_or_init(|| play(season(UDS, 1))).await
}

async fn outcome(number: u32) -> &'static Outcome {
    &reference().await.battles[&number]
}

async fn begin(pool: &Battles, number: u32) -> Battle {
    let stream = within(pool.create_stream()).await.unwrap();
    within(Battle::begin(stream, Dice::of(SEED, number.into()))).await.unwrap()
}

/// Until both players have made their first choice: three chunks.
async fn open(battle: &mut Battle) {
    for _ in 0..3 {
        assert!(within(battle.step()).await.unwrap().is_none());
    }
}

async fn the_same_everywhere(host: Host, workers: u32) {
    let expected = reference().await;
    assert_eq!(expected.battles.len(), BATTLES as usize);
    let (legal, not): (Vec<_>, Vec<_>) = expected.entries.iter().partition(|(_, problems)| problems.is_none());
    assert_eq!((legal.len(), not.len()), (3, 3), "{expected}");
    // On one worker each chunk but the first waits for the one before it to be read.
    let unread = if workers == 1 { 1 } else { 256 };
    let report = play(Season { unread, ..season(host, workers) }).await;
    assert_eq!(report.to_string(), expected.to_string(), "it took {:?}", report.time);
    assert_eq!((report.digest(), report.replays), (expected.digest(), 0));
}

/// A worker is killed as soon as any battle has come to its end, and again after the next.
async fn chaos_changes_nothing(host: Host) {
    let report = play(Season { battles: 4, chaos: Some(Duration::ZERO), ..season(host, 1) }).await;
    assert!(report.replays > 0, "nobody was killed");
    assert_eq!(report.battles.len(), 4);
    for (&number, result) in &report.battles {
        assert_eq!(result, outcome(number).await, "battle {number}");
    }
    let answers = |report: &Report| report.entries.iter().map(|(_, problems)| problems.clone()).collect::<Vec<_>>();
    assert_eq!(answers(&report), answers(reference().await));
}

/// One of two workers is killed while both have as many battles as they take.
async fn a_death(host: Host) {
    let pool = host.battles(2, 256).await.unwrap();
    let mut battles = Vec::new();
    for number in 0..2 * AT_ONCE {
        battles.push((number, begin(&pool, number).await));
    }
    for (_, battle) in &mut battles {
        open(battle).await;
    }
    let victim = pids(&pool)[0];
    kill(victim, Kill::KILL);
    let mut interrupted = Vec::new();
    for (number, battle) in battles {
        // Some are played on, and the others left.
        let ended = match number {
            0..BATTLES => within(battle.play()).await.map(Some),
            _ => within(battle.stream.close()).await.map(|()| None).map_err(Failure::from),
        };
        match ended {
            Ok(None) => {}
            Ok(Some(result)) => assert_eq!(&result, outcome(number).await),
            Err(Failure::Stream(StreamError::Failed(QueryError::WorkerLost(lost)))) => {
                assert_eq!(lost.pid, victim);
                interrupted.push(number);
            }
            Err(other) => panic!("battle {number}: {other}"),
        }
    }
    assert_eq!(interrupted.len(), AT_ONCE as usize);
    let number = interrupted[0];
    assert!(number < BATTLES, "they are dealt out evenly");
    let again = within(begin(&pool, number).await.play()).await.unwrap();
    assert_eq!(&again, outcome(number).await);
    within(pool.shutdown()).await;
    assert_eq!(pool.info().crashes, 1);
}

/// What is done to a battle, or in it, is that battle's own affair, although they share a process.
async fn a_battle_harms_no_other(host: Host) {
    let pool = host.battles(1, 256).await.unwrap();
    let worker = pids(&pool);
    let mut witness = begin(&pool, 0).await;
    open(&mut witness).await;

    // Lines that come after the end.
    let mut over = begin(&pool, 1).await;
    while within(over.step()).await.unwrap().is_none() {}
    for line in [">p1 move 1", ">p2 switch 2", ">p1 undo"] {
        // The kit's stream is over with its battle, or will be at once; the package's is not, and says that the battle is.
        match within(over.stream.write(&line.to_string())).await {
            Ok(()) | Err(StreamError::Ended) => {}
            Err(other) => panic!("{other}"),
        }
    }
    over.stream.end();
    assert!(matches!(within(over.stream.write(&String::new())).await, Err(StreamError::Ended)));
    within(over.stream.close()).await.unwrap();

    // Lines that make no sense.
    let mut wrong = begin(&pool, 2).await;
    open(&mut wrong).await;
    within(wrong.stream.write(&">nonsense".to_string())).await.unwrap();
    let failure = loop {
        match within(wrong.step()).await {
            Ok(end) => assert!(end.is_none()),
            Err(failure) => break failure,
        }
    };
    // The package's simulator tells both players first, and takes no notice otherwise.
    contains(failure.to_string(), if matches!(host, Host::Package) { "The battle crashed" } else { ">nonsense" });
    drop(wrong);

    // Players who walk away: one says so, one is just gone, and one reads nothing any more but plays on.
    let mut left = begin(&pool, 3).await;
    open(&mut left).await;
    left.stream.cancel();
    let mut gone = begin(&pool, 4).await;
    open(&mut gone).await;
    drop(gone);
    let mut deaf = begin(&pool, 5).await;
    open(&mut deaf).await;
    let (mut sender, receiver) = deaf.stream.split();
    drop(receiver);
    for _ in 0..50 {
        // The kit's handler ends by the first chunk that it cannot send; the package plays on for nobody.
        if within(sender.write(&">p1 default\n>p2 default".to_string())).await.is_err() {
            break;
        }
    }
    drop(sender);

    assert_eq!(&within(witness.play()).await.unwrap(), outcome(0).await);
    eventually("all have ended", || pool.info().load == 0).await;
    assert_eq!(pids(&pool), worker);
    assert_eq!(pool.info().crashes, 0);
    within(pool.shutdown()).await;
}
