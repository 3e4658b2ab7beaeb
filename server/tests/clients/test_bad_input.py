"""Each line under 'Bad input': its own 4xx, a sentence that names the field, no lane, and a server as it was before."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_models
from harness import Metrics, Repository, Server
from tensors import SIZE_HEADER, binary_body, binary_input, json_input
from wire import Answer, Wire

FLOWER = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
SETOSA = 0
NESTED = 100_000


def iris(**changes: Any) -> dict[str, Any]:
    """A good request to iris whose one input is changed; a change to None leaves the member out."""
    features = json_input("features", "FP32", FLOWER) | changes
    return {"inputs": [{name: value for name, value in features.items() if value is not None}]}


def text(members: Any) -> bytes:
    """JSON."""
    return json.dumps(members).encode()


def answers_well(server: Server) -> None:
    """A good request gets the right answer."""
    answer = server.infer("iris", json_input("features", "FP32", FLOWER))
    assert answer.outputs()["label"].tolist() == [SETOSA]


def cost(metrics: Metrics) -> dict[str, float]:
    """What a request that never reaches a lane leaves as it was."""
    return {
        "runs": metrics.sum("nv_inference_exec_count"),
        "failed in a lane": metrics.sum("nv_inference_request_failure"),
        "lanes that died": metrics.sum("balm_lane_restarts_total"),
        "healthy lanes": metrics.sum("balm_model_lanes", kind="healthy"),
        "answers that were ours to give": metrics.sum("balm_predict_requests_total", outcome="failed"),
    }


@pytest.fixture
def server(toys: Server) -> Iterator[Server]:
    """The server, which must be as it was when the test is over."""
    before = cost(toys.metrics())
    yield toys
    toys.wait_idle()
    assert cost(toys.metrics()) == before
    assert toys.probe("/ready").status == 200
    answers_well(toys)


@dataclass(frozen=True)
class Mistake:
    """What is sent, and what must come back."""

    name: str
    body: bytes
    says: tuple[str, ...]
    status: int = 400
    path: str = "/v2/models/iris/infer"
    headers: dict[str, str] = field(default_factory=dict)

    def send(self, server: Server) -> Answer:
        """One exchange."""
        return server.ask("POST", self.path, self.body, self.headers)


def to(model: str) -> str:
    """Path of the predictions of a model."""
    return f"/v2/models/{model}/infer"


def binary_mistake(name: str, request: dict[str, Any], raw: bytes, *says: str, **members: Any) -> Mistake:
    """A request with a binary part."""
    body, headers = binary_body(request, raw)
    return Mistake(name, body, says, headers=headers | members.pop("headers", {}), **members)


def raw_iris(**parameters: Any) -> dict[str, Any]:
    """A request to iris whose features follow the JSON."""
    return iris(data=None, parameters={"binary_data_size": 16} | parameters)


RAW = FLOWER.tobytes()
TWO_INPUTS = [
    json_input("INPUT0", "INT32", np.zeros((1, 16), np.int32)),
    json_input("INPUT1", "INT32", np.zeros((1, 16), np.int32)),
]

NOT_JSON = [
    Mistake("no_json", b"hello", ("JSON",)),
    Mistake("no_body", b"", ("JSON",)),
    Mistake("json_cut_short", text(iris())[:-1], ("JSON",)),
    Mistake("json_with_more_behind", text(iris()) + b"{}", ("JSON", SIZE_HEADER)),
    Mistake("json_with_a_comma_too_many", b'{"inputs": [],}', ("JSON",)),
    Mistake("not_utf8", b'{"inputs": [{"name": "\xff\xfe"}]}', ("JSON",)),
    Mistake("an_array", b"[]", ("object",)),
    Mistake("a_number", b"42", ("object",)),
    Mistake("null", b"null", ("object",)),
    Mistake("inputs_are_no_array", b'{"inputs": {"features": [1]}}', ("inputs",)),
    Mistake("an_input_is_no_object", b'{"inputs": [[1, 2, 3, 4]]}', ("inputs[0]",)),
    Mistake("member_twice", b'{"inputs": [], "inputs": []}', ("inputs", "more than once")),
    Mistake(
        "not_a_number",
        b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 4], "data": [NaN, 1, 1, 1]}]}',
        ("data", "NaN"),
    ),
]

NAMES = [
    Mistake("unknown_model", text(iris()), ("irsi",), status=404, path=to("irsi")),
    Mistake("unknown_version", text(iris()), ("iris", "7"), status=404, path="/v2/models/iris/versions/7/infer"),
    Mistake(
        "version_that_is_no_number",
        text(iris()),
        ("iris", "one"),
        status=404,
        path="/v2/models/iris/versions/one/infer",
    ),
    Mistake("unknown_input", text(iris(name="petals")), ("petals", "features")),
    Mistake("inputs_missing", b"{}", ("inputs",)),
    Mistake("no_input_at_all", b'{"inputs": []}', ("features", "missing")),
    Mistake("one_of_two_inputs_missing", text({"inputs": TWO_INPUTS[:1]}), ("INPUT1", "missing"), path=to("simple")),
    Mistake("repeated_input", text({"inputs": iris()["inputs"] * 2}), ("features", "more than once")),
    Mistake("unnamed_input", text(iris(name=None)), ("inputs[0].name",)),
    Mistake("name_that_is_no_text", text(iris(name=5)), ("inputs[0].name",)),
    Mistake("unknown_output", text(iris() | {"outputs": [{"name": "colour"}]}), ("colour", "label", "probabilities")),
    Mistake("repeated_output", text(iris() | {"outputs": [{"name": "label"}] * 2}), ("label", "more than once")),
    Mistake("unnamed_output", text(iris() | {"outputs": [{}]}), ("outputs[0].name",)),
]

DATATYPES = [
    Mistake("wrong_datatype", text(iris(datatype="INT64", data=[1, 2, 3, 4])), ("features", "INT64", "FP32")),
    Mistake("unknown_datatype", text(iris(datatype="FLOAT")), ("inputs[0].datatype", "FLOAT", "FP32")),
    Mistake("no_datatype", text(iris(datatype=None)), ("inputs[0].datatype",)),
    Mistake("text_for_a_number", text(iris(data=["5.1", 3.5, 1.4, 0.2])), ("inputs[0].data[0]",)),
    Mistake("truth_for_a_number", text(iris(data=[True, 3.5, 1.4, 0.2])), ("inputs[0].data[0]",)),
    Mistake("null_for_a_number", text(iris(data=[5.1, None, 1.4, 0.2])), ("inputs[0].data[1]",)),
    Mistake("number_too_large_for_fp32", text(iris(data=[5.1, 3.5, 1.4, 1e300])), ("inputs[0].data[3]", "too large")),
    Mistake(
        "number_too_large_for_json",
        b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1e999]}]}',
        ("inputs[0].data[3]", "too large"),
    ),
    Mistake(
        "fraction_for_a_whole_number",
        text({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1, 1], "data": [1.5]}]}),
        ("inputs[0].data[0]", "1.5", "INT8"),
        path=to("identity_int8"),
    ),
    Mistake(
        "beyond_the_range",
        text({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1, 1], "data": [128]}]}),
        ("inputs[0].data[0]", "128", "INT8"),
        path=to("identity_int8"),
    ),
    Mistake(
        "beyond_64_bits",
        b'{"inputs": [{"name": "x", "datatype": "UINT64", "shape": [1, 1], "data": [18446744073709551616]}]}',
        ("inputs[0].data[0]", "UINT64"),
        path=to("identity_uint64"),
    ),
    Mistake(
        "negative_for_unsigned",
        text({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 1], "data": [-1]}]}),
        ("inputs[0].data[0]", "-1", "UINT8"),
        path=to("identity_uint8"),
    ),
    Mistake(
        "number_for_a_truth",
        text({"inputs": [{"name": "x", "datatype": "BOOL", "shape": [1, 1], "data": [1]}]}),
        ("inputs[0].data[0]", "BOOL"),
        path=to("identity_bool"),
    ),
    Mistake(
        "number_for_a_text",
        text({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 1], "data": [1]}]}),
        ("inputs[0].data[0]", "BYTES"),
        path=to("identity_bytes"),
    ),
    Mistake(
        "fp16_as_json",
        text({"inputs": [{"name": "x", "datatype": "FP16", "shape": [1, 1], "data": [1.5]}]}),
        ("inputs[0].data", "FP16", "binary"),
        path=to("identity_fp16"),
    ),
    Mistake(
        "bf16_as_json",
        text({"inputs": [{"name": "x", "datatype": "BF16", "shape": [1, 1], "data": [1.5]}]}),
        ("inputs[0].data", "BF16", "binary"),
        path=to("identity_bf16"),
    ),
    Mistake(
        "text_with_a_nul",
        text({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 2], "data": ["good", "b\0d"]}]}),
        ("x", "element 1"),
        path=to("identity_bytes"),
    ),
]

SHAPES = [
    Mistake("no_shape", text(iris(shape=None)), ("inputs[0].shape",)),
    Mistake("shape_that_is_no_array", text(iris(shape=4)), ("inputs[0].shape",)),
    Mistake("dimension_that_is_text", text(iris(shape=[1, "4"])), ("inputs[0].shape[1]",)),
    Mistake("dimension_with_a_fraction", text(iris(shape=[1, 4.5])), ("inputs[0].shape[1]", "4.5")),
    Mistake("fewer_elements_than_the_shape", text(iris(shape=[2, 4])), ("inputs[0].data", "4", "8")),
    Mistake("more_elements_than_the_shape", text(iris(data=[1, 2, 3, 4, 5])), ("inputs[0].data", "4")),
    Mistake(
        "rows_of_unequal_length",
        text(iris(shape=[2, 4], data=[[1, 2, 3, 4], [1, 2, 3]])),
        ("inputs[0].data[1]", "3", "4"),
    ),
    Mistake("deeper_than_the_shape", text(iris(data=[[[5.1], [3.5], [1.4], [0.2]]])), ("inputs[0].data",)),
    Mistake(
        "wrong_width_for_the_model", text(iris(shape=[1, 5], data=[1, 2, 3, 4, 5])), ("features", "[1, 5]", "-1", "4")
    ),
    Mistake("wrong_rank_for_the_model", text(iris(shape=[4])), ("features", "[4]")),
    Mistake("scalar_for_a_matrix", text(iris(shape=[], data=[1])), ("features", "[]")),
    Mistake("negative_dimension", text(iris(shape=[-1, 4])), ("inputs[0].shape[0]", "-1")),
    Mistake("huge_dimension", text(iris(shape=[1 << 62, 4])), ("inputs[0].shape", str(1 << 62))),
    Mistake("dimension_beyond_64_bits", text(iris(shape=[1 << 70, 4])), ("inputs[0].shape[0]", "too large")),
    Mistake("overflowing_dimensions", text(iris(shape=[1 << 32, 1 << 32])), ("inputs[0].shape", str(1 << 32))),
    Mistake("dimensions_that_overflow_in_bytes", text(iris(shape=[1 << 61, 4])), ("inputs[0].shape",)),
    Mistake("large_dimension_with_little_data", text(iris(shape=[1 << 40, 4])), ("inputs[0].data", str(1 << 40))),
    Mistake("dimensions_that_overflow_beside_a_zero", text(iris(shape=[1 << 62, 1 << 62, 0], data=[])), ("features",)),
    Mistake("a_thousand_dimensions", text(iris(shape=[1] * 1000)), ("inputs[0].shape",)),
    Mistake(
        "more_rows_than_are_allowed",
        text(iris(shape=[1_000_000, 4], data=[0] * 4_000_000)),
        ("features", "1000000", "rows"),
    ),
]

DATA = [
    Mistake("neither_data_nor_bytes", text(iris(data=None)), ("inputs[0].data",)),
    binary_mistake(
        "both_data_and_bytes", iris(parameters={"binary_data_size": 16}), RAW, "inputs[0]", "binary_data_size", "data"
    ),
]

BINARY = [
    binary_mistake(
        "binary_size_contradicts_the_shape", raw_iris(binary_data_size=12), RAW[:12], "binary_data_size", "12", "16"
    ),
    binary_mistake("binary_size_beyond_the_body", raw_iris(), RAW[:10], "binary_data_size", "16", "10"),
    binary_mistake("bytes_left_over", raw_iris(), RAW + b"12345", "5 bytes"),
    binary_mistake("binary_size_is_negative", raw_iris(binary_data_size=-16), RAW, "binary_data_size"),
    binary_mistake("binary_size_is_text", raw_iris(binary_data_size="16"), RAW, "binary_data_size"),
    binary_mistake("binary_size_overflows", raw_iris(binary_data_size=1 << 64), RAW, "binary_data_size"),
    Mistake("binary_part_without_its_header", text(raw_iris()) + RAW, ("JSON", SIZE_HEADER)),
    binary_mistake(
        "size_header_beyond_the_body", raw_iris(), RAW, SIZE_HEADER.lower(), headers={SIZE_HEADER: "100000"}
    ),
    binary_mistake(
        "size_header_is_no_number", raw_iris(), RAW, SIZE_HEADER.lower(), "ten", headers={SIZE_HEADER: "ten"}
    ),
    binary_mistake("size_header_is_negative", raw_iris(), RAW, SIZE_HEADER.lower(), "-1", headers={SIZE_HEADER: "-1"}),
    binary_mistake("size_header_is_empty", raw_iris(), RAW, SIZE_HEADER.lower(), headers={SIZE_HEADER: ""}),
    binary_mistake("size_header_overflows", raw_iris(), RAW, SIZE_HEADER.lower(), headers={SIZE_HEADER: str(1 << 64)}),
    binary_mistake("size_header_cuts_the_json", raw_iris(), RAW, "JSON", headers={SIZE_HEADER: "20"}),
    Mistake(
        "raw_request_to_a_model_with_two_inputs",
        bytes(128),
        ("one input",),
        path=to("simple"),
        headers={SIZE_HEADER: "0"},
    ),
    Mistake("raw_request_of_a_wrong_length", RAW[:15], ("15 bytes", "16"), headers={SIZE_HEADER: "0"}),
    binary_mistake(
        "text_element_beyond_its_bytes",
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 8}}]},
        b"\xff\xff\xff\xffabcd",
        "inputs[0]",
        "element 0",
        path=to("identity_bytes"),
    ),
    binary_mistake(
        "fewer_text_elements_than_the_shape",
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 2], "parameters": {"binary_data_size": 5}}]},
        b"\x01\0\0\0a",
        "inputs[0]",
        "1",
        "2",
        path=to("identity_bytes"),
    ),
    binary_mistake(
        "text_element_that_is_not_utf8",
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 6}}]},
        b"\x02\0\0\0\xff\xfe",
        "x",
        "element 0",
        "UTF-8",
        path=to("identity_bytes"),
    ),
]

PARAMETERS = [
    Mistake("timeout_is_text", text(iris() | {"parameters": {"timeout": "1s"}}), ("parameters.timeout",)),
    Mistake("timeout_is_negative", text(iris() | {"parameters": {"timeout": -5}}), ("parameters.timeout",)),
    Mistake("reserved_parameter", text(iris() | {"parameters": {"triton_secret": 1}}), ("triton_",)),
    Mistake("parameters_are_no_object", text(iris() | {"parameters": []}), ("parameters",)),
    Mistake("parameter_is_an_object", text(iris() | {"parameters": {"mine": {}}}), ("parameters.mine",)),
    Mistake(
        "classification_is_text",
        text(iris() | {"outputs": [{"name": "probabilities", "parameters": {"classification": "all"}}]}),
        ("classification",),
    ),
    Mistake(
        "deadline_header_is_no_number",
        text(iris()),
        ("x-request-timeout-ms", "soon"),
        headers={"x-request-timeout-ms": "soon"},
    ),
    Mistake(
        "deadline_header_is_negative",
        text(iris()),
        ("x-request-timeout-ms", "-5"),
        headers={"x-request-timeout-ms": "-5"},
    ),
    Mistake("grpc_deadline_without_a_unit", text(iris()), ("grpc-timeout", "100"), headers={"grpc-timeout": "100"}),
    Mistake(
        "shared_memory",
        text(iris(data=None, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 16})),
        ("shared_memory",),
        status=501,
    ),
]

ENCODINGS = [
    Mistake(
        "unknown_encoding", text(iris()), ("Content-Encoding", "br"), status=415, headers={"Content-Encoding": "br"}
    ),
    Mistake("gzip_that_is_none", text(iris()), ("gzip",), headers={"Content-Encoding": "gzip"}),
    Mistake("gzip_cut_short", gzip.compress(text(iris()))[:-9], ("gzip",), headers={"Content-Encoding": "gzip"}),
    Mistake(
        "gzip_with_a_wrong_checksum",
        gzip.compress(text(iris()))[:-8] + bytes(8),
        ("gzip",),
        headers={"Content-Encoding": "gzip"},
    ),
    Mistake("deflate_that_is_none", text(iris()), ("deflate",), headers={"Content-Encoding": "deflate"}),
    Mistake(
        "deflate_with_more_behind",
        zlib.compress(text(iris())) + b"x",
        ("deflate",),
        headers={"Content-Encoding": "deflate"},
    ),
]

MISTAKES = [*NOT_JSON, *NAMES, *DATATYPES, *SHAPES, *DATA, *BINARY, *PARAMETERS, *ENCODINGS]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_refused_with_a_sentence_that_names_it(server: Server, mistake: Mistake) -> None:
    answer = mistake.send(server)
    assert answer.status == mistake.status, answer
    message = answer.error.lower()
    missing = [word for word in mistake.says if word.lower() not in message]
    assert not missing, f"{missing} not in: {answer.error}"
    assert len(answer.body) < 2_000, "the answer should not repeat what was sent"


def test_different_mistakes_have_different_sentences(toys: Server) -> None:
    messages: dict[str, str] = {}
    for mistake in [*NAMES, *DATATYPES, *SHAPES, *BINARY]:
        if mistake.name in ("number_too_large_for_json", "more_rows_than_are_allowed"):
            continue  # The same mistake as another one; too long to send twice.
        message = mistake.send(toys).error
        assert message not in messages.values(), f"{mistake.name} says the same as another: {message}"
        messages[mistake.name] = message


# ===== JSON nested 100,000 deep =====

DEEP_ARRAY = "[" * NESTED + "]" * NESTED
DEEP_OBJECT = '{"a":' * NESTED + "1" + "}" * NESTED
GOOD_INPUT = json.dumps(iris()["inputs"][0])
NESTS = {
    "as_the_body": DEEP_ARRAY,
    "as_the_body_never_closed": "[" * NESTED,
    "as_objects": DEEP_OBJECT,
    "in_inputs": f'{{"inputs": {DEEP_ARRAY}}}',
    "in_data": f'{{"inputs": [{{"name": "features", "datatype": "FP32", "shape": [1, 4], "data": {DEEP_ARRAY}}}]}}',
    "in_data_before_the_shape": f'{{"inputs": [{{"data": {DEEP_ARRAY}, "name": "features", "datatype": "FP32"}}]}}',
    "in_the_shape": f'{{"inputs": [{{"name": "features", "datatype": "FP32", "shape": {DEEP_ARRAY}, "data": [1]}}]}}',
    "in_a_name": f'{{"inputs": [{{"name": {DEEP_ARRAY}, "datatype": "FP32", "shape": [1, 4], "data": [1]}}]}}',
    "in_a_parameter": f'{{"inputs": [{GOOD_INPUT}], "parameters": {{"a": {DEEP_OBJECT}}}}}',
    "in_an_output": f'{{"inputs": [{GOOD_INPUT}], "outputs": [{{"name": {DEEP_ARRAY}}}]}}',
}


@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("path", [to("iris"), "/v1/models/iris:predict"], ids=["v2", "v1"])
def test_json_nested_100000_deep_is_refused(server: Server, nest: str, path: str) -> None:
    answer = server.ask("POST", path, NESTS[nest])
    assert answer.status == 400, answer
    assert answer.error


def test_a_member_that_is_ignored_may_be_nested_without_harm(server: Server) -> None:
    answer = server.ask("POST", to("simple"), f'{{"inputs": [], "mine": {DEEP_OBJECT}}}')
    assert answer.status == 400, answer


# ===== paths and methods =====


@pytest.mark.parametrize(
    "path", ["/", "/v2/nothing", "/v2/models/iris/nothing", "/v3", "/v2/models/iris/versions/1/nothing"]
)
def test_an_unknown_path_is_404(server: Server, path: str) -> None:
    answer = server.get(path)
    assert answer.status == 404, answer
    assert path in answer.error


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/iris/infer"),
        ("PUT", "/v2/models/iris/infer"),
        ("DELETE", "/v2/models/iris/versions/1/infer"),
        ("POST", "/v2/models/iris"),
        ("POST", "/v2/health/live"),
        ("GET", "/v2/repository/index"),
        ("GET", "/v2/repository/models/iris/load"),
        ("GET", "/v1/models/iris:predict"),
    ],
)
def test_a_wrong_method_is_405_and_tells_the_right_one(server: Server, method: str, path: str) -> None:
    answer = server.ask(method, path)
    assert answer.status == 405, answer
    assert method in answer.error
    assert answer.headers["Allow"], answer.headers.items()


@pytest.mark.parametrize(
    "path", ["/v2/models/nobody", "/v2/models/nobody/config", "/v2/models/nobody/stats", "/v2/models/nobody/ready"]
)
def test_an_unknown_model_is_404_on_every_route(server: Server, path: str) -> None:
    answer = server.get(path)
    assert answer.status == 404, answer
    assert "nobody" in answer.error


@pytest.mark.parametrize("path", ["", "/config", "/stats", "/ready"])
def test_an_unknown_version_is_404_on_every_route(server: Server, path: str) -> None:
    answer = server.get(f"/v2/models/iris/versions/7{path}")
    assert answer.status == 404, answer
    assert "iris" in answer.error and "7" in answer.error


def test_a_name_is_matched_whole_and_not_as_a_path(server: Server) -> None:
    for name in ["..%2Firis", "iris%2F1", "%2e%2e", "iris%00", "%ff"]:
        answer = server.ask("POST", f"/v2/models/{name}/infer", text(iris()))
        assert answer.status in (400, 404), (name, answer)
        assert answer.error


# ===== what only the graph knows =====


@pytest.mark.parametrize("index", [3, -4, 1 << 62])
def test_an_index_beyond_the_table_is_the_clients_mistake(toys: Server, index: int) -> None:
    answer = toys.infer("gather", json_input("index", "INT64", np.array([0, index])))
    assert answer.status == 400, answer
    assert str(index) in answer.error
    toys.wait_idle()
    assert toys.infer("gather", json_input("index", "INT64", np.array([2]))).outputs()["row"].tolist() == [[4.0, 5.0]]


def test_sizes_that_only_the_graph_finds_to_disagree_are_the_clients_mistake(toys: Server) -> None:
    three, four = (np.zeros(size, np.float32) for size in (3, 4))
    answer = toys.infer("add_any", json_input("a", "FP32", three), json_input("b", "FP32", four))
    assert answer.status == 400, answer
    assert "3 by 4" in answer.error
    answer = toys.infer("add_any", json_input("a", "FP32", four), json_input("b", "FP32", four))
    assert answer.outputs()["sum"].shape == (4,)


def test_a_half_precision_output_cannot_be_asked_for_in_json(toys: Server) -> None:
    head, raw = binary_input("x", "FP16", np.ones((1, 1), np.float16))
    body, headers = binary_body({"inputs": [head]}, raw)
    answer = toys.ask("POST", to("identity_fp16"), body, headers)
    assert answer.status == 400, answer
    assert "FP16" in answer.error and "binary" in answer.error


# ===== bodies that are too large, too slow, or never come to an end =====

TIGHT_BYTES = 64 * 1024


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Small bodies and little patience. `control` bodies and headers have bounds of their own."""
    folder = tmp_path_factory.mktemp("tight")
    repository = Repository(folder / "models")
    repository.add("wide", onnx_models.identity("FP32", ["n"]))
    repository.add("text", onnx_models.identity("BYTES", ["n"]))
    config = {"http": {"max_body_bytes": TIGHT_BYTES, "body_timeout_ms": 300, "header_timeout_ms": 300}}
    server = Server(folder, repository.path, config)
    try:
        yield server.wait_started().wait_lanes()
    finally:
        code = server.stop()
    assert code == 0, server.stderr


@pytest.fixture
def bounded(tight: Server) -> Iterator[Server]:
    """That server, which must be as it was when the test is over."""
    before = cost(tight.metrics())
    yield tight
    tight.wait_idle()
    assert cost(tight.metrics()) == before
    numbers = np.arange(3, dtype=np.float32)
    assert tight.infer("wide", json_input("x", "FP32", numbers)).outputs()["y"].tolist() == [0, 1, 2]


def wide(elements: int) -> bytes:
    """A request of about two bytes an element."""
    return text({"inputs": [{"name": "x", "datatype": "FP32", "shape": [elements], "data": [0] * elements}]})


def test_an_announced_body_over_the_limit_is_413_before_it_is_sent(bounded: Server) -> None:
    with Wire(bounded.http) as wire:
        wire.head("POST", to("wide"), {"Content-Length": TIGHT_BYTES + 1})
        answer = wire.answer()
    assert answer and answer.status == 413
    assert str(TIGHT_BYTES + 1) in answer.error and str(TIGHT_BYTES) in answer.error
    assert "max_body_bytes" in answer.error


def test_an_unannounced_body_over_the_limit_is_413(bounded: Server) -> None:
    with Wire(bounded.http) as wire:
        wire.head("POST", to("wide"), {"Transfer-Encoding": "chunked"})
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        for _ in range(TIGHT_BYTES // 4096 + 1):
            wire.send(chunk)
        answer = wire.answer()
    assert answer and answer.status == 413
    assert str(TIGHT_BYTES) in answer.error


def test_a_body_at_the_limit_is_taken(bounded: Server) -> None:
    body = wide(3).ljust(TIGHT_BYTES)
    assert len(body) == TIGHT_BYTES
    assert bounded.ask("POST", to("wide"), body[:-1] + b"x").status == 400, "read, and found not to be JSON"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_bomb_is_413_and_takes_no_memory(bounded: Server, encoding: str) -> None:
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    megabyte = bytes(1 << 20)
    bomb = b"".join(packer.compress(megabyte) for _ in range(48)) + packer.flush()
    assert len(bomb) < TIGHT_BYTES
    before = bounded.peak_memory()
    answer = bounded.ask("POST", to("wide"), bomb, {"Content-Encoding": encoding})
    assert answer.status == 413, answer
    assert str(TIGHT_BYTES) in answer.error and "decompressed" in answer.error
    assert bounded.peak_memory() - before < 8 << 20


def test_a_truncated_upload_is_refused_and_leaves_nothing_behind(bounded: Server) -> None:
    body = wide(100)
    with Wire(bounded.http) as wire:
        wire.head("POST", to("wide"), {"Content-Length": len(body)})
        wire.send(body[:50])
        wire.socket.shutdown(1)
        answer = wire.answer()
    # Whoever closes his side may be answered or closed on; nothing else.
    assert answer is None or answer.status in (400, 408), answer


def test_an_upload_that_is_broken_off_leaves_nothing_behind(bounded: Server) -> None:
    before = bounded.metrics().sum("balm_predict_requests_total", model="wide", outcome="ok")
    for _ in range(20):
        with Wire(bounded.http) as wire:
            wire.head("POST", to("wide"), {"Content-Length": 1000})
            wire.send(b"{")
    bounded.wait_idle()
    assert bounded.metrics().sum("balm_predict_requests_total", model="wide", outcome="ok") == before


def test_a_body_that_stops_coming_is_408(bounded: Server) -> None:
    with Wire(bounded.http) as wire:
        wire.head("POST", to("wide"), {"Content-Length": 1000})
        wire.send(b"{")
        answer = wire.answer()
    assert answer and answer.status == 408
    assert "300 ms" in answer.error


def test_a_head_that_stops_coming_is_not_waited_for(bounded: Server) -> None:
    with Wire(bounded.http, timeout_s=10) as wire:
        wire.send(b"POST /v2/models/wide/infer HTTP/1.1\r\nHost: test\r\n")
        answer = wire.answer()
    assert answer is None or answer.status == 408, answer


@pytest.mark.parametrize(
    "head",
    [
        b"hello\r\n\r\n",
        b"POST /v2/models/wide/infer HTTP/9.9\r\nHost: test\r\n\r\n",
        b"POST /v2/models/wide/infer HTTP/1.1\r\nHost: test\r\nContent-Length: ten\r\n\r\n",
        b"POST /v2/models/wide/infer HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v2/models/wide/infer HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: test\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: test\r\n" + b"X: a\r\n" * 10_000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    ],
    ids=[
        "no_http",
        "http_9",
        "length_is_no_number",
        "two_lengths",
        "broken_chunk",
        "long_path",
        "long_header",
        "many_headers",
        "tls",
    ],
)
def test_what_is_no_http_is_refused_or_closed_on(bounded: Server, head: bytes) -> None:
    with Wire(bounded.http, timeout_s=10) as wire:
        wire.send(head)
        answer = wire.answer()
    assert answer is None or 400 <= answer.status < 500, answer


def test_a_control_body_over_its_limit_is_413(toys: Server) -> None:
    answer = toys.ask("POST", "/v2/repository/models/iris/load", b" " * (1 << 21))
    assert answer.status == 413, answer
    assert answer.error


def test_small_texts_that_grow_when_decoded_are_bounded(
    tmp_path: Path, start: Callable[..., Server], repository: Repository
) -> None:
    """`["","",…]`: three bytes of JSON an element become many in memory."""
    repository.add("text", onnx_models.identity("BYTES", ["n"]), settings="[limits]\nmax_batch_rows = 16777216\n")
    server = start(repository.path).wait_started()
    elements = 12_000_000
    body = b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [%d], "data": [%s""]}]}' % (
        elements,
        b'"",' * (elements - 1),
    )
    answer = server.ask("POST", to("text"), body)
    assert answer.status == 413, answer
    assert "decoded" in answer.error
    server.wait_idle()
