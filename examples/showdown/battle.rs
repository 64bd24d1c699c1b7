//! One battle: two players in this program, the simulator in a worker, a stream between them.

use std::error::Error;
use std::fmt;

use pm::{Duplex, QueryErrorKind, StreamError};
use serde::Deserialize;
use serde_json::json;

use super::dice::Dice;
use super::digest::Digest;
use super::player::Player;

/// Teams are drawn as well: the whole battle follows from its seed.
const FORMAT: &str = "gen9randombattle";

/// A battle under way.
pub(crate) struct Battle {
    pub(crate) stream: Duplex<String, String>,
    players: [Player; 2],
    transcript: Digest,
}

/// What a battle came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Empty where nobody has won.
    pub(crate) winner: String,
    pub(crate) turns: u32,
    /// Of all that was said.
    pub(crate) digest: String,
}

/// What the simulator says last.
#[derive(Debug, Deserialize)]
pub(crate) struct End {
    winner: String,
    turns: u32,
}

impl Battle {
    /// Begins the battle that follows from these dice.
    pub(crate) async fn begin(mut stream: Duplex<String, String>, mut dice: Dice) -> Result<Self, Failure> {
        let mut seed = || format!("gen5,{:016x}", dice.roll());
        let start = json!({ "formatid": FORMAT, "seed": seed() });
        let (ann, bob) = (json!({ "name": "Ann", "seed": seed() }), json!({ "name": "Bob", "seed": seed() }));
        stream.write(&format!(">start {start}\n>player p1 {ann}\n>player p2 {bob}")).await?;
        let players = [0, 1].map(|side| Player::new(Dice::of(dice.roll(), side)));
        Ok(Battle { stream, players, transcript: Digest::default() })
    }

    /// Plays it to its end.
    pub(crate) async fn play(mut self) -> Result<Outcome, Failure> {
        let End { winner, turns } = loop {
            if let Some(end) = self.step().await? {
                break end;
            }
        };
        match self.stream.close().await.map_err(Failure::from) {
            // A worker that dies now takes nothing with it: all has been said.
            Err(failure) if !failure.is_interruption() => Err(failure),
            _ => Ok(Outcome { winner, turns, digest: self.transcript.finish() }),
        }
    }

    /// Reads one chunk of what the simulator says, and answers it if it asks.
    pub(crate) async fn step(&mut self) -> Result<Option<End>, Failure> {
        let chunk = self.stream.next().await.ok_or_else(|| odd("it ended before its end"))??;
        match chunk.split_once('\n') {
            // With the time of day, which is another one each time.
            Some(("update", lines)) => {
                lines.lines().filter(|line| !line.starts_with("|t:|")).for_each(|line| self.transcript.line(line));
            }
            Some(("sideupdate", said)) => self.answer(said).await?,
            Some(("end", end)) => return serde_json::from_str(end).map(Some).map_err(odd),
            _ => return Err(odd(chunk)),
        }
        Ok(None)
    }

    /// Takes what is meant for one player: a request, or that its choice was wrong.
    async fn answer(&mut self, said: &str) -> Result<(), Failure> {
        self.transcript.line(said);
        let (name, line) = said.split_once('\n').ok_or_else(|| odd(said))?;
        let [first, second] = &mut self.players;
        let player = if name == "p1" { first } else { second };
        if let Some(request) = line.strip_prefix("|request|") {
            let Some(choice) = player.choose(request).map_err(odd)? else { return Ok(()) };
            return match self.stream.write(&format!(">{name} {choice}")).await {
                // Nobody listens any more. Why not stands at the end of what there is to read.
                Ok(()) | Err(StreamError::Ended) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        // What a player cannot know it is told when it tries, and a new request follows.
        if line.starts_with("|error|[Unavailable choice]") { Ok(()) } else { Err(odd(said)) }
    }
}

/// Why a battle has no outcome.
#[derive(Debug)]
pub(crate) enum Failure {
    Stream(StreamError),
    /// The simulator said something that it should not have.
    Odd(String),
}

impl Failure {
    /// Whether the worker died, for which the battle is not to blame: it can be played again.
    pub(crate) fn is_interruption(&self) -> bool {
        let Failure::Stream(error) = self else { return false };
        error.failed().is_some_and(|error| error.kind() == QueryErrorKind::WorkerLost)
    }
}

fn odd(said: impl fmt::Display) -> Failure {
    Failure::Odd(said.to_string())
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        Failure::Stream(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Stream(error) => error.fmt(f),
            Failure::Odd(said) => write!(f, "the simulator says what it should not: {said}"),
        }
    }
}

impl Error for Failure {}
