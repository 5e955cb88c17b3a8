"""Models that run on an embedded processor."""


class AbstractCProcessModel:
    pass


class CLoihiProcessModel(AbstractCProcessModel):
    pass
