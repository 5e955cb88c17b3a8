"""Lava's Conv with repairs; import only after ``prepare_lava()``.

A folder of its own, because Lava's compiler imports every file beside the ones it needs, and
Lava's Conv takes a second to import: it brings all of scipy.signal.
"""
