"""Data sets as spikes: seeded, stratified splits and encodings."""

from nmtool.data.encoding import encode
from nmtool.data.sets import SPLITS, Samples, Split, load_split, n_classes, n_features

__all__ = ["SPLITS", "Samples", "Split", "encode", "load_split", "n_classes", "n_features"]
