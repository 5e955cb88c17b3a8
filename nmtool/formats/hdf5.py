"""What an HDF5 file from somebody else may hold: data of its own, of a size that it can have."""

from __future__ import annotations

from typing import Any

import h5py

from nmtool.errors import ArtifactError

EXPANSION = 1100
"""Bytes that one byte of a file may become: gzip reaches 1032."""

SMALL = 1 << 20
"""Bytes that any file may become."""

_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}


def check_link(group: h5py.Group, name: str) -> None:
    """Refuse names that lead elsewhere: into other files, or round in circles.

    Raises:
        ArtifactError: a soft or external link.
    """
    if isinstance(kind := group.get(name, getlink=True), h5py.SoftLink | h5py.ExternalLink):
        raise ArtifactError(
            f"{name}: found a {type(kind).__name__}, allowed data that the file itself holds"
        )


def check_dataset(name: str, node: Any) -> None:
    """Refuse data that lies in other files, or that only a plugin of the HDF5 library can read.

    Raises:
        ArtifactError: external storage, a virtual dataset, an unknown filter.
    """
    made = node.id.get_create_plist()
    if made.get_external_count() or made.get_layout() == h5py.h5d.VIRTUAL:
        raise ArtifactError(f"{name}: found data in other files, allowed data that it holds itself")
    for filter, *_ in (made.get_filter(index) for index in range(made.get_nfilters())):
        if filter not in _FILTERS:
            raise ArtifactError(
                f"{name}: found the HDF5 filter {filter}, allowed {', '.join(_FILTERS.values())}"
            )


def check_expansion(n_bytes: int, size: int, most: int) -> None:
    """Refuse more bytes of arrays than a file of that size can hold, or than ``most``.

    Raises:
        ArtifactError: too many.
    """
    allowed = min(most, max(SMALL, EXPANSION * size))
    if n_bytes > allowed:
        raise ArtifactError(f"found {n_bytes} bytes of arrays, allowed {allowed}")
