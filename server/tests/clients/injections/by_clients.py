"""Clients that harm: too many, too slow, half, gone, or saying nonsense. Others must hardly notice, and nobody is restarted."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import http2
import wire
from injections.scene import Scene, Wrong, kind
from right_answers import questions
from traffic import WRONG, Traffic
from wire import Wire

# Resets a connection at its close instead of ending it.
RESET = struct.pack("ii", 1, 0)
SLOW_CLIENTS_S = {"http": {"header_timeout_ms": 1_000, "body_timeout_ms": 1_500, "write_timeout_ms": 2_000}}


def _together(scene: Scene, clients: int, one: Callable[[random.Random], None]) -> None:
    """So many at once, each with dice of its own. Sockets that break are no news to any of them; all else is."""

    def safely(dice: random.Random) -> None:
        with contextlib.suppress(OSError):
            one(dice)

    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(safely, random.Random(scene.dice.random())) for _ in range(clients)]:
            done.result()


def _head(path: str, length: int, extra: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n{extra}\r\n".encode()


def _request(scene: Scene, extra: str = "") -> bytes:
    """A whole request, in JSON or binary."""
    asked = scene.question()
    headers = "".join(f"{name}: {value}\r\n" for name, value in asked.headers.items())
    return _head(asked.path, len(asked.body), headers + extra) + asked.body


@kind()
def flood_of_probes(scene: Scene) -> None:
    """500 connections to the probe port that say nothing, or drip"""
    end = time.monotonic() + scene.dice.uniform(1.0, 4.0)
    with contextlib.ExitStack() as stack:
        flood: list[Wire] = []
        while time.monotonic() < end:
            while len(flood) < 500:
                flood.append(stack.enter_context(Wire(scene.server.management)))
            for each in scene.dice.sample(flood, 50):
                each.send(b"G")
            # Who was sent away comes again.
            gone = scene.dice.sample(flood, 100)
            for each in gone:
                each.socket.close()
            flood = [each for each in flood if each not in gone]
            assert scene.server.probe("/live").status == 200


@kind()
def rapid_reset(scene: Scene) -> None:
    """HTTP/2 streams that are opened and reset by the thousand (CVE-2023-44487)"""

    def one(dice: random.Random) -> None:
        for _ in range(dice.randint(1, 4)):
            with http2.Http2(scene.server.http, timeout_s=5) as connection:
                for number in range(dice.randint(200, 1500)):
                    stream = 2 * number + 1
                    connection.send(http2.request(stream, "/v2/models/iris/infer", http2.POST, 0) + http2.reset(stream))
                for _ in connection.frames():
                    pass

    _together(scene, scene.dice.randint(1, 4), one)


@kind(config=SLOW_CLIENTS_S)
def slow_loris(scene: Scene) -> None:
    """up to 300 connections whose heads trickle and never end"""
    end = time.monotonic() + scene.dice.uniform(1.0, 4.0)
    with contextlib.ExitStack() as stack:
        lorises = [stack.enter_context(Wire(scene.server.http)) for _ in range(scene.dice.randint(50, 300))]
        for each in lorises:
            each.send(b"POST /v2/models/iris/infer HTTP/1.1\r\nHost: test\r\n")
        while time.monotonic() < end:
            for each in lorises:
                each.send(b"x: y\r\n")
            time.sleep(0.2)


@kind(config=SLOW_CLIENTS_S)
def half_uploads(scene: Scene) -> None:
    """uploads that are broken off anywhere, in order or by a reset"""

    def one(dice: random.Random) -> None:
        for _ in range(dice.randint(5, 25)):
            length = dice.randint(1_000, 2_000_000)
            with Wire(scene.server.http) as wire_:
                wire_.send(_head(f"/v2/models/{dice.choice(['iris', 'digits'])}/infer", length))
                wire_.send(os.urandom(dice.randint(0, min(length - 1, 100_000))))
                if dice.random() < 0.5:
                    wire_.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    _together(scene, scene.dice.randint(2, 8), one)


@kind(config=SLOW_CLIENTS_S)
def stalled_uploads(scene: Scene) -> None:
    """uploads that announce more than the server may hold, and stop coming"""
    length = 32 << 20
    end = time.monotonic() + scene.dice.uniform(0.5, 2.5)
    with contextlib.ExitStack() as stack:
        for _ in range(scene.dice.randint(20, 150)):
            upload = stack.enter_context(Wire(scene.server.http))
            upload.send(_head("/v2/models/digits/infer", length) + b"{")
        time.sleep(max(0.0, end - time.monotonic()))


@kind()
def disconnects(scene: Scene) -> None:
    """hundreds of clients that ask and leave before their answer"""
    requests = [_request(scene) for _ in range(8)]

    def one(dice: random.Random) -> None:
        for _ in range(dice.randint(20, 80)):
            with Wire(scene.server.http) as wire_:
                wire_.send(dice.choice(requests))
                time.sleep(dice.choice([0.0, 0.0, 0.001, 0.01]))
                if dice.random() < 0.5:
                    wire_.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    _together(scene, scene.dice.randint(2, 8), one)


@kind()
def nonsense(scene: Scene) -> None:
    """bytes that are no HTTP, heads that contradict themselves, bodies that are nothing"""
    whole = [_request(scene) for _ in range(8)]

    def one(dice: random.Random) -> None:
        for _ in range(dice.randint(20, 60)):
            data = bytearray(dice.choice(whole))
            match dice.randint(0, 3):
                case 0:
                    data = bytearray(os.urandom(dice.randint(1, 3000)))
                case 1:
                    # One byte of the head: a body may be another right question.
                    data[dice.randrange(data.index(b"\r\n\r\n"))] = dice.randrange(256)
                case 2:
                    del data[dice.randrange(1, len(data)) :]
                case 3:
                    body = json.dumps({"inputs": [{"name": "features", "shape": [dice.randint(-9, 9)], "data": "?"}]})
                    data = bytearray(_head("/v2/models/iris/infer", len(body)) + body.encode())
            with Wire(scene.server.http, timeout_s=1) as wire_:
                wire_.send(bytes(data))
                with contextlib.suppress(OSError):
                    wire_.socket.shutdown(socket.SHUT_WR)
                    while wire_.socket.recv(65536):
                        pass

    _together(scene, scene.dice.randint(1, 4), one)


@kind()
def bombs(scene: Scene) -> None:
    """compressed bodies of a megabyte that would be gigabytes"""
    bomb = gzip.compress(bytes(200 << 20), 1)
    statuses = set()

    def one(_: random.Random) -> None:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        statuses.add(wire.ask(scene.server.http, "POST", "/v2/models/iris/infer", bomb, headers).status)

    _together(scene, scene.dice.randint(2, 6), one)
    assert statuses <= {413, 503}, statuses


@kind()
def burst(scene: Scene) -> None:
    """as many clients more as the server can answer, and more, without a pause"""
    with Traffic(scene.server.http, questions(), scene.dice.randint(16, 48), seed=1) as more:
        scene.linger(1.0, 3.0)
    if more.count(WRONG):
        raise Wrong(str([each.why for each in more.seen if each.outcome == WRONG][:3]))
    assert set(more.outcomes()) <= {200, 429, 503, 504}, more.outcomes()


@kind()
def deadlines(scene: Scene) -> None:
    """hundreds of requests whose deadline is over at once, or nearly"""
    statuses = set()

    def one(dice: random.Random) -> None:
        for _ in range(dice.randint(20, 80)):
            asked = dice.choice(questions())
            headers = {"x-request-timeout-ms": str(dice.randint(1, 5))}
            answer = wire.ask(scene.server.http, "POST", asked.path, asked.body, asked.headers | headers)
            statuses.add(answer.status)
            if answer.status == 200 and (why := asked.why_wrong(answer)):
                raise Wrong(why)

    _together(scene, scene.dice.randint(2, 8), one)
    assert statuses <= {200, 503, 504}, statuses


@kind(config=SLOW_CLIENTS_S)
def slow_readers(scene: Scene) -> None:
    """clients that ask for large answers, again and again, and read none"""
    body = json.dumps({"inputs": [{"name": "features", "datatype": "FP32", "shape": [1000, 4], "data": [1.0] * 4000}]})
    request = _head("/v2/models/iris/infer", len(body)) + body.encode()
    end = time.monotonic() + scene.dice.uniform(1.0, 4.0)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(Wire(scene.server.http, timeout_s=0.5)) for _ in range(scene.dice.randint(5, 30))]
        for each in readers:
            with contextlib.suppress(OSError):
                for _ in range(5):
                    each.send(request)
        time.sleep(max(0.0, end - time.monotonic()))


@kind()
def scrapes(scene: Scene) -> None:
    """metrics and status are asked for as fast as can be, by several"""
    end = time.monotonic() + scene.dice.uniform(0.5, 2.0)

    def one(dice: random.Random) -> None:
        while time.monotonic() < end:
            assert scene.server.probe(dice.choice(["/metrics", "/status"])).status == 200

    _together(scene, scene.dice.randint(2, 6), one)
