"""Data sets as spikes: fixed splits, encodings, and generated and recorded events."""

from nmtool.data.encoding import encode
from nmtool.data.samples import SPLITS, Samples, Split
from nmtool.data.sets import (
    check_files,
    input_shape,
    load_split,
    n_classes,
    n_features,
    spikes_of,
)

__all__ = [
    "SPLITS",
    "Samples",
    "Split",
    "check_files",
    "encode",
    "input_shape",
    "load_split",
    "n_classes",
    "n_features",
    "spikes_of",
]
