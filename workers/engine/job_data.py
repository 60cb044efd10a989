"""The datasets of a job, each read once however often it is used, in the form that the model takes."""

from __future__ import annotations

from pathlib import Path

from modelpress.jobs import JobData, Task
from modelpress.models import DatasetSpec, Signature
from modelpress.run import InputFile
from workers.engine.data import Dataset, DatasetBatches, read_dataset

USES = ("train", "calibrate", "evaluate")


class JobBatches:
    """Batches by use, and the specs of those that are labelled. Raises InvalidDataError where one does not fit."""

    def __init__(self, data: JobData[InputFile], signature: Signature, task: Task, run_dir: Path) -> None:
        self.by_use: dict[str, DatasetBatches] = {}
        self.labelled: list[tuple[str, DatasetSpec]] = []
        """Name of the array of labels, and the dataset it stands in."""
        read: dict[str, Dataset] = {}
        for use in USES:
            file: InputFile | None = getattr(data, use)
            if file is None:
                continue
            if file.path not in read:
                read[file.path] = read_dataset(run_dir / file.path, run_dir)
            batches = DatasetBatches(read[file.path], signature, task)
            self.by_use[use] = batches
            if batches.label is not None:
                self.labelled.append((batches.label, read[file.path].spec))
