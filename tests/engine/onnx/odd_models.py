"""Models as strangers' exporters write them, with parts that the op table does not reach: name → file and inputs."""

from collections.abc import Callable

import numpy as np
from onnx import GraphProto, ModelProto, helper, numpy_helper, parser

RANDOM = np.random.default_rng(0)
Feeds = dict[str, np.ndarray]
Model = tuple[bytes, Feeds]

DOMAINS = '"" : 17, "com.microsoft" : 1, "ai.onnx.ml" : 3'


def floats(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def made(text: str, **weights: np.ndarray) -> ModelProto:
    """From the textual form; `weights` become initializers."""
    model = parser.parse_model(f"<ir_version: 8, opset_import: [{DOMAINS}]>\n{text}")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return model


def branch(name: str, text: str, **weights: np.ndarray) -> GraphProto:
    graph = parser.parse_graph(f"{name} {text}")
    graph.initializer.extend(numpy_helper.from_array(np.asarray(w), key) for key, w in weights.items())
    return graph


def lstm_branch(name: str, inputs: int) -> GraphProto:
    """What torch.jit.script leaves of an LSTM: the same names in both branches, and weights in `Constant` nodes."""
    graph = branch(
        name,
        "() => (float[T, 1, N, 8] out, float[1, N, 8] h, float[1, N, 8] c) "
        "{ out, h, c = LSTM<hidden_size = 8>(frames, W, R, bias, , state, state) }",
        W=floats(1, 32, inputs),
        bias=floats(1, 64),
    )
    graph.node.insert(0, helper.make_node("Constant", [], ["R"], value=numpy_helper.from_array(floats(1, 32, 8))))
    return graph


def fast_gelu() -> bytes:
    """One node, which only ONNX Runtime knows."""
    return made("g (float[n, 4] x) => (float[n, 4] y) { y = com.microsoft.FastGelu(x) }").SerializeToString()


def speech() -> Model:
    """As silero-VAD: another LSTM for each sample rate, chosen by a scalar input."""
    model = made(
        """speech (float[N, T, 6] x, float[N, 8] memory, int64 rate) => (float[T, N, 4] y) {
            frames = Transpose<perm = [1, 0, 2]>(x)
            state = Unsqueeze(memory, zero)
            wide = Equal(rate, sixteen)
            flat = Squeeze(out, one)
            y = MatMul(flat, head)
        }""",
        sixteen=np.int64(16000), zero=np.array([0]), one=np.array([1]), head=floats(8, 4),
    )  # fmt: skip
    after = [model.graph.node.pop() for _ in range(2)]
    node = helper.make_node(
        "If", ["wide"], ["out", "h", "c"], name="choice",
        then_branch=lstm_branch("wide", 6), else_branch=lstm_branch("narrow", 6),
    )  # fmt: skip
    model.graph.node.extend([node, *reversed(after)])
    return model.SerializeToString(), {"x": floats(2, 5, 6), "memory": floats(2, 8), "rate": np.array(16000)}


def loop() -> Model:
    """As tf2onnx writes a `tf.while_loop`: the matrix is outside, the offset inside, and every step is an output."""
    body = branch(
        "body",
        """(int64 i, bool going, float[N, 16] h) => (bool on, float[N, 16] next, float[N, 16] step) {
            on = Identity(going)
            product = MatMul(h, cell)
            inner = Add(product, offset)
            next = Tanh(inner)
            step = Identity(next)
        }""",
        offset=floats(16),
    )
    model = made(
        """looped (float[N, 12] x) => (float[N, 5] y, float[3, N, 16] steps) {
            h = MatMul(x, first)
            y = MatMul(last, head)
        }""",
        first=floats(12, 16), cell=floats(16, 16), head=floats(16, 5), trips=np.int64(3), yes=np.array(True),
    )  # fmt: skip
    tail = model.graph.node.pop()
    model.graph.node.extend([helper.make_node("Loop", ["trips", "yes", "h"], ["last", "steps"], body=body), tail])
    return model.SerializeToString(), {"x": floats(4, 12)}


def optimised() -> Model:
    """As onnxruntime.transformers leaves a layer of BERT."""
    model = made(
        """fused (float[N, T, 32] x) => (float[N, T, 32] y) {
            a = com.microsoft.Attention<num_heads = 4>(x, qkv, qkv_bias)
            s = com.microsoft.SkipLayerNormalization<epsilon = 0.00001>(a, x, gamma, beta)
            u = MatMul(s, up)
            g = com.microsoft.BiasGelu(u, up_bias)
            d = com.microsoft.FusedMatMul<alpha = 0.5>(g, down)
            y = com.microsoft.SkipLayerNormalization<epsilon = 0.00001>(d, s, gamma, beta, down_bias)
        }""",
        qkv=floats(32, 96), qkv_bias=floats(96), gamma=floats(32), beta=floats(32), up=floats(32, 64),
        up_bias=floats(64), down=floats(64, 32), down_bias=floats(32),
    )  # fmt: skip
    return model.SerializeToString(), {"x": floats(2, 7, 32)}


def forest() -> Model:
    """As skl2onnx writes a scaler before boosted trees, with a matrix product in between."""
    trees = helper.make_node(
        "TreeEnsembleRegressor", ["z"], ["y"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[1, 0, 0], nodes_values=[0.1, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[-1.0, 2.0],
    )  # fmt: skip
    model = made(
        """forest (float[N, 6] x) => (float[N, 1] y) {
            scaled = ai.onnx.ml.Scaler<offset = [0.5], scale = [2.0]>(x)
            z = MatMul(scaled, w)
        }""",
        w=floats(6, 6),
    )
    model.graph.node.append(trees)
    return model.SerializeToString(), {"x": floats(9, 6)}


def sequences() -> Model:
    """Values that are no tensors, and lifted nodes on both sides of them and between them."""
    model = made(
        """sequences (float[N, 24] x) => (float[N, 4] y, int64 count) {
            h = MatMul(x, w)
            parts = SplitToSequence<axis = 1>(h, sizes)
            count = SequenceLength(parts)
            first = SequenceAt(parts, zero)
            warm = Relu(first)
            longer = SequenceInsert(parts, warm)
            joined = ConcatFromSequence<axis = 1>(longer)
            y = MatMul(joined, v)
        }""",
        w=floats(24, 12), v=floats(16, 4), sizes=np.array([4, 8]), zero=np.int64(0),
    )  # fmt: skip
    return model.SerializeToString(), {"x": floats(3, 24)}


def texts() -> Model:
    """Strings inside: classes are looked up and counted."""
    model = made(
        """texts (float[N, 8] x) => (float[N] y) {
            scores = MatMul(x, w)
            best = ArgMax<axis = 1, keepdims = 0>(scores)
            name = Gather(classes, best)
            y = ai.onnx.ml.LabelEncoder<keys_strings = ["cat", "dog", "cow"], values_floats = [1.0, 2.0, 4.0]>(name)
        }""",
        w=floats(8, 3),
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(["cat", "dog", "cow"], object), "classes"))
    return model.SerializeToString(), {"x": floats(6, 8)}


def integers() -> Model:
    """As ONNX Runtime's dynamic quantizer writes a product."""
    model = made(
        """integers (float[N, 24] x) => (float[N, 6] y) {
            q, s, z = DynamicQuantizeLinear(x)
            product = MatMulInteger(q, w, z, wz)
            scaled = Cast<to = 1>(product)
            scales = Mul(s, ws)
            h = Mul(scaled, scales)
            y = MatMul(h, v)
        }""",
        w=RANDOM.integers(0, 255, (24, 12)).astype(np.uint8), wz=np.uint8(128), ws=np.float32(0.01), v=floats(12, 6),
    )  # fmt: skip
    return model.SerializeToString(), {"x": floats(3, 24)}


def seeded(make: Callable[[], Model]) -> Callable[[], Model]:
    """The same weights and inputs every time."""

    def again() -> Model:
        RANDOM.bit_generator.state = np.random.default_rng(7).bit_generator.state
        return make()

    return again


ODD: dict[str, Callable[[], Model]] = {
    make.__name__: seeded(make) for make in (speech, loop, optimised, forest, sequences, texts, integers)
}
