"""Lava's CPU simulation of Loihi, behind one door.

Nothing here imports Lava into the calling process: the simulation runs in a child process
(:mod:`nmtool.backends.lava.client`), and a job is plain numpy (:mod:`nmtool.backends.lava.job`).
"""
