//! The configuration file of each tool: all services at once, started anew as soon as the tool can, logs that are not rotated.

use serde::Serialize;

use crate::problem::Problem;
use crate::service::Services;
use crate::tool::Tool;

/// Writes it into the directory of the services.
pub(crate) fn write(tool: Tool, services: &Services) -> Result<(), Problem> {
    let (file, text) = match tool {
        Tool::Pm => ("pm.toml", pm(services)),
        Tool::Supervisord => ("supervisord.conf", supervisord(services)),
        Tool::Pm2 => ("ecosystem.json", pm2(services)),
        Tool::Honcho => ("Procfile", honcho(services)),
        Tool::Mprocs => ("mprocs.yaml", mprocs(services)),
        Tool::ProcessCompose => ("process-compose.yaml", process_compose(services)),
    };
    std::fs::write(services.dir().join(file), text).map_err(Problem::io(file))
}

fn pm(services: &Services) -> String {
    let restart = match services.is_restarted() {
        true => "{ when = \"always\", delay = 0, endless = true }",
        false => "\"never\"",
    };
    let service = |name: String| {
        let command = services.command(&name);
        format!("[service.{name}]\ncommand = {command:?}\nrestart = {restart}\nlog = {{ max_size = 0 }}\n")
    };
    services.names().into_iter().map(service).collect()
}

fn supervisord(services: &Services) -> String {
    let own = "[supervisord]\nlogfile = own.log\npidfile = own.pid\nchildlogdir = logs\n";
    let service = |name: String| {
        let (command, restart) = (services.command(&name).join(" "), services.is_restarted());
        format!(
            "[program:{name}]\ncommand = {command}\nautorestart = {restart}\nstartsecs = 0\nredirect_stderr = true\n\
             stdout_logfile = logs/{name}.log\nstdout_logfile_maxbytes = 0\n"
        )
    };
    // A program for itself is a group, and groups are stopped one after the other.
    let group = format!("[group:all]\nprograms = {}\n", services.names().join(","));
    own.to_string() + &group + &services.names().into_iter().map(service).collect::<String>()
}

/// pm2 gives up after 16 lives of less than a second.
const NEVER_GIVE_UP: u32 = 1_000_000;

fn pm2(services: &Services) -> String {
    #[derive(Serialize)]
    struct File {
        apps: Vec<App>,
    }
    #[derive(Serialize)]
    struct App {
        script: String,
        args: Vec<String>,
        interpreter: &'static str,
        autorestart: bool,
        max_restarts: u32,
        out_file: String,
        error_file: String,
        name: String,
    }
    let app = |name: String| {
        let mut command = services.command(&name);
        App {
            script: command.remove(0),
            args: command,
            interpreter: "none",
            autorestart: services.is_restarted(),
            max_restarts: NEVER_GIVE_UP,
            out_file: format!("logs/{name}.log"),
            error_file: format!("logs/{name}.err"),
            name,
        }
    };
    let file = File { apps: services.names().into_iter().map(app).collect() };
    serde_json::to_string_pretty(&file).expect("text and numbers")
}

fn honcho(services: &Services) -> String {
    // It runs a line by a shell, which would stand between it and the service.
    let service = |name: String| format!("{name}: exec {}\n", services.command(&name).join(" "));
    services.names().into_iter().map(service).collect()
}

fn mprocs(services: &Services) -> String {
    let service = |name: String| {
        let (command, restart) = (services.command(&name), services.is_restarted());
        format!("  {name}:\n    cmd: {command:?}\n    autorestart: {restart}\n    stop: SIGTERM\n")
    };
    "procs:\n".to_string() + &services.names().into_iter().map(service).collect::<String>()
}

fn process_compose(services: &Services) -> String {
    let restart = if services.is_restarted() { "always" } else { "no" };
    let service = |name: String| {
        let command = services.command(&name).join(" ");
        // A second is the least that it waits.
        format!(
            "  {name}:\n    command: \"exec {command}\"\n    log_location: logs/{name}.log\n    availability:\n      \
             restart: \"{restart}\"\n      backoff_seconds: 1\n"
        )
    };
    "version: \"0.5\"\nprocesses:\n".to_string() + &services.names().into_iter().map(service).collect::<String>()
}
