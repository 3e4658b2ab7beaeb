"""The Open Inference Protocol by hand: what other clients than Triton's send, to the byte."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest

from harness import Server
from tensors import SIZE_HEADER, binary_body, binary_input, from_bytes, json_input, to_bytes
from wire import Wire, ask

FLOWER = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
FEATURES = json_input("features", "FP32", FLOWER)
INFER = "/v2/models/iris/infer"


def label(server: Server, members: Any, path: str = INFER, headers: dict[str, str] | None = None) -> Any:
    """The label that comes back."""
    return server.post(path, members, headers).outputs()["label"].tolist()


# ===== the request =====


def test_data_may_be_flat_or_nested(toys: Server) -> None:
    rows = np.arange(6, dtype=np.int32).reshape(2, 3)
    for nested in (False, True):
        answer = toys.infer("identity_int32", json_input("x", "INT32", rows, nested=nested))
        assert answer.outputs()["y"].tolist() == rows.tolist()


def test_members_that_are_not_known_are_ignored(shipped: Server) -> None:
    """KServe's client adds `model_name`, Triton's in C++ an empty `id`."""
    features = FEATURES | {"comment": {"deep": [1, {"er": None}]}}
    answer = shipped.post(INFER, {"model_name": "iris", "id": "", "inputs": [features], "more": [[]], "outputs": []})
    assert answer.outputs()["label"].tolist() == [0]


@pytest.mark.parametrize("kind", [None, "application/json", "application/octet-stream", "text/plain", "nonsense"])
def test_the_content_type_is_not_looked_at(shipped: Server, kind: str | None) -> None:
    assert label(shipped, {"inputs": [FEATURES]}, headers={"Content-Type": kind} if kind else None) == [0]


def test_a_size_header_as_long_as_the_body_is_plain_json(shipped: Server) -> None:
    """The client in C++ always sends one."""
    body = json.dumps(
        {"id": "1", "inputs": [FEATURES], "outputs": [{"name": "label", "parameters": {"binary_data": True}}]}
    )
    answer = shipped.ask("POST", INFER, body, {SIZE_HEADER: str(len(body))})
    assert answer.outputs()["label"].tolist() == [0]
    assert list(answer.outputs()) == ["label"]


def test_a_request_without_json_is_the_one_input_of_the_model(shipped: Server) -> None:
    answer = shipped.ask("POST", INFER, FLOWER.tobytes(), {SIZE_HEADER: "0"})
    assert answer.outputs()["label"].tolist() == [0]
    assert answer.headers.get_content_type() == "application/octet-stream", "its outputs are all binary"


def test_names_may_be_percent_encoded_and_queries_are_ignored(shipped: Server) -> None:
    for path in ("/v2/models/%69ri%73/infer", "/v2/models/iris/versions/%31/infer", INFER + "?tenant=a&b"):
        assert label(shipped, {"inputs": [FEATURES]}, path) == [0], path


def test_a_body_may_come_in_chunks(shipped: Server) -> None:
    body = json.dumps({"inputs": [FEATURES]}).encode()
    with Wire(shipped.http) as wire:
        wire.head("POST", INFER, {"Transfer-Encoding": "chunked"})
        for at in range(0, len(body), 7):
            part = body[at : at + 7]
            wire.send(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        wire.send(b"0\r\n\r\n")
        answer = wire.answer()
    assert answer and answer.outputs()["label"].tolist() == [0]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_the_size_header_counts_decompressed_bytes(shipped: Server, encoding: str, pack: Any) -> None:
    head, raw = binary_input("features", "FP32", FLOWER)
    body, headers = binary_body({"inputs": [head]}, raw)
    answer = shipped.ask("POST", INFER, pack(body), headers | {"Content-Encoding": encoding})
    assert answer.outputs()["label"].tolist() == [0]


def test_two_requests_may_be_sent_before_the_first_answer(shipped: Server) -> None:
    body = json.dumps({"inputs": [FEATURES]}).encode()
    with Wire(shipped.http) as wire:
        for number in ("1", "2"):
            wire.head("POST", INFER, {"Content-Length": len(body), "x-request-id": number})
            wire.send(body)
        reader = wire.socket.makefile("rb")
        text = b""
        while text.count(b"HTTP/1.1 200") < 2 or text.count(b'"outputs"') < 2:
            line = reader.read1(65536)
            assert line, text
            text += line
    assert text.index(b"x-request-id: 1") < text.index(b"x-request-id: 2")


# ===== the answer =====


def test_outputs_say_which_of_them_are_binary(shipped: Server) -> None:
    def binary(parameters: Any, *outputs: Any) -> list[bool]:
        request = {"inputs": [FEATURES], "parameters": parameters, "outputs": list(outputs)}
        answer = shipped.post(INFER, request)
        answer.outputs()
        size = answer.headers.get(SIZE_HEADER)
        members = json.loads(answer.body if size is None else answer.body[: int(size)])
        assert (size is not None) == any("parameters" in output for output in members["outputs"])
        for output in members["outputs"]:
            assert ("data" in output) != ("parameters" in output)
        return ["parameters" in output for output in members["outputs"]]

    def output(name: str, **parameters: Any) -> Any:
        return {"name": name, "parameters": parameters} if parameters else {"name": name}

    assert binary({}) == [False, False]
    assert binary({"binary_data_output": True}) == [True, True]
    assert binary({}, output("label", binary_data=True), output("probabilities")) == [True, False]
    assert binary({"binary_data_output": True}, output("label", binary_data=False), output("probabilities")) == [
        False,
        True,
    ]


def test_a_json_answer_is_exactly_this(toys: Server) -> None:
    answer = toys.post(
        "/v2/models/identity_int64/versions/1/infer",
        {"id": "a", "inputs": [json_input("x", "INT64", np.array([[1, -2]]))]},
    )
    assert answer.headers.get_content_type() == "application/json"
    assert SIZE_HEADER not in answer.headers
    assert answer.json == {
        "model_name": "identity_int64",
        "model_version": "1",
        "id": "a",
        "outputs": [{"name": "y", "datatype": "INT64", "shape": [1, 2], "data": [1, -2]}],
    }


def test_floats_in_json_are_the_shortest_that_read_back_the_same(toys: Server) -> None:
    values = np.array([[0.1, 1 / 3, 16777216.0, 1e-45, 3.4028235e38]], np.float32)
    answer = toys.infer("identity_fp32", json_input("x", "FP32", values))
    assert b"0.1," in answer.body and b"0.10000000149" not in answer.body
    assert np.array(answer.json["outputs"][0]["data"], np.float32).tobytes() == values.tobytes()


def test_what_json_has_no_number_for_becomes_null(toys: Server) -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    head, raw = binary_input("x", "FP32", values)
    body, headers = binary_body({"inputs": [head]}, raw)
    answer = toys.ask("POST", "/v2/models/identity_fp32/infer", body, headers)
    assert answer.json["outputs"][0]["data"] == [None, None, None, 1.0]


def test_texts_keep_every_character(toys: Server) -> None:
    texts = np.array([["", 'a"b\\c\n\t', "grüße 🌷", "\u2028", "\x7f"]], np.object_)
    answer = toys.infer("identity_bytes", json_input("x", "BYTES", texts))
    assert answer.json["outputs"][0]["data"] == texts.ravel().tolist()
    escaped = '{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 1], "data": ["\\ud83c\\udf37"]}]}'
    assert toys.ask("POST", "/v2/models/identity_bytes/infer", escaped).json["outputs"][0]["data"] == ["🌷"]


def test_half_precision_goes_through_bit_by_bit(toys: Server) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    for datatype in ("FP16", "BF16"):
        head = {"name": "x", "datatype": datatype, "shape": [256, 256], "parameters": {"binary_data_size": bits.nbytes}}
        request = {"inputs": [head], "parameters": {"binary_data_output": True}}
        body, headers = binary_body(request, bits.tobytes())
        answer = toys.ask("POST", f"/v2/models/identity_{datatype.lower()}/infer", body, headers)
        found = answer.outputs()["y"]
        assert found.view(np.uint16).tobytes() == bits.tobytes(), datatype


def test_any_byte_but_zero_is_true(toys: Server) -> None:
    head = {"name": "x", "datatype": "BOOL", "shape": [1, 4], "parameters": {"binary_data_size": 4}}
    body, headers = binary_body({"inputs": [head]}, b"\x00\x01\x02\xff")
    answer = toys.ask("POST", "/v2/models/identity_bool/infer", body, headers)
    assert answer.json["outputs"][0]["data"] == [False, True, True, True]


def test_the_same_description_again_answers_for_the_bytes_that_came_with_it(toys: Server) -> None:
    """What was read of a description is kept for the next ones; bytes, sizes and form are each request's own."""
    for turn in range(4):
        for rows in (1, 2):
            for binary in (True, False):
                values = np.arange(turn, turn + 4 * rows, dtype=np.float32).reshape(rows, 4)
                head, raw = binary_input("x", "FP32", values)
                body, headers = binary_body({"inputs": [head], "parameters": {"binary_data_output": binary}}, raw)
                answer = toys.ask("POST", "/v2/models/identity_fp32/infer", body, headers)
                assert answer.outputs()["y"].tolist() == values.tolist()
                assert (SIZE_HEADER in answer.headers) == binary
    flags = {"name": "x", "datatype": "BOOL", "shape": [1, 4], "parameters": {"binary_data_size": 4}}
    for raw in (b"\x00\x01\x00\x01", b"\x00\x01\x01\x01", b"\x00\x01\x02\xff"):
        body, headers = binary_body({"inputs": [flags]}, raw)
        answer = toys.ask("POST", "/v2/models/identity_bool/infer", body, headers)
        assert answer.outputs()["y"].tolist() == [[byte != 0 for byte in raw]]


def test_large_tensors_go_through(toys: Server) -> None:
    values = np.random.default_rng(0).standard_normal((1000, 8000)).astype(np.float32)
    answer = toys.infer_binary("identity_fp32", ("x", "FP32", values))
    assert answer.outputs()["y"].tobytes() == values.tobytes()
    assert int(answer.headers["Content-Length"]) == len(answer.body) > 32_000_000


# ===== the routes around it =====


def test_models_are_listed(shipped: Server) -> None:
    assert shipped.get("/v2/models").json == {"models": ["breast_cancer", "digits", "iris"]}


def test_server_metadata_stand_with_and_without_a_slash(shipped: Server) -> None:
    assert shipped.get("/v2").json == shipped.get("/v2/").json
    assert shipped.get("/v2").json["name"] == "balm"


def test_http_1_0_is_answered(shipped: Server) -> None:
    with Wire(shipped.http) as wire:
        wire.send(b"GET /v2/health/ready HTTP/1.0\r\n\r\n")
        answer = wire.answer()
    assert answer and (answer.status, answer.json) == (200, {"ready": True})


def test_head_is_answered_without_a_body(shipped: Server) -> None:
    answer = ask(shipped.http, "HEAD", "/v2/health/ready")
    assert (answer.status, answer.body) == (200, b"")


def test_the_yardstick_route_is_there_only_when_asked_for(shipped: Server) -> None:
    assert shipped.ask("POST", "/noop", "x").status == 404


def test_the_harness_packs_texts_as_the_protocol_says() -> None:
    assert to_bytes("BYTES", np.array(["a", b"bc"], np.object_)) == b"\1\0\0\0a\2\0\0\0bc"
    assert from_bytes("BYTES", b"\1\0\0\0a\2\0\0\0bc").tolist() == [b"a", b"bc"]
