//! `watch` of pm.toml: services are started anew when what they are made of changes.
//!
//! Directories are watched one by one, so that those that are ignored cost nothing, however large they are. What is above a watched path is
//! watched as well: that is how a path is found again that was removed and made anew, or that there was not at first.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use pm::service::{LogFile, Orchestrator};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::reload::Facts;
use crate::config::watched::Watched;

/// Changes are taken together until there was none for so long: a save of many files, or a build, is one change.
const QUIET: Duration = Duration::from_millis(200);

/// Longer than that a change never waits for others, so that what changes without end is not waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// So many restarts within the window are what a busy person causes. More come from a service that writes where it is watched.
const MOST_RESTARTS: usize = 10;
const WINDOW: Duration = Duration::from_secs(30);

/// From then on there is a restart only when nothing has changed for so long.
const LONG_QUIET: Duration = Duration::from_secs(10);

/// Changes that wait to be looked at. Where there are more, all that is watched is taken to have changed.
const MOST_WAITING: usize = 1024;

/// Paths of one change that are told apart. More are only counted as being more.
const MOST_NAMED: usize = 100;

/// The most directories that are watched below one.
const MOST_DIRECTORIES: usize = 1 << 16;

/// What is to be watched cannot be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The kernel has a limit for each user.
    #[error(
        "{path:?} cannot be watched: this user watches as many directories as the kernel allows; raise that with \
         `sysctl fs.inotify.max_user_watches=524288`, or name less in `watch`, or more in its `ignore`"
    )]
    TooManyWatches {
        /// What was to be watched.
        path: PathBuf,
    },
    /// The kernel has a limit for each user, and one for each process.
    #[error(
        "nothing can be watched: this user has as many watchers as the kernel allows (`sysctl fs.inotify.max_user_instances=512` \
         raises that), or this program as many open files (`ulimit -n`)"
    )]
    TooManyWatchers {
        /// What the kernel said.
        source: io::Error,
    },
    /// It holds more than anybody means.
    #[error(
        "{path:?} has more than {MOST_DIRECTORIES} directories below it: name less in `watch`, or more in its `ignore`"
    )]
    TooManyDirectories {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel refuses.
    #[error("{path:?} cannot be watched")]
    Refused {
        /// What was to be watched.
        path: PathBuf,
        /// What the kernel said.
        source: notify::Error,
    },
}

/// What the watcher tells.
enum Heard {
    /// Something was made, written, renamed or removed there.
    Change(PathBuf),
    /// There was more than it could tell.
    Overflow,
    /// A part is not watched any more.
    Failed(String),
}

/// Something is watched, until this is dropped.
#[derive(Debug)]
pub struct Watching(AbortHandle);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Watches for the services of the project in this directory, from now on. None where none of them has anything watched.
///
/// # Errors
/// [`WatchError`].
pub fn start(orchestrator: &Orchestrator, facts: &Facts, directory: &Path) -> Result<Option<Watching>, WatchError> {
    if facts.watched.is_empty() {
        return Ok(None);
    }
    let logs: Vec<LogFile> = facts.logs.values().cloned().collect();
    let (tell, heard) = mpsc::channel(MOST_WAITING);
    let has_overflown = Arc::new(AtomicBool::new(false));
    let all: Vec<Watched> = facts.watched.values().cloned().collect();
    let lost = has_overflown.clone();
    let tell = move |told: Heard| {
        if tell.try_send(told).is_err() {
            // Relaxed: whoever takes one of those that wait looks at it next.
            lost.store(true, Ordering::Relaxed);
        }
    };
    let handle = move |told: notify::Result<notify::Event>| match told {
        Ok(event) if event.need_rescan() => tell(Heard::Overflow),
        Ok(event) if is_change(&event.kind) => {
            let concerns = |path: &PathBuf| {
                let is_logged_to = || logs.iter().any(|log| is_of(log, path));
                all.iter().any(|one| one.is_below(path) || one.holds(path)) && !is_logged_to()
            };
            event.paths.into_iter().filter(concerns).for_each(|path| tell(Heard::Change(path)));
        }
        Ok(_) => {}
        Err(error) => tell(Heard::Failed(error.to_string())),
    };
    let config = notify::Config::default().with_follow_symlinks(false);
    let watcher = RecommendedWatcher::new(handle, config).map_err(|error| match error.kind {
        notify::ErrorKind::Io(source) => WatchError::TooManyWatchers { source },
        kind => WatchError::Refused { path: directory.to_owned(), source: notify::Error::new(kind) },
    })?;
    let services = facts.watched.iter().map(|(name, watched)| Service::new(name, watched)).collect();
    let mut task =
        Task { orchestrator: orchestrator.clone(), directory: directory.to_owned(), watcher, services, has_overflown };
    for at in 0..task.services.len() {
        task.arm(at)?;
    }
    Ok(Some(Watching(tokio::spawn(task.run(heard)).abort_handle())))
}

/// Whether the contents of something changed: neither who reads it nor its times and rights.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Create(_) | EventKind::Remove(_) | EventKind::Any => true,
        EventKind::Modify(what) => !matches!(what, ModifyKind::Metadata(_)),
        EventKind::Access(_) | EventKind::Other => false,
    }
}

/// Whether a file is one of those to which pm itself writes what a service prints.
fn is_of(log: &LogFile, path: &Path) -> bool {
    let (Some(name), Some(log_name), Some(stem)) = (path.file_name(), log.path.file_name(), log.path.file_stem())
    else {
        return false;
    };
    let starts_with = |start: OsString| name.as_encoded_bytes().starts_with(start.as_encoded_bytes());
    let mut of_replicas = stem.to_owned();
    of_replicas.push("#");
    path.parent() == log.path.parent() && (starts_with(log_name.to_owned()) || starts_with(of_replicas))
}

/// A service that is watched for, and what has changed since it was started anew.
struct Service {
    name: String,
    watched: Watched,
    changed: Vec<PathBuf>,
    /// There were more than are named.
    has_more: bool,
    first: Option<Instant>,
    due: Option<Instant>,
    /// Those of the window.
    restarts: VecDeque<Instant>,
    is_slowed: bool,
}

impl Service {
    fn new(name: &str, watched: &Watched) -> Self {
        Service {
            name: name.into(),
            watched: watched.clone(),
            changed: Vec::new(),
            has_more: false,
            first: None,
            due: None,
            restarts: VecDeque::new(),
            is_slowed: false,
        }
    }

    /// Something has changed; without a path more than can be told.
    fn has_changed(&mut self, now: Instant, path: Option<PathBuf>) {
        let first = *self.first.get_or_insert(now);
        self.due = Some(if self.is_slowed { now + LONG_QUIET } else { (now + QUIET).min(first + LONGEST_WAIT) });
        match path {
            Some(path) if self.changed.len() < MOST_NAMED => {
                if !self.changed.contains(&path) {
                    self.changed.push(path);
                }
            }
            _ => self.has_more = true,
        }
    }

    /// Whether it is to be started anew now. One that was too often waits, which is to be said once.
    fn is_to_restart(&mut self, now: Instant) -> Result<bool, String> {
        while self.restarts.front().is_some_and(|at| now.duration_since(*at) > WINDOW) {
            self.restarts.pop_front();
        }
        if self.due.is_none_or(|due| due > now) {
            return Ok(false);
        }
        if self.restarts.len() < MOST_RESTARTS {
            self.is_slowed = false;
        } else if !self.is_slowed {
            self.is_slowed = true;
            self.due = Some(now + LONG_QUIET);
            let (count, window, quiet) = (MOST_RESTARTS, WINDOW.as_secs(), LONG_QUIET.as_secs());
            return Err(format!(
                "restarted {count} times in {window} s because of changes: does it write where it is watched? Then name that in `ignore` of its \
                 `watch`. The next restart comes when nothing has changed for {quiet} s"
            ));
        }
        (self.first, self.due) = (None, None);
        Ok(true)
    }

    /// What has changed, for people. It begins anew.
    fn take_what(&mut self, directory: &Path) -> String {
        let changed = std::mem::take(&mut self.changed);
        let has_more = std::mem::take(&mut self.has_more);
        // Editors and tools write to another name first, which is gone then.
        let Some(shown) = changed.iter().find(|path| path.exists()).or(changed.first()) else {
            return "more than could be told".into();
        };
        let shown = shown.strip_prefix(directory).unwrap_or(shown).display();
        match (changed.len() - 1, has_more) {
            (0, false) => shown.to_string(),
            (more, false) => format!("{shown} and {more} more"),
            (more, true) => format!("{shown} and more than {more} more"),
        }
    }
}

struct Task {
    orchestrator: Orchestrator,
    /// Paths are shown from here on.
    directory: PathBuf,
    watcher: RecommendedWatcher,
    services: Vec<Service>,
    has_overflown: Arc<AtomicBool>,
}

impl Task {
    async fn run(mut self, mut heard: mpsc::Receiver<Heard>) {
        loop {
            let due = self.services.iter().filter_map(|service| service.due).min();
            let timer = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                told = heard.recv() => match told {
                    Some(told) => self.heard(told).await,
                    None => return,
                },
                () = timer => self.restart().await,
            }
        }
    }

    async fn heard(&mut self, told: Heard) {
        let now = Instant::now();
        let has_overflown = self.has_overflown.swap(false, Ordering::Relaxed);
        let mut failed: Vec<(String, String)> = Vec::new();
        match told {
            Heard::Change(path) => {
                for at in 0..self.services.len() {
                    let service = &self.services[at];
                    let (is_held, is_below) = (service.watched.holds(&path), service.watched.is_below(&path));
                    let is_root = service.watched.paths().contains(&path);
                    let looked = match (is_root || is_below, is_held && is_directory(&path)) {
                        (true, _) => self.arm(at),
                        (false, true) => self.walk(at, &path),
                        (false, false) => Ok(()),
                    };
                    let service = &mut self.services[at];
                    if let Err(error) = looked {
                        failed.push((service.name.clone(), crate::error::chain(&error)));
                    }
                    // What is above one of its paths may have brought it along.
                    let come = service.watched.paths().iter().find(|root| root.starts_with(&path) && root.exists());
                    match (is_held, is_below, come.cloned()) {
                        (true, ..) => service.has_changed(now, Some(path.clone())),
                        (false, true, Some(root)) => service.has_changed(now, Some(root)),
                        _ => {}
                    }
                }
            }
            Heard::Overflow => failed.extend(self.overflown(now)),
            Heard::Failed(error) => {
                failed.extend(self.services.iter().map(|service| (service.name.clone(), error.clone())));
            }
        }
        if has_overflown {
            failed.extend(self.overflown(now));
        }
        for (name, error) in failed {
            // One that was removed needs no word.
            let _ = self.orchestrator.note(&name, format!("not all that it watches is watched: {error}")).await;
        }
    }

    /// All may have changed, and directories may be there that were not. What failed, and for whom.
    fn overflown(&mut self, now: Instant) -> Vec<(String, String)> {
        let mut failed = Vec::new();
        for at in 0..self.services.len() {
            if let Err(error) = self.arm(at) {
                failed.push((self.services[at].name.clone(), crate::error::chain(&error)));
            }
            self.services[at].has_changed(now, None);
        }
        failed
    }

    /// Starts those anew whose time has come.
    async fn restart(&mut self) {
        let now = Instant::now();
        for service in &mut self.services {
            match service.is_to_restart(now) {
                Ok(false) => {}
                Ok(true) => {
                    let what = service.take_what(&self.directory);
                    if let Ok(true) = self.orchestrator.restart_changed(&service.name, what).await {
                        service.restarts.push_back(now);
                    }
                }
                // One that was removed needs no word.
                Err(warning) => drop(self.orchestrator.note(&service.name, warning).await),
            }
        }
    }

    /// Watches all of a service that is there, and what is above it.
    fn arm(&mut self, at: usize) -> Result<(), WatchError> {
        for path in self.services[at].watched.paths().to_vec() {
            if let Some(above) = path.ancestors().skip(1).find(|above| above.is_dir()) {
                match self.watch(above) {
                    // It cannot be seen there when the path is made anew, but what is in it can.
                    Err(WatchError::Refused { .. }) if path.is_dir() => {}
                    watched => watched?,
                }
            }
            if path.is_dir() {
                self.walk(at, &path)?;
            }
        }
        Ok(())
    }

    /// Watches a directory and all below it that matter to a service.
    fn walk(&mut self, at: usize, root: &Path) -> Result<(), WatchError> {
        let mut left = vec![root.to_owned()];
        let mut count = 0;
        while let Some(directory) = left.pop() {
            count += 1;
            if count > MOST_DIRECTORIES {
                return Err(WatchError::TooManyDirectories { path: root.to_owned() });
            }
            // Before its directories are listed, so that none is missed that is made meanwhile.
            self.watch(&directory)?;
            // It may be gone by now.
            let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            left.extend(below.map(|entry| entry.path()).filter(|path| self.services[at].watched.holds(path)));
        }
        Ok(())
    }

    /// Watches one directory, which may be gone.
    fn watch(&mut self, directory: &Path) -> Result<(), WatchError> {
        let watched = tokio::task::block_in_place(|| self.watcher.watch(directory, RecursiveMode::NonRecursive));
        match watched {
            Ok(()) => Ok(()),
            Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) || !directory.exists() => Ok(()),
            Err(error) if matches!(error.kind, notify::ErrorKind::MaxFilesWatch) => {
                Err(WatchError::TooManyWatches { path: directory.to_owned() })
            }
            Err(source) => Err(WatchError::Refused { path: directory.to_owned(), source }),
        }
    }
}

/// Whether it is one itself, and no link to one.
fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        Service::new("a", &Watched::new(vec!["/p/src".into()], &[]).unwrap())
    }

    #[test]
    fn changes_are_taken_together_but_not_without_end() {
        let (mut one, begun) = (service(), Instant::now());
        let ms = Duration::from_millis;
        one.has_changed(begun, Some("/p/src/a".into()));
        one.has_changed(begun + ms(150), Some("/p/src/b".into()));
        one.has_changed(begun + ms(300), Some("/p/src/a".into()));
        assert_eq!(one.is_to_restart(begun + ms(499)), Ok(false));
        assert_eq!(one.is_to_restart(begun + ms(500)), Ok(true));
        assert_eq!(one.take_what(Path::new("/p")), "src/a and 1 more");
        assert_eq!(one.is_to_restart(begun + ms(9000)), Ok(false), "it begins anew");
        for at in 0..200 {
            one.has_changed(begun + ms(10_000 + at * 100), Some(format!("/p/src/{at}").into()));
        }
        assert_eq!(one.due, Some(begun + ms(12_000)));
        assert_eq!(one.is_to_restart(begun + ms(12_000)), Ok(true));
        assert_eq!(one.take_what(Path::new("/p")), "src/0 and more than 99 more");
        one.has_changed(begun, None);
        assert_eq!(one.take_what(Path::new("/p")), "more than could be told");
    }

    #[test]
    fn one_that_causes_its_own_restarts_is_slowed_down() {
        let (mut one, mut now) = (service(), Instant::now());
        let mut rounds = |one: &mut Service, count: usize, pause: Duration| {
            for _ in 0..count {
                one.has_changed(now, Some("/p/src/a".into()));
                now += pause;
                if one.is_to_restart(now)? {
                    one.restarts.push_back(now);
                }
            }
            Ok::<_, String>(now)
        };
        rounds(&mut one, MOST_RESTARTS, QUIET).unwrap();
        let warning = rounds(&mut one, 1, QUIET).unwrap_err();
        assert!(warning.starts_with("restarted 10 times in 30 s"), "{warning}");
        // It is said once, and then waits until it is quiet.
        rounds(&mut one, 20, QUIET).unwrap();
        assert_eq!(one.restarts.len(), MOST_RESTARTS);
        rounds(&mut one, 1, LONG_QUIET).unwrap();
        assert_eq!(one.restarts.len(), MOST_RESTARTS + 1, "nothing that changed is lost");
        // Once the window is over all is as it was.
        rounds(&mut one, 1, WINDOW).unwrap();
        rounds(&mut one, 1, QUIET).unwrap();
        assert!(!one.is_slowed);
    }

    #[test]
    fn only_contents_count() {
        use notify::event::{AccessKind, CreateKind, DataChange, MetadataKind, RemoveKind, RenameMode};
        let changes = [
            EventKind::Create(CreateKind::File),
            EventKind::Remove(RemoveKind::Folder),
            EventKind::Modify(ModifyKind::Data(DataChange::Any)),
            EventKind::Modify(ModifyKind::Name(RenameMode::To)),
        ];
        assert!(changes.iter().all(is_change));
        let others = [EventKind::Access(AccessKind::Read), EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any))];
        assert!(!others.iter().any(is_change));
    }

    #[test]
    fn logs_of_pm_are_no_changes() {
        let log = LogFile::new("/p/src/api.log");
        for name in ["api.log", "api.log.1", "api#2.log", "api#2.log.3"] {
            assert!(is_of(&log, &Path::new("/p/src").join(name)), "{name}");
        }
        for name in ["api.py", "api", "x/api.log", "../api.log"] {
            assert!(!is_of(&log, &Path::new("/p/src").join(name)), "{name}");
        }
    }
}
