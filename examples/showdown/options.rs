//! What the command line says.

use std::time::Duration;

use pm::AnyTransport;

use super::host::Host;
use super::season::Season;

const USAGE: &str = "usage: showdown [--battles N] [--seed S] [--workers W] [--transport uds|stdio | --foreign] [--unread N] [--chaos MS]";

/// All that there is to ask for.
pub(crate) const HELP: &str = "\
usage: showdown [OPTIONS]

Plays battles of pokemon-showdown, validates teams, and prints what they come to, which follows from the seed alone.

  --battles N           how many battles are played [20]
  --seed S              what teams, moves and dice begin with [1]
  --workers W           how many processes [2]
  --transport uds|stdio how they are talked to, through the kit for Node.js [uds]
  --foreign             the package's own workers in its place, which know nothing of pm
  --unread N            messages of a battle that may wait unread [256]
  --chaos MS            kill a worker every so many milliseconds";

/// The season that these arguments ask for; none where they ask what there is to ask for, so that [`HELP`] is the answer.
pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Season>, String> {
    let host = Host::Kit(AnyTransport::Uds(pm::Uds));
    let mut season = Season { battles: 20, seed: 1, workers: 2, host, unread: 256, chaos: None };
    while let Some(option) = arguments.next() {
        if option == "--help" || option == "-h" {
            return Ok(None);
        }
        if option == "--foreign" {
            season.host = Host::Package;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{option} is unknown, or lacks its value\n{USAGE}"))?;
        let number = || value.parse::<u32>().map_err(|_| format!("{option} wants a number, not {value:?}"));
        match option.as_str() {
            "--battles" => season.battles = number()?,
            "--seed" => season.seed = number()?.into(),
            "--workers" => season.workers = number()?.max(1),
            "--unread" => season.unread = number()?.max(1),
            "--chaos" => season.chaos = Some(Duration::from_millis(number()?.into())),
            "--transport" => season.host = Host::Kit(value.parse().map_err(|error| format!("{error}"))?),
            _ => return Err(format!("{option} is unknown\n{USAGE}")),
        }
    }
    if let Host::Kit(AnyTransport::Shm(_)) = season.host {
        return Err("shm is between Rust programs; for Node.js choose uds or stdio".to_string());
    }
    Ok(Some(season))
}
