//! What a service is asked, to know whether it is well.

use std::fmt;
use std::time::Duration;

use hyper::header::{HOST, HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Method, Uri};

use super::error::BadService;
use crate::machine::probe::Timing;
use crate::machine::spec::Spec;

/// A question that a service answers, and how often it is asked: an HTTP request, a connection, or a command.
///
/// Until it passes for the first time it is asked often, from 10 ms after the start on; then at its interval.
///
/// ```
/// use std::time::Duration;
/// use pm_core::face::service::Probe;
///
/// let probe = Probe::http("http://127.0.0.1:3000/health").interval(Duration::from_secs(30)).retries(2);
/// let _ = (probe, Probe::tcp(5432));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a probe does nothing until a service has it"]
pub struct Probe {
    ask: Ask,
    timing: Timing,
}

/// A probe as it was asked for.
#[derive(Clone, Debug, PartialEq)]
enum Ask {
    Http { url: String, method: String, headers: Headers, status: u16 },
    Tcp { host: String, port: u16 },
    Command { spec: Box<Spec>, code: i32 },
}

/// Headers as they were given. Their values may be secrets, so only their names are shown.
#[derive(Clone, Default, PartialEq)]
struct Headers(Vec<(String, String)>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// A probe that can be carried out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Target {
    Http { host: String, port: u16, request: Box<HttpRequest>, status: u16 },
    Tcp { host: String, port: u16 },
    Command { spec: Box<Spec>, code: i32 },
}

/// What is sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HttpRequest {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: Uri,
    pub(crate) headers: HeaderMap,
}

impl Probe {
    /// A GET of this URL, which begins with `http://`, answered with status 200. A redirect is another status, and is not followed.
    pub fn http(url: impl Into<String>) -> Self {
        Probe::new(Ask::Http { url: url.into(), method: "GET".into(), headers: Headers::default(), status: 200 })
    }

    /// A connection to this port of 127.0.0.1.
    pub fn tcp(port: u16) -> Self {
        Probe::tcp_at("127.0.0.1", port)
    }

    /// A connection to this port of another host.
    pub fn tcp_at(host: impl Into<String>, port: u16) -> Self {
        Probe::new(Ask::Tcp { host: host.into(), port })
    }

    /// A command that ends with exit code 0. It is killed, with all that it started, where it takes longer than the timeout.
    pub fn command(spec: Spec) -> Self {
        Probe::new(Ask::Command { spec: Box::new(spec), code: 0 })
    }

    fn new(ask: Ask) -> Self {
        Probe { ask, timing: Timing::default() }
    }

    /// Another method than GET. Of HTTP alone.
    pub fn method(mut self, name: impl Into<String>) -> Self {
        if let Ask::Http { method, .. } = &mut self.ask {
            *method = name.into();
        }
        self
    }

    /// A header. Of HTTP alone.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        if let Ask::Http { headers, .. } = &mut self.ask {
            headers.0.push((name.into(), value.into()));
        }
        self
    }

    /// Another status than 200. Of HTTP alone.
    pub fn status(mut self, code: u16) -> Self {
        if let Ask::Http { status, .. } = &mut self.ask {
            *status = code;
        }
        self
    }

    /// Another exit code than 0. Of a command alone.
    pub fn exit_code(mut self, expected: i32) -> Self {
        if let Ask::Command { code, .. } = &mut self.ask {
            *code = expected;
        }
        self
    }

    /// From an answer to the next question, once it was well: 10 s by default.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.timing.interval = interval;
        self
    }

    /// What has not answered by then has failed: 5 s by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timing.timeout = timeout;
        self
    }

    /// So many failures in a row make it unhealthy: 3 by default.
    pub fn retries(mut self, retries: u32) -> Self {
        self.timing.retries = retries;
        self
    }

    /// So many successes in a row make it healthy: 1 by default.
    pub fn successes(mut self, successes: u32) -> Self {
        self.timing.successes = successes;
        self
    }

    /// From the start to the first question: none by default.
    pub fn initial_delay(mut self, delay: Duration) -> Self {
        self.timing.initial_delay = delay;
        self
    }

    /// Checks all of it.
    pub(crate) fn check(self) -> Result<(Target, Timing), BadService> {
        let timing = self.timing;
        let zero = |what| Err(BadService::Zero { what });
        if timing.interval.is_zero() {
            return zero("the interval of a probe");
        }
        if timing.timeout.is_zero() {
            return zero("the timeout of a probe");
        }
        if timing.retries == 0 {
            return zero("the retries of a probe");
        }
        if timing.successes == 0 {
            return zero("the successes of a probe");
        }
        let target = match self.ask {
            Ask::Http { url, method, headers, status } => http(&url, &method, &headers.0, status)?,
            Ask::Tcp { port: 0, .. } => return zero("the port of a probe"),
            Ask::Tcp { host, port } => Target::Tcp { host, port },
            Ask::Command { spec, code } => Target::Command { spec, code },
        };
        Ok((target, timing))
    }
}

fn http(url: &str, method: &str, headers: &[(String, String)], status: u16) -> Result<Target, BadService> {
    let bad = |problem: String| BadService::Url { url: url.into(), problem };
    if url.starts_with("https:") {
        return Err(bad("only http:// is probed; ask a command, such as curl, for https".into()));
    }
    if !url.starts_with("http://") {
        return Err(bad("it begins with http://".into()));
    }
    let uri: Uri = url.parse().map_err(|error| bad(format!("{error}")))?;
    let Some(authority) = uri.authority() else { return Err(bad("it names no host".into())) };
    if !(100..=599).contains(&status) {
        return Err(bad(format!("a status of {status} is none that is sent; they go from 100 to 599")));
    }
    let request = HttpRequest {
        method: method.parse().map_err(|_| bad(format!("{method:?} is no method")))?,
        target: uri.path_and_query().map_or("/", |rest| rest.as_str()).parse().map_err(|e| bad(format!("{e}")))?,
        headers: headers_of(authority, headers).map_err(bad)?,
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Target::Http { host, port: authority.port_u16().unwrap_or(80), request: Box::new(request), status })
}

fn headers_of(authority: &Authority, given: &[(String, String)]) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let host = authority.as_str().rsplit('@').next().unwrap_or_default();
    headers.insert(HOST, HeaderValue::from_str(host).map_err(|error| error.to_string())?);
    for (name, value) in given {
        let known = name.parse::<HeaderName>().map_err(|_| format!("{name:?} cannot be the name of a header"))?;
        let mut value: HeaderValue = value.parse().map_err(|_| format!("the header {name} cannot have that value"))?;
        // Not to be seen where a probe is shown for debugging.
        value.set_sensitive(true);
        headers.insert(known, value);
    }
    Ok(headers)
}

/// The question in a few words.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Http { host, port, request, .. } => {
                write!(f, "{} http://{host}:{port}{}", request.method, request.target)
            }
            Target::Tcp { host, port } => write!(f, "tcp {host}:{port}"),
            Target::Command { spec, .. } => write!(f, "{}", spec.program_name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(probe: Probe) -> String {
        probe.check().unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_its_value() {
        assert!(refused(Probe::http("https://localhost/")).contains("only http:// is probed"));
        assert!(refused(Probe::http("localhost:80/")).contains("begins with http://"));
        assert!(refused(Probe::http("http://a b/")).contains("\"http://a b/\""));
        assert!(refused(Probe::http("http://localhost/").status(99)).contains("99"));
        assert!(refused(Probe::http("http://localhost/").method("G T")).contains("\"G T\""));
        assert!(refused(Probe::http("http://localhost/").header("a b", "c")).contains("\"a b\""));
        assert!(refused(Probe::tcp(0)).contains("the port"));
        assert!(refused(Probe::tcp(1).interval(Duration::ZERO)).contains("the interval"));
        assert!(refused(Probe::tcp(1).retries(0)).contains("the retries"));
    }

    #[test]
    fn values_of_headers_are_not_shown() {
        let probe = Probe::http("http://localhost/").header("Authorization", "hunter2");
        let shown = format!("{probe:?} {:?}", probe.clone().check().unwrap());
        assert!(shown.contains("Authorization") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn urls_are_taken_apart() {
        let (target, _) = Probe::http("http://[::1]:81/a?b=c").check().unwrap();
        let Target::Http { host, port, request, status } = target else { panic!("{target:?}") };
        assert_eq!((host.as_str(), port, status), ("::1", 81, 200));
        assert_eq!(
            (request.target.to_string(), request.headers[HOST].to_str().unwrap()),
            ("/a?b=c".into(), "[::1]:81")
        );
        let (target, _) = Probe::http("http://localhost").check().unwrap();
        assert_eq!(target.to_string(), "GET http://localhost:80/");
    }
}
