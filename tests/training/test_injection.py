"""Measured spikes in place of the model's: forward the measurement, backward the model."""

import numpy as np
import pytest
from trainable import draw_network

