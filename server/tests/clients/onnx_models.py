"""Tiny ONNX models, each made for one question. All are bytes of a valid file unless the name says otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}

Shape = list[int | str] | None


def tensor(name: str, datatype: str, shape: Shape) -> onnx.ValueInfoProto:
    """An input or output; a text is a dimension that varies, no shape at all leaves even the rank open."""
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], shape)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[onnx.TensorProto] | None = None,
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A model of the default operator set."""
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializer=initializers or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def identity(datatype: str, shape: Shape, opset: int = 17, ir_version: int = 8) -> bytes:
    """y = x."""
    made = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [tensor("x", datatype, shape)],
        [tensor("y", datatype, shape)],
        opset=opset,
        ir_version=ir_version,
    )
    return made.SerializeToString()


def sum_and_difference() -> bytes:
    """Two inputs and two outputs of fixed width, as in Triton's own example `simple`."""
    shape: Shape = ["rows", 16]
    made = model(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        [tensor("INPUT0", "INT32", shape), tensor("INPUT1", "INT32", shape)],
        [tensor("OUTPUT0", "INT32", shape), tensor("OUTPUT1", "INT32", shape)],
    )
    return made.SerializeToString()


def plus(number: float) -> bytes:
    """y = x + number, for telling versions apart."""
    made = model(
        [helper.make_node("Add", ["x", "number"], ["y"])],
        [tensor("x", "FP32", ["n"])],
        [tensor("y", "FP32", ["n"])],
        [numpy_helper.from_array(np.array([number], np.float32), "number")],
    )
    return made.SerializeToString()


def add_any() -> bytes:
    """Two inputs whose sizes the file leaves open, and only the graph knows must agree."""
    made = model(
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        [tensor("a", "FP32", ["n"]), tensor("b", "FP32", ["m"])],
        [tensor("sum", "FP32", ["k"])],
    )
    return made.SerializeToString()


def loop() -> bytes:
    """Counts to `trips`, about half a million a second: endless for 2^62, instant for 3, and stoppable in between."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["count", "one"], ["more"])],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.INT64, [1]),
        ],
    )
    made = model(
        [helper.make_node("Loop", ["trips", "yes", "zero"], ["count_out"], body=body)],
        [tensor("trips", "INT64", [1])],
        [tensor("count_out", "INT64", [1])],
        [
            helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
            helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        ],
    )
    return made.SerializeToString()


def deaf() -> bytes:
    """One node that computes for long and looks up from it never: picks among `boxes` boxes, in time by their square.

    A cancel is noticed between nodes only. 60,000 boxes take some ten seconds, ten none.
    """

    def column(offset: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Add", ["places", offset], [f"at_{offset}"]),
            helper.make_node("Unsqueeze", [f"at_{offset}", "last"], [f"column_{offset}"]),
        ]

    made = model(
        [
            helper.make_node("Squeeze", ["boxes"], ["count"]),
            helper.make_node("Range", ["zero", "count", "one"], ["numbers"]),
            helper.make_node("Cast", ["numbers"], ["places"], to=TensorProto.FLOAT),
            *column("begin"),
            *column("end"),
            helper.make_node("Concat", ["column_begin", "column_begin", "column_end", "column_end"], ["flat"], axis=1),
            helper.make_node("Unsqueeze", ["flat", "first"], ["all"]),
            helper.make_node("Unsqueeze", ["places", "both"], ["scores"]),
            helper.make_node("NonMaxSuppression", ["all", "scores", "boxes"], ["picked"]),
            helper.make_node("Shape", ["picked"], ["shape"]),
            helper.make_node("Slice", ["shape", "first", "until"], ["y"]),
        ],
        [tensor("boxes", "INT64", [1])],
        [tensor("y", "INT64", [1])],
        [
            helper.make_tensor("zero", TensorProto.INT64, [], [0]),
            helper.make_tensor("one", TensorProto.INT64, [], [1]),
            helper.make_tensor("begin", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("end", TensorProto.FLOAT, [], [0.5]),
            helper.make_tensor("first", TensorProto.INT64, [1], [0]),
            helper.make_tensor("until", TensorProto.INT64, [1], [1]),
            helper.make_tensor("last", TensorProto.INT64, [1], [1]),
            helper.make_tensor("both", TensorProto.INT64, [2], [0, 1]),
        ],
    )
    return made.SerializeToString()


def bomb() -> bytes:
    """Asks for as much memory as its input says, and answers how much that was. More than there is: the server's own error."""
    made = model(
        [helper.make_node("ConstantOfShape", ["elements"], ["much"]), helper.make_node("Shape", ["much"], ["y"])],
        [tensor("elements", "INT64", [1])],
        [tensor("y", "INT64", [1])],
    )
    return made.SerializeToString()


def matmul_chain(width: int = 256, depth: int = 1000) -> bytes:
    """Many steps of real arithmetic, of which each ends by itself: y = x, slowly. Rows make it slower."""
    names = ["x", *(f"step{index}" for index in range(1, depth)), "y"]
    made = model(
        [helper.make_node("MatMul", [names[index], "w"], [names[index + 1]]) for index in range(depth)],
        [tensor("x", "FP32", ["n", width])],
        [tensor("y", "FP32", ["n", width])],
        [numpy_helper.from_array(np.eye(width, dtype=np.float32), "w")],
    )
    return made.SerializeToString()


def folded(steps: int, width: int = 1024) -> bytes:
    """Takes a tenth of a second or so for each step to load: all but its last node is computed then. y = x / width."""
    names = [f"step{index}" for index in range(steps + 1)]
    start = helper.make_tensor("value", TensorProto.FLOAT, [1], [1 / width])
    made = model(
        [
            helper.make_node("ConstantOfShape", ["shape"], names[:1], value=start),
            *(helper.make_node("MatMul", [before, before], [after]) for before, after in zip(names, names[1:])),
            helper.make_node("ReduceMax", names[-1:], ["factor"], keepdims=0),
            helper.make_node("Mul", ["x", "factor"], ["y"]),
        ],
        [tensor("x", "FP32", ["n"])],
        [tensor("y", "FP32", ["n"])],
        [numpy_helper.from_array(np.array([width, width]), "shape")],
    )
    return made.SerializeToString()


def text(layers: int = 300, width: int = 192, vocabulary: int = 1000) -> bytes:
    """Costs what a small text classifier costs: some 20 ms for 128 tokens, in proportion to rows and tokens."""
    random = np.random.default_rng(7)
    weights = {
        "embedding": random.normal(size=(vocabulary, width)),
        "weight": random.normal(size=(width, width)) / width**0.5,
        "head": random.normal(size=(width, 4)),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["embedded", "column"], ["step0"]),
    ]
    for layer in range(layers):
        nodes += [
            helper.make_node("MatMul", [f"step{layer}", "weight"], [f"product{layer}"]),
            helper.make_node("Tanh", [f"product{layer}"], [f"step{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("ReduceMean", [f"step{layers}"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    made = model(
        nodes,
        [tensor("input_ids", "INT64", ["batch", "sequence"]), tensor("attention_mask", "INT64", ["batch", "sequence"])],
        [tensor("logits", "FP32", ["batch", 4])],
        [
            *(numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()),
            numpy_helper.from_array(np.array([-1], np.int64), "last"),
        ],
    )
    return made.SerializeToString()


def gather() -> bytes:
    """Rows of a table of three: an index beyond it is an input that keeps the contract and cannot be computed."""
    made = model(
        [helper.make_node("Gather", ["table", "index"], ["row"])],
        [tensor("index", "INT64", ["n"])],
        [tensor("row", "FP32", ["n", 2])],
        [numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "table")],
    )
    return made.SerializeToString()


def masked_sum(masked: bool = True) -> bytes:
    """Of rows of any length the sum of what the mask lets through (or the mean of all), and the double of everything."""
    shape: Shape = ["n", "length"]
    reduced = [
        helper.make_node("Mul", ["x", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["total"], keepdims=0),
    ]
    if not masked:
        reduced = [
            helper.make_node("Add", ["x", "mask"], ["kept"]),
            helper.make_node("ReduceMean", ["kept"], ["total"], axes=[1], keepdims=0),
        ]
    made = model(
        [*reduced, helper.make_node("Add", ["x", "x"], ["double"])],
        [tensor("x", "FP32", shape), tensor("mask", "FP32", shape)],
        [tensor("total", "FP32", ["n"]), tensor("double", "FP32", shape)],
        [numpy_helper.from_array(np.array([1], np.int64), "one")],
    )
    return made.SerializeToString()


# ===== external data =====

WEIGHTS = np.array([10, 20, 30, 40], np.float32)


def external(location: str = "weights.bin", offset: int = 0, length: int | None = None) -> tuple[bytes, bytes]:
    """y = x + weights, whose weights lie in another file: the model, and the bytes of that file."""
    raw = WEIGHTS.tobytes()
    weights = numpy_helper.from_array(WEIGHTS, "weights")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    told = {"location": location, "offset": str(offset), "length": str(len(raw) if length is None else length)}
    for key, value in told.items():
        weights.external_data.add(key=key, value=value)
    made = model(
        [helper.make_node("Add", ["x", "weights"], ["y"])],
        [tensor("x", "FP32", ["n", 4])],
        [tensor("y", "FP32", ["n", 4])],
        [weights],
    )
    return made.SerializeToString(), raw


def external_by_onnx(folder: Path) -> tuple[bytes, bytes]:
    """The same, written by the `onnx` package's own exporter."""
    made = model(
        [helper.make_node("Add", ["x", "weights"], ["y"])],
        [tensor("x", "FP32", ["n", 4])],
        [tensor("y", "FP32", ["n", 4])],
        [numpy_helper.from_array(WEIGHTS, "weights")],
    )
    onnx.save_model(
        made,
        folder / "model.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="weights.bin",
        size_threshold=0,
    )
    return (folder / "model.onnx").read_bytes(), (folder / "weights.bin").read_bytes()


# ===== models that must be refused =====


def sequence_output() -> bytes:
    """An output that is no tensor."""
    made = model(
        [helper.make_node("SplitToSequence", ["x"], ["pieces"])],
        [tensor("x", "FP32", ["n"])],
        [helper.make_tensor_sequence_value_info("pieces", TensorProto.FLOAT, None)],
    )
    return made.SerializeToString()


def float8() -> bytes:
    """A datatype that the protocol does not have."""
    made = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT8E4M3FN, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT8E4M3FN, [1])],
        opset=19,
        ir_version=9,
    )
    return made.SerializeToString()


def unknown_operator() -> bytes:
    """An operator that nobody has."""
    made = model(
        [helper.make_node("Transmogrify", ["x"], ["y"])],
        [tensor("x", "FP32", ["n"])],
        [tensor("y", "FP32", ["n"])],
    )
    return made.SerializeToString()
