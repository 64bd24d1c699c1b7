//! Who holds a port of this machine, as /proc says it. Looked at when a service is about to start or has failed, and never again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::face::service::Target;
use crate::machine::service::PortHolder;
use crate::sys::tree;

/// So long one look may take: a start waits for it, and who holds a port is a help and no more than that.
const LONGEST_LOOK: Duration = Duration::from_millis(500);

/// So many sockets of one family are looked at. Those that listen come first.
const MOST_SOCKETS: usize = 1 << 16;

/// So many steps lead from a process to the service that it belongs to. No program nests deeper.
const MOST_ANCESTORS: usize = 64;

/// The state of a socket that listens, as the kernel writes it.
const LISTEN: &str = "0A";

/// The processes of all services of one orchestrator that live, with what they are called.
#[derive(Clone, Debug, Default)]
pub(super) struct Living(Arc<Mutex<BTreeMap<u32, Arc<str>>>>);

impl Living {
    pub(super) fn has_started(&self, pid: u32, label: Arc<str>) {
        self.all().insert(pid, label);
    }

    pub(super) fn has_ended(&self, pid: u32) {
        self.all().remove(&pid);
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service that a process is of, or descends from.
    fn service_of(&self, pid: u32) -> Option<Arc<str>> {
        let mut at = pid;
        for _ in 0..MOST_ANCESTORS {
            if let Some(label) = self.all().get(&at) {
                return Some(label.clone());
            }
            at = tree::stat(i32::try_from(at).ok()?).and_then(|stat| u32::try_from(stat.parent).ok())?;
        }
        None
    }

    /// Whether a process was started by this program as a service, or by such a one, whatever has become of its parents.
    fn has(&self, pid: u32) -> bool {
        let here = format!("{}-", std::process::id());
        let is_marked = || match i32::try_from(pid).map(tree::environment) {
            Ok(tree::Environment::Cookie(cookie)) => {
                cookie.split(|&byte| byte == b'/').any(|part| part.starts_with(here.as_bytes()))
            }
            _ => false,
        };
        self.service_of(pid).is_some() || is_marked()
    }
}

/// The port of this machine that a probe asks.
pub(super) fn asked_by(target: &Target) -> Option<u16> {
    let (host, port) = match target {
        Target::Http { host, port, .. } | Target::Tcp { host, port } => (host, *port),
        Target::Command { .. } => return None,
    };
    let is_here = host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|address| is_this_machine(&address));
    is_here.then_some(port)
}

/// Whether a connection to this address comes to this machine, or one to this machine comes to a socket of this address.
fn is_this_machine(address: &IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_unspecified()
}

/// Whether somebody may hold a port of this machine: asked of the kernel in a few microseconds, while to look for who it is takes milliseconds.
pub(super) fn may_be_taken(port: u16) -> bool {
    let is_free = |family, address: SocketAddr| {
        let flags = SocketFlags::CLOEXEC;
        let Ok(socket) = rustix::net::socket_with(family, SocketType::STREAM, flags, None) else {
            // There is no such family here; or no descriptor is left, and nobody can be looked for either.
            return true;
        };
        // Connections that have ended do not count, only who listens. It is bound for no longer than this takes, and never listens itself.
        let _ = sockopt::set_socket_reuseaddr(&socket, true);
        if family == AddressFamily::INET6 {
            let _ = sockopt::set_ipv6_v6only(&socket, true);
        }
        !matches!(rustix::net::bind(&socket, &address), Err(Errno::ADDRINUSE | Errno::ACCESS))
    };
    let v4 = is_free(AddressFamily::INET, (Ipv4Addr::UNSPECIFIED, port).into());
    !v4 || !is_free(AddressFamily::INET6, (Ipv6Addr::UNSPECIFIED, port).into())
}

/// Who would answer at a port of this machine, where that is nobody whom this program has started.
pub(super) fn stranger_at(port: u16, living: &Living) -> Option<PortHolder> {
    let found = Found::at(port, is_this_machine)?;
    (!found.owners.iter().any(|pid| living.has(*pid))).then(|| found.holder(living))
}

/// Who holds a port at an address for which `fits`.
pub(super) fn holder_of(port: u16, living: &Living, fits: impl Fn(&IpAddr) -> bool) -> Option<PortHolder> {
    Found::at(port, fits).map(|found| found.holder(living))
}

/// Whether a socket that is bound to `held` keeps others from `wanted`.
pub(super) fn collides(held: &IpAddr, wanted: &IpAddr) -> bool {
    held.is_unspecified() || wanted.is_unspecified() || held.to_canonical() == wanted.to_canonical()
}

/// Sockets that listen on one port.
struct Found {
    /// The user of one of them.
    uid: Option<u32>,
    /// The processes that have one of them open and may be looked at.
    owners: BTreeSet<u32>,
}

impl Found {
    fn at(port: u16, fits: impl Fn(&IpAddr) -> bool) -> Option<Self> {
        let by = Instant::now() + LONGEST_LOOK;
        let (mut uid, mut links) = (None, BTreeSet::new());
        for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
            let Ok(file) = File::open(file) else { continue };
            let lines = BufReader::new(file).lines().map_while(Result::ok).skip(1).take(MOST_SOCKETS);
            let sockets = lines.filter_map(|line| Socket::of(&line));
            for socket in sockets.filter(|socket| socket.port == port && fits(&socket.address)) {
                uid = uid.or(Some(socket.uid));
                links.insert(format!("socket:[{}]", socket.inode));
            }
        }
        (!links.is_empty()).then(|| Found { uid, owners: owners(&links, by) })
    }

    /// One of them: a service rather than this program, which keeps listeners for services; and otherwise the first, for others have it from that one.
    fn holder(self, living: &Living) -> PortHolder {
        let of_service = self.owners.iter().find_map(|pid| Some((*pid, living.service_of(*pid)?)));
        let first = self.owners.first().copied();
        let (pid, service) = of_service.map_or((first, None), |(pid, service)| (Some(pid), Some(service)));
        PortHolder {
            pid,
            command: pid.and_then(name_of),
            service: service.map(|label| label.to_string()),
            uid: self.uid,
        }
    }
}

/// A socket that listens.
struct Socket {
    address: IpAddr,
    port: u16,
    uid: u32,
    inode: u64,
}

impl Socket {
    /// Of a line of /proc/net/tcp or tcp6; none where it does not listen.
    fn of(line: &str) -> Option<Self> {
        // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (address, port) = fields.next()?.split_once(':')?;
        if fields.nth(1)? != LISTEN {
            return None;
        }
        let uid = fields.nth(3)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        Some(Socket { address: self::address(address)?, port: u16::from_str_radix(port, 16).ok()?, uid, inode })
    }
}

/// An address as the kernel writes it: words of 32 bits in the order of this machine, each in hexadecimal digits.
fn address(digits: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(digits.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match digits.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(8 * at)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// The processes that have one of these open, as far as they may be looked at.
fn owners(links: &BTreeSet<String>, by: Instant) -> BTreeSet<u32> {
    let numbers = |path: &str| fs::read_dir(path).into_iter().flatten().flatten();
    let pids = numbers("/proc").filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_one = |pid: &u32| {
        numbers(&format!("/proc/{pid}/fd"))
            .take_while(|_| Instant::now() < by)
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_str().is_some_and(|to| links.contains(to))))
    };
    pids.take_while(|_| Instant::now() < by).filter(has_one).collect()
}

/// What a process calls itself, as far as it can be shown.
fn name_of(pid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name = String::from_utf8_lossy(&name);
    Some(name.trim_end_matches('\n').chars().map(|c| if c.is_control() { '?' } else { c }).collect())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::face::service::Probe;

    fn here(address: &str) -> (TcpListener, u16) {
        let listener = TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[test]
    fn a_port_is_free_or_somebody_listens() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            // Not every machine has the second family.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert!(may_be_taken(port), "{address}");
            drop(listener);
            // A child that another test is making has it until it executes its program.
            let by = Instant::now() + Duration::from_secs(20);
            while may_be_taken(port) {
                assert!(Instant::now() < by, "{address}");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 31337 1 0000000000000000 100 0 0 10 0";
        let socket = Socket::of(line).unwrap();
        let (address, uid) = (IpAddr::from([127, 0, 0, 1]), 1000);
        assert_eq!((socket.address, socket.port, socket.uid, socket.inode), (address, 8080, uid, 31337));
        let established = line.replace(" 0A ", " 01 ");
        assert!(Socket::of(&established).is_none());
        for broken in
            ["", "0:", "0: x:y z 0A", "0: 0100007F:1F90 00000000:0000 0A", &line.replace("0100007F", "010000üF")]
        {
            assert!(Socket::of(broken).is_none(), "{broken:?}");
        }
        assert_eq!(self::address("00000000000000000000000001000000"), Some(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(self::address("0000000000000000FFFF00000100007F"), Some(IpAddr::from([127, 0, 0, 1])));
    }

    #[test]
    fn this_program_holds_what_it_listens_on() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            let holder = stranger_at(port, &Living::default()).unwrap();
            assert_eq!(holder.pid, Some(std::process::id()), "{address}");
            assert!(!holder.command.unwrap().is_empty());
            drop(listener);
            // A child that another test makes at this moment has it until it executes its program.
            let by = Instant::now() + Duration::from_secs(20);
            while stranger_at(port, &Living::default()).is_some() {
                assert!(Instant::now() < by, "{address}");
            }
        }
    }

    #[test]
    fn a_child_holds_what_it_was_given_and_services_are_no_strangers() {
        let (listener, port) = here("127.0.0.1:0");
        let mut sleep = Command::new("sleep");
        sleep.arg("1000").stdin(Stdio::from(listener.as_fd().try_clone_to_owned().unwrap()));
        let mut child = sleep.spawn().unwrap();
        drop((sleep, listener));
        let living = Living::default();
        let holder = stranger_at(port, &living).unwrap();
        assert_eq!((holder.pid, holder.command.as_deref()), (Some(child.id()), Some("sleep")));
        living.has_started(child.id(), "api".into());
        assert_eq!(stranger_at(port, &living), None);
        let holder = holder_of(port, &living, |_| true).unwrap();
        assert_eq!(holder.to_string(), format!("process {} (sleep) of the service api", child.id()));
        assert_eq!(holder_of(port, &living, |held| collides(held, &IpAddr::from([127, 0, 0, 2]))), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn probes_of_this_machine_name_their_port() {
        let port = |probe: Probe| asked_by(&probe.check().unwrap().0);
        assert_eq!(port(Probe::tcp(81)), Some(81));
        assert_eq!(port(Probe::http("http://localhost:82/")), Some(82));
        assert_eq!(port(Probe::http("http://[::1]:83/")), Some(83));
        assert_eq!(port(Probe::tcp_at("192.0.2.1", 84)), None);
        assert_eq!(port(Probe::http("http://example.org/")), None);
    }
}
