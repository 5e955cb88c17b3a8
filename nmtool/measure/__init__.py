"""What a recording says: classes and accuracy, activity, agreement with another recording."""

from nmtool.measure.accuracy import class_counts, measure, predict
from nmtool.measure.agreement import (
    Agreement,
    Difference,
    PopulationAgreement,
    compare,
    joined,
)
from nmtool.measure.quantity import Measurement, Quantity

__all__ = [
    "Agreement",
    "Difference",
    "Measurement",
    "PopulationAgreement",
    "Quantity",
    "class_counts",
    "compare",
    "joined",
    "measure",
    "predict",
]
