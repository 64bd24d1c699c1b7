//! The connections to the project, on a thread of their own: what comes is handed to whoever draws, and what it asks for is asked.
//!
//! Where that one is busy, for a terminal is slow, this waits: the project drops what nobody takes (see [`output`](crate::project::output)).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};

use super::app::Input;
use crate::error::chain;
use crate::project::client::Asked;
use crate::project::wire::{Answer, Question};

/// What is printed waits in so many pieces, of 64 KiB mostly, until it is put where it is drawn from.
const MOST_OUTPUT: usize = 16;

/// So many events, lists and answers wait.
const MOST_NEWS: usize = 64;

/// So many questions are asked at once. Those behind them wait: somebody who holds a key down asks many.
const MOST_QUESTIONS: usize = 16;

/// How many bytes of its log are shown of each service at first: some thousands of lines.
const HISTORY: u64 = 256 << 10;

/// How often the list is asked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long what happens is waited for before the list is asked for: events come together.
const GATHER: Duration = Duration::from_millis(50);

/// The thread with the connections. It ends when this is dropped.
pub struct Feed {
    /// What services print.
    pub output: mpsc::Receiver<Input>,
    /// All else.
    pub news: mpsc::Receiver<Input>,
    questions: Option<mpsc::Sender<(String, Question)>>,
    look: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Feed {
    /// Begins with all that there is of the project at this socket.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(socket: &Path) -> io::Result<Self> {
        let ((give_output, output), (give_news, news)) = (mpsc::channel(MOST_OUTPUT), mpsc::channel(MOST_NEWS));
        let (questions, asked) = mpsc::channel(MOST_QUESTIONS);
        let look = Arc::new(Notify::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let line = Line { socket: socket.to_owned(), news: give_news, look: look.clone() };
        let thread = std::thread::Builder::new().name("pm-feed".into()).spawn(move || {
            runtime.block_on(line.follow(give_output, asked));
        })?;
        Ok(Feed { output, news, questions: Some(questions), look, thread: Some(thread) })
    }

    /// Asks this. False where too much is being asked already.
    pub fn ask(&self, what: String, question: Question) -> bool {
        self.questions.as_ref().is_some_and(|questions| questions.try_send((what, question)).is_ok())
    }

    /// Asks for the list soon.
    pub fn look(&self) {
        self.look.notify_one();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.output.close();
        self.news.close();
        self.questions = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// What each task needs.
#[derive(Clone)]
struct Line {
    socket: PathBuf,
    news: mpsc::Sender<Input>,
    look: Arc<Notify>,
}

impl Line {
    /// Until nobody asks any more.
    async fn follow(self, output: mpsc::Sender<Input>, mut asked: mpsc::Receiver<(String, Question)>) {
        let tasks = [
            tokio::spawn(self.clone().listen(output)),
            tokio::spawn(self.clone().hear()),
            tokio::spawn(self.clone().list()),
        ];
        let room = Arc::new(Semaphore::new(MOST_QUESTIONS));
        while let Some((what, question)) = asked.recv().await {
            let (line, room) = (self.clone(), room.clone());
            tokio::spawn(async move {
                let _permit = room.acquire_owned().await;
                let done = line.answer(&question).await;
                // Who has left hears nothing.
                let _ = line.news.send(Input::Answered { what, done }).await;
            });
        }
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }

    /// What services print.
    async fn listen(self, output: mpsc::Sender<Input>) {
        let question = Question::Output { last_bytes: HISTORY };
        let Ok(mut asked) = Asked::new(&self.socket, &question).await else { return };
        loop {
            match asked.next().await {
                Ok(Answer::Output(row)) => {
                    if output.send(Input::Output(row)).await.is_err() {
                        return;
                    }
                }
                Ok(Answer::Failed { message }) => {
                    let done = Err(message);
                    let _ = self.news.send(Input::Answered { what: "output".into(), done }).await;
                    return;
                }
                Ok(_) => {}
                // Whoever listens to events hears it.
                Err(_) => return,
            }
        }
    }

    /// What happens. Its end is that of the project.
    async fn hear(self) {
        if let Ok(mut asked) = Asked::new(&self.socket, &Question::Events).await {
            while let Ok(answer) = asked.next().await {
                if let Answer::Event(row) = answer {
                    let _ = self.news.send(Input::Event(row)).await;
                }
            }
        }
        let _ = self.news.send(Input::Ended).await;
    }

    /// What each service is doing.
    async fn list(self) {
        loop {
            let asked = async { Asked::new(&self.socket, &Question::Ps).await?.next().await };
            if let Ok(Answer::Services { services }) = asked.await
                && self.news.send(Input::Services(services)).await.is_err()
            {
                return;
            }
            tokio::select! {
                () = self.look.notified() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Asks one question. What comes of it that people should know.
    async fn answer(&self, question: &Question) -> Result<Vec<String>, String> {
        let asked = async { Asked::new(&self.socket, question).await?.next().await };
        match asked.await {
            Ok(Answer::Failed { message } | Answer::Refused { message }) => Err(message),
            Ok(Answer::Stopped { stopped }) => {
                Ok(stopped.into_iter().filter(|one| !one.clean).map(|one| one.text).collect())
            }
            Ok(_) => Ok(Vec::new()),
            Err(error) => Err(chain(&error)),
        }
    }
}
