//! The sockets of the server, before anybody serves on them: bound here, or handed over by a service manager.
//!
//! With `LISTEN_FDS` (systemd's socket activation, `sd_listen_fds(3)`) the first socket is the data port and the second, if
//! there is one, the management port; what the configuration says of their addresses does not count then.

use crate::app::AppError;
use crate::config::Config;
use crate::http::Bound;
use crate::management::Management;
use listenfd::ListenFd;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Both sockets.
pub(crate) struct Listeners {
    /// The port that predictions come to.
    pub(crate) data: Bound,
    /// The port of probes and metrics.
    pub(crate) management: Management,
}

impl Listeners {
    /// Binds what was not handed over.
    ///
    /// # Errors
    /// [`AppError`], for example when an address is in use.
    pub(crate) fn open(config: &Config) -> Result<Self, AppError> {
        let mut handed = ListenFd::from_env();
        let addr = config.management.addr;
        let management = match handed.len() {
            2.. => handed.take_tcp_listener(1).map_err(AppError::Inherited)?,
            _ => None,
        };
        let management = match management {
            Some(listener) => Management::from_listener(listener),
            None => Management::bind(addr),
        };
        let management = management.map_err(|source| AppError::Management { addr, source })?;
        let data = match handed.len() {
            0 => Bound::bind(&config.http.addr)?,
            _ => inherited(&mut handed)?,
        };
        Ok(Listeners { data, management })
    }
}

/// The data port of the service manager, be it TCP or a unix socket.
fn inherited(handed: &mut ListenFd) -> Result<Bound, AppError> {
    let missing = || AppError::Inherited(io::Error::from(io::ErrorKind::NotFound));
    // The kinds are told apart by trying; a socket of the other kind stays where it is.
    if let Ok(found) = handed.take_tcp_listener(0) {
        return Ok(Bound::tcp(found.ok_or_else(missing)?)?);
    }
    let listener =
        handed.take_unix_listener(0).map_err(AppError::Inherited)?.ok_or_else(missing)?;
    let address = rustix::net::getsockname(listener.as_fd())
        .map_err(|error| AppError::Inherited(error.into()))?;
    let path = rustix::net::SocketAddrUnix::try_from(address)
        .ok()
        .and_then(|address| Some(PathBuf::from(address.path()?.to_str().ok()?)));
    Ok(Bound::unix(listener, path.unwrap_or_default())?)
}
