//! A web server as a raw worker: it accepts connections from the listener of its pool, and says how many it has.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use pm::{Duplex, RawEvent, RawEvents};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The program sends nothing, and is told how many connections there are.
pub(crate) static WEB: pm::Stream<(), u32> = pm::Stream::new("web", &web).concurrency(1);

/// How long a connection on which nothing is asked stays open in a worker that is to leave.
const IDLE: Duration = Duration::from_secs(1);

async fn web(mut program: Duplex<u32, ()>) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let listener = pm::take_listeners().pop().ok_or("a web worker needs a listener")?.tcp().map_err(text)?;
    listener.set_nonblocking(true).map_err(text)?;
    let listener = TcpListener::from_std(listener).map_err(text)?;
    let mut connections = JoinSet::new();
    let mut draining = pin!(pm::draining());
    let mut is_open = true;
    loop {
        tokio::select! {
            // What is not accepted here waits for another worker: the listener is the pool's.
            () = &mut draining, if is_open => is_open = false,
            accepted = listener.accept(), if is_open => match accepted {
                Ok((connection, _)) => drop(connections.spawn(serve(connection))),
                // Mostly there are too many open files: some will be closed.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
            // Released, and without load as far as the program knows.
            order = program.next() => if order.is_none() { break },
        }
        program.write(&(connections.len() as u32)).await.map_err(|error| error.to_string())?;
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn serve(connection: TcpStream) {
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(connection), service_fn(answer)));
    let idle = async {
        pm::draining().await;
        tokio::time::sleep(IDLE).await;
    };
    tokio::select! {
        _ = &mut connection => return,
        () = idle => connection.as_mut().graceful_shutdown(),
    }
    // A client that goes away is no concern of the others.
    let _ = connection.await;
}

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::from(format!("{}\n", std::process::id())));
    if pm::is_draining() {
        // Closing a connection between two requests would lose one that is on its way; a client that is told asks elsewhere.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Makes the connections of each worker its load, so that the busiest are kept and a release waits for them.
pub(crate) async fn follow_loads(mut workers: RawEvents<(), u32>) {
    while let Some(event) = workers.next().await {
        let RawEvent::Serves(worker) = event else { continue };
        let Some(mut loads) = worker.take_receiver() else { continue };
        tokio::spawn(async move {
            while let Some(Ok(connections)) = loads.next().await {
                worker.set_load(connections);
            }
            worker.set_load(0);
        });
    }
}
