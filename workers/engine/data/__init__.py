"""Data that people upload: read as hostile input, checked once, then handed out in batches that fit a model."""

from workers.engine.data.batches import DatasetBatches, SyntheticBatches
from workers.engine.data.dataset import Dataset, read_dataset

__all__ = ["Dataset", "DatasetBatches", "SyntheticBatches", "read_dataset"]
