//! `Procfile`: `name: command`, a line each, for the shell; with the variables of `.env` beside it.

use std::path::Path;

use pm::Spec;
use pm::service::Service;

use super::{Parts, Wrong, variables};

/// Reads one.
///
/// # Errors
/// What is wrong, and where.
pub fn read(text: &str, directory: &Path, logs: &Path) -> Result<Parts, Wrong> {
    let dotenv = directory.join(".env");
    let variables = if dotenv.exists() {
        variables::read(&dotenv).map_err(|problem| Wrong { at: None, problem })?
    } else {
        Vec::new()
    };
    let mut services: Vec<Service> = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let range = at..at + line.trim_end().len();
        at += line.len();
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let wrong = |problem: String| Wrong { at: Some(range.clone()), problem };
        let Some((name, command)) = trimmed.split_once(':').filter(|(_, command)| !command.trim().is_empty()) else {
            return Err(wrong("write the name of the service, a colon, and its command".into()));
        };
        let mut spec = Spec::program("sh").arg("-c").arg(command.trim()).cwd(directory);
        for (name, value) in &variables {
            spec = spec.env(name, value);
        }
        let spec = spec.build().map_err(|error| wrong(error.to_string()))?;
        if services.iter().any(|known| known.name() == name.trim()) {
            return Err(wrong(format!("{:?} is named twice", name.trim())));
        }
        let log = pm::service::LogFile::new(logs.join(format!("{}.log", name.trim())));
        let service = Service::new(name.trim(), spec).log(log).build().map_err(|error| wrong(error.to_string()))?;
        services.push(service);
    }
    if services.is_empty() {
        return Err(Wrong { at: None, problem: "no service stands in it".into() });
    }
    Ok(Parts { services, ..Parts::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_service() {
        let parts = read(
            "# the shop\nweb: node web.js -p 3000\n\nworker:  ./work\n",
            Path::new("/nowhere"),
            Path::new("/nowhere/.pm/logs"),
        )
        .unwrap();
        let lines: Vec<String> =
            parts.services.iter().map(|one| format!("{} {}", one.name(), one.spec().command_line())).collect();
        assert_eq!(lines, ["web sh -c 'node web.js -p 3000'", "worker sh -c ./work"]);
    }

    #[test]
    fn what_is_wrong_has_its_place() {
        let wrong = |text| read(text, Path::new("/nowhere"), Path::new("/nowhere/.pm/logs")).unwrap_err();
        assert_eq!(wrong("web: a\nno colon\n").at, Some(7..15));
        assert!(wrong("web: a\nweb: b\n").problem.contains("named twice"));
        assert!(wrong("a b: c\n").problem.contains("cannot be the name"));
        assert!(wrong("\n").problem.contains("no service"));
    }
}
