"""Requests that crash the worker: refused after two crashes, and those that were there by chance are not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import harness
import onnx_models
from harness import Repository, Server, restarts
from kubelet import Kubelet
from rehearsal import Rehearsal
from wire import Answer

WATCH = Callable[[Server], Kubelet]

POISON = 666.0
# On a machine that is busy nothing here is to end by being late, nor by having waited.
PATIENT = {"defaults": {"deadline_ms": 60_000, "max_deadline_ms": 60_000}}
SETTINGS = "lanes = 2\n[limits]\nmax_wait_ms = 60000\n"
# Far more than the pauses before new workers and their loads take.
SOCKET_S = 60.0


@pytest.fixture
def models(repository: Repository) -> Path:
    """Two models that answer what they were asked; requests share runs, and two lanes have them."""
    for name in ("same", "other"):
        repository.add(name, onnx_models.identity("FP32", ["rows", "columns"]), settings=SETTINGS)
    return repository.path


def ask(server: Server, value: float, model: str = "same") -> Answer | None:
    """One request on a connection of its own; none where the worker died of something."""
    one = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, 1.0]}
    try:
        return server.ask("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [one]}), timeout_s=SOCKET_S)
    except OSError:
        return None


def ask_again(server: Server, value: float, model: str = "same") -> tuple[Answer, int]:
    """Asks until there is an answer, as clients do whose connection broke. Gives how often it took."""
    for tries in range(1, 20):
        answer = ask(server, value, model)
        if answer is not None:
            return answer, tries
    raise AssertionError(f"no answer for {value}")


class Neighbours:
    """Clients that ask the same things again and again while others crash the server."""

    def __init__(self, server: Server) -> None:
        self.answers: list[tuple[float, Answer]] = []
        self.lost = 0
        self._server = server
        self._over = threading.Event()
        # Some ask what another one asks, and one the other model.
        clients = [(1.0, "same"), (2.0, "same"), (2.0, "same"), (3.0, "same"), (4.0, "same"), (1.0, "other")]
        self._pool = ThreadPoolExecutor(len(clients))
        self._clients = [self._pool.submit(self._ask, *client) for client in clients]

    def _ask(self, value: float, model: str) -> None:
        while not self._over.is_set():
            answer, tries = ask_again(self._server, value, model)
            self.lost += tries - 1
            self.answers.append((value, answer))

    def end(self) -> None:
        self._over.set()
        for client in self._clients:
            client.result(2 * SOCKET_S)
        self._pool.shutdown()


@pytest.fixture
def among(request: pytest.FixtureRequest) -> Iterator[Callable[[Server], Neighbours]]:
    """Neighbours, ended with the test."""
    found: list[Neighbours] = []

    def start(server: Server) -> Neighbours:
        found.append(Neighbours(server))
        return found[-1]

    yield start
    for neighbours in found:
        neighbours.end()


def refused(answer: Answer | None) -> bool:
    """Whether it is the answer to a request that is known as poison."""
    return answer is not None and answer.status == 422 and answer.json["code"] == "poison"


def test_poison_crashes_the_worker_twice_and_is_refused_then(
    models: Path,
    rehearsal: Rehearsal,
    rehearse: Callable[..., Server],
    among: Callable[[Server], Neighbours],
    watch: WATCH,
) -> None:
    """T21, among clients who ask other things all the time."""
    server = rehearse(models, PATIENT).wait_started().wait_lanes()
    watch(server)
    rehearsal.fault("crash_on", "same", value=POISON, times=1000)
    neighbours = among(server)
    server.wait_for(lambda: len(neighbours.answers) > 20, "neighbours are answered")
    # Nobody waits for the poison to be answered; whoever sent it sends it again.
    answers = [ask(server, POISON) for _ in range(10)]
    assert answers[:2] == [None, None], answers
    assert all(map(refused, answers[2:])), answers
    assert restarts(server) == {"segv": 2}
    # Another input of the same model goes on, and another model, too.
    assert ask_again(server, 7.0)[0].status == 200
    before = len(neighbours.answers)
    server.wait_for(lambda: len(neighbours.answers) > before + 20, "neighbours are answered")
    neighbours.end()
    assert {answer.status for _, answer in neighbours.answers} == {200}
    for value, answer in neighbours.answers:
        assert answer.json["outputs"][0]["data"] == [value, 1.0]
    # Who it was is told, by the same hash everywhere.
    told = answers[-1]
    assert told is not None and "at 2 crashes" in told.json["error"]
    supervisor = server.status()["supervisor"]
    (culprit,) = [one for one in supervisor["last_end"]["requests"] if one["crashes"] == 2]
    assert culprit["model"] == "same" and culprit["hash"] in told.json["error"]
    assert culprit["hash"] in server.stderr
    assert supervisor["poison"] == 1
    metrics = server.metrics()
    assert metrics.one("balm_poison_refused_total", model="same") == 8
    assert metrics.one("balm_crash_requests", state="refused") == 1


def test_whoever_was_there_by_chance_is_cleared_by_one_run(
    models: Path, rehearsal: Rehearsal, rehearse: Callable[..., Server], among: Callable[[Server], Neighbours]
) -> None:
    """The worker dies of what nobody sent, again and again, while the same requests come again and again."""
    server = rehearse(models, PATIENT).wait_started().wait_lanes()
    neighbours = among(server)
    for deaths in (1, 2, 3):
        before = len(neighbours.answers)
        server.wait_for(lambda: len(neighbours.answers) > before + 50, "neighbours are answered")
        # Of any run, so that there is always one to suspect.
        crash = rehearsal.fault("signal", "same", signal="SIGABRT")
        crash.wait()
        server.wait_for(lambda: restarts(server).get("abort") == deaths, "another worker is there")
        server.wait_for(lambda: server.status()["supervisor"]["suspects"] == 0, "nobody is suspected")
    neighbours.end()
    assert {answer.status for _, answer in neighbours.answers} == {200}
    assert neighbours.lost >= 3, "those that were there asked again"
    assert server.status()["supervisor"]["poison"] == 0


def test_a_request_that_hangs_every_lane_is_known_by_it(
    models: Path, rehearsal: Rehearsal, rehearse: Callable[..., Server], watch: WATCH
) -> None:
    """The worker is ended by its supervisor: who hung is to blame, and those who were there by chance are not."""
    server = rehearse(models, PATIENT).wait_started().wait_lanes()
    watch(server)
    spin = rehearsal.fault("spin", "same", times=3)

    def hang(value: float) -> Any:
        one = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, 1.0]}
        try:
            answer = server.ask(
                "POST", "/v2/models/same/infer", json.dumps({"inputs": [one]}), {"x-request-timeout-ms": "200"}, SOCKET_S
            )
            return answer.status
        except OSError:
            return None

    # While both lanes hang it only waits; then it comes to one that is new.
    harness.wait_until(lambda: hang(5.0) in (504, None) and spin.happened == 3, "three lanes hang")
    server.wait_for(lambda: restarts(server).get("lanes") == 1, "the worker is replaced", 2 * harness.PATIENCE_S)
    end = server.status()["supervisor"]["last_end"]
    assert [(one["model"], one["crashes"]) for one in end["requests"]] == [("same", 1)], end
    # It did not hang every time: it is run by itself, and cleared.
    assert ask_again(server, 5.0)[0].status == 200
    server.wait_for(lambda: server.status()["supervisor"]["suspects"] == 0, "nobody is suspected")


@pytest.mark.faults
def test_a_server_that_gives_up_names_the_requests_in_its_journal(
    models: Path, rehearsal: Rehearsal, rehearse: Callable[..., Server], tmp_path: Path
) -> None:
    """Requests that are all different, and all crash: that is not healed by refusing them, so it is told who they were."""
    journal, termination = tmp_path / "journal", tmp_path / "termination"
    lifecycle = {"crash_journal": str(journal), "termination_log": str(termination)}
    server = rehearse(models, PATIENT | {"lifecycle": lifecycle}).wait_started()
    rehearsal.fault("signal", "same", times=1000, signal="SIGSEGV")
    for value in range(1, 7):
        assert ask(server, float(value)) is None
    assert server.wait_ended(2 * harness.PATIENCE_S) == 70
    (entry,) = [json.loads(line) for line in journal.read_text().splitlines()]
    (request,) = entry["requests"]
    assert entry["reason"] == "segv" and request["model"] == "same" and request["crashes"] == 1
    assert json.loads(termination.read_text())["requests"] == [request]


def test_without_a_supervisor_nothing_is_remembered_and_it_says_so(models: Path, start: Callable[..., Server]) -> None:
    server = start(models, flags=["--single-process"]).wait_started()
    assert "no supervisor" in server.status()["details"]["poison"]
    assert "poison" not in start(models).wait_started().status()["details"]
