"""Data sets as spikes: fixed splits, encodings, and generated and recorded events."""

from nmtool.data.encoding import encode
from nmtool.data.samples import SPLITS, Samples, Split
from nmtool.data.sets import input_shape, load_split, n_classes, n_features, spikes_of

__all__ = [
    "SPLITS",
    "Samples",
    "Split",
    "encode",
    "input_shape",
    "load_split",
    "n_classes",
    "n_features",
    "spikes_of",
]
