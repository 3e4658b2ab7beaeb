"""ONNX Runtime tells nobody anything, and leaves nothing in the home of whoever started it (decision 18)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import SHIPPED_MODELS, Server, run

START = Callable[..., Server]

# Whatever makes the library hold its tongue by itself must not be what passes the test: it does on machines of CI.
TALKATIVE = {"ORT_DISABLE_TELEMETRY": "0", "CI": "", "GITHUB_ACTIONS": "", "TF_BUILD": "", "ORT_RUNNING_UNIT_TESTS": ""}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty home, and still empty when the test is over."""
    folder = tmp_path / "home"
    folder.mkdir()
    yield folder
    assert list(folder.rglob("*")) == []


def talkative(home: Path) -> dict[str, str]:
    return TALKATIVE | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(home)}


@pytest.mark.parametrize("single_process", [False, True])
def test_a_server_has_no_telemetry(start: START, home: Path, single_process: bool) -> None:
    server = start(SHIPPED_MODELS, {"lifecycle": {"single_process": single_process}}, env=talkative(home))
    server.wait_started()
    told = Path(f"/proc/{server.worker_pid()}/environ").read_bytes().split(b"\0")
    assert b"ORT_DISABLE_TELEMETRY=1" in told


def test_a_check_has_no_telemetry(home: Path) -> None:
    ended = run("check", SHIPPED_MODELS, env=talkative(home))
    assert ended.returncode == 0, ended.stderr
