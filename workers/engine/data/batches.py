"""Examples handed out in the order and types of a model's inputs: from a dataset, or made up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelpress.jobs import Task
from modelpress.matching import IGNORED, MismatchError, judged_output, label_array, match
from modelpress.models import ArraySpec, Signature, TensorSpec
from workers.engine.data.dataset import Dataset
from workers.engine.dtypes import TORCH_OF_WORD
from workers.engine.errors import InvalidDataError

MADE_UP = 256
"""Examples that are made up where there is no data, if they are small."""
MADE_UP_VALUES = 4 << 20
FEWEST_MADE_UP = 8
WHOLE_NUMBERS = 2
"""Made-up integers are 0 or 1 where no table says what they may be."""
NO_ROWS: Mapping[str, int] = MappingProxyType({})


class DatasetBatches:
    """The examples of a dataset as a model takes them (`workers.engine.context.Batches`).

    Raises InvalidDataError where the dataset does not fit the model.
    """

    def __init__(self, dataset: Dataset, signature: Signature, task: Task) -> None:
        try:
            matched = match(signature, dataset.spec, task)
        except MismatchError as error:
            raise InvalidDataError(error.detail) from error
        self._inputs = [
            (dataset.arrays[matched.inputs[spec.name]], TORCH_OF_WORD[spec.dtype]) for spec in signature.inputs
        ]
        self.label = None if task.kind == "none" else matched.labels
        self.label_spec: ArraySpec | None = None
        """The labels as they are read, which is without the axis of a column."""
        self._labels: NDArray | None = None
        if self.label is not None:
            self.label_spec = label_array(judged_output(signature, task), dataset.spec, self.label)
            self._labels = dataset.arrays[self.label].reshape(self.label_spec.shape)
        self.examples = dataset.spec.examples

    @property
    def labelled(self) -> bool:
        return self._labels is not None

    def take(self, indices: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        rows = indices.numpy()
        inputs = tuple(_tensor(array, rows).to(dtype) for array, dtype in self._inputs)
        if self._labels is None:
            return inputs, None
        labels = self._labels[rows]
        # PyTorch knows hardly any arithmetic on unsigned integers wider than a byte
        return inputs, torch.from_numpy(labels if labels.dtype.kind == "f" else labels.astype(np.int64))

    def check_classes(self) -> None:
        """Raises InvalidDataError for negative class numbers: of those, only one is known to count for nothing."""
        if self._labels is None or self.label_spec is None or (self.label_spec.minimum or 0) >= 0:
            return
        wrong = self._labels[(self._labels < 0) & (self._labels != IGNORED)]
        if wrong.size:
            raise InvalidDataError(
                f"the labels {self.label!r} hold {wrong[0]}; classes are counted from 0, and {IGNORED} is left out"
            )


class SyntheticBatches:
    """Made-up inputs: standard normal for floats, zeros and ones for integers and booleans, or numbers of rows."""

    labelled = False

    def __init__(self, signature: Signature, seed: int, free: int, rows: Mapping[str, int] = NO_ROWS) -> None:
        """`free`: the size of dimensions that the model leaves open. `rows`: of the tables that inputs pick from."""
        self.signature, self.seed, self.free, self.rows = signature, seed, free, rows

    @cached_property
    def inputs(self) -> list[Tensor]:
        generator = np.random.default_rng(self.seed)
        examples = self.shown(MADE_UP, MADE_UP_VALUES)
        return [
            _made_up(spec, shape_of(spec, examples, self.free), generator, self.rows.get(spec.name, WHOLE_NUMBERS))
            for spec in self.signature.inputs
        ]

    @property
    def examples(self) -> int:
        return max((len(x) for x in self.inputs if x.ndim), default=FEWEST_MADE_UP)

    def shown(self, wanted: int, values: int) -> int:
        """As many examples as are wanted, if they have no more values than this together."""
        width = sum(math.prod(shape_of(spec, 1, self.free)) for spec in self.signature.inputs)
        return max(FEWEST_MADE_UP, min(wanted, values // max(1, width)))

    def take(self, indices: Tensor) -> tuple[tuple[Tensor, ...], None]:
        return tuple(array[indices] if array.ndim else array for array in self.inputs), None


def shape_of(spec: TensorSpec, examples: int, free: int) -> tuple[int, ...]:
    rest = (dim if isinstance(dim, int) and dim >= 0 else free for dim in spec.shape[1:])
    return (examples, *rest) if spec.shape else ()


def _made_up(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator, below: int) -> Tensor:
    dtype = TORCH_OF_WORD[spec.dtype]
    if dtype.is_floating_point:
        return torch.from_numpy(np.asarray(generator.standard_normal(shape, np.float32))).to(dtype)
    return torch.from_numpy(np.asarray(generator.integers(0, below, shape))).to(dtype)


def _tensor(array: NDArray, rows: NDArray) -> Tensor:
    return torch.from_numpy(array[rows])
