"""Who is refused while sending reads why, within bounds; who sends too slowly is told what would have been right."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import onnx_models
from harness import Repository, Server
from tensors import json_input
from wire import Answer, Wire

START = Callable[..., Server]

MIB = 1 << 20
LARGEST = 16 * MIB
CLIENTS = 64
BODY_S = 5.0
# A body has so long before its pace is judged.
GRACE_S = 3.0
LATE_S = 3.0
LOOP = "/v2/models/loop/infer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One model, which takes one request at a time."""
    folder = tmp_path_factory.mktemp("uploads")
    repository = Repository(folder / "models")
    repository.add("loop", onnx_models.loop(), settings="[limits]\nmax_in_flight = 1\n")
    config = {
        "defaults": {"lanes": 1, "threads": 1, "deadline_ms": 30_000},
        "http": {"max_body_bytes": LARGEST, "body_timeout_ms": int(BODY_S * 1000)},
    }
    started = Server(folder, repository.path, config)
    try:
        yield started.wait_started()
        started.wait_idle()
    finally:
        code = started.stop()
    assert code == 0, started.stderr


@pytest.fixture
def shedding(server: Server) -> Iterator[Server]:
    """The server, whose one place is taken."""
    body = json.dumps({"inputs": [json_input("trips", "INT64", np.array([1 << 62]))]}).encode()
    with Wire(server.http) as endless:
        endless.head("POST", LOOP, {"Content-Length": len(body)})
        endless.send(body)
        server.wait_for(lambda: server.in_flight() == 1, "the place is taken")
        yield server
    server.wait_idle()


def is_shed(answer: Answer | None) -> bool:
    """The whole answer of a model that has no place."""
    assert answer and answer.status == 503, answer
    assert answer.json["code"] == "overloaded" and answer.error
    return True


def upload(server: Server, size: int, headers: dict[str, object], sent: int | None = None) -> Answer | None:
    """The answer to a body of which `sent` bytes are sent, all of them before anything is read."""
    with Wire(server.http, timeout_s=15) as wire:
        wire.head("POST", LOOP, {"Content-Length": size} | headers)
        # Most clients give up at a reset, and never look for an answer that may lie there all the same.
        wire.socket.sendall(bytes(size if sent is None else sent))
        return wire.answer()


def upload_all_the_same(server: Server) -> Answer | None:
    """The answer to the largest body, if there is one."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        return upload(server, LARGEST, {})
    return None


def test_each_of_many_refused_uploads_reads_why(shedding: Server) -> None:
    """Acceptance test T08."""
    before = shedding.peak_memory()
    with ThreadPoolExecutor(CLIENTS) as pool:

        def all_at_once(size: int, headers: dict[str, object], sent: int | None = None) -> list[Answer | None]:
            uploads = [pool.submit(upload, shedding, size, headers, sent) for _ in range(CLIENTS)]
            return [each.result() for each in uploads]

        assert all(is_shed(answer) for answer in all_at_once(64 * 1024, {}))
        assert all(is_shed(answer) for answer in all_at_once(LARGEST, {"Expect": "100-continue"}, sent=0))
        assert all(is_shed(answer) for answer in all_at_once(600_000, {})), "an image as a tensor"
        # Nobody promises these an answer: reading all that they send would be the overload that they are refused for.
        largest = [pool.submit(upload_all_the_same, shedding) for _ in range(CLIENTS)]
        assert all(answer is None or is_shed(answer) for answer in (each.result() for each in largest))
    assert shedding.peak_memory() - before < 64 * MIB, "of a gibibyte that was sent"


def test_a_client_that_goes_on_sending_after_the_answer_reads_it(shedding: Server) -> None:
    before = shedding.closed("unread_body")
    with Wire(shedding.http) as wire:
        wire.head("POST", LOOP, {"Content-Length": 40_000})
        wire.send(bytes(20_000))
        # Longer than the server waits for the rest of a small body before it answers.
        time.sleep(0.2)
        for _ in range(20):
            wire.socket.sendall(bytes(1000))
            time.sleep(0.01)
        answer = wire.answer()
        assert is_shed(answer) and answer and answer.headers["Connection"] == "close"
        assert wire.socket.recv(1) == b"", "it closes, as it said"
    shedding.wait_for(lambda: shedding.closed("unread_body") == before + 1, "it is counted")


def test_a_body_that_is_too_large_is_answered_while_it_comes(server: Server) -> None:
    with Wire(server.http) as wire:
        wire.head("POST", LOOP, {"Content-Length": LARGEST + 1})
        wire.send(bytes(MIB // 2))
        answer = wire.answer()
    assert answer and answer.status == 413 and str(LARGEST) in answer.error


def test_a_body_that_trickles_is_408_and_told_the_pace(server: Server) -> None:
    before = server.closed("slow_body")
    begun = time.monotonic()
    with Wire(server.http) as wire:
        wire.head("POST", LOOP, {"Content-Length": 10_000})
        wire.socket.settimeout(0.2)
        while True:
            wire.send(b" ")
            try:
                wire.first_line()
                break
            except TimeoutError:
                assert time.monotonic() - begun < GRACE_S + LATE_S
        wire.socket.settimeout(10)
        answer = wire.answer()
    assert answer and answer.status == 408, answer
    assert "1024 a second" in answer.error and "http.min_body_bytes_per_s" in answer.error
    assert answer.json["code"] == "slow_body"
    assert time.monotonic() - begun >= GRACE_S
    server.wait_for(lambda: server.closed("slow_body") == before + 1, "it is counted")


def test_a_body_at_the_pace_is_given_no_more_than_its_time(server: Server) -> None:
    before = server.closed("body_timeout")
    begun = time.monotonic()
    with Wire(server.http) as wire:
        wire.head("POST", "/v2/repository/models/loop/load", {"Content-Length": MIB})
        wire.send(bytes(MIB // 2))
        answer = wire.answer()
    assert answer and answer.status == 408, "on the control routes as well"
    assert f"{int(BODY_S * 1000)} ms" in answer.error
    assert BODY_S <= time.monotonic() - begun < BODY_S + LATE_S
    server.wait_for(lambda: server.closed("body_timeout") == before + 1, "it is counted")
