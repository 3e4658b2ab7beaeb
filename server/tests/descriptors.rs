//! Probes are answered while the rest of the process has used up all file descriptors.
//!
//! A test program of its own, for it lowers the limit of the whole process.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use balm_server::management::{Management, ManagementSource, ProbeAnswer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

struct Fine;

impl ManagementSource for Fine {
    fn startup(&self) -> ProbeAnswer {
        self.live()
    }

    fn live(&self) -> ProbeAnswer {
        ProbeAnswer { ok: true, body: "{}".into() }
    }

    fn ready(&self) -> ProbeAnswer {
        self.live()
    }

    fn status(&self) -> Vec<u8> {
        b"{}".to_vec()
    }

    fn metrics(&self) -> Vec<u8> {
        Vec::new()
    }
}

#[test]
fn probes_outlive_the_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(128), maximum }).unwrap();
    let port = Management::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let handle = port.start(Arc::new(Fine)).unwrap();
    let live = || {
        let mut stream = TcpStream::connect(handle.local_addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(b"GET /live HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    };
    live();

    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    assert!(hoard.len() > 50);
    for _ in 0..20 {
        // One for the client's own socket, which the process takes again afterwards.
        drop(hoard.pop());
        live();
        while let Ok(file) = File::open("/dev/null") {
            hoard.push(file);
        }
    }

    // Everything comes back when the others let go.
    hoard.clear();
    for _ in 0..5 {
        live();
    }
}
