"""The one training loop: distillation, fine-tuning and all that learns goes through it.

AdamW under a one-cycle schedule. A share of the data is held out and the weights that did best on it are kept, those
from before the training included, so that training never makes a model worse on what it can see. After an epoch, all
that it takes to go on is kept too, for the next attempt at the job.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from modelpress.steps.training import TrainingStep
from workers.engine.batching import Batch, batch_of, training_data
from workers.engine.checkpoints import Checkpoints
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.optimizing import Optimizer, trainable
from workers.engine.pacing import Clock, Split
from workers.engine.watching import watched

EVALUATION_BATCH = 256
GRADIENT_NORM = 1.0
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

    watched: tuple[fx.Node, ...]
    """Inner values of the graph that are given after its outputs."""

    def loss(self, outputs: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """A scalar, mean over the examples."""

    def figures(self, outputs: tuple[Tensor, ...], batch: Batch) -> dict[str, float]:
        """Means over the examples, such as accuracy; for held-out data."""

    def parameters(self) -> list[nn.Parameter]:
        """What is trained beside the model and thrown away afterwards."""


class Schedule(Protocol):
    """What changes the graph while it is trained, as gradual pruning does.

    Another attempt goes on from a checkpoint of the graph. A schedule that remembers more than that is an `nn.Module`
    with what it remembers in buffers, and is kept with the checkpoint.
    """

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
    out_of_patience: bool = False
    resumed_at: int = 0
    """Epochs that an earlier attempt at the job had trained already."""

    def told(self) -> str:
        """What the training did, in a sentence for the report."""
        text = f"{self.steps} updates in {self.epochs:.3g} epochs"
        if self.resumed_at:
            text += f", {self.resumed_at} of them in an earlier attempt"
        if self.out_of_time:
            text += ", stopped by the time limit"
        if self.out_of_patience:
            text += ", stopped as the held-out loss no longer fell"
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

    What an earlier attempt at the job has trained is not trained again. Raises StepError without training data,
    without memory, and where the loss stops being a number.
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
        remembering: Any = schedule
        self.memory = remembering if isinstance(remembering, nn.Module) else None
        self.split = Split(graph, options, context)
        self.clock = Clock(self.split.batches * self.split.epochs, options, context)
        self.module = watched(graph.module, objective.watched)
        self.checkpoints = Checkpoints(context, options, graph.module, self.data.examples)
        self.outcome = Outcome(held_out=len(self.split.held_out))
        self.best: dict[str, Tensor] | None = None
        self.best_at = 0
        """Epoch after which the best weights were found."""
        self.epoch = 0
        """Epochs that are behind it."""
        self.validating = 0.0
        """Seconds that a judgement takes."""
        self.finished = False
        self.reported = -math.inf  # the first update is told at once

    def run(self) -> Outcome:
        module = self.graph.module
        trained = trainable(module)
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
            self._train(Optimizer(module, self.objective.parameters(), self.options))
        finally:
            module.eval()
            for parameter, required in zip(trained, before, strict=True):
                parameter.requires_grad_(required)
                parameter.grad = None
        return self.outcome

    def _train(self, optimizer: Optimizer) -> None:
        if not self._resume(optimizer):
            self.validating = self._validate()
        while not self.finished:
            for indices in self.split.shuffled():
                self._train_mode()
                if self.schedule is not None:
                    self.schedule.advance(self._fraction())
                loss = self._update(indices, optimizer)
                self.outcome.steps += 1
                self._report(loss, optimizer.rate)
                self.outcome.out_of_time = self.clock.ends_within(self.validating)
                if self.outcome.out_of_time:
                    break
            self.outcome.epochs = self.outcome.steps / self.split.batches
            self.epoch += 1
            if self.outcome.out_of_time or self.epoch == self.split.epochs:
                self._finish()
            self._validate()
            if not self.finished and self._hopeless():
                self.outcome.out_of_patience = True
                self._finish()
                self._validate()
            if not self.finished and self.checkpoints.due:
                self.checkpoints.write(self._state() | self._way(optimizer))
        if self.best is not None:
            self.graph.module.load_state_dict(self.best)
        self.best = None
        self.checkpoints.write(self._state())

    def _finish(self) -> None:
        if self.schedule is not None:
            self.schedule.advance(1.0)
        self.finished = True

    def _hopeless(self) -> bool:
        patience = self.options.patience
        return patience is not None and self.best is not None and self.epoch - self.best_at >= patience

    def _update(self, indices: Tensor, optimizer: Optimizer) -> float:
        optimizer.adam.zero_grad(set_to_none=True)
        total = 0.0
        for part in indices.split(self.split.size or len(indices)):
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
        norm = nn.utils.clip_grad_norm_(optimizer.parameters, GRADIENT_NORM)
        if not math.isfinite(total) or not bool(norm.isfinite()):
            raise StepError(
                f"the training became unstable (loss {total:g}) after {self.outcome.steps} updates: "
                f"choose a learning_rate below {self.options.learning_rate:g}"
            )
        optimizer.step(self._fraction())
        return total

    @torch.no_grad()
    def _validate(self) -> float:
        """Judge the present weights on the held-out share, keep them where they are the best; returns seconds."""
        began = time.monotonic()
        if not len(self.split.held_out):
            return 0.0
        self.graph.module.eval()
        loss, figures = 0.0, dict[str, float]()
        with parametrize.cached():
            for indices in self.split.held_out.split(self.split.size or EVALUATION_BATCH):
                batch, share = (
                    batch_of(self.data, indices, self.context.device),
                    len(indices) / len(self.split.held_out),
                )
                outputs = self._forward(batch)
                loss += share * float(self.objective.loss(outputs, batch))
                for name, value in self.objective.figures(outputs, batch).items():
                    figures[name] = figures.get(name, 0.0) + share * value
        shown = {"validation_loss": loss} | {f"validation_{name}": value for name, value in figures.items()}
        self.context.metric({"epoch": float(self.epoch)} | shown)
        if self.epoch == 0:
            self.outcome.started_at = loss
        loss = math.inf if math.isnan(loss) else loss
        if self.schedule is not None and not (self.finished or self.schedule.settled(self._fraction())):
            return time.monotonic() - began
        if loss < self.outcome.loss or self.best is None:
            self.outcome.loss, self.outcome.figures, self.outcome.kept_start = loss, figures, self.epoch == 0
            self.best = {name: value.clone() for name, value in self.graph.module.state_dict().items()}
            self.best_at = self.epoch
        return time.monotonic() - began

    def _train_mode(self) -> None:
        """Dropout stays off: what is trained answers for a model that is in use, and the teacher does not drop either.

        Everything else is in train mode, which recurrent layers on CUDA need for their gradients.
        """
        self.graph.module.train()
        small = min(len(self.split.examples), self.split.size or self.options.batch_size) < STATISTICS_BATCH
        still = small or self._fraction() >= STATISTICS_SHARE
        for module in self.graph.module.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd) or (  # noqa: SLF001 (the base has no public name)
                still and isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
            ):
                module.eval()

    def _forward(self, batch: Batch) -> tuple[Tensor, ...]:
        """The outputs, all floats in 32 bits; on a GPU that computes in bfloat16, products are."""
        cuda = self.context.device.type == "cuda"
        mixed = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        # parts of a batch go to all GPUs that the worker may use, unless the model takes one batch size only
        together = cuda and self.split.size is None and self.graph.module.training and torch.cuda.device_count() > 1
        module = nn.DataParallel(self.module) if together else self.module
        with torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext():
            outputs = module(*batch.inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(output.float() if output.is_floating_point() else output for output in outputs)

    def _resume(self, optimizer: Optimizer) -> bool:
        """Go on where an earlier attempt stopped; False where there was none."""
        kept = self.checkpoints.read()
        if kept is None:
            return False
        self.graph.module.load_state_dict(kept["model"])
        self.outcome = Outcome(**kept["outcome"])
        self.outcome.resumed_at = kept["epoch"]
        for name in ("epoch", "best", "best_at", "validating", "finished"):
            setattr(self, name, kept[name])
        if self.memory is not None:
            self.memory.load_state_dict(kept["schedule"])
        self.clock.start(kept["seconds"])
        self.clock.reached = kept["reached"]
        if not self.finished:
            optimizer.adam.load_state_dict(kept["optimizer"])
            for parameter, value in zip(self.objective.parameters(), kept["beside"], strict=True):
                parameter.data.copy_(value)
            self.split.order.set_state(kept["order"])
            torch.set_rng_state(kept["random"])
        return True

    def _state(self) -> dict[str, Any]:
        """What is to be known of a training, finished or not."""
        return {
            "model": self.graph.module.state_dict(),
            "schedule": {} if self.memory is None else self.memory.state_dict(),
            "outcome": asdict(self.outcome),
            "best": self.best,
            "seconds": self.clock.elapsed,
            "reached": self.clock.reached,
        } | {name: getattr(self, name) for name in ("epoch", "best_at", "validating", "finished")}

    def _way(self, optimizer: Optimizer) -> dict[str, Any]:
        """What else it takes to go on with one that is not."""
        return {
            "optimizer": optimizer.adam.state_dict(),
            "beside": [parameter.detach() for parameter in self.objective.parameters()],
            "order": self.split.order.get_state(),
            "random": torch.get_rng_state(),
        }

    def _fraction(self) -> float:
        return self.clock.fraction(self.outcome.steps)

    def _report(self, loss: float, rate: float) -> None:
        now = time.monotonic()
        if now - self.reported < REPORT_EVERY:
            return
        self.reported = now
        self.context.progress(self._fraction(), f"epoch {self.epoch + 1} of {self.split.epochs}, loss {loss:.4g}")
        self.context.metric({"epoch": self.outcome.steps / self.split.batches, "loss": loss, "learning_rate": rate})
