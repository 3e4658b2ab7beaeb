"""Workers that die, hang or are stopped, and those that cannot be started any more: what is seen from outside.

The long ones have the marker `faults`: `make test-faults`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import harness
import onnx_models
from harness import GLANCE_S, Repository, Server, restarts
from kubelet import Kubelet
from processes import Held, exists, kill_until_gone, signal_all
from rehearsal import Rehearsal
from right_answers import PLUS_ONE, plus_one
from traffic import Traffic

START = Callable[..., Server]
WATCH = Callable[[Server], Kubelet]
HANG, DRAINED = 70, 0


@pytest.fixture
def models(repository: Repository) -> Path:
    """Two models."""
    repository.add("plus", onnx_models.plus(1))
    repository.add("loop", onnx_models.loop())
    return repository.path


# ===== the worker dies =====


@pytest.mark.parametrize(
    ("name", "reason"), [("SIGSEGV", "segv"), ("SIGABRT", "abort"), ("SIGKILL", "killed"), ("SIGBUS", "signal")]
)
def test_a_worker_that_dies_under_load_is_replaced_and_nobody_is_refused(
    start: START, models: Path, name: str, reason: str, watch: WATCH
) -> None:
    """T16, from outside."""
    server = start(models, {"defaults": {"deadline_ms": 10_000}}).wait_started().wait_lanes()
    begun = time.monotonic()
    start(models).wait_started()
    load_s = time.monotonic() - begun
    watch(server)
    with Traffic(server.http, [PLUS_ONE], keep_alive=False) as traffic:
        died = time.monotonic()
        kill_until_gone(server.worker_pid(), getattr(signal, name))
        server.wait_for(lambda: server.status()["supervisor"]["workers_started"] == 2, "there is another one")
        server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready")
        ready_s = time.monotonic() - died
        traffic.wait_for_more(50)
    assert ready_s < load_s + 1.0, f"{ready_s:.2f} s, a load takes {load_s:.2f} s"
    assert traffic.gap() < load_s + 1.0, traffic.gap()
    # What was on the worker is lost, what comes meanwhile waits. Nobody is refused.
    broken = {"RemoteDisconnected", "ConnectionResetError", "BrokenPipeError"}
    assert set(traffic.outcomes()) <= {200} | broken, traffic.outcomes()
    assert len(traffic.lost()) <= 4, "one for each client at most: those in flight"
    assert restarts(server) == {reason: 1}
    server.wait_for(lambda: server.metrics().one("balm_worker_heal_seconds_count") == 1, "the healing was timed")
    status = server.status()["supervisor"]
    assert status["last_end"]["reason"] == reason
    assert server.process.poll() is None
    assert server.probe("/startup").status == 200 and server.probe("/live").status == 200


def test_probes_tell_the_truth_while_a_worker_is_replaced(start: START, repository: Repository, watch: WATCH) -> None:
    trips = np.array([600_000])
    golden = [harness.golden_case({"trips": trips}, {"count_out": trips})]
    repository.add("slow", onnx_models.loop(), golden=golden)
    server = start(repository.path, {"defaults": {"lanes": 1}}).wait_started()
    watch(server)
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
    with Traffic(server.http, [PLUS_ONE]) as traffic:
        server.signal_worker(signal.SIGTERM)
        server.wait_for(lambda: server.status()["supervisor"]["workers_started"] == 2, "there is another one")
        server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready")
    assert set(traffic.outcomes()) == {200}, traffic.outcomes()
    assert restarts(server) == {"exit": 1}


def test_a_unix_socket_outlives_the_worker(start: START, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "balm.sock"
    server = start(models, http_addr=f"unix:{path}").wait_started()
    for count, number in enumerate((signal.SIGKILL, signal.SIGTERM), 2):
        kill_until_gone(server.worker_pid(), number)
        server.wait_for(lambda: server.status()["supervisor"]["workers_started"] == count, "there is another one")
        server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready")
        assert plus_one(server.http) == 200
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
    start: START, models: Path, library: Path, tmp_path: Path, watch: WATCH
) -> None:
    """T17. A kubelet restarts the container whenever it ends; the one that is parked is left alone."""
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
    watch(server)
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
    assert plus_one(server.http) == 200


@pytest.mark.parametrize("sidecar", [False, True])
def test_a_server_that_is_parked_from_the_start(
    sidecar: bool, models: Path, tmp_path: Path, rehearsal: Rehearsal, rehearse: START
) -> None:
    """The kubelet is to let it live, and to start nobody who waits for it."""
    journal = tmp_path / "journal"
    entry = json.dumps({"at_ms": time.time_ns() // 1_000_000, "reason": "exit"})
    journal.write_text(f"{entry}\n" * 3)
    die = rehearsal.fault("die_at_start", times=1000)
    server = rehearse(models, {"lifecycle": {"crash_journal": str(journal), "sidecar": sidecar}})
    server.wait_for(lambda: server.status()["supervisor"]["stage"] == "parked", "it is parked")
    assert [server.probe(path).status for path in ("/live", "/startup", "/ready")] == [200, 503 if sidecar else 200, 503]
    assert die.happened == 1, "one more chance, and no loop"
    die.end()
    (models / "plus" / "model.toml").write_text("lanes = 1\n")
    server.wait_for(lambda: server.probe("/ready").status == 200, "what has changed is tried", 30)
    assert server.probe("/startup").status == 200
    assert plus_one(server.http) == 200


@pytest.mark.faults
def test_many_deaths_lose_only_what_was_in_flight(start: START, models: Path, watch: WATCH) -> None:
    """As many as the budget allows, at any time, of any kind. The seed is printed with a failure."""
    seed = int(os.environ.get("BALM_FAULTS_SEED") or time.time_ns() % 1_000_000)
    print(f"BALM_FAULTS_SEED={seed}")
    dice = random.Random(seed)
    server = start(models, {"defaults": {"deadline_ms": 10_000}}).wait_started().wait_lanes()
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    open_before = len(list(descriptors.iterdir()))
    clients, deaths = 4, 5
    watch(server)
    with Traffic(server.http, [PLUS_ONE], clients, keep_alive=False) as traffic:
        for death in range(1, deaths + 1):
            time.sleep(dice.uniform(0, 0.3))
            kill_until_gone(server.worker_pid(), dice.choice([signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV]))
            server.wait_for(
                lambda: server.status()["supervisor"]["workers_started"] == death + 1, "there is another one", 25
            )
            server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready")
    broken = {"RemoteDisconnected", "ConnectionResetError", "BrokenPipeError"}
    assert set(traffic.outcomes()) <= {200} | broken, traffic.outcomes()
    assert traffic.lost_by_one() <= deaths
    assert sum(restarts(server).values()) == deaths
    assert server.metrics().one("balm_worker_lost_requests_total") <= deaths * clients
    assert [server.probe(path).status for path in ("/live", "/startup", "/ready")] == [200, 200, 200]
    # What a worker had is given back with it.
    server.wait_for(lambda: len(list(descriptors.iterdir())) <= open_before, "no descriptor is left over", 5)


# ===== it stands still =====


@pytest.mark.faults
def test_a_worker_that_is_stopped_is_replaced(start: START, models: Path, watch: WATCH) -> None:
    """T18, one half."""
    server = start(models, {"defaults": {"deadline_ms": 20_000}}).wait_started()
    watch(server)
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
        assert pool.submit(plus_one, server.http).result() == 200
        for wire in waiting:
            wire.close()
    assert restarts(server) == {"hang": 1}
    assert not exists(worker)


@pytest.mark.faults
def test_a_pause_of_everybody_is_nobodys_death(start: START, models: Path, watch: WATCH) -> None:
    """T18, the other half: the kubelet stands still with the machine."""
    server = start(models).wait_started()
    worker = server.worker_pid()
    kubelet = watch(server)
    processes = (server.process.pid, worker)
    for _ in range(2):
        kubelet.pause()
        signal_all(processes, signal.SIGSTOP)
        time.sleep(20)
        # In either order.
        processes = processes[::-1]
        signal_all(processes, signal.SIGCONT)
        kubelet.resume()
        assert [server.probe(path).status for path in ("/live", "/ready")] == [200, 200]
        time.sleep(1)
    assert server.worker_pid() == worker
    assert restarts(server) == {}
    assert plus_one(server.http) == 200


@pytest.mark.faults
def test_a_blocked_event_loop_is_seen_and_the_worker_replaced(start: START, models: Path, watch: WATCH) -> None:
    """T10: the async runtime stands still, all else runs. Probes are answered in time, and so are scrapes."""
    server = start(models, {"http": {"threads": 1}}).wait_started()
    worker = server.worker_pid()
    watch(server)
    held = Held(worker, "http")
    begun = time.monotonic()
    slowest = 0.0

    def judged() -> bool:
        nonlocal slowest
        asked = time.monotonic()
        assert server.probe("/live").status == 200
        slowest = max(slowest, time.monotonic() - asked)
        assert server.metrics().one("balm_worker_up") in (0, 1)
        return "killing the worker" in server.stderr

    server.wait_for(judged, "the verdict", 14)
    seen_s = time.monotonic() - begun
    held.release()
    assert 9.5 < seen_s < 12.5, seen_s
    server.wait_for(lambda: server.probe("/ready").status == 200, "it is ready again")
    assert server.worker_pid() != worker
    assert restarts(server) == {"wedged": 1}
    assert plus_one(server.http) == 200
    assert slowest < 0.25, slowest
