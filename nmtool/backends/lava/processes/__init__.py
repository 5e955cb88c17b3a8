"""Lava Processes and their ProcessModels; import only after ``prepare_lava()``.

Lava's compiler imports every file in the folder of a Process class, so this folder holds nothing
else. Each file defines a Process together with its model, and imports by absolute names: Lava
executes the file a second time outside of its package.
"""
