"""The honest baseline: a linear classifier on the same split."""

from __future__ import annotations

from nmtool.config import Data
from nmtool.data import load_split


def logistic_regression_accuracy(data: Data) -> float:
    """Test accuracy (a fraction) of logistic regression on the training samples.

    It is given their raw numbers, or the spike counts of each line where there are none.
    """
    from sklearn.linear_model import LogisticRegression

    train, test = load_split(data, "train"), load_split(data, "test")
    model = LogisticRegression(max_iter=5000).fit(train.features, train.labels)
    return float(model.score(test.features, test.labels))
