"""Connections are bounded in number, and each in time: who keeps one busy with nothing takes it from nobody else."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import http2
from harness import SHIPPED_MODELS, Server
from tensors import binary_body, binary_input, json_input
from wire import Answer, Wire
from http2 import Http2

HEADER_S, IDLE_S, WRITE_S = 1.5, 4.0, 1.5
# How late a deadline may be noticed, on a machine that has other things to do.
LATE_S = 3.0
CONFIG = {
    "defaults": {"deadline_ms": 10_000},
    "http": {
        "header_timeout_ms": int(HEADER_S * 1000),
        "idle_timeout_ms": int(IDLE_S * 1000),
        "write_timeout_ms": int(WRITE_S * 1000),
        "body_timeout_ms": 60_000,
        "min_body_bytes_per_s": 0,
    },
}
FLOWER = json_input("features", "FP32", np.array([[5.1, 3.5, 1.4, 0.2]], np.float32))
GET_LIVE = b"GET /live HTTP/1.1\r\nHost: test\r\n\r\n"
# A connection without a request for so long may be closed for another.
SPARE_S = 1.0

START = Callable[..., Server]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little patience and room for all."""
    started = Server(tmp_path_factory.mktemp("sockets"), SHIPPED_MODELS, CONFIG)
    try:
        yield started.wait_started()
    finally:
        code = started.stop()
    assert code == 0, started.stderr


@pytest.fixture
def narrow(start: START) -> Server:
    """A server with room for four."""
    config = CONFIG | {"http": CONFIG["http"] | {"max_connections": 4, "idle_timeout_ms": 60_000, "header_timeout_ms": 60_000}}
    return start(SHIPPED_MODELS, config).wait_started()


def predicts(server: Server) -> None:
    """A prediction works."""
    answer = server.infer("iris", FLOWER)
    assert answer.outputs()["label"].tolist() == [0]


def seconds_of(act: Callable[[], object]) -> float:
    """How long it takes."""
    begun = time.monotonic()
    act()
    return time.monotonic() - begun


def ended(wire: Wire) -> bool:
    """Whether the server closed; waits for it as long as the wire does."""
    with contextlib.suppress(ConnectionResetError):
        return wire.socket.recv(1) == b""
    return True


class Uploads:
    """Connections that are busy: each with a body that does not come to its end."""

    def __init__(self, server: Server, count: int) -> None:
        self.wires = [Wire(server.http) for _ in range(count)]
        for wire in self.wires:
            wire.head("POST", "/v2/models/iris/infer", {"Content-Length": 1000})
            wire.send(b"{")
        server.wait_for(lambda: server.in_flight() == count, f"{count} uploads are in flight")

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, *_: object) -> None:
        for wire in self.wires:
            wire.socket.close()


def is_refusal(answer: Answer | None) -> bool:
    """The whole answer of a server that has no place."""
    assert answer and answer.status == 503, answer
    assert answer.headers["x-shed-reason"] == "connections" and answer.headers["Retry-After"]
    assert answer.headers["Connection"] == "close"
    body = answer.json
    assert body.keys() == {"error", "code"} and body["code"] == "too_many_connections"
    assert "http.max_connections" in body["error"]
    return True


# ===== the bound =====


def test_connections_are_bounded_and_come_free(narrow: Server) -> None:
    with Uploads(narrow, 4) as busy:
        with Wire(narrow.http) as fifth:
            assert is_refusal(fifth.answer()), "before it has said a word"
        with Wire(narrow.http) as talkative:
            talkative.send(b"POST /v2/models/iris/infer HTTP/1.1\r\nContent-Length: 500000\r\n\r\n" + bytes(500_000))
            assert is_refusal(talkative.answer()), "though it was still sending"
        assert narrow.metrics().one("balm_http_connections_refused_total") == 2
        assert narrow.probe("/ready").status == 200, "the management port has connections of its own"
        busy.wires[0].socket.close()
        narrow.wait_for(lambda: narrow.connections() == 3, "one is closed")
        predicts(narrow)


def test_a_flood_of_refused_connections_that_stay_is_answered_whole(narrow: Server) -> None:
    """More than may linger at once. None is waited for, and none is in the way of the next."""
    flood: list[Wire] = []
    try:
        with Uploads(narrow, 4) as busy:
            flood = [Wire(narrow.http) for _ in range(600)]
            assert seconds_of(lambda: narrow.probe("/live")) < 1
            assert all(is_refusal(wire.answer()) for wire in flood)
            assert narrow.metrics().one("balm_http_connections_refused_total") == 600
            busy.wires[0].socket.close()
            narrow.wait_for(lambda: narrow.connections() == 3, "one is closed")
            assert seconds_of(lambda: predicts(narrow)) < 2
    finally:
        for wire in flood:
            wire.socket.close()


def test_who_has_waited_longest_without_a_request_makes_room(narrow: Server) -> None:
    with Wire(narrow.http) as first, Wire(narrow.http) as second, Wire(narrow.http) as third, Uploads(narrow, 1):
        first.send(GET_LIVE)
        assert first.answer()
        second.send(b"GET /li")
        time.sleep(2 * SPARE_S)
        third.send(GET_LIVE)
        assert third.answer()
        predicts(narrow)
        narrow.wait_for(lambda: narrow.connections() == 3, "the prediction's place is free again")
        predicts(narrow)
        assert narrow.closed("evicted") == 1, "the place of the first prediction served the second"
        assert narrow.metrics().one("balm_http_connections_refused_total") == 0
        assert not select.select([third.socket], [], [], 0)[0], "the one that was in use last is still there"
        closed = [wire for wire in (first, second) if select.select([wire.socket], [], [], 0)[0]]
        assert len(closed) == 1 and ended(closed[0])


def test_a_slow_loris_and_idle_clients_keep_nobody_out(server: Server) -> None:
    """Acceptance test T07, scaled: each goes at its own deadline, and new requests are served all the while."""
    count = 300
    before = {reason: server.closed(reason) for reason in ("header_timeout", "idle")}
    slow = [Wire(server.http) for _ in range(count)]
    idle = [Wire(server.http) for _ in range(count)]
    try:
        for wire in slow:
            wire.send(b"POST /v2/models/iris/infer HTTP/1.1\r\nHost: te")
        for wire in idle:
            wire.send(GET_LIVE)
        begun = time.monotonic()
        assert all((answer := wire.answer()) and answer.status == 200 for wire in idle)
        probes = []
        while time.monotonic() - begun < HEADER_S + 0.5:
            predicts(server)
            probes.append(seconds_of(lambda: server.probe("/ready")))
            for wire in slow[::10]:
                wire.send(b"s")
        assert sorted(probes)[len(probes) // 2] < 0.05, probes
        server.wait_for(lambda: server.closed("header_timeout") == before["header_timeout"] + count, "no slow head")
        assert time.monotonic() - begun < HEADER_S + LATE_S, "trickling buys no time"
        assert server.closed("idle") == before["idle"], "who is idle has longer"
        assert all(ended(wire) for wire in slow)
        server.wait_for(lambda: server.closed("idle") == before["idle"] + count, "nobody is idle any more")
        assert IDLE_S - 0.5 < time.monotonic() - begun < IDLE_S + LATE_S
        assert all(ended(wire) for wire in idle)
        predicts(server)
        server.wait_for(lambda: server.connections() == 0, "every place is free")
    finally:
        for wire in slow + idle:
            wire.socket.close()


def test_the_beginning_of_http2_is_no_way_round_the_deadline(server: Server) -> None:
    """A server that waits for the rest of the preface to know which protocol it is must not wait for ever."""
    before = server.closed("header_timeout")
    with Wire(server.http, timeout_s=HEADER_S + LATE_S) as wire:
        wire.send(b"PRI * HT")
        assert ended(wire)
    server.wait_for(lambda: server.closed("header_timeout") == before + 1, "it is counted")


# ===== HTTP/2 =====


def test_the_limits_of_http2_are_announced(server: Server) -> None:
    with Http2(server.http) as client:
        settings = client.settings()
        assert settings[http2.MAX_CONCURRENT_STREAMS] == 100
        assert settings[http2.MAX_HEADER_LIST_SIZE] == 16 * 1024
        assert 64 * 1024 <= settings[http2.INITIAL_WINDOW_SIZE] <= 1024 * 1024
        client.send(http2.request(1, "/live"))
        assert client.first(http2.HEADERS, 1).payload[0] == http2.STATUS_200


def test_streams_opened_and_reset_end_their_connection_and_no_other(server: Server) -> None:
    """Acceptance test T09: CVE-2023-44487."""
    before = server.closed("h2_flood")
    streams = range(1, 20_001, 2)
    with Http2(server.http) as attacker, ThreadPoolExecutor(1) as pool:
        others = pool.submit(lambda: [server.infer("iris", FLOWER).status for _ in range(20)])
        attacker.wire.socket.settimeout(10)
        for first in range(0, len(streams), 100):
            part = streams[first : first + 100]
            attacker.send(b"".join(http2.request(stream, "/live") + http2.reset(stream) for stream in part))
        assert http2.goodbye(attacker.first(http2.GOAWAY)) == http2.ENHANCE_YOUR_CALM
        assert others.result() == [200] * 20
    server.wait_for(lambda: server.closed("h2_flood") == before + 1, "the connection is closed, and counted")
    used = server.cpu_seconds()
    time.sleep(1)
    assert server.cpu_seconds() - used < 0.3, "it is idle again"
    server.wait_idle()


def test_pings_keep_no_connection_without_requests(server: Server) -> None:
    before = server.closed("idle")
    begun = time.monotonic()
    with Http2(server.http) as client:
        client.send(http2.request(1, "/live"))
        client.first(http2.HEADERS, 1)
        client.wire.socket.settimeout(0.3)
        goodbye = None
        while goodbye is None and time.monotonic() - begun < IDLE_S + LATE_S:
            client.send(http2.Frame(http2.PING, 0, 0, bytes(8)).encode())
            with contextlib.suppress(TimeoutError):
                goodbye = client.first(http2.GOAWAY)
        assert goodbye and http2.goodbye(goodbye) == 0, "an orderly end"
        assert time.monotonic() - begun > IDLE_S - 0.5
    server.wait_for(lambda: server.closed("idle") == before + 1, "it is counted")


def test_an_answer_that_closed_windows_keep_back_is_given_up(server: Server) -> None:
    before = server.closed("write_timeout")
    with Http2(server.http, settings={http2.INITIAL_WINDOW_SIZE: 0}) as client:
        begun = time.monotonic()
        client.send(http2.request(1, "/v2"))
        assert client.first(http2.HEADERS, 1)
        for _ in client.frames():
            # It asks whether the client is there, and the client says so; it just takes no data.
            client.send(http2.Frame(http2.PING, 0, 0, bytes(8)).encode())
        assert WRITE_S - 0.5 < time.monotonic() - begun < WRITE_S + LATE_S
    server.wait_for(lambda: server.closed("write_timeout") == before + 1, "it is counted")


# ===== who does not read, who leaves =====


def ask_for_much(server: Server) -> tuple[Wire, int]:
    """A prediction whose answer, 16 MB, fits in no buffer; and the least that its answer has."""
    rows = np.zeros((1000, 4000), np.float32)
    tensor, raw = binary_input("x", "FP32", rows)
    body, headers = binary_body({"inputs": [tensor], "parameters": {"binary_data_output": True}}, raw)
    wire = Wire(server.http)
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    wire.head("POST", "/v2/models/identity_fp32/infer", {"Content-Length": len(body)} | headers)
    wire.send(body)
    return wire, len(raw)


def test_a_client_that_does_not_read_is_given_up(start: START, toys: Server) -> None:
    server = start(toys.models, CONFIG).wait_started()
    wire, length = ask_for_much(server)
    with wire:
        server.wait_for(lambda: server.closed("write_timeout") == 1, "the answer is given up")
        server.wait_for(lambda: server.connections() == 0, "the place is free")
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := wire.socket.recv(1 << 20):
                received += len(piece)
        assert received < length
    server.wait_idle()


def test_a_client_that_reads_slowly_is_waited_for(start: START, toys: Server) -> None:
    server = start(toys.models, CONFIG).wait_started()
    wire, length = ask_for_much(server)
    received = 0
    with wire:
        begun = time.monotonic()
        while received < length:
            # Four pauses, each shorter than the time of a write and all together longer.
            if received * 5 // length > (time.monotonic() - begun) // (WRITE_S / 2):
                time.sleep(0.05)
                continue
            piece = wire.socket.recv(1 << 20)
            assert piece, f"closed after {received} bytes"
            received += len(piece)
        assert time.monotonic() - begun > 1.5 * WRITE_S
    assert server.closed("write_timeout") == 0


def test_places_are_conserved_when_every_client_leaves(start: START, toys: Server) -> None:
    """Acceptance test T05, scaled: what nobody waits for is not run, and every gauge comes back to zero."""
    server = start(toys.models, {"defaults": {"lanes": 1, "threads": 1, "deadline_ms": 30_000}}).wait_started()
    body = json.dumps({"inputs": [json_input("trips", "INT64", np.array([1 << 62]))]}).encode()
    clients = [Wire(server.http) for _ in range(60)]
    for wire in clients:
        wire.head("POST", "/v2/models/loop/infer", {"Content-Length": len(body)})
        wire.send(body)

    def inside() -> float:
        metrics = server.metrics()
        return metrics.one("balm_in_flight_requests") + metrics.sum("balm_shed_total", model="loop")

    server.wait_for(lambda: inside() == len(clients), "each is inside or was turned away")
    for wire in clients:
        # As a client that is killed: at once, and with a reset.
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.socket.close()
    server.wait_idle()
    server.wait_for(lambda: server.connections() == 0, "no connection is left")
    assert server.statistics("loop")["execution_count"] <= 1, "of endless runs, one had begun"
    answer = server.infer("loop", json_input("trips", "INT64", np.array([3])))
    assert answer.outputs()["count_out"].tolist() == [3]
