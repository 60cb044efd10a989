"""Random nets of convolutions and what stands between them: pruned, they are the nets with the same units zeroed."""

from dataclasses import dataclass, field

import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.engine.structure.nets import distance, half, net, run
from workers.engine.shapes import example_inputs
from workers.engine.structure.groups import find_groups, remove_units, zero_units

STEPS = ("conv", "grouped", "depthwise", "bend", "norm", "add", "concat", "split", "shuffle", "shift", "gate", "cut")
BENDS = ("Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus")


@dataclass
class Writer:
    """Writes a net step by step; `values` are the names and channels of what there is."""

    data: st.DataObject
    lines: list[str] = field(default_factory=list)
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: list[tuple[str, int]] = field(default_factory=lambda: [("x", 3)])
    count: int = 0

    def number(self, low, high):
        return self.data.draw(st.integers(low, high))

    def any(self):
        """The newest ones are drawn most often, so that nets get deep."""
        return self.values[-1 - min(self.number(0, 3), len(self.values) - 1)]

    def name(self, stem):
        self.count += 1
        return f"{stem}{self.count}"

    def line(self, call, channels):
        made = self.name("v")
        self.lines.append(f"{made} = {call}")
        self.values.append((made, channels))
        return made, channels

    def weight(self, stem, *shape):
        name = self.name(stem)
        self.weights[name] = shape
        return name

    def constant(self, *numbers):
        name = self.name("k")
        self.lines.append(f"{name} = Constant<value_ints={list(numbers)}>()")
        return name

    def convolution(self, source, channels, size=1, groups=1):
        value, given = source
        edge = size // 2
        weight, bias = self.weight("w", channels, given // groups, size, size), self.weight("b", channels)
        pads = f"pads=[{edge}, {edge}, {edge}, {edge}]"
        return self.line(f"Conv<group={groups}, {pads}>({value}, {weight}, {bias})", channels)

    def conv(self):
        self.convolution(self.any(), self.number(2, 6), self.data.draw(st.sampled_from((1, 3))))

    def grouped(self):
        groups = self.number(2, 3)
        wide = self.convolution(self.any(), groups * self.number(1, 4))
        self.convolution(wide, groups * self.number(1, 3), 3, groups)

    def depthwise(self):
        source = self.any()
        self.convolution(source, source[1] * self.number(1, 2), 3, source[1])

    def bend(self):
        value, channels = self.any()
        self.line(f"{self.data.draw(st.sampled_from(BENDS))}({value})", channels)

    def norm(self):
        value, channels = self.any()
        inputs = ", ".join(self.weight(stem, channels) for stem in ("scale", "b", "b", "var"))
        self.line(f"BatchNormalization({value}, {inputs})", channels)

    def add(self):
        first, second = self.any(), self.any()
        if first[1] != second[1]:
            second = self.convolution(second, first[1])
        self.line(f"{self.data.draw(st.sampled_from(('Add', 'Mul', 'Max')))}({first[0]}, {second[0]})", first[1])

    def concat(self):
        first, second = self.any(), self.any()
        self.line(f"Concat<axis=1>({first[0]}, {second[0]})", first[1] + second[1])

    def split(self):
        value, channels = self.any()
        first = self.number(1, channels - 1) if channels > 1 else 1
        if channels > 1:
            sizes, one, other = self.constant(first, channels - first), self.name("v"), self.name("v")
            self.lines.append(f"{one}, {other} = Split<axis=1>({value}, {sizes})")
            self.values += [(one, first), (other, channels - first)]

    def cut(self):
        value, channels = self.any()
        first = self.number(0, channels - 1)
        bounds = (self.constant(first), self.constant(channels), self.constant(1))
        self.line(f"Slice({value}, {', '.join(bounds)})", channels - first)

    def shuffle(self):
        value, channels = self.any()
        groups = self.data.draw(st.sampled_from([size for size in range(1, channels + 1) if channels % size == 0]))
        apart, back = self.constant(0, groups, channels // groups, 6, 6), self.constant(0, channels, 6, 6)
        view, _ = self.line(f"Reshape({value}, {apart})", channels)
        turned, _ = self.line(f"Transpose<perm=[0, 2, 1, 3, 4]>({view})", channels)
        del self.values[-2:]
        self.line(f"Reshape({turned}, {back})", channels)

    def shift(self):
        value, channels = self.any()
        self.line(f"Add({value}, {self.weight('c', 1, channels, 1, 1)})", channels)

    def gate(self):
        source = self.any()
        pooled = self.line(f"GlobalAveragePool({source[0]})", source[1])
        narrow = self.convolution(pooled, self.number(2, 4))
        wide = self.convolution(narrow, source[1])
        gate = self.line(f"Sigmoid({wide[0]})", source[1])
        del self.values[-4:]
        self.line(f"Mul({source[0]}, {gate[0]})", source[1])

    def finish(self):
        value, channels = self.values[-1]
        pooled, _ = self.line(f"GlobalAveragePool({value})", channels)
        flat, _ = self.line(f"Flatten({pooled})", channels)
        body = "\n".join([*self.lines, f"y = Gemm<transB=1>({flat}, {self.weight('w', 4, channels)})"])
        return net(f"(float[N, 3, 6, 6] x) => (float[N, 4] y) {{ {body} }}", self.weights)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_pruned_is_zeroed(data):
    writer = Writer(data)
    writer.conv()
    for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=12)):
        getattr(writer, step)()
    graph = writer.finish()
    groups = find_groups(graph)
    keep = half(groups, seed=data.draw(st.integers(0, 9)))
    event(f"prunable groups: {min(len(keep), 4)}")
    pruned, zeroed = graph.copy(), graph.copy()
    remove_units(pruned, keep)
    zero_units(zeroed, keep)
    (x,) = example_inputs(graph, 3, 6)
    for module in (pruned.module, zeroed.module):
        module.double()
    assert distance(run(pruned, [x.double()]), run(zeroed, [x.double()])) < 1e-9


def test_random_nets_have_something_to_prune():
    """The property above would hold for nets in which all is frozen."""
    found = []

    @settings(max_examples=12, deadline=None, database=None, derandomize=True)
    @given(data=st.data())
    def collect(data):
        writer = Writer(data)
        writer.conv()
        for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=12)):
            getattr(writer, step)()
        found.append(sum(group.frozen is None for group in find_groups(writer.finish())))

    collect()
    assert sum(count > 0 for count in found) > len(found) / 2
    assert torch.tensor(found).max() > 2
