//! A season: teams are validated while many battles are played at once, and those that a crash interrupted are played again.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::battle::{Battle, Failure, Outcome};
use super::dice::Dice;
use super::digest::Digest;
use super::host::{AT_ONCE, Battles, Host, Validators};
use super::validate::{self, Entry, Problems};

/// So often a battle is played again. With more there is something wrong that no repetition mends.
const REPLAYS: u32 = 1000;

/// What is to be played, and how.
#[derive(Clone, Debug)]
pub(crate) struct Season {
    pub(crate) battles: u32,
    /// All battles follow from it.
    pub(crate) seed: u64,
    pub(crate) workers: u32,
    pub(crate) host: Host,
    /// How many chunks of a battle may lie here unread.
    pub(crate) unread: u32,
    /// Kills one of the workers each time that this is over and another battle has come to its end.
    pub(crate) chaos: Option<Duration>,
}

/// What came of a season. To print it is to print nothing but what follows from the seed.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) entries: Vec<(Entry, Problems)>,
    /// By number.
    pub(crate) battles: BTreeMap<u32, Outcome>,
    /// How often a battle was played again.
    pub(crate) replays: u32,
    /// How long the battles took, workers that were started anew included.
    pub(crate) time: Duration,
}

type Failed = Box<dyn Error + Send + Sync>;

/// Where a season is played: the tables take one battle after the other.
struct Hall {
    season: Season,
    pool: Battles,
    next: AtomicU32,
    replays: AtomicU32,
    /// A battle has come to its end.
    finished: Notify,
}

impl Season {
    pub(crate) async fn play(&self) -> Result<Report, Failed> {
        let (pool, validators) =
            tokio::try_join!(self.host.battles(self.workers, self.unread), self.host.validators(self.workers))?;
        let (next, replays) = (AtomicU32::new(0), AtomicU32::new(0));
        let hall = Arc::new(Hall { season: self.clone(), pool, next, replays, finished: Notify::new() });
        let began = Instant::now();
        let (entries, battles) = tokio::select! {
            both = async { tokio::try_join!(validate(&validators), hall.play()) } => both?,
            never = hall.chaos(&validators) => match never {},
        };
        let time = began.elapsed();
        tokio::join!(hall.pool.shutdown(), validators.shutdown());
        Ok(Report { entries, battles, replays: hall.replays.load(Ordering::Relaxed), time })
    }
}

impl Hall {
    async fn play(self: &Arc<Self>) -> Result<BTreeMap<u32, Outcome>, Failed> {
        let mut tables = JoinSet::new();
        for _ in 0..self.season.battles.min(self.season.workers * AT_ONCE) {
            tables.spawn(self.clone().table());
        }
        let mut outcomes = BTreeMap::new();
        while let Some(played) = tables.join_next().await {
            outcomes.extend(played??);
        }
        Ok(outcomes)
    }

    async fn table(self: Arc<Self>) -> Result<Vec<(u32, Outcome)>, Failed> {
        let mut played = Vec::new();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.season.battles {
                return Ok(played);
            }
            played.push((number, self.settle(number).await?));
            self.finished.notify_one();
        }
    }

    /// Plays a battle until nothing interrupts it.
    async fn settle(&self, number: u32) -> Result<Outcome, Failed> {
        for _ in 0..=REPLAYS {
            match self.attempt(number).await {
                Err(failure) if failure.is_interruption() => self.replays.fetch_add(1, Ordering::Relaxed),
                Err(failure) => return Err(format!("battle {number}: {failure}").into()),
                Ok(outcome) => return Ok(outcome),
            };
        }
        Err(format!("battle {number} was interrupted more than {REPLAYS} times").into())
    }

    async fn attempt(&self, number: u32) -> Result<Outcome, Failure> {
        let stream = self.pool.create_stream_named(&format!("battle {number}")).await?;
        Battle::begin(stream, Dice::of(self.season.seed, number.into())).await?.play().await
    }

    /// However short its interval is, a battle comes to its end between two deaths: so the season does as well.
    async fn chaos(&self, validators: &Validators) -> Infallible {
        let Some(interval) = self.season.chaos else { return std::future::pending().await };
        let mut dice = Dice::of(self.season.seed, u64::MAX);
        loop {
            tokio::time::sleep(interval).await;
            self.finished.notified().await;
            match dice.below(2) {
                0 => self.pool.chaos(dice.roll()),
                _ => validators.chaos(dice.roll()),
            }
        }
    }
}

async fn validate(pool: &Validators) -> Result<Vec<(Entry, Problems)>, Failed> {
    let entries = validate::entries();
    let answers = pool.query_batch(&entries).await;
    entries.into_iter().zip(answers).map(|(entry, problems)| Ok((entry, problems?))).collect()
}

impl Report {
    /// Of all battles and teams.
    pub(crate) fn digest(&self) -> String {
        let mut digest = Digest::default();
        self.to_string().lines().for_each(|line| digest.line(line));
        digest.finish()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (Entry { format, team }, problems) in &self.entries {
            let first = team.split('|').next().unwrap_or_default();
            writeln!(f, "{format}: {first}…: {}", problems.as_ref().map_or("legal".to_string(), |all| all.join(" ")))?;
        }
        for (number, Outcome { winner, turns, digest }) in &self.battles {
            let winner = if winner.is_empty() { "nobody" } else { winner };
            writeln!(f, "battle {number}: {winner} wins after {turns} turns: {digest}")?;
        }
        Ok(())
    }
}
