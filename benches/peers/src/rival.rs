//! Who is measured.

use clap::ValueEnum;
use pm::{AnyTransport, Shm, Uds};

use crate::cli::Args;
use crate::error::PeerError;
use crate::row::Row;
use crate::scripts::{Language, Script};
use crate::{iceoryx, ipc_channel, mux, node, ours, tarpc};

/// pm over its transports, and its rivals, in the order of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rival {
    /// pm over shared memory
    Shm,
    /// pm over a Unix socket
    Uds,
    /// pm over a Unix socket, with a worker in Node.js
    Node,
    /// A batching multiplexer on a Unix socket, written by hand
    Mux,
    /// iceoryx2, request-response; both processes poll
    Iceoryx2,
    /// ipc-channel, channels of bytes
    IpcChannel,
    /// tarpc over a Unix socket, bincode
    Tarpc,
    /// Node.js: child_process, fork and send
    Fork,
    /// Node.js: piscina, a pool of threads
    Piscina,
    /// Node.js: workerpool, with processes
    Workerpool,
    /// Node.js: the QueryProcessManager of Pokemon Showdown
    Showdown,
    /// Python: multiprocessing.Pool
    Pool,
    /// Python: concurrent.futures.ProcessPoolExecutor
    Executor,
    /// Python: loky
    Loky,
}

impl Rival {
    /// Those that were asked for.
    pub(crate) fn chosen(args: &Args) -> Vec<Rival> {
        let is_chosen = |rival: &Rival| args.only.is_empty() || args.only.contains(rival);
        Rival::value_variants().iter().copied().filter(is_chosen).collect()
    }

    /// Its name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_string())
    }

    /// Its name in the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Rival::Shm => "pm, shm",
            Rival::Uds => "pm, uds",
            Rival::Node => "pm, uds, Node worker",
            Rival::Mux => "hand-batched socket mux",
            Rival::Iceoryx2 => "iceoryx2, both poll",
            Rival::IpcChannel => "ipc-channel",
            Rival::Tarpc => "tarpc, Unix socket",
            Rival::Fork => "Node fork + send",
            Rival::Piscina => "Node piscina (threads)",
            Rival::Workerpool => "Node workerpool",
            Rival::Showdown => "Node QueryProcessManager",
            Rival::Pool => "Python Pool",
            Rival::Executor => "Python ProcessPoolExecutor",
            Rival::Loky => "Python loky",
        }
    }

    /// The script that measures it, if it is not written in Rust.
    pub(crate) fn script(self) -> Option<Script> {
        let (language, file, probe) = match self {
            Rival::Fork => (Language::Node, "fork.js", ""),
            Rival::Piscina => (Language::Node, "piscina.js", "require.resolve('piscina')"),
            Rival::Workerpool => (Language::Node, "workerpool.js", "require.resolve('workerpool')"),
            Rival::Showdown => (Language::Node, "showdown.js", "require.resolve('pokemon-showdown')"),
            Rival::Pool => (Language::Python, "pool.py", ""),
            Rival::Executor => (Language::Python, "executor.py", ""),
            Rival::Loky => (Language::Python, "reusable.py", "import loky"),
            _ => return None,
        };
        Some(Script { language, file, probe })
    }

    fn measure(self, args: &Args) -> Result<Vec<Row>, PeerError> {
        match self {
            Rival::Shm => ours::measure(AnyTransport::Shm(Shm::default()), args),
            Rival::Uds => ours::measure(AnyTransport::Uds(Uds), args),
            Rival::Node => node::measure(args),
            Rival::Mux => mux::measure(args),
            Rival::Iceoryx2 => iceoryx::measure(args),
            Rival::IpcChannel => ipc_channel::measure(args),
            Rival::Tarpc => tarpc::measure(args),
            _ => Err(PeerError::NoRival),
        }
    }
}

/// What a manager does: measures its rival, and prints a row for each size.
pub(crate) fn manage(args: &Args) -> Result<(), PeerError> {
    let &[rival] = args.only.as_slice() else { return Err(PeerError::NoRival) };
    args.placement.enter();
    match rival.script() {
        Some(script) => Err(script.become_it(args)),
        None => {
            rival.measure(args)?.iter().for_each(Row::print);
            Ok(())
        }
    }
}

/// What a worker does: echoes for its manager.
pub(crate) fn serve(args: &Args) -> Result<(), PeerError> {
    match args.only.as_slice() {
        [Rival::Iceoryx2] => iceoryx::serve(),
        [Rival::IpcChannel] => ipc_channel::serve(),
        [Rival::Tarpc] => tarpc::serve(),
        _ => Err(PeerError::NoRival),
    }
}
