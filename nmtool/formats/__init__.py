"""Files of every stage: HDF5 without pickle, checksummed, written whole or not at all."""

from nmtool.formats.artifacts import Artifact, load, load_as, pack, save, unpack

__all__ = ["Artifact", "load", "load_as", "pack", "save", "unpack"]
