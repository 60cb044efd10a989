"""Small networks of the kinds that people send, made with torch."""

import io
import warnings

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Linear(12, 32),
            nn.ReLU(),
            nn.LayerNorm(32),
            nn.Linear(32, 16),
            nn.Tanh(),
            nn.Linear(16, 4),
            nn.Softmax(-1),
        )


class InvertedResidual(nn.Module):
    """A MobileNet block: expand, depthwise, project, squeeze and excite, with a shortcut."""

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        wide = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            activation(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            activation(),
            nn.Conv2d(wide, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y * self.gate(y)


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish())
        self.blocks = nn.Sequential(InvertedResidual(16, nn.ReLU6), InvertedResidual(16, nn.SiLU))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)
        return self.head(torch.flatten(x, 1))


class UNet(nn.Module):
    """Down and up again: strides, transposed convolution, interpolation, concatenation, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.GELU())
        self.middle = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.InstanceNorm2d(16, affine=True), nn.LeakyReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        down = self.down(x)
        middle = self.middle(F.max_pool2d(down, 2))
        middle = F.interpolate(F.avg_pool2d(middle, 2), scale_factor=2.0, mode="bilinear", align_corners=False) + middle
        y = self.out(torch.cat([self.up(middle), down], 1))
        return y, F.interpolate(y, size=(20, 20), mode="nearest")


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)
        for parameter in self.parameters():  # the layers of an encoder start as copies; trained ones are not
            nn.init.normal_(parameter, std=0.2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


class Sequence(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(6, 8, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


def example(name: str) -> tuple[nn.Module, Tensor]:
    """A net in eval mode and an input of two examples."""
    torch.manual_seed(0)
    net, x = {
        "perceptron": lambda: (Perceptron(), torch.randn(2, 12)),
        "mobile": lambda: (Mobile(), torch.randn(2, 3, 32, 32)),
        "unet": lambda: (UNet(), torch.randn(2, 1, 24, 24)),
        "encoder": lambda: (Encoder(), torch.randint(0, 50, (2, 9))),
        "lstm": lambda: (Sequence(nn.LSTM), torch.randn(2, 5, 6)),
        "gru": lambda: (Sequence(nn.GRU), torch.randn(2, 5, 6)),
        "rnn": lambda: (Sequence(nn.RNN), torch.randn(2, 5, 6)),
    }[name]()
    return net.eval(), x


def export(net: nn.Module, x: Tensor, exporter: str) -> bytes:
    """`exporter` is torchscript-N for an opset N, or dynamo. The batch is open."""
    with warnings.catch_warnings(), io.BytesIO() as file:
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            program = torch.onnx.export(
                net,
                (x,),
                dynamo=True,
                input_names=["x"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
            assert program is not None
            return program.model_proto.SerializeToString()
        torch.onnx.export(
            net,
            (x,),
            file,
            dynamo=False,
            opset_version=int(exporter.rpartition("-")[2]),
            input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )
        return file.getvalue()
