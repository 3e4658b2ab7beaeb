"""The protocol's tensors, written here anew so that no client library vouches for itself."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

SIZE_HEADER = "Inference-Header-Content-Length"

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


def to_bytes(datatype: str, array: np.ndarray) -> bytes:
    """A tensor in the binary form of the protocol, written here anew so that no client library vouches for itself."""
    if datatype != "BYTES":
        return np.ascontiguousarray(array).tobytes()
    elements = [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel()]
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def from_bytes(datatype: str, raw: bytes) -> np.ndarray:
    """The inverse of `to_bytes`, flat. BF16 comes as the 16 bits that it is."""
    if datatype != "BYTES":
        return np.frombuffer(raw, dtype=np.uint16 if datatype == "BF16" else DTYPES[datatype])
    elements = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        elements.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return np.array(elements, dtype=np.object_)


def json_input(name: str, datatype: str, array: np.ndarray, nested: bool = False) -> dict[str, Any]:
    """An input with its elements in JSON."""
    data = array.tolist() if nested else array.ravel().tolist()
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": data}


def binary_input(name: str, datatype: str, array: np.ndarray) -> tuple[dict[str, Any], bytes]:
    """An input whose bytes follow the JSON."""
    raw = to_bytes(datatype, array)
    head = {"name": name, "datatype": datatype, "shape": list(array.shape)}
    return head | {"parameters": {"binary_data_size": len(raw)}}, raw


def binary_body(request: Mapping[str, Any], *raws: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with binary inputs."""
    head = json.dumps(request).encode()
    return head + b"".join(raws), {SIZE_HEADER: str(len(head))}
