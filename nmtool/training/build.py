"""The untrained network of an experiment."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nmtool.config import Experiment
from nmtool.data import input_shape, n_classes, n_features
from nmtool.errors import ConfigError, NmtoolError
from nmtool.layers import from_config
from nmtool.network import Network

_PACKAGE = Path(__file__).resolve().parents[1]


def build_network(experiment: Experiment, folder: Path) -> Network:
    """The network of ``network.layers``, or what the ``network.entry`` function returns.

    An entry ``module:function`` is called with ``(n_inputs, n_classes, seed)`` and returns a
    Network; its module is looked for beside the experiment file first.

    Raises:
        ConfigError: the function is missing, fails, or returns something else.
    """
    inputs, classes = n_features(experiment.data), n_classes(experiment.data)
    if experiment.network.entry:
        make = find_entry("network.entry", experiment.network.entry, folder)
        try:
            network = make(inputs, classes, experiment.seed)
        except NmtoolError:
            raise
        except (Exception, SystemExit) as error:
            raise entry_failure(
                "network.entry", experiment.network.entry, "failed", error
            ) from error
        if not isinstance(network, Network):
            raise ConfigError(
                f"network.entry {experiment.network.entry}: found a return value of type "
                f"{type(network).__name__}, allowed a nmtool Network"
            )
    else:
        shape = input_shape(experiment.data)
        network = from_config(experiment.network, shape, classes, experiment.seed)
    _check_ends(network, inputs, classes * experiment.network.readout.neurons_per_class)
    return replace(
        network,
        name=experiment.name,
        data=experiment.data,
        readout=experiment.network.readout,
        checks=tuple(experiment.checks),
        weight_bits=experiment.train.weight_bits,
    )


def find_entry(key: str, entry: str, folder: Path) -> Callable[..., Any]:
    """The function of ``module:function`` that a key of an experiment names.

    The module is looked for in ``folder`` first.

    Raises:
        ConfigError: it cannot be imported, or has no such function.
    """
    module_name, _, function_name = entry.partition(":")
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise entry_failure(key, entry, "cannot be imported", error) from error
    finally:
        sys.path.remove(str(folder))
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{key} {entry}: {module_name} has no function {function_name}")
    made: Callable[..., Any] = function
    return made


def entry_failure(key: str, entry: str, what: str, error: BaseException) -> ConfigError:
    """What a user's own function did not do, and the last line of its own where that was."""
    module = sys.modules.get(entry.partition(":")[0])
    file = getattr(module, "__file__", None)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(_PACKAGE)
    ]
    own = [frame for frame in frames if frame.filename == file]
    where = "".join(f"; {f.filename}:{f.lineno} in {f.name}" for f in (own or frames)[-1:])
    return ConfigError(f"{key} {entry}: {what} ({type(error).__name__}: {error}{where})")


def _check_ends(network: Network, n_inputs: int, n_outputs: int) -> None:
    found = [source.size for source in network.inputs.values()]
    if found != [n_inputs]:
        raise ConfigError(f"network: found inputs of {found} lines, allowed one of {n_inputs}")
    if len(network.outputs) != 1 or network.sizes[network.outputs[0]] != n_outputs:
        sizes = {name: network.sizes[name] for name in network.outputs}
        raise ConfigError(
            f"network: found the outputs {sizes}, allowed one of {n_outputs} neurons "
            "(classes x neurons_per_class)"
        )
