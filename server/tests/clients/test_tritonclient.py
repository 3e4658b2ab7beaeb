"""The unmodified HTTP client of Triton Inference Server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from harness import Server

# ===== tensors =====

VALUES: dict[str, np.ndarray] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 65_535]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**53 + 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-32_768, 0, 32_767]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**53 + 1, 2**63 - 1]], np.int64),
    "FP16": np.array([[-0.0, 6e-8, 65_504]], np.float16),
    "BF16": np.array([[-1.5, 1e-38, 3e38]], ml_dtypes.bfloat16),
    "FP32": np.array([[-0.0, 0.1, 3.4e38, 1e-45]], np.float32),
    "FP64": np.array([[-0.0, 0.1, 1.7e308, 5e-324]], np.float64),
    "BYTES": np.array([[b"", "grüße 🌷".encode(), b"a" * 5_000]], np.object_),
}
IN_JSON = [datatype for datatype in VALUES if datatype not in ("FP16", "BF16")]
NO_ROWS = {datatype: values[:0] for datatype, values in VALUES.items()}


def tensor(name: str, datatype: str, values: np.ndarray, binary: bool = True) -> triton.InferInput:
    """An input as users make it."""
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def wanted(name: str, binary: bool = True, classes: int = 0) -> triton.InferRequestedOutput:
    """An output as users ask for it."""
    return triton.InferRequestedOutput(name, binary_data=binary, class_count=classes)


def same(found: np.ndarray, sent: np.ndarray) -> bool:
    """Equal to the bit; texts may come as text or bytes."""
    if sent.dtype == np.object_:
        flat = [item.encode() if isinstance(item, str) else item for item in found.ravel()]
        return found.shape == sent.shape and flat == sent.ravel().tolist()
    return found.shape == sent.shape and found.dtype == sent.dtype and found.tobytes() == sent.tobytes()


@pytest.fixture
def client(shipped: Server) -> Iterator[triton.InferenceServerClient]:
    """A client of the models that come with Balm."""
    with triton.InferenceServerClient(shipped.http) as made:
        yield made


@pytest.fixture
def toy(toys: Server) -> Iterator[triton.InferenceServerClient]:
    """A client of the tiny models."""
    with triton.InferenceServerClient(toys.http, concurrency=4) as made:
        yield made


FLOWERS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 5.6, 2.4]], np.float32)
KINDS = [0, 2]


# ===== infer =====


@pytest.mark.parametrize("datatype", VALUES)
@pytest.mark.parametrize("values", [VALUES, NO_ROWS], ids=["values", "no_rows"])
def test_every_datatype_goes_through_as_binary(
    toy: triton.InferenceServerClient, datatype: str, values: dict[str, np.ndarray]
) -> None:
    sent = values[datatype]
    result = toy.infer(f"identity_{datatype.lower()}", [tensor("x", datatype, sent)])
    output = result.get_output("y")
    assert output["datatype"] == datatype and output["shape"] == list(sent.shape)
    assert "binary_data_size" in output["parameters"] and "data" not in output
    assert same(result.as_numpy("y"), sent)


@pytest.mark.parametrize("datatype", IN_JSON)
@pytest.mark.parametrize("values", [VALUES, NO_ROWS], ids=["values", "no_rows"])
def test_every_datatype_but_half_precision_goes_through_as_json(
    toy: triton.InferenceServerClient, datatype: str, values: dict[str, np.ndarray]
) -> None:
    sent = values[datatype]
    result = toy.infer(
        f"identity_{datatype.lower()}",
        [tensor("x", datatype, sent, binary=False)],
        outputs=[wanted("y", binary=False)],
    )
    output = result.get_output("y")
    assert output["datatype"] == datatype and output["shape"] == list(sent.shape)
    assert "data" in output and "parameters" not in output, "clients in C++ stumble over parameters without a size"
    assert same(result.as_numpy("y"), sent)


def test_not_a_number_and_infinity_go_through_as_binary(toy: triton.InferenceServerClient) -> None:
    sent = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    assert same(toy.infer("identity_fp32", [tensor("x", "FP32", sent)]).as_numpy("y"), sent)


@pytest.mark.parametrize("first_binary", [True, False])
def test_binary_and_json_inputs_and_outputs_mix(toy: triton.InferenceServerClient, first_binary: bool) -> None:
    a = np.arange(32, dtype=np.int32).reshape(2, 16)
    b = np.full((2, 16), 3, np.int32)
    result = toy.infer(
        "simple",
        [tensor("INPUT0", "INT32", a, binary=first_binary), tensor("INPUT1", "INT32", b, binary=not first_binary)],
        outputs=[wanted("OUTPUT0", binary=not first_binary), wanted("OUTPUT1", binary=first_binary)],
    )
    assert same(result.as_numpy("OUTPUT0"), a + b)
    assert same(result.as_numpy("OUTPUT1"), a - b)
    assert ("data" in result.get_output("OUTPUT0")) is first_binary
    assert ("data" in result.get_output("OUTPUT1")) is not first_binary


def test_inputs_may_come_in_any_order_and_outputs_come_as_asked(toy: triton.InferenceServerClient) -> None:
    a = np.full((1, 16), 5, np.int32)
    b = np.full((1, 16), 3, np.int32)
    result = toy.infer(
        "simple",
        [tensor("INPUT1", "INT32", b), tensor("INPUT0", "INT32", a)],
        outputs=[wanted("OUTPUT1"), wanted("OUTPUT0")],
    )
    assert [output["name"] for output in result.get_response()["outputs"]] == ["OUTPUT1", "OUTPUT0"]
    assert same(result.as_numpy("OUTPUT1"), a - b)
    assert same(result.as_numpy("OUTPUT0"), a + b)


def test_an_output_that_is_not_asked_for_does_not_come(toy: triton.InferenceServerClient) -> None:
    ones = np.ones((1, 16), np.int32)
    inputs = [tensor("INPUT0", "INT32", ones), tensor("INPUT1", "INT32", ones)]
    result = toy.infer("simple", inputs, outputs=[wanted("OUTPUT1")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["OUTPUT1"]
    result = toy.infer("simple", inputs)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["OUTPUT0", "OUTPUT1"]


def test_scalars_and_any_rank_go_through(toy: triton.InferenceServerClient) -> None:
    scalar = np.array(2.5, np.float32)
    assert same(toy.infer("scalar", [tensor("x", "FP32", scalar)]).as_numpy("y"), scalar)
    for shape in [(), (3,), (2, 0, 4), (1, 2, 3, 4, 5)]:
        sent = np.arange(np.prod(shape, dtype=int), dtype=np.int64).reshape(shape)
        assert same(toy.infer("any_rank", [tensor("x", "INT64", sent)]).as_numpy("y"), sent)


def test_weights_in_another_file_are_used(toy: triton.InferenceServerClient) -> None:
    result = toy.infer("external", [tensor("x", "FP32", np.ones((1, 4), np.float32))])
    assert result.as_numpy("y").tolist() == [[11, 21, 31, 41]]


@pytest.mark.parametrize("request_encoding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_encoding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_bodies_may_be_compressed_both_ways(
    toy: triton.InferenceServerClient, request_encoding: str | None, response_encoding: str | None, binary: bool
) -> None:
    sent = np.arange(4_000, dtype=np.int64).reshape(40, 100)
    result = toy.infer(
        "identity_int64",
        [tensor("x", "INT64", sent, binary=binary)],
        outputs=[wanted("y", binary=binary)],
        request_compression_algorithm=request_encoding,
        response_compression_algorithm=response_encoding,
    )
    assert same(result.as_numpy("y"), sent)


def test_request_ids_come_back(client: triton.InferenceServerClient) -> None:
    flowers = [tensor("features", "FP32", FLOWERS)]
    result = client.infer("iris", flowers, request_id="flower-7", headers={"X-Request-Id": "trace-1"})
    assert result.get_response()["id"] == "flower-7"
    assert "id" not in client.infer("iris", flowers).get_response()


def test_the_answer_names_model_and_version(client: triton.InferenceServerClient) -> None:
    response = client.infer("iris", [tensor("features", "FP32", FLOWERS)]).get_response()
    assert (response["model_name"], response["model_version"]) == ("iris", "1")


def test_a_version_in_the_path_is_the_one_that_answers(toy: triton.InferenceServerClient) -> None:
    x = [tensor("x", "FP32", np.array([0], np.float32))]
    answers = {}
    for version in ["", "1", "2", "10"]:
        result = toy.infer("versions", x, model_version=version)
        answers[version] = (result.get_response()["model_version"], result.as_numpy("y").tolist())
    assert answers == {"": ("10", [10]), "1": ("1", [1]), "2": ("2", [2]), "10": ("10", [10])}


def test_many_requests_at_once_each_get_their_own_answer(toy: triton.InferenceServerClient) -> None:
    def ask(number: int) -> triton.InferAsyncRequest:
        rows = np.full((1, 16), number, np.int32)
        return toy.async_infer("simple", [tensor("INPUT0", "INT32", rows), tensor("INPUT1", "INT32", rows)])

    pending = [ask(number) for number in range(100)]
    found = [request.get_result().as_numpy("OUTPUT0")[0, 0] for request in pending]
    assert found == [2 * number for number in range(100)]


def test_custom_parameters_priority_and_sequences_are_taken(client: triton.InferenceServerClient) -> None:
    result = client.infer(
        "iris",
        [tensor("features", "FP32", FLOWERS)],
        parameters={"who": "me", "how_often": 3, "really": True},
        priority=1,
        timeout=5_000_000,
        query_params={"tenant": "a"},
    )
    assert result.as_numpy("label").tolist() == KINDS


def test_classification_gives_the_top_classes_with_their_labels(client: triton.InferenceServerClient) -> None:
    flowers = [tensor("features", "FP32", FLOWERS)]
    plain = client.infer("iris", flowers).as_numpy("probabilities")
    for binary in (True, False):
        result = client.infer("iris", flowers, outputs=[wanted("probabilities", binary=binary, classes=2)])
        output = result.get_output("probabilities")
        assert output["datatype"] == "BYTES" and output["shape"] == [2, 2]
        names = ["setosa", "versicolor", "virginica"]
        for row, probabilities in zip(result.as_numpy("probabilities"), plain, strict=True):
            classes = [item.decode() if isinstance(item, bytes) else item for item in row]
            best = np.argsort(-probabilities)[:2]
            assert [entry.split(":")[1:] for entry in classes] == [[str(index), names[index]] for index in best]
            assert [float(entry.split(":")[0]) for entry in classes] == pytest.approx(probabilities[best], abs=1e-6)


def test_more_classes_than_there_are_gives_all(client: triton.InferenceServerClient) -> None:
    result = client.infer("iris", [tensor("features", "FP32", FLOWERS)], outputs=[wanted("probabilities", classes=99)])
    assert result.get_output("probabilities")["shape"] == [2, 3]


def test_an_error_reaches_the_user_as_the_clients_own_exception(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("iris", [tensor("features", "FP32", FLOWERS[:, :3].copy())])
    assert caught.value.status() == "400"
    assert "features" in caught.value.message() and "[2, 3]" in caught.value.message()
    with pytest.raises(InferenceServerException, match="irsi") as caught:
        client.infer("irsi", [tensor("features", "FP32", FLOWERS)])
    assert caught.value.status() == "404"


# ===== health and metadata =====


def test_health(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.is_model_ready("iris") is True
    assert client.is_model_ready("iris", "1") is True
    assert client.is_model_ready("iris", "2") is False
    assert client.is_model_ready("nobody") is False


def test_server_metadata_lists_what_is_really_there(client: triton.InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert metadata["name"] == "balm" and metadata["version"]
    have = {
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "parameters",
        "statistics",
    }
    assert have <= set(metadata["extensions"])
    # perf_analyzer turns features on by these names.
    have_not = {"system_shared_memory", "cuda_shared_memory", "trace", "logging", "sequence"}
    assert not have_not & set(metadata["extensions"])


def test_model_metadata(client: triton.InferenceServerClient) -> None:
    expected = {
        "name": "iris",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
        ],
    }
    for version in ("", "1"):
        metadata = client.get_model_metadata("iris", version)
        assert {name: metadata[name] for name in expected} == expected


def test_metadata_lists_every_version_that_serves(toy: triton.InferenceServerClient) -> None:
    assert sorted(toy.get_model_metadata("versions")["versions"], key=int) == ["1", "2", "10"]


def test_metadata_knows_every_datatype(toy: triton.InferenceServerClient) -> None:
    for datatype in VALUES:
        metadata = toy.get_model_metadata(f"identity_{datatype.lower()}")
        assert metadata["inputs"] == [{"name": "x", "datatype": datatype, "shape": [-1, -1]}]
        config = toy.get_model_config(f"identity_{datatype.lower()}")
        assert config["input"][0]["data_type"] == "TYPE_" + {"BYTES": "STRING"}.get(datatype, datatype)


def test_the_config_has_what_perf_analyzer_reads(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("iris")
    for version in ("", "1"):
        config = client.get_model_config("iris", version)
        assert config["name"] == "iris"
        assert config["platform"] == "onnxruntime_onnx"
        assert config["backend"] == "onnxruntime"
        assert isinstance(config["max_batch_size"], int)
        assert config["model_transaction_policy"]["decoupled"] is False
        assert config["response_cache"]["enable"] is False
        assert not {"sequence_batching", "ensemble_scheduling"} & set(config)
        for side in ("input", "output"):
            described = {entry["name"]: entry for entry in metadata[side + "s"]}
            assert [entry["name"] for entry in config[side]] == list(described)
            for entry in config[side]:
                shape = described[entry["name"]]["shape"]
                # With a batch dimension, metadata include it and the config does not.
                assert entry["dims"] == (shape[1:] if config["max_batch_size"] > 0 else shape)
                assert entry["data_type"] == "TYPE_" + described[entry["name"]]["datatype"]
        assert (config["max_batch_size"] > 0) == (config["input"][0]["dims"] == [4])


INFERENCE_STATISTICS = {
    *("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
}


def test_statistics_have_all_members_and_move(toy: triton.InferenceServerClient) -> None:
    def read(version: str = "") -> dict[str, Any]:
        (entry,) = toy.get_inference_statistics("iris", version)["model_stats"]
        assert (entry["name"], entry["version"]) == ("iris", "1")
        assert set(entry["inference_stats"]) == INFERENCE_STATISTICS
        for member in entry["inference_stats"].values():
            assert set(member) == {"count", "ns"} and all(isinstance(value, int) for value in member.values())
        return entry

    before = read()
    for rows in (1, 2, 2):
        toy.infer("iris", [tensor("features", "FP32", FLOWERS[:rows])])
    after = read("1")
    assert after["inference_count"] - before["inference_count"] == 5, "rows"
    assert after["execution_count"] - before["execution_count"] == 3, "runs"
    assert after["last_inference"] >= before["last_inference"] and after["last_inference"] > 1_600_000_000_000
    for member in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        one, other = before["inference_stats"][member], after["inference_stats"][member]
        assert other["count"] - one["count"] == 3, member
        assert other["ns"] > one["ns"], member
    for member in ("fail", "cache_hit", "cache_miss"):
        assert after["inference_stats"][member] == before["inference_stats"][member], member
    sizes = {batch["batch_size"]: batch for batch in after["batch_stats"]}
    assert {1, 2} <= set(sizes)
    for batch in sizes.values():
        assert {"compute_input", "compute_infer", "compute_output"} <= set(batch)
        assert batch["compute_infer"]["count"] > 0 and batch["compute_infer"]["ns"] > 0


def test_statistics_of_all_models_come_together(client: triton.InferenceServerClient) -> None:
    entries = client.get_inference_statistics()["model_stats"]
    assert sorted((entry["name"], entry["version"]) for entry in entries) == [
        *(("breast_cancer", "1"), ("digits", "1"), ("iris", "1"))
    ]


def test_a_run_that_fails_is_counted_as_failed(toy: triton.InferenceServerClient) -> None:
    def read() -> dict[str, Any]:
        return toy.get_inference_statistics("gather")["model_stats"][0]["inference_stats"]

    before = read()
    with pytest.raises(InferenceServerException):
        toy.infer("gather", [tensor("index", "INT64", np.array([99]))])
    after = read()
    assert after["fail"]["count"] == before["fail"]["count"] + 1
    assert after["success"] == before["success"]


# ===== what is not served says so =====


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get_trace_settings(),
        lambda client: client.get_log_settings(),
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.register_system_shared_memory("region", "/key", 64),
        lambda client: client.get_cuda_shared_memory_status(),
    ],
    ids=["trace", "log", "shared_memory", "register", "cuda"],
)
def test_what_is_not_served_is_an_orderly_error(client: triton.InferenceServerClient, call: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        call(client)
    assert caught.value.status() in ("404", "501")
    assert "decoding" not in caught.value.message(), "the error must be JSON"
