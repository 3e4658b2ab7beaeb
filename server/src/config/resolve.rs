//! From raw values to a [`Config`]: defaults, ranges, and what must fit together.

use std::path::PathBuf;
use std::time::Duration;

use axum::http::HeaderName;
use balm_probes::ReadinessPolicy;

use super::problem::Problems;
use super::raw::Sources;
use super::read::{Default, Reader, because, boolean, fixed, integer, one_of};
use super::values::{self, ListenAddr, LogFormat};
use super::{
    AdmissionConfig, Config, HttpConfig, LifecycleConfig, LogConfig, ManagementConfig,
    ModelDefaults, OnnxRuntimeConfig, RepositoryConfig,
};
use crate::host::{Host, Parallelism, parallelism};
use balm_inference::engine::RuntimeLogLevel;
use balm_inference::integrity::Policy;
use balm_inference::provider::Provider;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const GIB: u64 = 1 << 30;

/// Largest file of a model, where the memory of the machine sets no lesser bound.
const FILE_BYTES_MAX: u64 = 16 * GIB;
/// Request bodies held at once, where the memory of the machine is not known.
const BYTES_IN_FLIGHT_WITHOUT_MEMORY: u64 = 256 << 20;
/// Requests under way per lane of a model. A coarse bound; deadlines do the fine work.
const IN_FLIGHT_PER_LANE: u64 = 64;
/// Connections at once, where open files and memory leave room for them.
const CONNECTIONS_MAX: u64 = 2048;
/// Memory that a connection takes which is not busy: buffers, task, and the kernel's side of it.
const CONNECTION_BYTES: u64 = 32 * 1024;

pub(super) fn resolve(sources: &Sources, host: &Host) -> Result<Config, Problems> {
    let mut reader = Reader::new(sources);
    let repository = repository(&mut reader, host);
    let http = http(&mut reader, host);
    let management = management(&mut reader, &http);
    let defaults = defaults(&mut reader, host);
    let admission = admission(&mut reader, host, &http, &defaults);
    let onnxruntime = OnnxRuntimeConfig {
        library: reader.take(
            "onnxruntime.library",
            because(None, "looked for"),
            |raw| values::path(raw).map(Some),
            |path| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        ),
        log_level: reader.take(
            "onnxruntime.log_level",
            fixed(RuntimeLogLevel::Fatal),
            one_of(values::ORT_LOG_LEVELS),
            values::word(values::ORT_LOG_LEVELS),
        ),
    };
    let lifecycle = LifecycleConfig {
        drain_delay: milliseconds(&mut reader, "lifecycle.drain_delay_ms", fixed(5_000), 0),
        drain_timeout: milliseconds(&mut reader, "lifecycle.drain_timeout_ms", fixed(30_000), 0),
        single_process: flag(&mut reader, "lifecycle.single_process", false),
        sidecar: flag(&mut reader, "lifecycle.sidecar", false),
        crash_journal: file(&mut reader, "lifecycle.crash_journal"),
        termination_log: file(&mut reader, "lifecycle.termination_log"),
    };
    let log = LogConfig {
        format: reader.take(
            "log.format",
            fixed(LogFormat::Text),
            one_of(values::LOG_FORMATS),
            values::word(values::LOG_FORMATS),
        ),
        level: reader.take("log.level", fixed("info".to_owned()), values::log_level, String::clone),
    };
    let settings = reader.finish()?;
    Ok(Config {
        repository,
        http,
        management,
        admission,
        defaults,
        onnxruntime,
        lifecycle,
        log,
        file: sources.file.as_ref().map(|file| file.path.clone()),
        settings,
    })
}

fn repository(reader: &mut Reader, host: &Host) -> RepositoryConfig {
    let file_bytes = match &host.memory_bytes {
        Some(memory) if memory.value < FILE_BYTES_MAX => {
            because(memory.value, format!("all memory, by {}", memory.source))
        }
        _ => fixed(FILE_BYTES_MAX),
    };
    RepositoryConfig {
        path: reader.take("repository.path", fixed("models".into()), values::path, |path| {
            path.display().to_string()
        }),
        integrity: reader.take(
            "repository.integrity",
            fixed(Policy::Digest),
            one_of(values::INTEGRITY),
            values::word(values::INTEGRITY),
        ),
        control: flag(reader, "repository.control", true),
        readiness: reader.take(
            "repository.readiness",
            fixed(ReadinessPolicy::All),
            values::readiness,
            values::show_readiness,
        ),
        max_file_bytes: number(reader, "repository.max_file_bytes", file_bytes, 1, 1 << 50),
        load_timeout: milliseconds(reader, "repository.load_timeout_ms", fixed(600_000), 1),
    }
}

fn http(reader: &mut Reader, host: &Host) -> HttpConfig {
    let cores = &host.cores;
    let threads = because(
        if cores.value <= 2 { 1 } else { 2 },
        format!("{} cores, by {}", cores.value, cores.source),
    );
    let connections = connections(host);
    HttpConfig {
        addr: reader.take(
            "http.addr",
            fixed(ListenAddr::Tcp(([127, 0, 0, 1], 8000).into())),
            values::listen_addr,
            ToString::to_string,
        ),
        threads: size(reader, "http.threads", threads, 1, 64),
        max_body_bytes: size(reader, "http.max_body_bytes", fixed(64 << 20), 1, 16 * GIB),
        header_timeout: milliseconds(reader, "http.header_timeout_ms", fixed(10_000), 1),
        body_timeout: milliseconds(reader, "http.body_timeout_ms", fixed(10_000), 1),
        min_body_bytes_per_s: number(reader, "http.min_body_bytes_per_s", fixed(1024), 0, 1 << 30),
        write_timeout: milliseconds(reader, "http.write_timeout_ms", fixed(30_000), 1),
        idle_timeout: milliseconds(reader, "http.idle_timeout_ms", fixed(75_000), 1),
        max_connections: size(reader, "http.max_connections", connections, 1, 1 << 20),
        access_log: flag(reader, "http.access_log", false),
        noop_route: flag(reader, "http.noop_route", false),
    }
}

/// As many connections as are useful, or as open files or memory leave room for.
fn connections(host: &Host) -> Default<u64> {
    let by_files = host.open_files.as_ref().map(|files| {
        let reason = format!("{} open files, by {}", files.value, files.source);
        (host.connections_by_files().unwrap_or(CONNECTIONS_MAX), reason)
    });
    let by_memory = host.memory_bytes.as_ref().map(|memory| {
        let room = memory.value / 8 / CONNECTION_BYTES;
        (room.max(1), format!("an eighth of memory, by {}", memory.source))
    });
    match by_files.into_iter().chain(by_memory).min_by_key(|(count, _)| *count) {
        Some((count, reason)) if count < CONNECTIONS_MAX => because(count, reason),
        _ => fixed(CONNECTIONS_MAX),
    }
}

fn management(reader: &mut Reader, http: &HttpConfig) -> ManagementConfig {
    let addr = reader.take(
        "management.addr",
        fixed(([127, 0, 0, 1], 8002).into()),
        values::socket_addr,
        ToString::to_string,
    );
    if let ListenAddr::Tcp(data) = http.addr {
        let same_ip = data.ip() == addr.ip()
            || data.is_ipv4() == addr.is_ipv4()
                && (data.ip().is_unspecified() || addr.ip().is_unspecified());
        let clash = same_ip && data.port() == addr.port() && addr.port() != 0;
        reader.demand(!clash, "management.addr", "http.addr", "another port than");
    }
    let triton_metrics = flag(reader, "management.triton_metrics", false);
    ManagementConfig { triton_metrics, addr }
}

fn defaults(reader: &mut Reader, host: &Host) -> ModelDefaults {
    let parallelism = lanes_and_threads(reader, host);
    let max_deadline = milliseconds(reader, "defaults.max_deadline_ms", fixed(30_000), 1);
    let deadline_ms = match max_deadline.as_millis() {
        0..1_000 => because(max_deadline.as_millis() as u64, "defaults.max_deadline_ms"),
        _ => fixed(1_000),
    };
    let deadline = milliseconds(reader, "defaults.deadline_ms", deadline_ms, 1);
    reader.demand(
        deadline <= max_deadline,
        "defaults.deadline_ms",
        "defaults.max_deadline_ms",
        "at most",
    );
    ModelDefaults {
        parallelism,
        providers: reader.take(
            "defaults.providers",
            fixed(vec![Provider::Cpu]),
            values::providers,
            |providers| values::show_providers(providers),
        ),
        fallback: reader.take("defaults.fallback", fixed(None), values::fallback, |provider| {
            provider.map_or("none", Provider::name).to_owned()
        }),
        deadline,
        max_deadline,
        max_batch_rows: size(reader, "defaults.max_batch_rows", fixed(1024), 1, 1 << 20),
    }
}

/// Each of the two is worked out from the other when only that one is given, so the given one is read first.
fn lanes_and_threads(reader: &mut Reader, host: &Host) -> Parallelism {
    const LANES: &str = "defaults.lanes";
    const THREADS: &str = "defaults.threads";
    let cores = host.cores.value;
    let reason = format!("{cores} cores, by {}", host.cores.source);
    let count = |reader: &mut Reader, key: &'static str, default: u32| {
        let count = number(reader, key, because(default.into(), reason.as_str()), 1, 256);
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let unasked = parallelism(cores, None, None);
    if reader.is_given(LANES) {
        let lanes = count(reader, LANES, unasked.lanes);
        let threads = count(reader, THREADS, parallelism(cores, Some(lanes), None).threads);
        Parallelism { lanes, threads }
    } else {
        let threads = count(reader, THREADS, unasked.threads);
        let lanes = count(reader, LANES, parallelism(cores, None, Some(threads)).lanes);
        Parallelism { lanes, threads }
    }
}

fn admission(
    reader: &mut Reader,
    host: &Host,
    http: &HttpConfig,
    defaults: &ModelDefaults,
) -> AdmissionConfig {
    const TOTAL: &str = "admission.max_in_flight";
    const PER_MODEL: &str = "admission.max_in_flight_per_model";
    const BYTES: &str = "admission.max_bytes_in_flight";
    let lanes = u64::from(defaults.parallelism.lanes);
    let by_lanes = IN_FLIGHT_PER_LANE * lanes;
    let reason = format!("{lanes} lanes");
    let total = number(reader, TOTAL, because(2 * by_lanes, reason.clone()), 1, 1 << 20);
    let per_model = number(reader, PER_MODEL, because(by_lanes.min(total), reason), 1, 1 << 20);
    reader.demand(per_model <= total, PER_MODEL, TOTAL, "at most");

    let body = http.max_body_bytes as u64;
    let bytes = match &host.memory_bytes {
        Some(memory) if memory.value / 4 >= body => {
            because(memory.value / 4, format!("a quarter of memory, by {}", memory.source))
        }
        None if BYTES_IN_FLIGHT_WITHOUT_MEMORY >= body => fixed(BYTES_IN_FLIGHT_WITHOUT_MEMORY),
        _ => because(body, "http.max_body_bytes"),
    };
    let bytes = number(reader, BYTES, bytes, 1, 1 << 50);
    reader.demand(bytes >= body, BYTES, "http.max_body_bytes", "at least");
    AdmissionConfig {
        max_in_flight: usize::try_from(total).unwrap_or(usize::MAX),
        max_in_flight_per_model: usize::try_from(per_model).unwrap_or(usize::MAX),
        max_bytes_in_flight: bytes,
        client_header: reader.take(
            "admission.client_header",
            fixed(None),
            values::header_name,
            |name| name.as_ref().map_or("none", HeaderName::as_str).to_owned(),
        ),
        memory_limit_bytes: reader.take(
            "admission.memory_limit_bytes",
            fixed(None),
            values::memory_limit,
            |bytes| bytes.map_or("cgroup".to_owned(), |bytes| bytes.to_string()),
        ),
    }
}

fn number(
    reader: &mut Reader,
    key: &'static str,
    default: Default<u64>,
    min: u64,
    max: u64,
) -> u64 {
    reader.take(key, default, integer(min..=max), u64::to_string)
}

fn size(
    reader: &mut Reader,
    key: &'static str,
    default: Default<u64>,
    min: u64,
    max: u64,
) -> usize {
    usize::try_from(number(reader, key, default, min, max)).unwrap_or(usize::MAX)
}

fn milliseconds(
    reader: &mut Reader,
    key: &'static str,
    default: Default<u64>,
    min: u64,
) -> Duration {
    Duration::from_millis(number(reader, key, default, min, DAY_MS))
}

/// A file, or none.
fn file(reader: &mut Reader, key: &'static str) -> Option<PathBuf> {
    reader.take(key, fixed(None), values::optional_path, |path| {
        path.as_ref().map_or("none".to_owned(), |path| path.display().to_string())
    })
}

fn flag(reader: &mut Reader, key: &'static str, default: bool) -> bool {
    reader.take(key, fixed(default), boolean, bool::to_string)
}
