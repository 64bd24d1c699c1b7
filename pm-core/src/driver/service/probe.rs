//! Probes: one question to one service, and what its answer says.

use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::LOCATION;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::command;
use crate::face::service::{HttpRequest, Target};
use crate::machine::spec::Spec;

/// Asks once. Cancel safe: a connection is closed, a command killed with all that it has started.
pub(super) async fn ask(target: &Target, timeout: Duration) -> Result<(), String> {
    let answer = async {
        match target {
            Target::Http { host, port, request, status } => http(host, *port, request, *status).await,
            Target::Tcp { host, port } => connect(host, *port).await.map(drop),
            Target::Command { spec, code } => ask_command(spec, *code).await,
        }
    };
    tokio::time::timeout(timeout, answer)
        .await
        .unwrap_or_else(|_| Err(format!("{target}: no answer within {timeout:?}")))
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let connected = match host.parse::<IpAddr>() {
        Ok(address) => TcpStream::connect((address, port)).await,
        Err(_) => TcpStream::connect((host, port)).await,
    };
    connected.map_err(|error| format!("{host}:{port}: {}", what(&error)))
}

/// The error without the number that the kernel has for it.
fn what(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        _ => error.to_string(),
    }
}

/// Nothing of the body is read: a service may send one without an end.
async fn http(host: &str, port: u16, request: &HttpRequest, expected: u16) -> Result<(), String> {
    let stream = connect(host, port).await?;
    let failed = |error: hyper::Error| format!("http://{host}:{port}{}: {error}", request.target);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let mut message = Request::new(Empty::<Bytes>::new());
    *message.method_mut() = request.method.clone();
    *message.uri_mut() = request.target.clone();
    *message.headers_mut() = request.headers.clone();
    let mut sent = pin!(sender.send_request(message));
    let response = tokio::select! {
        biased;
        response = &mut sent => response,
        // A server that closes after its answer has given it by then, and where it has not that is an error.
        _ = connection => sent.await,
    };
    let response = response.map_err(failed)?;
    let status = response.status();
    if status.as_u16() == expected {
        return Ok(());
    }
    let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).filter(|_| status.is_redirection());
    let to = to.map(|to| format!(" to {to}")).unwrap_or_default();
    let expected =
        StatusCode::from_u16(expected).map_or_else(|_| expected.to_string(), |code| code.as_u16().to_string());
    Err(format!("http://{host}:{port}{}: {status}{to}, not {expected}", request.target))
}

async fn ask_command(spec: &Spec, expected: i32) -> Result<(), String> {
    let ended = command::run(spec).await?;
    if ended.status.code() == Some(expected) {
        return Ok(());
    }
    let said = if ended.stderr.is_empty() { ended.stdout } else { ended.stderr };
    Err(command::failure(spec, ended.status, &said))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;
    use crate::face::service::Probe;

    /// A server that answers one request with these bytes, and then holds the connection until the other side closes it.
    fn server(answer: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let count = stream.read(&mut request).unwrap();
            assert!(request[..count].starts_with(b"GET /health HTTP/1.1\r\n"));
            stream.write_all(answer).unwrap();
            if !answer.is_empty() {
                while stream.read(&mut request).is_ok_and(|count| count > 0) {}
            }
        });
        port
    }

    async fn asked(answer: &'static [u8]) -> Result<(), String> {
        let port = server(answer);
        let (target, _) = Probe::http(format!("http://127.0.0.1:{port}/health")).check().unwrap();
        ask(&target, Duration::from_secs(5)).await.map_err(|error| error.replace(&port.to_string(), "PORT"))
    }

    #[tokio::test]
    async fn the_status_decides() {
        assert_eq!(asked(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await, Ok(()));
        let moved = asked(b"HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n").await.unwrap_err();
        assert_eq!(moved, "http://127.0.0.1:PORT/health: 302 Found to /login, not 200");
        let failed = asked(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await.unwrap_err();
        assert_eq!(failed, "http://127.0.0.1:PORT/health: 503 Service Unavailable, not 200");
        assert!(asked(b"SSH-2.0-OpenSSH\r\n").await.is_err());
        assert!(asked(b"").await.is_err());
    }

    /// The connection ends together with the answer.
    #[tokio::test]
    async fn an_old_server_closes_after_its_answer() {
        for answer in
            ["HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nwell"]
        {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let count = stream.read(&mut [0; 4096]).unwrap();
                assert!(count > 0);
                stream.write_all(answer.as_bytes()).unwrap();
            });
            let (target, _) = Probe::http(format!("http://127.0.0.1:{port}/health")).check().unwrap();
            assert_eq!(ask(&target, Duration::from_secs(5)).await, Ok(()), "{answer:?}");
            server.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_body_without_end_is_not_waited_for() {
        let began = Instant::now();
        assert_eq!(asked(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\nbegin").await, Ok(()));
        assert!(began.elapsed() < Duration::from_secs(4));
    }

    #[tokio::test]
    async fn a_connection_is_refused_or_hangs() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (target, _) = Probe::tcp(port).check().unwrap();
        assert_eq!(ask(&target, Duration::from_secs(5)).await, Ok(()));
        // It takes the connection, and says nothing.
        let (hangs, _) = Probe::http(format!("http://127.0.0.1:{port}/")).check().unwrap();
        let said = ask(&hangs, Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(said, format!("GET http://127.0.0.1:{port}/: no answer within 50ms"));
        drop(listener);
        assert_eq!(ask(&target, Duration::from_secs(5)).await, Err(format!("127.0.0.1:{port}: connection refused")));
    }
}
