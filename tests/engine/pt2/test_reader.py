"""`.pt2` programs of nets that are common in the field: read, run at another batch size, written, run again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn

from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.readers.pt2 import read_pt2
from workers.engine.shapes import stats
from workers.engine.writers.onnx import write_onnx

BATCH = torch.export.Dim("batch", min=1, max=512)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.encoder = kind(12, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[0].mean(1))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x))[:, 0])


class Mobile(nn.Module):
    """Depthwise, squeeze-and-excite, channel split and concatenation, a view with a computed size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
            nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6(), nn.Conv2d(16, 24, 1), nn.SiLU(),
        )  # fmt: skip
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 6, 1), nn.ReLU(), nn.Conv2d(6, 24, 1), nn.Hardsigmoid()
        )
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(24 * 16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = self.pool(x * self.squeeze(x))
        x = torch.cat([x[:, :12], x[:, 12:] * 2 + 1], 1)
        return self.head(x.view(x.size(0), -1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(1, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 2, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.relu(self.wide(x))
        return self.out(torch.cat([wide, self.up(torch.relu(self.deep(wide)))], 1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3), nn.Softmax(-1))


NETS = {
    "lstm": (lambda: Recurrent(nn.LSTM), lambda n: torch.randn(n, 7, 12)),
    "gru": (lambda: Recurrent(nn.GRU), lambda n: torch.randn(n, 7, 12)),
    "transformer": (Transformer, lambda n: torch.randint(0, 50, (n, 7))),
    "mobile": (Mobile, lambda n: torch.randn(n, 3, 16, 16)),
    "unet": (UNet, lambda n: torch.randn(n, 1, 16, 16)),
    "mlp": (mlp, lambda n: torch.randn(n, 4, 4)),
}


def exported(model: nn.Module, example: Tensor, path: Path) -> Path:
    shapes = ({0: BATCH},)
    torch.export.save(torch.export.export(model.eval(), (example,), dynamic_shapes=shapes), path)
    return path


def run_onnx(graph: Graph, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(write_onnx(graph), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return output


@pytest.mark.parametrize("name", NETS)
def test_a_program_reads_exactly_and_keeps_its_batch_dynamic(name: str, tmp_path: Path) -> None:
    make, inputs = NETS[name]
    torch.manual_seed(0)
    model = make().eval()
    graph = read_pt2(exported(model, inputs(3), tmp_path / "model.pt2"))
    assert graph.inputs[0].shape[0] == "batch"
    x = inputs(5)
    with torch.no_grad():
        wanted = model(x)
        torch.testing.assert_close(graph(x)[0], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run_onnx(graph, x), wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_layers_have_the_names_of_the_users_modules(tmp_path: Path) -> None:
    graph = read_pt2(exported(Mobile(), torch.randn(3, 3, 16, 16), tmp_path / "model.pt2"))
    assert [layer.name for layer in graph.layers()] == ["body.0", "body.3", "body.5", "squeeze.1", "squeeze.3", "head"]


def test_an_unknown_op_is_named(tmp_path: Path) -> None:
    class Unusual(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i0(x)

    with pytest.raises(UnsupportedModelError, match=r"aten\.special_i0.*op table"):
        read_pt2(exported(Unusual(), torch.randn(3, 4), tmp_path / "model.pt2"))


def test_nan_weights_are_named(tmp_path: Path) -> None:
    model = mlp()
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(InvalidModelError, match=r"'1\.weight' holds NaN"):
        read_pt2(exported(model, torch.randn(3, 4, 4), tmp_path / "model.pt2"))


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_refused(cut: float, tmp_path: Path) -> None:
    path = exported(mlp(), torch.randn(3, 4, 4), tmp_path / "model.pt2")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(InvalidModelError, match=r"torch\.export\.save"):
        read_pt2(path)


def test_mutated_archives_only_ever_raise_engine_errors(tmp_path: Path) -> None:
    data = bytearray(exported(mlp(), torch.randn(3, 4, 4), tmp_path / "model.pt2").read_bytes())
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        mutated = bytearray(data)
        for place in generator.integers(0, len(data), 8):
            mutated[place] = generator.integers(0, 256)
        path = tmp_path / "mutated.pt2"
        path.write_bytes(mutated)
        try:
            read_pt2(path)
        except (InvalidModelError, UnsupportedModelError):
            refused += 1
    assert refused > 50


class Calls(nn.Module):
    """A function, with weights where it has any."""

    def __init__(self, function: Callable[[Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.inner = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inner(x))


def same(x: Tensor) -> Tensor:
    return x


class Table(nn.Module):
    """A bias for each pair of positions, as windowed attention has it."""

    def __init__(self) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.randn(9, 5))
        self.register_buffer("places", torch.tensor([[0, 8, 3], [2, 2, 7]]))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :1] + self.biases[self.places].sum((0, 1))


def images(examples: int) -> Tensor:
    return torch.randn(examples, 4, 6, 5)


CALLS = {
    "prelu": Calls(same, nn.PReLU(4, 0.1)),
    "prelu of one": Calls(same, nn.PReLU()),
    "selu": Calls(same, nn.SELU()),
    "celu": Calls(same, nn.CELU(0.7)),
    "softplus": Calls(same, nn.Softplus()),
    "log sigmoid": Calls(same, nn.LogSigmoid()),
    "hard shrink": Calls(same, nn.Hardshrink(0.3)),
    "soft shrink": Calls(same, nn.Softshrink(0.3)),
    "instance norm": Calls(same, nn.InstanceNorm2d(4, affine=True)),
    "plain instance norm": Calls(same, nn.InstanceNorm2d(4)),
    "rms norm": Calls(same, nn.RMSNorm(5)),
    "nearest": Calls(same, nn.Upsample(scale_factor=2)),
    "nearest to a size": Calls(lambda x: F.interpolate(x, (9, 7))),
    "bilinear": Calls(same, nn.Upsample(scale_factor=2.5, mode="bilinear")),
    "bilinear to a size": Calls(lambda x: F.interpolate(x, (9, 7), mode="bilinear")),
    "bilinear with corners": Calls(lambda x: F.interpolate(x, (9, 7), mode="bilinear", align_corners=True)),
    "bicubic": Calls(lambda x: F.interpolate(x, (9, 7), mode="bicubic")),
    "pixel shuffle": Calls(same, nn.PixelShuffle(2)),
    "max": Calls(lambda x: x.max(1).values * x.max(2, keepdim=True).indices[:, 0].float()),
    "min": Calls(lambda x: x.min(-1).values + x.min(-1).indices.float()),
    "max of all": Calls(lambda x: x - x.max() + x.min()),
    "larger": Calls(lambda x: torch.max(x, -x) + torch.min(x, x * x)),
    "argmin": Calls(lambda x: x.argmin(1).float()),
    "topk": Calls(lambda x: x.topk(3, 1)[0] + x.topk(3, 1, largest=False)[1].float()),
    "cumsum": Calls(lambda x: x.cumsum(2)),
    "logsumexp": Calls(lambda x: x.logsumexp((1, 2))),
    "prod": Calls(lambda x: x.prod(3)),
    "normalize": Calls(lambda x: F.normalize(x, dim=1) + F.normalize(x, p=1.0, dim=2)),
    "gather": Calls(lambda x: x.gather(3, x.argmax(3, keepdim=True))),
    "roll": Calls(lambda x: x.roll((1, -2), (2, 3))),
    "transposed": Calls(lambda x: x.mT),
    "einsum": Calls(lambda x: torch.einsum("b c h w, b d h w -> b c d", x, x)),
    "table": Table(),
    "unbind": Calls(lambda x: sum(part * (place + 1) for place, part in enumerate(x.unbind(1)))),
    "repeat": Calls(lambda x: x.repeat(1, 2, 1, 3)),
    "repeat into more dims": Calls(lambda x: x.repeat(2, 1, 1, 1, 1)),
    "movedim": Calls(lambda x: x.movedim(1, -1)),
    "triangles": Calls(lambda x: x.tril(1) * x.triu(-1)),
    "square": Calls(lambda x: x.square() + torch.addcmul(x, x, x, value=0.5)),
    "unlike": Calls(lambda x: torch.logical_or(x != 0, x > 1).float().masked_fill(x.sign().round() == 1, 3.0)),
    "baddbmm": Calls(lambda x: torch.baddbmm(x[:, 0], x[:, 1] @ x[:, 1].transpose(1, 2), x[:, 2])),
    "expand as": Calls(lambda x: x[:, :1].expand_as(x) + x.clamp_max(0.5)),
    "weight norm": Calls(same, nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))),
    "weight norm of old": Calls(same, nn.utils.weight_norm(nn.Conv2d(4, 4, 1))),
    "scaled baddbmm": Calls(lambda x: torch.baddbmm(x[:, 0], x[:, 1] @ x[:, 1].mT, x[:, 2], beta=0.5, alpha=2)),
    "scaled addmm": Calls(lambda x: torch.addmm(x[:, 0, 0], x[:, 1, 0], torch.eye(5), beta=0.5, alpha=2)),
    "reshape as": Calls(lambda x: (x * 2).flatten(1).reshape_as(x) + (x * 2).view_as(x)),
    "gated": Calls(lambda x: F.glu(x, 1)),
    "adaptive max": Calls(lambda x: F.adaptive_max_pool2d(x, 1)),
    "pads": Calls(lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect") + F.pad(x, (1, 1, 2, 2), mode="circular")),
    "variance": Calls(lambda x: x.var(1) + x.std((1, 2), keepdim=True)[:, 0] + torch.var_mean(x, 1, correction=0)[1]),
    "deviation of all": Calls(lambda x: x / x.std()),
    "any and all": Calls(lambda x: (x > 1).any(1).float() + (x > -3).all(1).float() + (x * 0 + 1).any(2).float().sum()),
    "count": Calls(lambda x: torch.count_nonzero(x > 0, 1).float() + (x > 0).sum(1) + (x > 0).cumsum(1).sum(1)),
    "special values": Calls(lambda x: torch.isnan(x).float() + torch.isinf(x / 0).float() + torch.nan_to_num(x / 0)),
    "logarithms": Calls(lambda x: torch.log1p(x.abs()) + torch.log2(x.abs() + 1) + torch.log10(x.abs() + 1)),
    "exponentials": Calls(lambda x: torch.expm1(x) + torch.exp2(x) + 2**x + torch.logit(x.sigmoid())),
    "rounded division": Calls(lambda x: x // 2 + torch.div(x, 0.3, rounding_mode="trunc") + x.trunc() + x.frac()),
    "division of integers": Calls(lambda x: ((x * 9).int() // 4).float() + torch.div((x * 9).int(), 4)),
    "remainders": Calls(lambda x: x % 0.7 + torch.fmod(x, 0.7) + ((x * 9).int() % 4).float()),
    "flip": Calls(lambda x: x.flip(2, 3)),
    "repeat interleave": Calls(lambda x: x.repeat_interleave(2, 1)),
    "tile": Calls(lambda x: x.tile(2, 1)),
    "narrow": Calls(lambda x: x.narrow(1, 1, 2).swapaxes(1, 2)),
    "one hot": Calls(lambda x: F.one_hot(x.argmax(1), 4).float()),
    "scatter": Calls(lambda x: torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0)),
    "clamp between tensors": Calls(lambda x: x.clamp(torch.tensor(-0.5), torch.tensor(0.5)) + torch.clip(x, -1, 1)),
    "integers between bounds": Calls(lambda x: (x * 9).int().clamp(-2, 5) + (x * 9).int().clamp(max=x.shape[1])),
    "nothing beside others": Calls(lambda x: torch.cat([torch.zeros(0), x, x], 1)),
    "sort": Calls(lambda x: x.sort(1)[0] + x.argsort(2, descending=True).float()),
    "similarity": Calls(
        lambda x: F.cosine_similarity(x[:, 0], x[:, 1], dim=-1) + F.pairwise_distance(x[:, 0], x[:, 2])
    ),
    "largest": Calls(lambda x: torch.linalg.vector_norm(x, ord=float("inf"), dim=1) + x[:, 1].fmax(x[:, 2])),
    "meshgrid": Calls(
        lambda x: x + torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")).sum(0)
    ),
    "linspace": Calls(lambda x: x + torch.linspace(0, 1, x.shape[3])),
    "place and batch": Calls(lambda x: x[torch.arange(x.shape[0]), x[:, :, 0, 0].argmax(1)]),
    "threshold": Calls(lambda x: F.threshold(x, 0.1, 0.5) + F.rrelu(x) + F.tanhshrink(x)),
    "interpolations": Calls(
        lambda x: torch.hypot(x, x + 1) + torch.lerp(x, x * 2, 0.3) + torch.addcdiv(x, x, x.abs() + 1)
    ),
    "logic of bits": Calls(lambda x: (((x * 9).int() & 6) | 1).float() + ((x > 0) & ~(x > 1) | (x < -1)).float()),
    "mixed types": Calls(lambda x: x.masked_fill(x > 0, -1.0) * x.gt(0) + x.argmax(1, keepdim=True) * 0.5),
    "sizes as numbers": Calls(lambda x: x * x.shape[0] + x.sum() / x.numel()),
    "choices": Calls(lambda x: torch.where(x > 0, x, 0.0) + torch.where(x > 0, 1.0, 2.0)),
    "made like": Calls(lambda x: torch.cat([torch.full_like(x, 2), x.new_zeros(x.shape[0], 1, 6, 5)], 1)),
    "unshuffle": Calls(lambda x: F.pixel_unshuffle(x[:, :, :, :4], 2)),
    "channel shuffle": Calls(lambda x: F.channel_shuffle(x, 2)),
    "nearest exact": Calls(lambda x: F.interpolate(x, scale_factor=1.5, mode="nearest-exact")),
    "split": Calls(lambda x: torch.hstack([x.tensor_split(3, 1)[0], x])),
    "causal attention": Calls(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
    "grouped attention": Calls(lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True)),
    "in place": Calls(lambda x: (x * 1).mul_(2).add_(1).sub_(x).div_(3).abs_().sqrt_()),
    "trigonometry": Calls(lambda x: x.tan().atan() + x.sinh().asinh() + x.tanh().asin() + x.tanh().acos()),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_read_exactly(name: str, tmp_path: Path) -> None:
    model = CALLS[name].eval()
    torch.manual_seed(0)
    graph = read_pt2(exported(model, images(3), tmp_path / "model.pt2"))
    x = images(5)
    with torch.no_grad():
        wanted = model(x)
        torch.testing.assert_close(graph(x)[0], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run_onnx(graph, x), wanted.numpy(), rtol=1e-4, atol=1e-4)


class OwnMatrix(nn.Module):
    """Matrices that are no module's, one of them the other way around."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(5, 8))
        self.second = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.first) @ self.second.t()


def test_a_product_with_a_stored_matrix_is_a_layer(tmp_path: Path) -> None:
    graph = read_pt2(exported(OwnMatrix(), torch.randn(3, 6, 5), tmp_path / "model.pt2"))
    assert len(list(graph.layers())) == 2
    assert stats(graph).parameters == 2 * 5 * 8
    x = torch.randn(2, 6, 5)
    np.testing.assert_allclose(run_onnx(graph, x), graph(x)[0].detach().numpy(), rtol=1e-4, atol=1e-5)


class CrossAttention(nn.Module):
    """PyTorch splits the stored weights of such a one at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoderLayer(16, 2, 24, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x, x * 2)


def test_parts_of_stored_weights_are_weights(tmp_path: Path) -> None:
    model = CrossAttention().eval()
    graph = read_pt2(exported(model, torch.randn(3, 6, 16), tmp_path / "model.pt2"))
    assert stats(graph).parameters == sum(parameter.numel() for parameter in model.parameters())
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(graph(x)[0], model(x), rtol=1e-5, atol=1e-5)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(2, (4, 8)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(heads, heads[:, :2], heads[:, :2], is_causal=True, enable_gqa=True)
        return mixed.transpose(1, 2).flatten(2)


def test_grouped_causal_attention_over_any_length(tmp_path: Path) -> None:
    shapes = ({0: BATCH, 1: torch.export.Dim("length", min=2)},)
    program = torch.export.export(Attention(), (torch.randn(3, 7, 32),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    graph = read_pt2(tmp_path / "model.pt2")
    x = torch.randn(2, 11, 32)
    torch.testing.assert_close(graph(x)[0], Attention()(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run_onnx(graph, x), Attention()(x).numpy(), rtol=1e-4, atol=1e-5)


class SeenAgain(nn.Module):
    """Changes a part of what it returns."""

    def forward(self, x: Tensor) -> Tensor:
        whole = x * 1
        whole[:, 0].mul_(2)
        return whole


def test_a_change_in_place_that_is_seen_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"in place \(mul_\)"):
        read_pt2(exported(SeenAgain(), torch.randn(3, 4), tmp_path / "model.pt2"))


class Answers(nn.Module):
    """A dict of tensors, nested, with a size, a number and nothing among them; and an input that is a number."""

    def forward(self, x: Tensor, times: int) -> dict[str, object]:
        return {"logits": x * times, "hidden": (x + 1, x.shape[0], None, 3)}


@pytest.mark.parametrize("kind", [BATCH, torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO])
def test_outputs_have_the_names_of_the_dict_that_the_model_returns(kind: object, tmp_path: Path) -> None:
    program = torch.export.export(Answers(), (torch.randn(3, 4), 2), dynamic_shapes=({0: kind}, None))
    torch.export.save(program, tmp_path / "model.pt2")
    graph = read_pt2(tmp_path / "model.pt2")
    assert [(spec.name, spec.shape) for spec in graph.outputs] == [
        ("logits", ("batch", 4)),
        ("hidden.0", ("batch", 4)),
        ("hidden.1", ()),
    ]
    assert len(graph.notes) == 3
    x = torch.randn(5, 4)
    logits, hidden, size = graph(x)
    torch.testing.assert_close(logits, x * 2)
    torch.testing.assert_close(hidden, x + 1)
    assert int(size) == 5
