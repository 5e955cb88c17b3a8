"""The loop with Lava in it: the same measured spikes, so the same weights as on the emulator."""

import numpy as np
import pytest

from nmtool.backends import open_session
from nmtool.backends.replay import Recorder
from nmtool.chip import load_chip, load_hardware
from nmtool.compiler import compile_program
from nmtool.config import Experiment
from nmtool.errors import BoardTimeout
from nmtool.formats.sessionlog import LogFile, about, find_target
from nmtool.layers import from_config
from nmtool.learning.loop import Loop, LoopState

pytestmark = pytest.mark.usefixtures("nothing_left")

EXPERIMENT = Experiment.model_validate(
    {
        "schema": "nmtool.experiment/v1",
        "name": "tiny",
        "seed": 5,
        "data": {
            "name": "digits",
            "test": 1720,
            "validation": 20,
            "encoding": {"kind": "rate", "steps": 6},
        },
        "network": {
            "neuron": {
                "kind": "cuba",
                "threshold": 1.25,
                "current_decay": 0.25,
                "voltage_decay": 0.03,
            },
            "layers": [{"dense": 8, "name": "hidden"}, {"dense": 10, "name": "output"}],
        },
        "train": {
            "epochs": 1,
            "batch": 32,
            "optimizer": {"name": "adam", "lr": 4e-3},
            "loss": {"kind": "count_cross_entropy"},
        },
        "finetune": {"rounds": 1, "readout_rounds": 0, "batch": 32, "lr": 0.02, "hidden_lr": 0.02},
    }
)
NETWORK = from_config(EXPERIMENT.network, (8, 8, 1), 10, 5)
PROGRAM = compile_program(NETWORK, load_chip("loihi2"), None, 6)


def learned(session, on_round=lambda state: None, **finetune):
    shadow = {n: p.weight.astype(np.float64) for n, p in NETWORK.projections.items()}
    state = LoopState.start(PROGRAM, shadow)
    with session:
        config = EXPERIMENT.finetune.model_copy(update=finetune)
        experiment = EXPERIMENT.model_copy(update={"finetune": config})
        loop = Loop(experiment, PROGRAM, session, "all", state, on_round=on_round)
        best = loop.run()
    return best.fingerprint, state


def test_a_round_on_lava_gives_the_weights_of_the_emulator_and_of_its_log(tmp_path):
    hardware = load_hardware("lava-sim")
    file = LogFile(tmp_path / "log.h5", about(hardware))
    log = Recorder(file)
    log.begin("loop")
    session = log.watch(open_session(PROGRAM, hardware))

    def mark(state, log=log):
        log.mark(len(state.history) - 1, session.program.fingerprint)

    best, state = learned(session, mark)
    file.finish()
    emulated, other = learned(open_session(PROGRAM, load_hardware("emulator")))
    assert best == emulated != PROGRAM.fingerprint
    assert state.history == other.history
    for name, shadow in state.host.shadow.items():
        np.testing.assert_array_equal(shadow, other.host.shadow[name])
    target = find_target(f"replay:{tmp_path}/log.h5")
    target.player.begin("loop")
    replayed = open_session(PROGRAM, target)
    follow = target.player.mark
    again, same = learned(
        replayed, lambda s: follow(len(s.history) - 1, replayed.program.fingerprint)
    )
    assert again == best
    assert same.spent == state.spent, "board time too"


def test_two_rounds_of_injected_backpropagation_on_lava_give_the_weights_of_the_emulator():
    settings = {"rule": "bptt-injected", "rounds": 2, "diagnosis": False}
    targets = [load_hardware(name) for name in ("lava-sim", "emulator")]
    lava, emulator = (learned(open_session(PROGRAM, target), **settings) for target in targets)
    assert lava[0] == emulator[0] != PROGRAM.fingerprint
    assert lava[1].history == emulator[1].history
    assert any(entry.written for entry in lava[1].history)
    for name, shadow in lava[1].host.shadow.items():
        np.testing.assert_array_equal(shadow, emulator[1].host.shadow[name])


def test_a_board_that_hangs_ends_the_loop_within_its_timeout(stand_in, board):
    stand_in("hang")
    target = board(timeouts={"run": "3s"})
    with pytest.raises(BoardTimeout):
        learned(open_session(PROGRAM, target))
