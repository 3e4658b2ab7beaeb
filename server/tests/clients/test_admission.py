"""Admission decides before the body is read: bounded requests and bytes, and an answer that says when to come back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import onnx_models
from harness import Repository, Server
from tensors import json_input
from wire import Answer, Wire

BODY_BYTES = 1 << 20
CONFIG = {
    "defaults": {"lanes": 1, "threads": 1, "deadline_ms": 20_000, "max_deadline_ms": 20_000},
    "admission": {"max_in_flight": 3, "max_in_flight_per_model": 2, "max_bytes_in_flight": BODY_BYTES},
    "http": {"max_body_bytes": BODY_BYTES, "body_timeout_ms": 20_000},
}


def count_to(trips: int) -> dict[str, Any]:
    """The input of the loops."""
    return json_input("trips", "INT64", np.array([trips]))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that carries very little."""
    folder = tmp_path_factory.mktemp("admission")
    repository = Repository(folder / "models")
    for name in ("loop", "other"):
        repository.add(name, onnx_models.loop())
    repository.add("narrow", onnx_models.loop(), settings="[limits]\nmax_in_flight = 1\n")
    server = Server(folder, repository.path, CONFIG)
    try:
        yield server.wait_started()
    finally:
        code = server.stop()
    assert code == 0, server.stderr


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """That server, idle before and after."""
    shared.wait_idle()
    yield shared
    shared.wait_idle()
    for model in ("loop", "other", "narrow"):
        assert shared.infer(model, count_to(3)).outputs()["count_out"].tolist() == [3]


class Held:
    """Requests that stay in flight until let go."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.wires: list[Wire] = []

    def run(self, model: str) -> None:
        """One that computes for ever."""
        body = json.dumps({"inputs": [count_to(1 << 62)]}).encode()
        self._open(model, len(body), body)

    def upload(self, model: str, announced: int) -> None:
        """One whose body does not come to its end."""
        self._open(model, announced, b"{")

    def _open(self, model: str, length: int, body: bytes) -> None:
        wire = Wire(self.server.http)
        self.wires.append(wire)
        wire.head("POST", f"/v2/models/{model}/infer", {"Content-Length": length})
        wire.send(body)
        self.server.wait_for(lambda: self.server.in_flight() == len(self.wires), f"{len(self.wires)} are in flight")

    def let_go(self) -> None:
        """Closes them all."""
        for wire in self.wires:
            wire.socket.close()


@pytest.fixture
def held(server: Server) -> Iterator[Held]:
    """Nothing yet."""
    made = Held(server)
    yield made
    made.let_go()


def shed(server: Server, model: str, reason: str) -> float:
    """How many were turned away for it."""
    return server.metrics().one("balm_shed_total", model=model, reason=reason, **{"class": "default"})


def turned_away(server: Server, model: str, headers: dict[str, object], body: bytes = b"") -> Answer:
    """What a request gets of which no more than `body` is ever sent."""
    with Wire(server.http, timeout_s=10) as wire:
        wire.head("POST", f"/v2/models/{model}/infer", headers)
        wire.send(body)
        line = wire.first_line()
        assert line.startswith("HTTP/1.1 503"), f"the answer should come before the body, not {line!r}"
        answer = wire.answer()
    assert answer
    return answer


def check(answer: Answer, reason: str) -> None:
    """An answer that a client and a person can use."""
    assert answer.status == 503
    assert answer.headers["x-shed-reason"] == reason
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert answer.json["code"] == "overloaded"
    assert answer.error


WAYS_TO_SEND = {
    "expect_continue": ({"Content-Length": 900_000, "Expect": "100-continue"}, b""),
    "expect_continue_with_a_small_body": ({"Content-Length": 100, "Expect": "100-continue"}, b""),
    "a_large_body_just_begun": ({"Content-Length": 900_000}, b'{"inputs": ['),
    "a_small_body_just_begun": ({"Content-Length": 100}, b"{"),
    "chunks": ({"Transfer-Encoding": "chunked"}, b"1\r\n{\r\n"),
}


@pytest.mark.parametrize("way", WAYS_TO_SEND)
def test_a_full_model_turns_away_before_the_body_is_sent(server: Server, held: Held, way: str) -> None:
    held.run("loop")
    held.run("loop")
    before = shed(server, "loop", "model_in_flight")
    headers, body = WAYS_TO_SEND[way]
    check(turned_away(server, "loop", dict(headers), body), "model_in_flight")
    assert shed(server, "loop", "model_in_flight") == before + 1
    assert server.in_flight() == 2


def test_a_full_model_keeps_no_other_model_from_serving(server: Server, held: Held) -> None:
    held.run("loop")
    held.run("loop")
    assert server.infer("loop", count_to(3)).status == 503
    assert server.infer("other", count_to(3)).status == 200


def test_a_full_server_turns_everybody_away(server: Server, held: Held) -> None:
    held.run("loop")
    held.run("loop")
    held.run("other")
    before = shed(server, "other", "server_in_flight")
    check(server.infer("other", count_to(3)), "server_in_flight")
    assert shed(server, "other", "server_in_flight") == before + 1
    assert server.get("/v2/models/other").status == 200, "metadata are not predictions"
    assert server.probe("/ready").status == 200, "overload changes no probe"


def test_a_models_own_limit_holds(server: Server, held: Held) -> None:
    held.run("narrow")
    check(server.infer("narrow", count_to(3)), "model_in_flight")


def test_bytes_in_flight_are_bounded_by_what_is_announced(server: Server, held: Held) -> None:
    held.upload("loop", BODY_BYTES - 1000)
    before = shed(server, "other", "bytes_in_flight")
    check(turned_away(server, "other", {"Content-Length": 2000}, b"{"), "bytes_in_flight")
    assert shed(server, "other", "bytes_in_flight") == before + 1
    assert server.infer("other", count_to(3)).status == 200, "a body that fits is let in"


def test_places_come_back_when_clients_leave(server: Server, held: Held) -> None:
    held.run("loop")
    held.run("loop")
    held.run("other")
    assert server.infer("loop", count_to(3)).status == 503
    held.let_go()
    server.wait_idle()
    assert server.infer("loop", count_to(3)).status == 200


def test_the_bound_is_kept_and_everybody_is_answered_in_a_flood(server: Server) -> None:
    most = 0.0
    stop = threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, server.in_flight())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(12) as pool:
        statuses = [answer.status for answer in pool.map(lambda _: server.infer("loop", count_to(20_000)), range(150))]
    stop.set()
    watcher.join()
    assert set(statuses) == {200, 503}
    assert most <= 2


def test_a_refused_connection_goes_on_to_serve(server: Server, held: Held) -> None:
    """The same connection is turned away and, when there is room, answered."""
    held.run("narrow")
    body = json.dumps({"inputs": [count_to(3)]}).encode()
    with Wire(server.http) as wire:
        wire.head("POST", "/v2/models/narrow/infer", {"Content-Length": len(body)})
        wire.send(body)
        first = wire.answer()
        assert first and first.status == 503
        held.let_go()
        server.wait_idle()
        wire.head("POST", "/v2/models/narrow/infer", {"Content-Length": len(body)})
        wire.send(body)
        second = wire.answer()
    assert second and second.status == 200, second
