"""Versions that did harm are not tried again, by this worker or the next; the version before serves all the while."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import onnx_models
from harness import Repository, Server, golden_case, restarts
from rehearsal import Rehearsal
from tensors import json_input

X = np.array([1.0], np.float32)
AGAIN = "not tried again until its files change or somebody asks for its load"
# Crashes until a version is quarantined.
CRASHES = 3


def golden(y: float) -> dict[str, object]:
    """A golden request whose answer is to be `y`."""
    return golden_case({"x": X}, {"y": np.array([y], np.float32)})


@pytest.fixture
def models(repository: Repository) -> Repository:
    """A good version."""
    repository.add("plus", onnx_models.plus(1), golden=[golden(2.0)], settings="lanes = 1\n")
    return repository


class Clients:
    """Ask all the while; whoever is answered, is answered rightly."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.statuses: list[int] = []
        self.wrong: list[object] = []

    def _run(self) -> None:
        while not self._over.is_set():
            answer = self._server.infer("plus", json_input("x", "FP32", X))
            self.statuses.append(answer.status)
            if answer.status == 200 and answer.outputs()["y"].tolist() != [2.0]:
                self.wrong.append(answer)

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def answers(server: Server) -> bool:
    """Whether the good version answers."""
    answer = server.infer("plus", json_input("x", "FP32", X))
    return answer.status == 200 and answer.outputs()["y"].tolist() == [2.0]


def test_a_version_that_answers_wrongly_is_never_served_and_the_next_worker_does_not_try_it(
    models: Repository, start: Callable[..., Server], tmp_path: Path
) -> None:
    """T24."""
    config = {"lifecycle": {"crash_journal": str(tmp_path / "journal")}}
    server = start(models.path, config).wait_settled()
    with Clients(server) as clients:
        models.add("plus", onnx_models.plus(5), version=2, golden=[golden(2.0)])
        refused = server.load("plus")
        assert refused.status == 400 and "version 1 serves" in refused.text, refused
    assert set(clients.statuses) == {200} and not clients.wrong, "the good one served all the while"
    assert server.version("plus", 2)["state"] == "quarantined"
    server.wait_for(lambda: server.metrics().one("balm_quarantined_versions") == 1, "the supervisor remembers")
    loads = server.version("plus", 2)["since_ms"]
    before = server.worker_pid()
    os.kill(before, signal.SIGABRT)
    server.wait_for(lambda: restarts(server) == {"abort": 1}, "another worker comes")
    server.wait_for(lambda: server.probe("/ready").status == 200, "it serves")
    assert answers(server)
    version = server.version("plus", 2)
    assert version["state"] == "quarantined" and version["since_ms"] > loads
    assert AGAIN in version["reason"], version
    # Who asks for it has it tried, with all its proofs.
    again = server.load("plus")
    assert again.status == 400 and AGAIN not in again.text, again
    assert server.stop() == 0
    # And so does the next server, where there is a journal.
    server = start(models.path, config).wait_settled()
    assert AGAIN in server.version("plus", 2)["reason"] and answers(server)
    # Other bytes are another version.
    shutil.rmtree(models.path / "plus" / "2")
    models.add("plus", onnx_models.plus(1), version=2, golden=[golden(2.0)])
    assert server.load("plus").status == 200
    assert server.version("plus", 2)["state"] == "ready"


def test_a_version_that_crashes_the_worker_at_its_load_is_left_out(
    models: Repository, rehearsal: Rehearsal, rehearse: Callable[..., Server]
) -> None:
    models.add("plus", onnx_models.plus(7), version=2, golden=[golden(8.0)])
    # As often as the worker may crash, and never again: whoever tried it once more would have it.
    rehearsal.fault("signal", "plus", at="load", signal="SIGABRT", times=CRASHES)
    server = rehearse(models.path)
    server.wait_for(lambda: server.probe("/ready").status == 200, "the good one serves", 60)
    assert restarts(server) == {"abort": CRASHES}
    assert answers(server)
    version = server.version("plus", 2)
    assert version["state"] == "quarantined"
    assert version["reason"] == f"the worker crashed {CRASHES} times while it was loaded; {AGAIN}"
    metrics = server.metrics()
    assert metrics.one("balm_worker_actions_total", rung="version", reason="abort") == 1
    assert metrics.one("balm_worker_actions_total", rung="worker", reason="abort") == CRASHES
    assert metrics.one("balm_worker_detect_seconds_count") == CRASHES
    # It serves once somebody asks for it and it proves itself, and is forgotten.
    assert server.load("plus").status == 200
    server.wait_for(lambda: server.metrics().one("balm_quarantined_versions") == 0, "it is forgotten")
