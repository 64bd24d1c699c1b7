//! Streams: a game in a worker process, which keeps its state between messages, beside many others.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Guess {
    Number(u32),
    /// A question, which is answered out of turn.
    HowManyTries,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Answer {
    Higher,
    Lower,
    Right,
    Tries(u32),
}

static GAME: pm::Stream<Guess, Answer> = pm::Stream::new("guess-a-number", &play);

/// Runs in a worker, once for each game.
async fn play(mut player: pm::Duplex<Answer, Guess>) -> Result<(), pm::StreamError> {
    let secret = player.name().len() as u32 * 7;
    let mut tries = 0;
    while let Some(said) = player.next_incoming().await {
        match said? {
            pm::Incoming::Call(_, reply) => reply.answer(&Answer::Tries(tries)).await?,
            pm::Incoming::Message(Guess::HowManyTries) => player.write(&Answer::Tries(tries)).await?,
            pm::Incoming::Message(Guess::Number(number)) => {
                tries += 1;
                let answer = match number.cmp(&secret) {
                    std::cmp::Ordering::Less => Answer::Higher,
                    std::cmp::Ordering::Equal => Answer::Right,
                    std::cmp::Ordering::Greater => Answer::Lower,
                };
                player.write(&answer).await?;
            }
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pm::roles([&GAME]);
    tokio::runtime::Runtime::new()?.block_on(app())
}

async fn app() -> Result<(), Box<dyn std::error::Error>> {
    let games = GAME.pool().workers(2).start().await?;
    for name in ["ann", "bob and carla"] {
        let mut game = games.create_stream_named(name).await?;
        let (mut low, mut high) = (0, 1000);
        loop {
            let guess = (low + high) / 2;
            game.write(&Guess::Number(guess)).await?;
            match game.next().await.ok_or("the game ended too soon")?? {
                Answer::Higher => low = guess + 1,
                Answer::Lower => high = guess,
                Answer::Right => break println!("{name}: it is {guess}"),
                Answer::Tries(_) => {}
            }
        }
        if let Answer::Tries(tries) = game.call(&Guess::HowManyTries).await? {
            println!("{name}: after {tries} tries");
        }
        game.close().await?;
    }
    games.shutdown().await;
    Ok(())
}
