//! What a service is started anew for: files and directories, without what does not matter in them.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// Names that never matter, wherever they stand below what is watched: of tools that write beside the sources, and of editors' temporary files.
const ALWAYS_IGNORED: [&str; 17] = [
    ".git",
    ".hg",
    ".svn",
    ".pm",
    "target",
    "node_modules",
    "__pycache__",
    ".DS_Store",
    "*~",
    ".#*",
    "#*#",
    "*.swp",
    "*.swo",
    "*.swx",
    "4913",
    "*___jb_tmp___",
    "*___jb_old___",
];

/// The most paths that one service watches, and patterns that it ignores. Each change is compared with all of them.
const MOST: usize = 64;

/// What of a file system a service is started anew for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Absolute, and none of them twice.
    paths: Vec<PathBuf>,
    ignored: Vec<Pattern>,
}

/// What is ignored: a name, wherever it stands, or a path from the watched directory on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    parts: Vec<String>,
    /// It is meant from the watched directory on.
    is_path: bool,
}

impl Watched {
    /// These paths, which are absolute, without what these patterns say.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn new(paths: Vec<PathBuf>, ignore: &[String]) -> Result<Self, String> {
        if paths.is_empty() {
            return Err("it names no path".into());
        }
        if paths.len() > MOST || ignore.len() > MOST {
            return Err(format!("it has more than {MOST} paths or patterns: name a directory above them"));
        }
        let ignored = ignore.iter().map(|text| Pattern::new(text)).collect::<Result<_, _>>()?;
        // As changes are told of: without a dot in between.
        let mut paths: Vec<PathBuf> = paths.iter().map(|path| path.components().collect()).collect();
        paths.sort();
        paths.dedup();
        Ok(Watched { paths, ignored })
    }

    /// What is watched.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Those that do not exist.
    pub fn missing(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter().map(PathBuf::as_path).filter(|path| !path.exists())
    }

    /// Whether this is one of the paths, or is in one of them and not ignored.
    pub fn holds(&self, path: &Path) -> bool {
        self.paths.iter().any(|root| {
            let below = path.strip_prefix(root).ok().map(|rest| rest.iter().map(OsStr::to_string_lossy).collect());
            below.is_some_and(|below: Vec<_>| {
                let below: Vec<&str> = below.iter().map(|part| &**part).collect();
                let is_ignored = |part: &&str| ALWAYS_IGNORED.iter().any(|name| fits(name, part));
                !below.iter().any(is_ignored) && !self.ignored.iter().any(|pattern| pattern.fits(&below))
            })
        })
    }

    /// Whether one of the paths is in this one, so that it comes and goes with it.
    pub fn is_below(&self, path: &Path) -> bool {
        self.paths.iter().any(|root| root != path && root.starts_with(path))
    }
}

impl Pattern {
    fn new(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("./").unwrap_or(text);
        let trimmed = path.trim_end_matches('/');
        if trimmed.is_empty() || trimmed.starts_with('/') || text.contains(['[', ']', '{', '}', '!', '\\']) {
            return Err(format!(
                "{text:?} cannot be ignored: write a name such as *.tmp, or a path from the watched directory on; * and ? stand for \
                 characters of a name, ** for directories"
            ));
        }
        let parts: Vec<String> = Path::new(trimmed)
            .components()
            .map(|part| match part {
                Component::Normal(part) => Ok(part.to_string_lossy().into_owned()),
                _ => Err(format!("{text:?} cannot be ignored: it leaves the watched directory")),
            })
            .collect::<Result<_, _>>()?;
        Ok(Pattern { is_path: parts.len() > 1, parts })
    }

    /// Whether it means this path, or a directory on the way to it.
    fn fits(&self, below: &[&str]) -> bool {
        if self.is_path {
            (1..=below.len()).any(|end| all_fit(&self.parts, &below[..end]))
        } else {
            below.iter().any(|part| fits(&self.parts[0], part))
        }
    }
}

fn all_fit(pattern: &[String], parts: &[&str]) -> bool {
    match pattern.split_first() {
        None => parts.is_empty(),
        Some((first, rest)) if first == "**" => (0..=parts.len()).any(|skipped| all_fit(rest, &parts[skipped..])),
        Some((first, rest)) => {
            parts.split_first().is_some_and(|(part, parts)| fits(first, part) && all_fit(rest, parts))
        }
    }
}

/// Whether a name fits a pattern in which `*` stands for any characters and `?` for one. Its time is bounded by the product of their lengths.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut from) = (0, 0);
    // The last star, and what it stands for ends here.
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        if pattern.get(at) == Some(&'*') {
            star = Some((at, from));
            at += 1;
        } else if pattern.get(at).is_some_and(|c| *c == '?' || *c == name[from]) {
            at += 1;
            from += 1;
        } else if let Some((before, end)) = star {
            star = Some((before, end + 1));
            at = before + 1;
            from = end + 1;
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(paths: &[&str], ignore: &[&str]) -> Watched {
        let ignore: Vec<String> = ignore.iter().map(|text| text.to_string()).collect();
        Watched::new(paths.iter().map(PathBuf::from).collect(), &ignore).unwrap()
    }

    #[test]
    fn names_fit_patterns() {
        for (pattern, name) in
            [("*", ""), ("*.tmp", "a.tmp"), ("a*b*c", "aXbYbc"), ("?x", "éx"), ("*~", "a~"), ("a", "a")]
        {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("", "a"), ("*.tmp", "a.tmpx"), ("a*b*c", "abd"), ("?", ""), ("a", "ab"), ("ab", "a")] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        // In time that no pattern stretches.
        assert!(!fits(&"*a".repeat(100), &"a".repeat(10_000).replace("aa", "ab")));
    }

    #[test]
    fn what_is_in_a_path_and_not_ignored_is_held() {
        let one = watched(&["/p/./src", "/p/config.toml"], &["*.tmp", "cache/**/*.db", "gen/"]);
        for path in
            ["/p/src", "/p/src/a/b.rs", "/p/config.toml", "/p/src/cache/a", "/p/src/x/cache/a.db", "/p/src/genes"]
        {
            assert!(one.holds(Path::new(path)), "{path}");
        }
        for path in [
            "/p",
            "/p/srcs",
            "/p/src/a.tmp",
            "/p/src/a.tmp/b",
            "/p/src/cache/a.db",
            "/p/src/cache/a/b/c.db",
            "/p/src/x/gen/y",
            "/p/src/.git/HEAD",
            "/p/src/a/target/debug/x",
            "/p/src/.main.rs.swp",
            "/p/src/main.rs~",
            "/p/src/4913",
        ] {
            assert!(!one.holds(Path::new(path)), "{path}");
        }
        assert!(one.is_below(Path::new("/p")) && !one.is_below(Path::new("/p/src")) && !one.is_below(Path::new("/q")));
        // What is named itself matters, wherever it stands.
        assert!(watched(&["/p/target/debug/api"], &[]).holds(Path::new("/p/target/debug/api")));
        assert_eq!(watched(&["/p/src", "/p/src/."], &[]).paths(), [PathBuf::from("/p/src")]);
    }

    #[test]
    fn patterns_that_nobody_can_mean_are_refused() {
        for text in ["", "/", "/abs", "[ab]", "a{b,c}", "!a", "a/../b", "..", "a\\b"] {
            let refused = Watched::new(vec!["/p".into()], &[text.to_string()]).unwrap_err();
            assert!(refused.starts_with(&format!("{text:?} cannot be ignored: ")), "{refused}");
        }
        assert_eq!(Watched::new(Vec::new(), &[]).unwrap_err(), "it names no path");
    }
}
