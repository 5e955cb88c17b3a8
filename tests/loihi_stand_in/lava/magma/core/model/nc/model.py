"""Models that run on a neurocore."""


class AbstractNcProcessModel:
    pass
