"""Data sets: digits offline, the usual image sets from disk, folders and arrays of one's own."""

from fastlatent.data.config import DataConfig
from fastlatent.data.dataset import Dataset, load
from fastlatent.data.split import Batch, Split, epoch_order

__all__ = ["Batch", "DataConfig", "Dataset", "Split", "epoch_order", "load"]
