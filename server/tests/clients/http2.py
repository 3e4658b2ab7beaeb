"""HTTP/2 by hand, as little of it as tests need that no polite client library would send."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from wire import Wire

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1

# Of RFC 9113, section 6.5.2, and an error code of section 7.
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_HEADER_LIST_SIZE = 3, 4, 6
CANCEL, ENHANCE_YOUR_CALM = 8, 11

# Static table of HPACK: names of which a value follows, and whole fields.
AUTHORITY, PATH = 1, 4
GET, POST, SCHEME_HTTP, STATUS_200 = 0x82, 0x83, 0x86, 0x88


@dataclass(frozen=True)
class Frame:
    """One frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    def encode(self) -> bytes:
        """As it is sent."""
        head = struct.pack(">I", len(self.payload))[1:] + bytes([self.kind, self.flags])
        return head + struct.pack(">I", self.stream) + self.payload


def field(name: int, value: str) -> bytes:
    """A header field, whose name stands in the static table."""
    raw = value.encode()
    assert len(raw) < 127, "longer ones have another form"
    return bytes([name, len(raw)]) + raw


def request(stream: int, path: str, method: int = GET, flags: int = END_STREAM) -> bytes:
    """The head of a request."""
    block = bytes([method, SCHEME_HTTP]) + field(PATH, path) + field(AUTHORITY, "test")
    return Frame(HEADERS, END_HEADERS | flags, stream, block).encode()


def reset(stream: int) -> bytes:
    """Takes a request back."""
    return Frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)).encode()


class Http2:
    """A connection that has said hello."""

    def __init__(self, address: str, timeout_s: float = 20, settings: dict[int, int] | None = None) -> None:
        self.wire = Wire(address, timeout_s)
        pairs = (struct.pack(">HI", name, value) for name, value in (settings or {}).items())
        self.wire.send(PREFACE + Frame(SETTINGS, 0, 0, b"".join(pairs)).encode())

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.socket.close()

    def send(self, data: bytes) -> None:
        """Sends frames; a server that has closed is no error here."""
        self.wire.send(data)

    def _read(self, length: int) -> bytes | None:
        data = b""
        while len(data) < length:
            with contextlib.suppress(ConnectionResetError):
                if more := self.wire.socket.recv(length - len(data)):
                    data += more
                    continue
            return None
        return data

    def frames(self) -> Iterator[Frame]:
        """What comes, to the end of the connection."""
        while head := self._read(9):
            length = int.from_bytes(head[:3])
            payload = self._read(length) if length else b""
            if payload is None:
                return
            yield Frame(head[3], head[4], struct.unpack(">I", head[5:])[0] & 0x7FFFFFFF, payload)

    def first(self, kind: int, stream: int | None = None) -> Frame:
        """The next frame of that kind; others are skipped."""
        for frame in self.frames():
            if frame.kind == kind and stream in (None, frame.stream):
                return frame
        raise AssertionError(f"the connection ended without a frame of kind {kind}")

    def settings(self) -> dict[int, int]:
        """What the server demands."""
        payload = self.first(SETTINGS).payload
        return dict(struct.iter_unpack(">HI", payload))


def goodbye(frame: Frame) -> int:
    """The error code of a GOAWAY."""
    return struct.unpack(">I", frame.payload[4:8])[0]
