"""Supervisor and worker: what is seen from outside when the worker dies, hangs or is stopped, and when the end comes.

The long ones have the marker `faults`: `make test-faults`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import harness
import wire
import onnx_models
from harness import GLANCE_S, Repository, Server, restarts, wait_until
from tensors import json_input

START = Callable[..., Server]
X = np.array([1.0], np.float32)
HANG, DRAINED, CUT = 70, 0, 143


@pytest.fixture
def models(repository: Repository) -> Path:
    """Two models."""
    repository.add("plus", onnx_models.plus(1))
    repository.add("loop", onnx_models.loop())
    return repository.path


def plus_one(server: Server) -> int:
    """Status of a prediction, whose answer must be right if there is one."""
    answer = server.infer("plus", json_input("x", "FP32", X))
    assert answer.status != 200 or answer.outputs()["y"].tolist() == [2.0]
    return answer.status


def exists(pid: int) -> bool:
    """Whether a process runs. One that has ended and was not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_until_gone(pid: int, number: int) -> None:
    """Rust's own handler for stack overflows swallows the first SIGSEGV that somebody sends; a real one comes again."""

    def gone() -> bool:
        if exists(pid):
            os.kill(pid, number)
        return not exists(pid)

    wait_until(gone, f"process {pid} is gone")


class Load:
    """Clients that ask all the time, each time on a new connection, and remember how it went."""

    def __init__(self, server: Server, clients: int = 4) -> None:
        self.server = server
        # (when it was asked, seconds that it took, status or the name of the error)
        self.seen: list[tuple[float, float, int | str]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.seen) > 20, "the load has begun")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                outcome: int | str = plus_one(self.server)
            except OSError as error:
                outcome = type(error).__name__
            except Exception as error:  # noqa: BLE001 - http.client has errors that are no OSError
                outcome = type(error).__name__
            self.seen.append((begun, time.monotonic() - begun, outcome))

    def outcomes(self) -> set[int | str]:
        """How it went."""
        return {outcome for _, _, outcome in self.seen}

    def gap(self) -> float:
        """The longest time without a good answer, seconds."""
        good = sorted(begun + took for begun, took, outcome in self.seen if outcome == 200)
        return max((after - before for before, after in zip(good, good[1:])), default=float("inf"))


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
    assert plus_one(server) == 200
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


# ===== the worker dies =====


@pytest.mark.parametrize(
    ("name", "reason"), [("SIGSEGV", "segv"), ("SIGABRT", "abort"), ("SIGKILL", "killed"), ("SIGBUS", "signal")]
)
def test_a_worker_that_dies_under_load_is_replaced_and_nobody_is_refused(
    start: START, models: Path, name: str, reason: str
) -> None:
    server = start(models, {"defaults": {"deadline_ms": 10_000}}).wait_started().wait_lanes()
    begun = time.monotonic()
    start(models).wait_started()
    load_s = time.monotonic() - begun
    with Load(server) as load:
        died = time.monotonic()
        kill_until_gone(server.worker_pid(), getattr(signal, name))
        server.wait_for(lambda: server.status()["supervisor"]["workers_started"] == 2, "there is another one")
        server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready")
        ready_s = time.monotonic() - died
        more = len(load.seen) + 50
        wait_until(lambda: len(load.seen) > more, "the load goes on")
    assert ready_s < load_s + 1.0, f"{ready_s:.2f} s, a load takes {load_s:.2f} s"
    assert load.gap() < load_s + 1.0, load.gap()
    # What was on the worker is lost, what comes meanwhile waits. Nobody is refused.
    broken = {"RemoteDisconnected", "ConnectionResetError", "BrokenPipeError"}
    assert load.outcomes() <= {200} | broken, load.outcomes()
    lost = [outcome for _, _, outcome in load.seen if isinstance(outcome, str)]
    assert len(lost) <= 4, "one for each client at most: those in flight"
    assert restarts(server) == {reason: 1}
    server.wait_for(lambda: server.metrics().one("balm_worker_heal_seconds_count") == 1, "the healing was timed")
    status = server.status()["supervisor"]
    assert status["last_end"]["reason"] == reason
    assert server.process.poll() is None
    assert server.probe("/startup").status == 200 and server.probe("/live").status == 200


def test_probes_tell_the_truth_while_a_worker_is_replaced(start: START, repository: Repository) -> None:
    trips = np.array([600_000])
    golden = [harness.golden_case({"trips": trips}, {"count_out": trips})]
    repository.add("slow", onnx_models.loop(), golden=golden)
    server = start(repository.path, {"defaults": {"lanes": 1}}).wait_started()
    kill_until_gone(server.worker_pid(), signal.SIGKILL)
    seen = []

    def ready_again() -> bool:
        seen.append([server.probe(path).status for path in ("/live", "/startup", "/ready")])
        return len(seen) > 1 and seen[-1][2] == 200

    server.wait_for(lambda: server.probe("/ready").status == 503, "/ready is 503 while it loads", 1.0)
    server.wait_for(ready_again, "/ready is 200 again")
    assert {tuple(probes[:2]) for probes in seen} == {(200, 200)}, "nobody restarts it, and its start is over"
    assert len(seen) > 5, "it was looked at while it loaded"


def test_a_worker_that_is_asked_to_end_is_replaced_without_a_loss(start: START, models: Path) -> None:
    """A stray SIGTERM: what is inside is finished, what comes waits for the next one."""
    server = start(models, {"defaults": {"lanes": 1, "deadline_ms": 20_000}}).wait_started()
    with Load(server) as load:
        server.signal_worker(signal.SIGTERM)
        server.wait_for(lambda: server.status()["supervisor"]["workers_started"] == 2, "there is another one")
        server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready")
    assert load.outcomes() == {200}, load.outcomes()
    assert restarts(server) == {"exit": 1}


def test_a_unix_socket_outlives_the_worker(start: START, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "balm.sock"
    server = start(models, http_addr=f"unix:{path}").wait_started()
    for count, number in enumerate((signal.SIGKILL, signal.SIGTERM), 2):
        kill_until_gone(server.worker_pid(), number)
        server.wait_for(lambda: server.status()["supervisor"]["workers_started"] == count, "there is another one")
        server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready")
        assert plus_one(server) == 200
    server.terminate()
    assert server.wait_ended() == DRAINED
    assert not path.exists()


def test_metrics_of_a_worker_that_is_stopped_are_given_up_soon(start: START, models: Path) -> None:
    server = start(models).wait_started()
    worker = server.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        metrics = server.metrics()
        assert time.monotonic() - begun < 1.0
        assert metrics.one("balm_worker_scrape_failures_total") == 1
        assert not list(metrics.find("balm_http_threads"))
        assert server.probe("/status").status == 200
        server.wait_for(lambda: server.probe("/ready").status == 503, "/ready is 503", 4.0)
        assert "not been heard" in server.probe("/ready").json["reasons"][0]
        assert server.probe("/live").status == 200
    finally:
        os.kill(worker, signal.SIGCONT)
    server.wait_for(lambda: server.probe("/ready").status == 200, "/ready is 200 again")
    assert server.worker_pid() == worker, "a pause of some seconds is no reason to replace it"
    assert restarts(server) == {}


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


# ===== giving up =====


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A copy of the name of the library, which a test can break."""
    found = next(path for path in (harness.ROOT / ".ort").resolve().iterdir() if path.name.startswith("libonnxruntime"))
    link = tmp_path / "libonnxruntime.so"
    link.symlink_to(found)
    return link


def test_what_is_wrong_at_the_start_is_told_as_it_is(start: START, models: Path, library: Path) -> None:
    library.unlink()
    server = start(models, {"onnxruntime": {"library": str(library)}})
    assert server.wait_ended() == 69, "no worker is tried twice for it"


@pytest.mark.faults
def test_a_crash_loop_backs_off_gives_up_and_parks(
    start: START, models: Path, library: Path, tmp_path: Path
) -> None:
    journal, told = tmp_path / "journal", tmp_path / "termination-log"
    config = {
        "onnxruntime": {"library": str(library)},
        "lifecycle": {"crash_journal": str(journal), "termination_log": str(told)},
    }
    found = library.resolve()
    # Two servers before this one gave up for the same reason.
    for servers in (1, 2):
        server = start(models, config).wait_started()
        library.unlink()
        begun = time.monotonic()
        seen = []
        kill_until_gone(server.worker_pid(), signal.SIGKILL)
        while server.process.poll() is None:
            try:
                seen.append([server.probe(path).status for path in ("/live", "/ready")])
            except OSError:
                break
            time.sleep(GLANCE_S)
        assert server.wait_ended() == HANG
        took = time.monotonic() - begun
        # 0 + 0.2 + 1 + 5 + 15 s, each a fifth more or less, and a second in which it can be seen.
        assert 16.5 < took < 29, took
        assert [200, 503] in seen and [503, 503] in seen, "live until it gave up"
        assert len(journal.read_text().splitlines()) == servers
        reason = json.loads(told.read_text())
        assert (reason["code"], reason["reason"]) == (HANG, "exit"), reason
        library.symlink_to(found)
    server = start(models, config).wait_started()
    library.unlink()
    kill_until_gone(server.worker_pid(), signal.SIGKILL)
    server.wait_for(lambda: server.status()["supervisor"]["stage"] == "parked", "it is parked", 40)
    assert [server.probe(path).status for path in ("/live", "/startup", "/ready")] == [200, 200, 503]
    assert "parked" in server.probe("/ready").json["reasons"][0]
    assert server.metrics().one("balm_parked") == 1
    workers = server.status()["supervisor"]["workers_started"]
    time.sleep(6)
    assert server.status()["supervisor"]["workers_started"] == workers, "looping would do no useful work"
    library.symlink_to(found)
    server.wait_for(lambda: server.probe("/ready").status == 200, "what has changed is tried", 20)
    assert plus_one(server) == 200


@pytest.mark.faults
def test_many_deaths_lose_only_what_was_in_flight(start: START, models: Path) -> None:
    """As many as the budget allows, at any time, of any kind. The seed is printed with a failure."""
    seed = int(os.environ.get("BALM_FAULTS_SEED") or time.time_ns() % 1_000_000)
    print(f"BALM_FAULTS_SEED={seed}")
    dice = random.Random(seed)
    server = start(models, {"defaults": {"deadline_ms": 10_000}}).wait_started().wait_lanes()
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    open_before = len(list(descriptors.iterdir()))
    clients, deaths = 4, 5
    with Load(server, clients) as load:
        for death in range(1, deaths + 1):
            time.sleep(dice.uniform(0, 0.3))
            kill_until_gone(server.worker_pid(), dice.choice([signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV]))
            server.wait_for(
                lambda: server.status()["supervisor"]["workers_started"] == death + 1, "there is another one", 25
            )
            server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready")
    broken = {"RemoteDisconnected", "ConnectionResetError", "BrokenPipeError"}
    assert load.outcomes() <= {200} | broken, load.outcomes()
    assert sum(isinstance(outcome, str) for _, _, outcome in load.seen) <= deaths * clients
    assert sum(restarts(server).values()) == deaths
    assert server.metrics().one("balm_worker_lost_requests_total") <= deaths * clients
    assert [server.probe(path).status for path in ("/live", "/startup", "/ready")] == [200, 200, 200]
    # What a worker had is given back with it.
    server.wait_for(lambda: len(list(descriptors.iterdir())) <= open_before, "no descriptor is left over", 5)


# ===== it stands still =====


@pytest.mark.faults
def test_a_worker_that_is_stopped_is_replaced(start: START, models: Path) -> None:
    """T18, one half."""
    server = start(models, {"defaults": {"deadline_ms": 20_000}}).wait_started()
    worker = server.worker_pid()
    stopped = time.monotonic()
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        # A connection that comes meanwhile is served by the next one.
        time.sleep(1)
        server.wait_for(lambda: server.probe("/ready").status == 503, "/ready is 503", 4)
        assert time.monotonic() - stopped < 4
        waiting = [socket.create_connection(tuple(server.http.rsplit(":", 1)), 30) for _ in range(3)]
        server.wait_for(lambda: server.worker_pid() not in (worker, server.process.pid), "it is replaced", 14)
        replaced_s = time.monotonic() - stopped
        assert 9.5 < replaced_s < 12, replaced_s
        server.wait_for(lambda: server.probe("/ready").status == 200, "/ready is 200")
        assert pool.submit(plus_one, server).result() == 200
        for wire in waiting:
            wire.close()
    assert restarts(server) == {"hang": 1}
    assert not exists(worker)


@pytest.mark.faults
def test_a_pause_of_everybody_is_nobodys_death(start: START, models: Path) -> None:
    """T18, the other half."""
    server = start(models).wait_started()
    worker = server.worker_pid()
    processes = (server.process.pid, worker)
    for _ in range(2):
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        time.sleep(20)
        # In either order.
        processes = processes[::-1]
        for process in processes:
            os.kill(process, signal.SIGCONT)
        assert [server.probe(path).status for path in ("/live", "/ready")] == [200, 200]
        time.sleep(1)
    assert server.worker_pid() == worker
    assert restarts(server) == {}
    assert plus_one(server) == 200


class Held:
    """Threads of another process, each stopped by itself, as a debugger does it."""

    ATTACH, DETACH, WALL = 16, 17, 0x40000000

    def __init__(self, pid: int, name: str) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._held = []
        for task in Path(f"/proc/{pid}/task").iterdir():
            if (task / "comm").read_text().strip() == name:
                thread = int(task.name)
                if self._libc.ptrace(self.ATTACH, thread, None, None) != 0:
                    self.release()
                    pytest.skip("no ptrace here")
                os.waitpid(thread, self.WALL)
                self._held.append(thread)
        assert self._held, f"no thread is called {name}"

    def release(self) -> None:
        """Takes note of threads that were killed meanwhile, which otherwise keep their process from ending."""
        for thread in self._held:
            os.waitpid(thread, self.WALL)


@pytest.mark.faults
def test_a_blocked_event_loop_is_seen_and_the_worker_replaced(start: START, models: Path) -> None:
    """T10: the async runtime stands still, all else runs. Probes are answered in time."""
    server = start(models, {"http": {"threads": 1}}).wait_started()
    worker = server.worker_pid()
    held = Held(worker, "http")
    begun = time.monotonic()
    slowest = 0.0

    def judged() -> bool:
        nonlocal slowest
        asked = time.monotonic()
        assert server.probe("/live").status == 200
        slowest = max(slowest, time.monotonic() - asked)
        return "killing the worker" in server.stderr

    server.wait_for(judged, "the verdict", 14)
    seen_s = time.monotonic() - begun
    held.release()
    assert 9.5 < seen_s < 12.5, seen_s
    server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready again")
    assert server.worker_pid() != worker
    assert restarts(server) == {"wedged": 1}
    assert plus_one(server) == 200
    assert slowest < 0.25, slowest


# ===== the end =====


def test_what_is_under_way_is_finished_under_load(start: START, models: Path) -> None:
    """T29: not ready at once, served while others learn of it, no request lost, and 0."""
    config = {"lifecycle": {"drain_delay_ms": 1_500}, "defaults": {"deadline_ms": 10_000}}
    server = start(models, config).wait_started()
    asked = 0.0
    with Load(server) as load:
        server.terminate()
        told = time.monotonic()
        server.wait_for(lambda: server.probe("/ready").status == 503, "/ready is 503", 1.0)
        asked = time.monotonic() - told
        time.sleep(1.0)
        before = len(load.seen)
        wait_until(lambda: len(load.seen) > before + 20, "still serving")
        assert load.outcomes() == {200}
    assert asked < 0.1, f"not ready after {asked:.3f} s"
    assert server.wait_ended() == DRAINED


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
