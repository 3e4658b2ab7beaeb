"""Starts the real binary, asks it things as a client would, and ends it.

Nothing here waits for a time: it waits for a state, and gives up with what the server said.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from tensors import DTYPES, binary_body, binary_input, json_input
from wire import SOCKET_S, Answer, ask

ROOT = Path(__file__).resolve().parents[3]
SHIPPED_MODELS = ROOT / "models"

# How long a state may take to come before a test gives up. Far above what is needed, for loaded machines.
PATIENCE_S = 30.0
# How often a state is looked at.
GLANCE_S = 0.01

# Servers whose standard error is shown when a test fails.
RUNNING: list[Server] = []


def binary() -> Path:
    """The program under test: `BALM_BIN`, or the debug build of this checkout."""
    path = Path(os.environ.get("BALM_BIN") or ROOT / "target" / "debug" / "balm")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; build it with `cargo build`, or name one in BALM_BIN")
    return path


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of Balm that happen to be there, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BALM_")}
    return kept | dict(extra or {})


def wait_until(state: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The first truthy value of `state`; fails with `what` when it does not come."""
    end = time.monotonic() + patience_s
    while True:
        value = state()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {patience_s:g} s: {what}")
        time.sleep(GLANCE_S)


# ===== metrics =====


class Metrics:
    """A scrape: samples by name and labels."""

    _SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
    _LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: list[tuple[str, dict[str, str], float]] = []
        for line in text.splitlines():
            if line and not line.startswith("#"):
                match = self._SAMPLE.match(line)
                assert match, f"not a sample: {line!r}"
                labels = dict(self._LABEL.findall(match["labels"] or ""))
                self.samples.append((match["name"], labels, float(match["value"])))

    def find(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Samples of that name that carry at least these labels."""
        for sample, found, value in self.samples:
            if sample == name and labels.items() <= found.items():
                yield found, value

    def sum(self, name: str, **labels: str) -> float:
        """The sum of the samples; 0 where there are none."""
        return sum(value for _, value in self.find(name, **labels))

    def one(self, name: str, **labels: str) -> float:
        """The one sample that matches."""
        values = [value for _, value in self.find(name, **labels)]
        assert len(values) == 1, f"{len(values)} samples of {name} with {labels}"
        return values[0]


# ===== the server =====

Config = Mapping[str, Mapping[str, Any]]


def toml(config: Config) -> str:
    """TOML of sections with plain values; JSON's notation of those is TOML's as well."""
    sections = []
    for section, entries in config.items():
        lines = [f"{key} = {json.dumps(value)}" for key, value in entries.items()]
        sections.append("\n".join([f"[{section}]", *lines, ""]))
    return "\n".join(sections)


class NotListed(AssertionError):
    """`/status` does not tell of something."""


class Server:
    """`balm serve`, as a child of this process, on ports that the kernel chose."""

    def __init__(
        self,
        folder: Path,
        models: Path,
        config: Config | None = None,
        env: Mapping[str, str] | None = None,
        http_addr: str = "127.0.0.1:0",
        flags: Sequence[str] = (),
        log: IO[bytes] | int | None = None,
        **popen: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.models = models
        # Tests that are not about draining should not wait for it.
        settings = {section: dict(entries) for section, entries in (config or {}).items()}
        settings.setdefault("lifecycle", {}).setdefault("drain_delay_ms", 0)
        (folder / "balm.toml").write_text(toml(settings))
        self._stderr = (folder / "stderr").open("wb")
        # How long the log was when the test of the moment began.
        self.mark = 0
        self.process = subprocess.Popen(
            [
                *(str(binary()), "serve"),
                *("--models", str(models), "--config", str(folder / "balm.toml")),
                *("--http-addr", http_addr, "--management-addr", "127.0.0.1:0"),
                *flags,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr if log is None else log,
            cwd=ROOT,
            env=environment(env),
            **popen,
        )
        RUNNING.append(self)
        self.lines: list[str] = []
        self._addresses: dict[str, str] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for raw in self.process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            self.lines.append(line)
            match = re.match(r"^\s*(http|management)\s+(\S+)", line)
            if match:
                self._addresses.setdefault(match[1], match[2].removeprefix("http://").rstrip("/"))

    def wait_for(self, state: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
        """`wait_until`, but a server that has ended is not waited for."""

        def alive() -> Any:
            try:
                value = state()
            except NotListed:
                # Before its worker has said what there is.
                value = None
            if not value and self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}; waited for: {what}")
            return value

        return wait_until(alive, what, patience_s)

    def _address(self, port: str) -> str:
        return self.wait_for(lambda: self._addresses.get(port), f"the start-up line with the {port} address")

    @property
    def http(self) -> str:
        """Address of the data port, as the start-up lines tell it."""
        return self._address("http")

    @property
    def management(self) -> str:
        """Address of the management port."""
        return self._address("management")

    @property
    def stderr(self) -> str:
        """The log so far."""
        return (self.folder / "stderr").read_text(errors="replace")

    # ----- its life -----

    def wait_started(self) -> Server:
        """Until `/startup` says that the start is over."""
        self.wait_for(lambda: self.probe("/startup").status == 200, "/startup is 200")
        return self

    def wait_settled(self) -> Server:
        """Until no version is on its way, whether or not any serves."""
        transit = {"discovered", "verifying", "loading", "warming", "probing", "unloading"}

        def settled() -> bool:
            report = self.status()
            states = [version["state"] for model in report["models"] for version in model["versions"]]
            return report["server"] == "running" and not transit.intersection(states)

        self.wait_for(settled, "the server runs and no version is on its way")
        return self

    def wait_lanes(self) -> Server:
        """Until every version that serves has all its lanes: the first one makes it ready."""

        def all_there() -> bool:
            versions = [version for model in self.status()["models"] for version in model["versions"]]
            return all(version["lanes"]["healthy"] == version["lanes"]["wanted"] for version in versions)

        self.wait_for(all_there, "all lanes are there")
        return self

    def terminate(self) -> None:
        """Asks it to end, as Kubernetes does."""
        self.process.send_signal(signal.SIGTERM)

    def wait_ended(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def stop(self) -> int:
        """Ends it, whatever it takes, and reaps it. The exit code is negative when it had to be killed."""
        try:
            if self.process.poll() is None:
                self.terminate()
            try:
                return self.wait_ended(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                return self.wait_ended()
        finally:
            self._stderr.close()
            if self in RUNNING:
                RUNNING.remove(self)

    # ----- asking it -----

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = SOCKET_S,
    ) -> Answer:
        """One request to the data port."""
        return ask(self.http, method, path, body, headers, timeout_s)

    def get(self, path: str) -> Answer:
        """GET on the data port."""
        return self.ask("GET", path)

    def post(self, path: str, members: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """POST of JSON, or of nothing, on the data port."""
        return self.ask("POST", path, None if members is None else json.dumps(members), headers)

    def infer(
        self, model: str, *inputs: Mapping[str, Any], headers: Mapping[str, str] | None = None, **members: Any
    ) -> Answer:
        """A prediction in JSON; `members` go beside `inputs`."""
        return self.post(f"/v2/models/{model}/infer", {"inputs": list(inputs), **members}, headers)

    def infer_binary(
        self, model: str, *inputs: tuple[str, str, np.ndarray], headers: Mapping[str, str] | None = None, **members: Any
    ) -> Answer:
        """A prediction with binary tensors both ways."""
        parts = [binary_input(*each) for each in inputs]
        request = {"inputs": [head for head, _ in parts], "parameters": {"binary_data_output": True}} | members
        body, size = binary_body(request, *(raw for _, raw in parts))
        return self.ask("POST", f"/v2/models/{model}/infer", body, size | dict(headers or {}))

    def load(self, model: str) -> Answer:
        """Asks for a model to be loaded; answers when that is done."""
        return self.post(f"/v2/repository/models/{model}/load", {})

    def unload(self, model: str) -> Answer:
        """Asks for a model to be let go."""
        return self.post(f"/v2/repository/models/{model}/unload", {})

    def index(self) -> dict[tuple[str, str], dict[str, str]]:
        """The repository index by model and version."""
        answer = self.post("/v2/repository/index")
        assert answer.status == 200, answer
        return {(entry["name"], entry.get("version", "")): entry for entry in answer.json}

    def statistics(self, model: str) -> dict[str, Any]:
        """The statistics of a model that has one version."""
        answer = self.get(f"/v2/models/{model}/stats")
        assert answer.status == 200, answer
        (entry,) = answer.json["model_stats"]
        return entry

    def probe(self, path: str) -> Answer:
        """GET on the management port."""
        return ask(self.management, "GET", path)

    def status(self) -> dict[str, Any]:
        """The health report."""
        answer = self.probe("/status")
        assert answer.status == 200, answer
        return answer.json

    def version(self, model: str, version: int = 1) -> dict[str, Any]:
        """What `/status` says of one version."""
        for entry in self.status()["models"]:
            if entry["name"] == model:
                for candidate in entry["versions"]:
                    if candidate["version"] == version:
                        return candidate
        raise NotListed(f"/status has no version {version} of {model}")

    def metrics(self) -> Metrics:
        """A scrape."""
        answer = self.probe("/metrics")
        assert answer.status == 200, answer
        return Metrics(answer.text)

    def in_flight(self) -> float:
        """Requests between admission and the end of their run."""
        return self.metrics().one("balm_in_flight_requests")

    def wait_idle(self) -> None:
        """Until nothing is in flight: no request, none of any model, not a byte."""

        def idle() -> bool:
            metrics = self.metrics()
            gauges = ("balm_in_flight_requests", "balm_in_flight_bytes", "balm_model_in_flight_requests")
            return all(metrics.sum(gauge) == 0 for gauge in gauges)

        self.wait_for(idle, "the in-flight gauges are 0", 10)

    def worker_pid(self) -> int:
        """The process that serves: the worker, or the only one."""
        return self.status().get("supervisor", {}).get("worker_pid", self.process.pid)

    def signal_worker(self, number: int) -> None:
        """Sends the worker a signal; a worker that has ended is no error."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.worker_pid(), number)

    def peak_memory(self) -> int:
        """The most memory that the process that serves ever had resident, bytes."""
        for line in Path(f"/proc/{self.worker_pid()}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")

    def cpu_seconds(self) -> float:
        """Processor time that the process that serves has used. (The metric counts whole seconds.)"""
        fields = Path(f"/proc/{self.worker_pid()}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def closed(self, reason: str) -> float:
        """Connections that the server ended for it."""
        return self.metrics().one("balm_http_connections_closed_total", reason=reason)

    def connections(self) -> float:
        """Connections that are open."""
        return self.metrics().one("balm_http_connections")


# ===== files =====


def sha256(content: bytes) -> str:
    """The digest as `sha256sum` prints it."""
    return hashlib.sha256(content).hexdigest()


def write_manifest(folder: Path, names: list[str] | None = None) -> None:
    """`SHA256SUMS` of the files that are there, or of those named."""
    listed = sorted(names if names is not None else (file.name for file in folder.iterdir() if file.is_file()))
    lines = [f"{sha256((folder / name).read_bytes())}  {name}\n" for name in listed if name != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text("".join(lines))


class Repository:
    """A model repository that a test writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        name: str,
        model: bytes,
        version: int = 1,
        files: Mapping[str, bytes] | None = None,
        golden: list[dict[str, Any]] | None = None,
        settings: str | None = None,
        manifest: bool = True,
    ) -> Path:
        """Writes a version and returns its folder."""
        folder = self.path / name / str(version)
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model)
        for file, content in (files or {}).items():
            (folder / file).write_bytes(content)
        if golden is not None:
            (folder / "golden.json").write_text(json.dumps({"cases": golden}))
            settings = settings if settings is not None else 'golden = "golden.json"\n'
        if settings is not None:
            (self.path / name / "model.toml").write_text(settings)
        if manifest:
            write_manifest(folder)
        return folder


def golden_case(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """An entry of golden.json."""
    names = {np.dtype(dtype): datatype for datatype, dtype in DTYPES.items() if datatype != "BYTES"}

    def tensors(of: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        return [json_input(name, names[array.dtype], array) for name, array in of.items()]

    return {"name": "case", "tolerance": 1e-5, "inputs": tensors(inputs), "outputs": tensors(outputs)}


def run(
    *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """`balm` with these arguments, to its end."""
    command = [str(binary()), *map(str, arguments)]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd=cwd, env=environment(env)
    )


def base64_text(content: bytes) -> str:
    """As a load request carries files."""
    return base64.b64encode(content).decode()


def restarts(server: Server) -> dict[str, float]:
    """Workers that were replaced, by reason."""
    found = server.metrics().find("balm_worker_restarts_total")
    return {labels["reason"]: count for labels, count in found if count}
