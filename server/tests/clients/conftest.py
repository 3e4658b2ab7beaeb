"""Servers that the tests share, and what a failed test shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import harness
import onnx_models
from harness import Repository, Server
from kubelet import Kubelet
from rehearsal import rehearsal, rehearse  # noqa: F401

# Long enough for a loaded machine, short enough for a test that waits for it.
TOY_DEADLINE_MS = 10_000


def pytest_runtest_setup() -> None:
    """Marks how far the logs are, so that a failure shows only what it has to do with."""
    for server in harness.RUNNING:
        server.mark = len(server.stderr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """A failure shows what the servers of the moment have logged since the test began."""
    report = yield
    if report.failed:
        for server in harness.RUNNING:
            tail = "\n".join(server.stderr[server.mark :].splitlines()[-60:])
            if tail:
                report.sections.append((f"log of the server on {server.models}", tail))
    return report


def _serving(server: Server) -> Iterator[Server]:
    """Waits for the start, lends the server out, and ends it as Kubernetes would."""
    try:
        yield server.wait_started()
        ended = server.process.poll()
    finally:
        code = server.stop()
    assert ended is None, f"the server ended by itself with {ended}\n{server.stderr}"
    assert code == 0, f"exit code {code}\n{server.stderr}"


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The models that come with Balm, under default settings."""
    yield from _serving(Server(tmp_path_factory.mktemp("shipped"), harness.SHIPPED_MODELS))


def toy_repository(path: Path) -> Repository:
    """One tiny model for each question that a test asks."""
    repository = Repository(path)
    for datatype in onnx_models.ONNX_TYPES:
        repository.add(f"identity_{datatype.lower()}", onnx_models.identity(datatype, ["rows", "columns"]))
    repository.add("scalar", onnx_models.identity("FP32", []))
    repository.add("any_rank", onnx_models.identity("INT64", None))
    repository.add("simple", onnx_models.sum_and_difference())
    repository.add("add_any", onnx_models.add_any())
    repository.add("gather", onnx_models.gather())
    # Whoever waits behind an endless run is to wait for as long as a test likes.
    repository.add("loop", onnx_models.loop(), settings="[limits]\nmax_wait_ms = 60000\n")
    repository.add("chain", onnx_models.matmul_chain())
    model, weights = onnx_models.external()
    repository.add("external", model, files={"weights.bin": weights})
    repository.add("versions", onnx_models.plus(1), version=1, settings='versions = "all"\n')
    repository.add("versions", onnx_models.plus(10), version=10)
    repository.add("versions", onnx_models.plus(2), version=2)
    shutil.copytree(harness.SHIPPED_MODELS / "iris", path / "iris")
    return repository


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tiny models, one lane each: what holds a lane is seen by the next request."""
    folder = tmp_path_factory.mktemp("toys")
    repository = toy_repository(folder / "models")
    config = {
        "defaults": {"lanes": 1, "threads": 1, "deadline_ms": TOY_DEADLINE_MS, "max_deadline_ms": 2 * TOY_DEADLINE_MS},
        "management": {"triton_metrics": True},
    }
    yield from _serving(Server(folder, repository.path, config))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """An empty model repository of this test's own."""
    return Repository(tmp_path / "models")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of this test's own, and ends them with it. Nothing is waited for."""
    started: list[Server] = []

    def start_one(models: Path, config: harness.Config | None = None, **options: Any) -> Server:
        server = Server(tmp_path / f"server{len(started)}", models, config, **options)
        started.append(server)
        return server

    yield start_one
    codes = {server.models: server.stop() for server in started}
    assert all(code >= 0 for code in codes.values()), f"had to be killed, or crashed: {codes}"


@pytest.fixture
def watch() -> Iterator[Callable[[Server], Kubelet]]:
    """Puts a kubelet beside a server of the test's own: whatever happens to that server, no container would be restarted.

    To be named last, so that the watch ends before the server does. A test that takes the verdict itself judges by it.
    """
    kubelets: list[Kubelet] = []

    def watch_one(server: Server) -> Kubelet:
        kubelets.append(Kubelet(server))
        return kubelets[-1]

    yield watch_one
    untold = [kubelet for kubelet in kubelets if not kubelet.told]
    verdicts = [kubelet.verdict() for kubelet in kubelets]
    for kubelet, verdict in zip(kubelets, verdicts, strict=True):
        assert kubelet not in untold or verdict.restarts == 0, f"a kubelet would have restarted it: {verdict.failed}"
