//! Who is measured.

use std::time::Duration;

/// pm and what people use in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Pm,
    Supervisord,
    Pm2,
    Honcho,
    Mprocs,
    ProcessCompose,
}

/// How a tool is asked to stop all of its services.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    /// By this command of its own.
    Command(&'static str),
    /// SIGTERM to its process.
    Terminate,
    /// By this key on its terminal.
    Key(&'static [u8]),
}

impl Tool {
    /// In the order of a round.
    pub(crate) const ALL: &'static [Tool] =
        &[Tool::Pm, Tool::Supervisord, Tool::Pm2, Tool::Honcho, Tool::Mprocs, Tool::ProcessCompose];

    /// Its name on the command line and in the table, which is that of its program.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Tool::Pm => "pm",
            Tool::Supervisord => "supervisord",
            Tool::Pm2 => "pm2",
            Tool::Honcho => "honcho",
            Tool::Mprocs => "mprocs",
            Tool::ProcessCompose => "process-compose",
        }
    }

    /// How it is installed.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Tool::Pm => "",
            Tool::Supervisord | Tool::Honcho => "--install installs it with pip",
            Tool::Pm2 | Tool::Mprocs => "--install installs it with npm",
            Tool::ProcessCompose => "neither pip nor npm has it; it is measured where it is on PATH",
        }
    }

    /// What makes it say its version.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Tool::Honcho | Tool::ProcessCompose => "version",
            _ => "--version",
        }
    }

    /// The arguments that start all services, in the directory of its file.
    pub(crate) fn up(self) -> &'static [&'static str] {
        match self {
            Tool::Pm => &["up", "-d"],
            Tool::Supervisord => &["--nodaemon", "--configuration", "supervisord.conf"],
            Tool::Pm2 => &["start", "ecosystem.json"],
            Tool::Honcho => &["start", "-f", "Procfile"],
            Tool::Mprocs => &["--config", "mprocs.yaml", "--log-dir", "logs"],
            Tool::ProcessCompose => {
                &["up", "--tui=false", "--no-server", "--log-file", "own.log", "--config", "process-compose.yaml"]
            }
        }
    }

    /// Whether the command that starts it ends once it has, and leaves another process behind.
    pub(crate) fn goes_to_background(self) -> bool {
        matches!(self, Tool::Pm | Tool::Pm2)
    }

    /// Whether it runs on a terminal and nowhere else.
    pub(crate) fn needs_terminal(self) -> bool {
        self == Tool::Mprocs
    }

    pub(crate) fn stop(self) -> Stop {
        match self {
            Tool::Pm => Stop::Command("down"),
            Tool::Pm2 => Stop::Command("kill"),
            Tool::Supervisord | Tool::Honcho | Tool::ProcessCompose => Stop::Terminate,
            Tool::Mprocs => Stop::Key(b"q"),
        }
    }

    /// Whether it starts a service anew that was killed.
    pub(crate) fn restarts(self) -> bool {
        self != Tool::Honcho
    }

    /// For how long a service must have run, so that its restart is none of a crash loop.
    pub(crate) fn shortest_life(self) -> Duration {
        match self {
            Tool::Mprocs => Duration::from_millis(1100),
            _ => Duration::from_millis(100),
        }
    }

    /// Where what the service `s0` prints is written to, in the directory of its file.
    pub(crate) fn log(self) -> &'static str {
        match self {
            Tool::Pm => ".pm/logs/s0.log",
            Tool::Honcho => "stdout",
            _ => "logs/s0.log",
        }
    }
}
