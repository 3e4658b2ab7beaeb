"""Supervisor and worker: which processes there are, how they end, and what a service manager sees of them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import harness
import wire
import onnx_models
from harness import Repository, Server, wait_until
from kubelet import Kubelet
from processes import exists
from right_answers import PLUS_ONE, plus_one
from tensors import json_input
from traffic import REFUSED, Traffic

START = Callable[..., Server]
WATCH = Callable[[Server], Kubelet]
DRAINED, CUT = 0, 143


@pytest.fixture
def models(repository: Repository) -> Path:
    """Two models."""
    repository.add("plus", onnx_models.plus(1))
    repository.add("loop", onnx_models.loop())
    return repository.path


# ===== what is there =====


def test_there_are_two_processes_and_the_log_says_which_speaks(start: START, models: Path) -> None:
    server = start(models, {"log": {"format": "json"}}).wait_started()
    worker = server.worker_pid()
    assert worker != server.process.pid
    assert Path(f"/proc/{worker}/comm").read_text() == "balm-worker\n"
    status = server.status()["supervisor"]
    assert (status["stage"], status["workers_started"]) == ("running", 1)
    lines = [json.loads(line) for line in server.stderr.splitlines()]
    assert {line["process"] for line in lines} == {"supervisor", "worker"}
    names = {(process / "comm").read_text().strip() for process in Path(f"/proc/{server.process.pid}/task").iterdir()}
    assert names == {harness.binary().name[:15], "balm-log", "watchdog", "balm-gather", "balm-probes"}, "no runtime, no lane"
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" not in maps and "onnxruntime" in Path(f"/proc/{worker}/maps").read_text()


def test_a_single_process_is_what_it_says(start: START, models: Path) -> None:
    server = start(models, flags=["--single-process"]).wait_started()
    assert "supervisor" not in server.status()
    assert plus_one(server.http) == 200
    assert [server.probe(path).status for path in ("/live", "/ready", "/startup")] == [200, 200, 200]
    assert not list(server.metrics().find("balm_worker_up"))
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    assert children == ""
    server.terminate()
    server.wait_for(lambda: "drained" in server.stderr, "it drains")
    assert server.wait_ended() == DRAINED


def test_a_second_signal_ends_a_single_process_at_once(start: START, models: Path) -> None:
    config = {"lifecycle": {"single_process": True, "drain_delay_ms": 60_000}}
    server = start(models, config).wait_started()
    server.terminate()
    server.wait_for(lambda: server.probe("/ready").status == 503, "/ready is 503")
    server.terminate()
    assert server.wait_ended(5) == CUT


def test_a_worker_without_a_supervisor_says_so(models: Path) -> None:
    result = harness.run("serve", "--models", models, "--worker")
    assert result.returncode == 64, result
    assert "--worker is how balm starts itself" in result.stderr and "panic" not in result.stderr


def test_metrics_are_of_both_and_pass_the_linter(start: START, models: Path) -> None:
    server = start(models).wait_started()
    metrics = server.metrics()
    assert metrics.one("balm_worker_up") == 1
    assert metrics.sum("balm_worker_restarts_total") == 0
    assert metrics.one("balm_http_threads") >= 1, "the worker's"
    families = re.findall(r"^# TYPE (\S+)", metrics.text, re.M)
    assert len(families) == len(set(families)), "each family once"
    promtool = shutil.which("promtool")
    if promtool:
        subprocess.run([promtool, "check", "metrics"], input=metrics.text, text=True, check=True)


# ===== the supervisor dies =====


def test_a_worker_whose_supervisor_is_gone_finishes_and_leaves(tmp_path: Path, models: Path) -> None:
    server = Server(tmp_path / "server", models, {"defaults": {"deadline_ms": 20_000, "lanes": 1}}).wait_started()
    worker = server.worker_pid()
    with ThreadPoolExecutor(1) as pool:
        trips = json_input("trips", "INT64", np.array([600_000]))
        running = pool.submit(server.infer, "loop", trips)
        server.wait_for(lambda: server.in_flight() == 1, "a run is under way")
        server.process.kill()
        assert running.result().outputs()["count_out"].tolist() == [600_000]
    wait_until(lambda: not exists(worker), "the worker is gone", 10)
    assert server.stop() == -signal.SIGKILL
    assert "the supervisor is gone" in server.stderr and "drained" in server.stderr


# ===== process 1 =====


def test_as_process_1_it_reaps_strangers(tmp_path: Path, models: Path) -> None:
    """A process whose parent has ended is left to process 1, which has to take note of its end."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--pid", "--fork", "true"], capture_output=True).returncode != 0:
        pytest.skip("no pid namespaces here")
    # The shell becomes balm, as process 1, after it has begotten an orphan: the middle process ends at once.
    script = '(sleep 0.5 & exec true) & exec "$@"'
    config = tmp_path / "balm.toml"
    config.write_text("[lifecycle]\ndrain_delay_ms = 0\n")
    command = [unshare, "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh", str(harness.binary())]
    ports = ["--http-addr", "127.0.0.1:0", "--management-addr", "127.0.0.1:0", "--config", str(config)]
    process = subprocess.Popen(
        [*command, "serve", "--models", str(models), *ports],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=harness.ROOT,
        env=harness.environment(),
        text=True,
    )
    try:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(2)]
        management = lines[1].split("http://")[1].strip()

        def reaped() -> bool:
            metrics = harness.Metrics(wire.ask(management, "GET", "/metrics").text)
            return metrics.one("balm_reaped_processes_total") >= 1

        wait_until(reaped, "the orphan was reaped")
        wait_until(lambda: wire.ask(management, "GET", "/ready").status == 200, "it serves as process 1")
        (balm,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(balm), signal.SIGTERM)
        assert process.wait(15) == 0, process.stderr and process.stderr.read()
    finally:
        process.kill()
        process.wait()


# ===== the end =====


def test_what_is_under_way_is_finished_under_load(start: START, models: Path, watch: WATCH) -> None:
    """T29: not ready at once, served while others learn of it, no request lost, and 0. Nobody has to kill it."""
    config = {"lifecycle": {"drain_delay_ms": 2_500}, "defaults": {"deadline_ms": 10_000}}
    server = start(models, config).wait_started()
    kubelet = watch(server)
    with Traffic(server.http, [PLUS_ONE], pause_s=at_load(server.http, 0.8)) as traffic:
        server.terminate()
        told = time.monotonic()
        server.wait_for(lambda: server.probe("/ready").status == 503, "/ready is 503")
        asked = time.monotonic() - told
        time.sleep(1.0)
        traffic.wait_for_more(20)
        assert set(traffic.outcomes()) <= {200, 503}
        verdict = kubelet.verdict()
        assert server.wait_ended() == DRAINED
    # It takes some milliseconds, and as long as they are served others would go on sending.
    assert asked < 1.25, f"not ready after {asked:.3f} s"
    assert (verdict.restarts, verdict.ready_false, verdict.ready) == (0, 1, False), verdict
    assert set(traffic.outcomes()) <= {200, 503, REFUSED}, traffic.outcomes()
    assert time.monotonic() - told < 10, "long before a kubelet's patience is over"


def at_load(address: str, share: float) -> float:
    """The pause between requests of four clients that makes their load this share of the most that they can get through."""
    with Traffic(address, [PLUS_ONE]) as traffic:
        traffic.wait_for_more(500)
    each = [exchange.took for exchange in traffic.seen]
    return sum(each) / len(each) * (1 / share - 1)


def test_a_sidecar_ends_within_two_seconds_under_load(start: START, models: Path) -> None:
    """T29, as a native sidecar: the others have ended, so nobody has to learn of it, and little time is left."""
    config = {"lifecycle": {"drain_delay_ms": 0, "drain_timeout_ms": 2_000}, "defaults": {"deadline_ms": 1_000}}
    server = start(models, config).wait_started()
    with Traffic(server.http, [PLUS_ONE], pause_s=at_load(server.http, 0.8)) as traffic:
        server.terminate()
        told = time.monotonic()
        assert server.wait_ended() == DRAINED
        took = time.monotonic() - told
    # It takes some tenths of a second; what is not over after two is cut, and then the code is not 0.
    assert took < 8, f"{took:.2f} s"
    assert set(traffic.outcomes()) <= {200, 503, REFUSED}, traffic.outcomes()


def test_a_signal_for_the_whole_group_is_one_signal(start: START, models: Path) -> None:
    """As Ctrl-C in a terminal, and as a service manager does it."""
    server = start(models, {"lifecycle": {"drain_delay_ms": 500}}, start_new_session=True).wait_started()
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.wait_ended() == DRAINED


def test_a_worker_that_dies_while_it_drains_is_not_replaced(start: START, models: Path) -> None:
    server = start(models, {"lifecycle": {"drain_delay_ms": 60_000}}).wait_started()
    server.terminate()
    server.wait_for(lambda: server.probe("/ready").status == 503, "/ready is 503")
    server.signal_worker(signal.SIGKILL)
    assert server.wait_ended(5) == CUT


# ===== systemd =====


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.settimeout(harness.PATIENCE_S)
        yield listening


def test_a_service_manager_is_told_how_it_goes(start: START, models: Path, manager: socket.socket) -> None:
    env = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1000000"}
    server = start(models, env=env)
    told: list[tuple[float, str]] = []

    def hear(what: str) -> None:
        while not told or told[-1][1] != what:
            told.append((time.monotonic(), manager.recv(4096).decode().strip()))

    hear("READY=1")
    assert server.probe("/ready").status == 200
    environ = Path(f"/proc/{server.worker_pid()}/environ").read_bytes()
    assert b"NOTIFY_SOCKET" not in environ and b"WATCHDOG" not in environ, "the worker has nothing to say to it"
    for _ in range(4):
        told.append((time.monotonic(), manager.recv(4096).decode().strip()))
    beats = [at for at, what in told if what == "WATCHDOG=1"]
    assert len(beats) >= 4 and max(b - a for a, b in zip(beats, beats[1:])) < 0.9, "well within the second"
    server.terminate()
    hear("STOPPING=1")
    assert [what for _, what in told].count("READY=1") == 1
    assert server.wait_ended() == DRAINED


ACTIVATE = """
import os, sys
for target, number in enumerate(map(int, sys.argv[1].split(",")), 3):
    os.dup2(number, target)
    os.set_inheritable(target, True)
count = len(sys.argv[1].split(","))
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("flags", [[], ["--single-process"]])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_sockets_of_a_service_manager_are_used(tmp_path: Path, models: Path, kind: str, flags: list[str]) -> None:
    if kind == "tcp":
        data = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{data.getsockname()[1]}"
    else:
        data = socket.socket(socket.AF_UNIX)
        data.bind(str(tmp_path / "data.sock"))
        data.listen()
        address = f"unix:{tmp_path / 'data.sock'}"
    management = socket.create_server(("127.0.0.1", 0))
    probes = f"127.0.0.1:{management.getsockname()[1]}"
    # High numbers, so that moving one to 3 does not hit the other.
    numbers = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD, 100) for each in (data, management)]
    config = tmp_path / "balm.toml"
    config.write_text("[lifecycle]\ndrain_delay_ms = 0\n")
    command = [sys.executable, "-c", ACTIVATE, ",".join(map(str, numbers)), str(harness.binary()), "serve"]
    process = subprocess.Popen(
        [*command, "--models", str(models), "--config", str(config), *flags],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=harness.ROOT,
        env=harness.environment(),
        pass_fds=numbers,
    )
    try:
        wait_until(lambda: wire.ask(probes, "GET", "/ready").status == 200, "it is ready at the port of the manager")
        assert wire.ask(address, "GET", "/v2/health/ready").status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0, process.stderr and process.stderr.read()
        if kind == "unix":
            assert (tmp_path / "data.sock").exists(), "the file is the manager's"
    finally:
        process.kill()
        process.wait()
        data.close()
        management.close()
        for number in numbers:
            os.close(number)
