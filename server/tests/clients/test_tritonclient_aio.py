"""The asyncio client of Triton Inference Server, unmodified: it sends other headers than the blocking one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.http.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from harness import Server

FLOWERS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 5.6, 2.4]], np.float32)


def with_client(server: Server, work: Callable[[InferenceServerClient], Awaitable[Any]]) -> Any:
    """Runs `work` with a client, in a loop of its own."""

    async def run() -> Any:
        async with InferenceServerClient(server.http) as client:
            return await asyncio.wait_for(work(client), 30)

    return asyncio.run(run())


def features(values: np.ndarray = FLOWERS, binary: bool = True) -> list[InferInput]:
    """The input of iris."""
    made = InferInput("features", list(values.shape), "FP32")
    made.set_data_from_numpy(values, binary_data=binary)
    return [made]


def test_health_and_metadata(shipped: Server) -> None:
    async def work(client: InferenceServerClient) -> None:
        assert await client.is_server_live() is True
        assert await client.is_server_ready() is True
        assert await client.is_model_ready("iris") is True
        assert await client.is_model_ready("nobody") is False
        assert (await client.get_server_metadata())["name"] == "balm"
        assert (await client.get_model_metadata("iris"))["inputs"][0]["name"] == "features"
        assert (await client.get_model_config("iris"))["name"] == "iris"
        names = {entry["name"] for entry in await client.get_model_repository_index()}
        assert names == {"iris", "digits", "breast_cancer"}
        assert (await client.get_inference_statistics("iris"))["model_stats"][0]["name"] == "iris"

    with_client(shipped, work)


def test_long_answers_beside_predictions_come_as_they_are(toys: Server) -> None:
    """The client offers gzip with every request, and decodes it in answers to `infer` alone."""

    async def work(client: InferenceServerClient) -> None:
        names = {entry["name"] for entry in await client.get_model_repository_index()}
        assert {"iris", "simple", "loop"} <= names
        entries = (await client.get_inference_statistics())["model_stats"]
        assert {entry["name"] for entry in entries} == names

    with_client(toys, work)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer_both_ways(shipped: Server, binary_in: bool, binary_out: bool) -> None:
    async def work(client: InferenceServerClient) -> Any:
        outputs = [InferRequestedOutput("label", binary_data=binary_out)]
        return await client.infer("iris", features(binary=binary_in), outputs=outputs, request_id="7")

    result = with_client(shipped, work)
    assert result.as_numpy("label").tolist() == [0, 2]
    assert result.get_response()["id"] == "7"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_infer_compressed(shipped: Server, encoding: str) -> None:
    many = np.repeat(FLOWERS, 200, axis=0)

    async def work(client: InferenceServerClient) -> Any:
        return await client.infer(
            "iris",
            features(many),
            request_compression_algorithm=encoding,
            response_compression_algorithm=encoding,
        )

    assert with_client(shipped, work).as_numpy("label").tolist() == [0] * 200 + [2] * 200


def test_many_at_once_on_few_connections(shipped: Server) -> None:
    async def work(client: InferenceServerClient) -> list[int]:
        async def one(index: int) -> int:
            result = await client.infer("iris", features(FLOWERS[index % 2 : index % 2 + 1]))
            return int(result.as_numpy("label")[0])

        return await asyncio.gather(*(one(index) for index in range(50)))

    assert with_client(shipped, work) == [0, 2] * 25


def test_an_error_is_the_clients_own_exception(shipped: Server) -> None:
    async def work(client: InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("iris", features(FLOWERS[:, :3].copy()))
        assert caught.value.status() == "400"
        assert "features" in caught.value.message()

    with_client(shipped, work)
