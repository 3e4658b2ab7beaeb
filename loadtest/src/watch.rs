//! `balm-loadtest watch`: the kubelet alone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use crate::cli::WatchArgs;
use crate::prober::Prober;
use crate::result::Probes;
use crate::target::loopback;

/// Polls until its time is over, or `stop` comes.
pub(crate) async fn run(args: &WatchArgs, stop: impl Future<Output = String>) -> Result<Probes> {
    let address = loopback(&args.management).context("--management")?;
    if let Some(file) = &args.json {
        crate::run::host::check_writable(file)?;
    }
    let begun = Instant::now();
    let prober = Prober::start(address, &args.probes())?;
    tokio::select! {
        () = sleep(Duration::from_secs_f64(args.seconds)) => {}
        _ = stop => {}
    }
    Ok(prober.finish(begun))
}
