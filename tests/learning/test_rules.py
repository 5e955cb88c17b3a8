"""Rules by name, a user's own, what the loop does with their gradients, and rates of learning."""

import numpy as np
import pytest

from nmtool.chip import load_chip
from nmtool.config import Experiment, SlayerSurrogate
from nmtool.errors import ConfigError
from nmtool.learning.dcll import Dcll
from nmtool.learning.host import Host, HostState
from nmtool.learning.injected import Injected
from nmtool.learning.readout import DeltaRule
from nmtool.learning.rule import Batch, Gradients, Setting
from nmtool.learning.rules import make_rule
from nmtool.learning.twin import Twin
from nmtool.training.injection import Measured
from nmtool.training.losses import count_cross_entropy

OWN = """
import numpy as np
from nmtool.learning.rule import Gradients

class Hebb:
    def __init__(self, sign):
        self.sign = sign

    def gradients(self, twin, batch, learning):
        shape = twin.network.projections["output"].weight.shape
        return Gradients({"output": self.sign * np.ones(shape)}, 0.25)

def make(setting):
    assert setting.experiment.name == "small"
    return Hebb(setting.experiment.finetune.scale)

class Wrong:
    def __init__(self, how):
        self.how = how

    def gradients(self, twin, batch, learning):
        return self.how(twin.network.projections["b"].weight.shape)

def raises(shape):
    return np.ones(3) + np.ones(4)

def leaves(shape):
    raise SystemExit(3)

def wrong(how):
    return lambda setting: Wrong(how)

raising, leaving = wrong(raises), wrong(leaves)
nothing = wrong(lambda shape: None)
pair = wrong(lambda shape: Gradients([np.ones(shape)], 0.0))
no_loss = wrong(lambda shape: Gradients({"b": np.ones(shape)}, float("nan")))
no_number = wrong(lambda shape: Gradients({"b": np.ones(shape)}, "0.5"))
infinite = wrong(lambda shape: Gradients({"b": np.full(shape, np.inf)}, 0.0))
words = wrong(lambda shape: Gradients({"b": np.full(shape, "a")}, 0.0))
ragged = wrong(lambda shape: Gradients({"b": [[1], [1, 2]]}, 0.0))
elsewhere = wrong(lambda shape: Gradients({"a": np.ones((6, 7))}, 0.0))
good = wrong(lambda shape: Gradients({"b": np.ones(shape).tolist()}, np.float32(0.5)))

def takes_none():
    return Wrong(None)

def broken(setting):
    raise ValueError("no luck")

def gone(setting):
    raise SystemExit(3)

def other(setting):
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_rules_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return "own_rules_of_a_test"


@pytest.fixture
def setting(small_program, experiment):
    return Setting(Twin(small_program(), load_chip("loihi2"), SlayerSurrogate()), experiment())


@pytest.mark.parametrize(
    ("name", "kind"), [("dcll", Dcll), ("readout", DeltaRule), ("bptt-injected", Injected)]
)
def test_rules_by_name(setting, name, kind):
    assert isinstance(make_rule(name, setting), kind)


def test_a_rule_of_ones_own_learns_in_the_loop(study, experiment, own):
    chosen = study(experiment(hidden=8, steps=6, rounds=1, rule=f"{own}:make", readout_rounds=0))
    with chosen.open() as session:
        loop = chosen.loop(session)
        before = loop.state.host.shadow["output"].copy()
        loop.run()
    assert (loop.state.host.shadow["output"] < before).all()
    assert loop.state.history[1].loss == 0.25
    assert loop.state.host.updates["hidden"] == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{own}:none", "has no function none"),
        ("{own}:broken", r"failed \(ValueError: no luck; .*own_rules_of_a_test.py:"),
        ("{own}:gone", r"failed \(SystemExit: 3; .*own_rules_of_a_test.py:"),
        ("{own}:takes_none", r"failed \(TypeError: takes_none\(\) takes 0 .* given\)$"),
        ("{own}:other", "found a return value of type int, allowed one with a method gradients"),
        ("no_such_module_at_all:make", r"cannot be imported \(ModuleNotFoundError"),
    ],
)
def test_what_is_no_rule_is_said(setting, own, name, message):
    with pytest.raises(ConfigError, match=f"finetune.rule .*{message}"):
        make_rule(name.format(own=own), setting)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raising", r"gradients failed \(ValueError: operands .*_of_a_test.py:\d+ in raises\)$"),
        ("leaving", r"gradients failed \(SystemExit: 3; .*_of_a_test.py:\d+ in leaves\)$"),
        ("nothing", r"gradients: found a return value of type NoneType, allowed .*Gradients\("),
        ("pair", "gradients: found a return value of type Gradients with weights of type list"),
        ("no_loss", "gradients: found the loss nan, allowed a finite number"),
        ("no_number", "gradients: found the loss '0.5', allowed a finite number"),
        ("infinite", "gradients: projection b: found a gradient that is not finite"),
        ("words", "gradients: projection b: found a gradient that is not finite"),
        ("ragged", "gradients: .*inhomogeneous"),
        ("elsewhere", "gradients: found a gradient of 'a', which goes into hidden, .*: output"),
    ],
)
def test_what_a_rule_of_ones_own_does_wrong_is_its_own(setting, own, name, message):
    rule = make_rule(f"{own}:{name}", setting)
    batch = Batch(np.zeros((1, 7, 24), bool), np.zeros(1, np.int64), {})
    with pytest.raises(ConfigError, match=f"^finetune.rule {own}:{name}: {message}") as caught:
        rule.gradients(setting.twin, batch, ["output"])
    assert caught.value.exit_code == 3


def test_gradients_of_a_rule_of_ones_own_may_be_lists(setting, own):
    batch = Batch(np.zeros((1, 7, 24), bool), np.zeros(1, np.int64), {})
    found = make_rule(f"{own}:good", setting).gradients(setting.twin, batch, ["output"])
    assert (found.loss, found.weights["b"].dtype) == (0.5, np.float64)


@pytest.mark.parametrize("rule", ["dcl", "", "module:", ":make", "a b:c", 3, ["dcll"]])
def test_rules_that_no_file_may_name(experiment, rule):
    document = experiment().model_dump(by_alias=True)
    document["finetune"]["rule"] = rule
    with pytest.raises(ValueError, match="'dcll', 'readout', 'bptt-injected' or module:name"):
        Experiment.model_validate(document)


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ({"c": np.zeros((8, 6))}, "found a gradient of 'c', allowed a, b"),
        ({"b": np.zeros((6, 8))}, r"projection b: found a gradient of shape \(6, 8\), allowed"),
        ({"b": np.full((8, 6), np.nan)}, "projection b: found a gradient that is not finite"),
    ],
)
def test_gradients_that_are_none_are_refused(setting, gradients, message):
    class Bad:
        def gradients(self, twin, batch, learning):
            return Gradients(gradients, 0.0)

    program = setting.twin.program
    state = HostState.start({n: p.weight for n, p in program.network.projections.items()})
    batch = Batch(np.zeros((1, 7, 24), bool), np.zeros(1, np.int64), {})
    with pytest.raises(ConfigError, match=message):
        Host(setting.twin, Bad()).update(state, program, batch, ["output"], {"output": 0.1})
    np.testing.assert_array_equal(state.shadow["b"], program.network.projections["b"].weight)


def test_backpropagation_is_that_of_training_when_nothing_was_measured(study, experiment):
    """To the bit: the loss of the experiment, and the gradient of every weight."""
    torch = pytest.importorskip("torch")
    chosen = study(experiment(train={"loss": {"kind": "count_cross_entropy", "scale": 0.2}}))
    twin = Twin(chosen.program, load_chip("loihi2"), SlayerSurrogate())
    rule = make_rule("bptt-injected", Setting(twin, chosen.experiment))
    rng = np.random.default_rng(0)
    inputs, labels = rng.random((5, 64, 16)) < 0.3, rng.integers(0, 10, 5)
    found = rule.gradients(twin, Batch(inputs, labels, {}), ["hidden", "output"])
    spikes = twin.model(torch.from_numpy(inputs.astype(np.float32)), ["output"])["output"]
    readout = chosen.experiment.network.readout
    loss = count_cross_entropy(spikes, torch.from_numpy(labels), readout, 0.2)
    loss.backward()
    assert found.loss == float(loss.detach())
    for name in ("hidden", "output"):
        expected = twin.model.parameter(name).grad.numpy()
        assert np.abs(expected).max() > 0
        np.testing.assert_array_equal(found.weights[name].astype(np.float32), expected)
    measured = {"hidden": Measured.whole(rng.random((5, 24, 16)) < 0.3)}
    other = rule.gradients(twin, Batch(inputs, labels, measured), ["output"])
    assert other.loss != found.loss
    assert other.weights.keys() == {"output"}


def test_populations_have_rates_of_their_own_and_0_is_none(study, experiment):
    rates = {"hidden": 0.0, "output": 0.02}
    chosen = study(experiment(hidden=8, steps=6, rounds=4, readout_rounds=0, rates=rates))
    with chosen.open() as session:
        loop = chosen.loop(session)
        assert loop._learning(0) == ["output"]
        assert loop._rates(0) == rates
        assert loop._rates(2)["output"] == pytest.approx(0.01)


def test_a_rate_of_no_population_is_refused(study, experiment):
    chosen = study(experiment(hidden=8, steps=6, rates={"hiden": 0.1}))
    with chosen.open() as session, pytest.raises(ConfigError, match="'hiden', allowed hidden, out"):
        chosen.loop(session)


def test_both_other_rules_learn(study, experiment):
    """On the healthy reference, from random weights: the last layer's accuracy rises."""
    for rule in ("readout", "bptt-injected"):
        settings = {"steps": 12, "validation": 300, "test": 600, "rounds": 2, "rule": rule}
        made = experiment(**settings, readout_rounds=0, lr=1e-2, hidden_lr=2e-3, scale=0.3)
        chosen = study(made, "emulator")
        with chosen.open() as session:
            loop = chosen.loop(session)
            loop.run()
        history = [r.validation_accuracy for r in loop.state.history]
        print(rule, history)
        assert history[-1] > history[0] + 0.2
