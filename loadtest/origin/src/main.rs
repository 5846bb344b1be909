//! `origin ADDRESS…`: one process that serves as several demo origins, until a signal.

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use chassis::{healthcheck, listener, process};
use clap::Parser;
use log::info;
use origin::Origin;
use tokio::signal::unix::{SignalKind, signal};

/// Small origin servers to proxy to.
#[derive(Parser)]
#[command(name = "origin", version = chassis::build_info::describe())]
struct Arguments {
    /// Where to listen, one origin each.
    #[arg(value_name = "ADDRESS", default_values = ["127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8083"])]
    addresses: Vec<SocketAddr>,

    /// How long every answer waits, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay: u64,

    /// Ask the origins that run at these addresses whether they answer, and exit with 0 if all do.
    #[arg(long)]
    healthcheck: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.healthcheck {
        return process::answer("info", "not ready", || {
            arguments.addresses.iter().copied().try_for_each(healthcheck::ready)?;
            Ok(String::new())
        });
    }
    process::run("info", "origin failed", || {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(run(&arguments.addresses, Duration::from_millis(arguments.delay)))
    })
}

async fn run(addresses: &[SocketAddr], delay: Duration) -> Result<(), Box<dyn Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let sockets = addresses
        .iter()
        .map(|address| listener::bind(*address))
        .collect::<Result<Vec<_>, _>>()?;
    let origins = sockets
        .into_iter()
        .map(|socket| Origin::serve_after(delay, socket))
        .collect::<Result<Vec<_>, _>>()?;
    for origin in &origins {
        info!(service = "origin", address = origin.address().to_string().as_str(); "listening");
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
