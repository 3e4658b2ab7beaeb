"""HTTP as it goes over the wire: one exchange, or piece by piece."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensors import DTYPES, SIZE_HEADER, from_bytes

# No exchange with a server may hang longer than this.
SOCKET_S = 30.0


@dataclass(frozen=True)
class Answer:
    """A response, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON, by the grammar: Python's own NaN and Infinity are refused."""

        def refuse(word: str) -> None:
            raise ValueError(f"{word} is not JSON")

        return json.loads(self.body, parse_constant=refuse)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def error(self) -> str:
        """The sentence of an error answer, whose form is checked by the way."""
        assert self.headers.get_content_type() == "application/json", self
        members = self.json
        assert isinstance(members["error"], str) and members["error"], members
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", members["code"]), members
        assert members["request_id"] == self.headers["x-request-id"], (members, self.headers.items())
        return members["error"]

    def outputs(self) -> dict[str, np.ndarray]:
        """The outputs of a prediction by name, whichever way each of them came."""
        assert self.status == 200, self
        size = self.headers.get(SIZE_HEADER)
        head = self.body if size is None else self.body[: int(size)]
        raw = b"" if size is None else self.body[int(size) :]
        found = {}
        for output in json.loads(head)["outputs"]:
            length = output.get("parameters", {}).get("binary_data_size")
            if length is None:
                array = np.array(output["data"], dtype=DTYPES[output["datatype"]])
            else:
                array, raw = from_bytes(output["datatype"], raw[:length]), raw[length:]
            found[output["name"]] = array.reshape(output["shape"])
        assert raw == b"", f"{len(raw)} bytes are left over"
        return found


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = connect("unix:" + self._path, self.timeout)


def connect(address: str, timeout_s: float = SOCKET_S) -> socket.socket:
    """A connected socket. `address` is `host:port` or `unix:/path`."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout_s)
        sock.connect(address.removeprefix("unix:"))
        return sock
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout_s)


def ask(
    address: str,
    method: str,
    path: str,
    body: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = SOCKET_S,
) -> Answer:
    """One request on a connection of its own."""
    if address.startswith("unix:"):
        connection: http.client.HTTPConnection = _UnixConnection(address.removeprefix("unix:"), timeout_s)
    else:
        connection = http.client.HTTPConnection(address, timeout=timeout_s)
    data = body.encode() if isinstance(body, str) else body
    try:
        connection.request(method, path, data, dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


class Wire:
    """A connection on which every byte is the test's own."""

    def __init__(self, address: str, timeout_s: float = SOCKET_S) -> None:
        self.socket = connect(address, timeout_s)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends bytes; a server that has closed already is no error here, its answer tells."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def head(self, method: str, path: str, headers: Mapping[str, object]) -> None:
        """Sends the head of a request, and no body."""
        lines = [f"{method} {path} HTTP/1.1", "Host: test", *(f"{name}: {value}" for name, value in headers.items())]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def first_line(self) -> str:
        """The status line that comes next, which stays to be read: `100 Continue` would show here."""
        line = self.socket.recv(64, socket.MSG_PEEK)
        return line.split(b"\r\n")[0].decode()

    def answer(self) -> Answer | None:
        """The response, or None when the server closed without one."""
        response = http.client.HTTPResponse(self.socket)
        try:
            response.begin()
            return Answer(response.status, response.headers, response.read())
        except (http.client.RemoteDisconnected, ConnectionResetError, http.client.BadStatusLine):
            return None
        finally:
            response.close()
