"""The one training loop: distillation, fine-tuning and all that learns goes through it.

AdamW under a one-cycle schedule. A share of the data is held out and the weights that did best on it are kept, those
from before the training included, so that training never makes a model worse on what it can see.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modelpress.steps.training import TrainingStep
from workers.engine.batching import Batch, batch_of, fixed_batch, training_data, whole
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph

EVALUATION_BATCH = 256
FEWEST_EPOCHS, MOST_EPOCHS, FEWEST_UPDATES = 3, 1000, 300
"""How long is trained where nobody says: 9 updates on 270 sequences leave an 80 % sparse GRU at .94, 60 bring .976."""
GRADIENT_NORM = 1.0
WARM_UP = 0.15
"""Share of the schedule in which the learning rate rises."""
REPORT_EVERY = 0.5
"""Seconds between two progress messages."""
STATISTICS_SHARE = 0.5
"""Batch norms learn new statistics in this share of the schedule, and then keep them.

After pruning a ResNet by 70 %, KL left by distillation on 1,000 and 6,000 inputs: .0057 and .0033; with the statistics
always learning .0063 and .0038; with those it came with .0102 and worse (on 10,000 inputs it makes no difference).
"""
STATISTICS_BATCH = 16
"""With smaller batches than this they keep those they came with."""


class Objective(Protocol):
    """What is minimised, and what is shown of it."""

    def loss(self, outputs: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """A scalar, mean over the examples."""

    def figures(self, outputs: tuple[Tensor, ...], batch: Batch) -> dict[str, float]:
        """Means over the examples, such as accuracy; for held-out data."""

    def parameters(self) -> list[nn.Parameter]:
        """What is trained beside the model and thrown away afterwards."""


class Schedule(Protocol):
    """What changes the graph while it is trained, as gradual pruning does."""

    def advance(self, fraction: float) -> None:
        """Called before every update, and once more, with 1, before the last judgement of a training.

        `fraction` (0 to 1) only grows; parameters may change in place, and must not be replaced by others.
        """

    def settled(self, fraction: float) -> bool:
        """Whether the graph has its final form by now: only weights from then on can be the result."""


@dataclass
class Outcome:
    """`loss` and `figures` are those of the weights that were kept, on the held-out share (empty without one)."""

    steps: int = 0
    epochs: float = 0.0
    held_out: int = 0
    """Examples by which the weights were judged."""
    started_at: float = math.inf
    loss: float = math.inf
    figures: dict[str, float] = field(default_factory=dict)
    kept_start: bool = False
    out_of_time: bool = False

    def told(self) -> str:
        """What the training did, in a sentence for the report."""
        text = f"{self.steps} updates in {self.epochs:.3g} epochs"
        if self.out_of_time:
            text += ", stopped by the time limit"
        if not self.held_out:
            return f"{text}; no examples were held out, so that nothing tells whether it helped"
        if math.isinf(self.loss):
            return text
        if self.kept_start:
            return f"{text}; the held-out loss never fell below {self.loss:.4g}, so the weights were left as they were"
        return f"{text}; held-out loss {self.started_at:.4g} to {self.loss:.4g}"

    def measured(self) -> dict[str, float]:
        """The same in figures."""
        held_out = {} if math.isinf(self.loss) else {"validation_loss": self.loss}
        return {"updates": float(self.steps)} | held_out | {f"validation_{k}": v for k, v in self.figures.items()}


def train(
    graph: Graph, objective: Objective, options: TrainingStep, context: Context, schedule: Schedule | None = None
) -> Outcome:
    """Train the graph in place; it is on `context.device` and comes back in eval mode.

    Raises StepError without training data, without memory, and where the loss stops being a number.
    """
    training = _Training(graph, objective, options, context, schedule)
    try:
        return training.run()
    except torch.OutOfMemoryError as error:
        raise StepError(f"the GPU's memory is too small: choose a batch_size below {options.batch_size}") from error


class _Training:
    def __init__(
        self,
        graph: Graph,
        objective: Objective,
        options: TrainingStep,
        context: Context,
        schedule: Schedule | None,
    ) -> None:
        self.graph, self.objective, self.options, self.context = graph, objective, options, context
        self.schedule, self.data = schedule, training_data(context)
        data = self.data
        self.order = torch.Generator().manual_seed(context.seed)
        shuffled = torch.randperm(data.examples, generator=self.order)
        self.size = fixed_batch(graph, context)
        held = _held_out(data.examples, options.validation, self.size)
        self.held_out, self.examples = shuffled[:held], shuffled[held:]
        if self.size:
            self.examples = whole(self.examples, self.size)
        self.began = time.monotonic()
        self.reported = -math.inf  # the first update is told at once
        self.limit = min(context.deadline, self.began + (options.seconds or math.inf)) - self.began
        self.batches = max(1, len(self.examples) // max(options.batch_size, self.size or 0))
        self.epochs = options.epochs or min(max(FEWEST_EPOCHS, math.ceil(FEWEST_UPDATES / self.batches)), MOST_EPOCHS)
        self.total = self.batches * self.epochs
        self.outcome = Outcome(held_out=held)
        self.best: dict[str, Tensor] | None = None
        self.finished = False

    def run(self) -> Outcome:
        module = self.graph.module
        trained = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
        if not trained:
            raise StepError("the model has no weights that can be trained")
        if any(parameter.dtype == torch.float16 for parameter in trained):
            raise StepError(
                "the model's weights are float16, in which the updates of a training are lost or overflow: "
                "export the model in float32, and end the recipe with half_precision"
            )
        before = [parameter.requires_grad for parameter in trained]
        try:
            for parameter in trained:
                parameter.requires_grad_(True)
            self._train([*trained, *self.objective.parameters()])
        finally:
            module.eval()
            for parameter, required in zip(trained, before, strict=True):
                parameter.requires_grad_(required)
                parameter.grad = None
        return self.outcome

    def _train(self, parameters: list[nn.Parameter]) -> None:
        optimizer = torch.optim.AdamW(
            parameters, lr=self.options.learning_rate, weight_decay=self.options.weight_decay, foreach=True
        )
        validating = self._validate(0)
        for epoch in range(self.epochs):
            for indices in self._shuffled():
                self._train_mode()
                if self.schedule is not None:
                    self.schedule.advance(self._fraction())
                rate = self.options.learning_rate * one_cycle(self._fraction())
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = self._update(indices, optimizer, parameters)
                self.outcome.steps += 1
                self._report(epoch, loss, rate)
                self.outcome.out_of_time = self._elapsed() + validating >= self.limit
                if self.outcome.out_of_time:
                    break
            self.outcome.epochs = self.outcome.steps / self.batches
            if self.schedule is not None and (self.outcome.out_of_time or epoch + 1 == self.epochs):
                self.schedule.advance(1.0)
                self.finished = True
            self._validate(epoch + 1)
            if self.outcome.out_of_time:
                break
        if self.best is not None:
            self.graph.module.load_state_dict(self.best)

    def _update(self, indices: Tensor, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in indices.split(self.size or len(indices)):
            batch, share = batch_of(self.data, part, self.context.device), len(part) / len(indices)
            with parametrize.cached():
                loss = self.objective.loss(self._forward(batch), batch) * share
            if not loss.requires_grad:
                raise StepError(
                    "nothing in the model can be trained by this: between its weights and its answers there are parts "
                    "through which no gradient passes (the model's notes name them)"
                )
            loss.backward()
            total += float(loss.detach())
        norm = nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        if not math.isfinite(total) or not bool(norm.isfinite()):
            raise StepError(
                f"the training became unstable (loss {total:g}) after {self.outcome.steps} updates: "
                f"choose a learning_rate below {self.options.learning_rate:g}"
            )
        optimizer.step()
        return total

    @torch.no_grad()
    def _validate(self, epoch: int) -> float:
        """Judge the present weights on the held-out share, keep them where they are the best; returns seconds."""
        began = time.monotonic()
        if not len(self.held_out):
            return 0.0
        self.graph.module.eval()
        loss, figures = 0.0, dict[str, float]()
        with parametrize.cached():
            for indices in self.held_out.split(self.size or EVALUATION_BATCH):
                batch, share = batch_of(self.data, indices, self.context.device), len(indices) / len(self.held_out)
                outputs = self._forward(batch)
                loss += share * float(self.objective.loss(outputs, batch))
                for name, value in self.objective.figures(outputs, batch).items():
                    figures[name] = figures.get(name, 0.0) + share * value
        shown = {"validation_loss": loss} | {f"validation_{name}": value for name, value in figures.items()}
        self.context.metric({"epoch": float(epoch)} | shown)
        if epoch == 0:
            self.outcome.started_at = loss
        loss = math.inf if math.isnan(loss) else loss
        if self.schedule is not None and not (self.finished or self.schedule.settled(self._fraction())):
            return time.monotonic() - began
        if loss < self.outcome.loss or self.best is None:
            self.outcome.loss, self.outcome.figures, self.outcome.kept_start = loss, figures, epoch == 0
            self.best = {name: value.clone() for name, value in self.graph.module.state_dict().items()}
        return time.monotonic() - began

    def _train_mode(self) -> None:
        """Dropout stays off: what is trained answers for a model that is in use, and the teacher does not drop either.

        Everything else is in train mode, which recurrent layers on CUDA need for their gradients.
        """
        self.graph.module.train()
        small = min(len(self.examples), self.size or self.options.batch_size) < STATISTICS_BATCH
        still = small or self._fraction() >= STATISTICS_SHARE
        for module in self.graph.module.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd) or (  # noqa: SLF001 (the base has no public name)
                still and isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
            ):
                module.eval()

    def _shuffled(self) -> Iterator[Tensor]:
        """The training examples in a new order, in even batches: no rest of one that a batch norm could not take."""
        order = self.examples[torch.randperm(len(self.examples), generator=self.order)]
        if self.size is None:
            yield from torch.tensor_split(order, self.batches)
        else:
            groups = torch.tensor_split(order.view(-1, self.size), self.batches)
            yield from (group.flatten() for group in groups)

    def _forward(self, batch: Batch) -> tuple[Tensor, ...]:
        """The outputs, all floats in 32 bits; on a GPU that computes in bfloat16, products are."""
        cuda = self.context.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            outputs = self.graph(*batch.inputs)
        return tuple(output.float() if output.is_floating_point() else output for output in outputs)

    def _elapsed(self) -> float:
        return time.monotonic() - self.began

    def _fraction(self) -> float:
        """How far the schedule is: by updates, or by the clock where time would run out first."""
        done = self.outcome.steps / self.total
        elapsed = self._elapsed() / self.limit
        if self.outcome.steps >= 10 and elapsed > done:
            return min(elapsed, 1.0)
        return done

    def _report(self, epoch: int, loss: float, rate: float) -> None:
        now = time.monotonic()
        if now - self.reported < REPORT_EVERY:
            return
        self.reported = now
        self.context.progress(self._fraction(), f"epoch {epoch + 1} of {self.epochs}, loss {loss:.4g}")
        self.context.metric({"epoch": self.outcome.steps / self.batches, "loss": loss, "learning_rate": rate})


def _held_out(examples: int, share: float, size: int | None) -> int:
    """How many examples are held out: in whole batches, rounded up, as long as one batch is left to train on."""
    if size is None:
        return min(int(examples * share), examples - 2)
    return min(math.ceil(examples * share / size), examples // size - 1) * size


def one_cycle(fraction: float) -> float:
    """The share of the peak learning rate at this point (0 to 1) of the schedule: cosine up, cosine down."""
    if fraction < WARM_UP:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * fraction / WARM_UP)) / 2
    return 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (fraction - WARM_UP) / (1 - WARM_UP))) / 2
