"""Train the graph on labels."""

from __future__ import annotations

from torch import Tensor, fx, nn

from modelpress.steps.fine_tuning import FineTuning
from workers.engine.batching import Batch, answers, fixed_batch, labels_of, on_device, probe_of, training_data
from workers.engine.context import Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.labels import Target
from workers.engine.steps import applies
from workers.engine.training import train


@applies(FineTuning)
def fine_tuning(step: FineTuning, graph: Graph, context: Context) -> Graph:
    """Raises StepError without labels, InvalidDataError where they do not fit the model's answers."""
    data = training_data(context)
    if not data.labelled:
        raise StepError("fine_tuning needs labels and the data has none: name them in task.label, or use distillation")
    with on_device(graph, context.device):
        outcome = train(graph, Labels(graph, context), step, context)
    context.notes.append(outcome.told())
    context.figures.update(outcome.measured())
    return graph


class Labels:
    """The objective: the loss of the labels on the output that is judged."""

    watched: tuple[fx.Node, ...] = ()

    def __init__(self, graph: Graph, context: Context) -> None:
        self.judged = context.output
        size = fixed_batch(graph, context)
        probe = probe_of(training_data(context), context, size)
        probed = answers(graph, probe.inputs, size)[self.judged]
        if not probed.is_floating_point():
            raise StepError("fine_tuning needs an output of real numbers: name the class scores in task.output")
        self.target = Target(probed, labels_of(probe), context.task, context.class_axis, context.blank)

    def parameters(self) -> list[nn.Parameter]:
        return []

    def loss(self, outputs: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return self.target.loss(outputs[self.judged], labels_of(batch))

    def figures(self, outputs: tuple[Tensor, ...], batch: Batch) -> dict[str, float]:
        return self.target.figures(outputs[self.judged], labels_of(batch))
