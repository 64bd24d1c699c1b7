//! A load of HTTP requests: clients that ask one thing after another, each on a connection that it keeps for as long as the server does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pm::ListenAddress;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Keep-alive connections of the load.
pub const CLIENTS: usize = 64;

pub type Connection = BufReader<TcpStream>;

pub async fn connect(address: &ListenAddress) -> io::Result<Connection> {
    let ListenAddress::Tcp(address) = address else { panic!("{address:?}") };
    TcpStream::connect(address).await.map(BufReader::new)
}

/// What a request came to: the status, the body, and whether the connection stays open.
pub struct Answer {
    pub status: u16,
    pub body: String,
    pub stays: bool,
}

pub async fn get(connection: &mut Connection, path: &str) -> io::Result<Answer> {
    connection.write_all(format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n").as_bytes()).await?;
    let ended = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let mut line = String::new();
    if connection.read_line(&mut line).await? == 0 {
        return Err(ended());
    }
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(ended)?;
    let (mut length, mut stays) = (0, true);
    loop {
        line.clear();
        if connection.read_line(&mut line).await? == 0 {
            return Err(ended());
        }
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().map_err(|_| ended())?,
            "connection" => stays = !value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await?;
    Ok(Answer { status, body: String::from_utf8_lossy(&body).trim_end().to_string(), stays })
}

/// The clients, until they are told to end.
pub struct Load {
    is_over: Arc<AtomicBool>,
    pub answers: Arc<AtomicU64>,
    clients: JoinSet<Result<Client, String>>,
}

/// What one client has seen, or all of them.
#[derive(Default)]
pub struct Client {
    pub connections: u64,
    /// Of each request, from its sending to its answer; where a connection had to be made for it, from there on.
    pub times: Vec<Duration>,
}

impl Load {
    pub fn on(address: &ListenAddress) -> Self {
        let (is_over, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(client(address.clone(), is_over.clone(), answers.clone()));
        }
        Load { is_over, answers, clients }
    }

    /// What they have seen, all together. The first request that failed is the error.
    pub async fn end(mut self) -> Result<Client, String> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut all = Client::default();
        while let Some(client) = self.clients.join_next().await {
            let client = client.map_err(|error| error.to_string())??;
            all.connections += client.connections;
            all.times.extend(client.times);
        }
        Ok(all)
    }
}

async fn client(address: ListenAddress, is_over: Arc<AtomicBool>, answers: Arc<AtomicU64>) -> Result<Client, String> {
    let mut client = Client::default();
    while !is_over.load(Ordering::Relaxed) {
        let mut began = Instant::now();
        let connection = connect(&address).await;
        let mut connection = connection.map_err(|error| format!("a connection was refused: {error}"))?;
        client.connections += 1;
        loop {
            let answer = get(&mut connection, "/").await;
            let answer = answer.map_err(|error| format!("a connection was lost: {error}"))?;
            if answer.status != 200 {
                return Err(format!("an answer was {}", answer.status));
            }
            client.times.push(began.elapsed());
            answers.fetch_add(1, Ordering::Relaxed);
            if !answer.stays || is_over.load(Ordering::Relaxed) {
                break;
            }
            began = Instant::now();
        }
    }
    Ok(client)
}
