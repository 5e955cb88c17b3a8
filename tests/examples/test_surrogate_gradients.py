"""The scripts of examples/surrogate_gradients in short form, each with its negative control."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nmtool.config import SigmoidNoise

torch = pytest.importorskip("torch")


FOLDER = Path(__file__).parents[2] / "examples" / "surrogate_gradients"
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "common")


@pytest.fixture(autouse=True)
def one_thread():
    from nmtool.training.model import reproducible

    with reproducible():
        yield


def holds(module, measured):
    """What the script claims, by text; the table can always be made."""
    assert len(module.rows(measured)) > 1
    return module.claims(measured)


def short(name):
    """The module of a script and what it measured in its short form."""
    module = importlib.import_module(name)
    measured = module.measure(short=True)
    failed = [text for text, true in holds(module, measured).items() if not true]
    assert not failed, module.rows(measured)
    return module, measured


def broken(module, measured, **changes):
    """The claims that a changed measurement breaks."""
    found = module.claims(replace(measured, **changes))
    return [text for text, true in found.items() if not true]


def test_every_statement_has_a_script():
    titles = [importlib.import_module(name).SCRIPT.title for name in SCRIPTS]
    assert {title[0] for title in titles} == set("1234567")


def test_spikes_have_no_gradient_along_a_line_and_graded_outputs_have():
    module, path = short("interpolation")
    finest = module.NUDGES[-1]
    assert (path.quotient[finest] == 0).mean() >= 0.95
    assert (path.graded_quotient[finest] != 0).all()
    assert (path.quotient[module.NUDGES[0]] == 0).mean() < 0.5
    slope = np.gradient(path.virtual_loss, path.place)[1:-1]
    around = (path.surrogate[:-2] + 2 * path.surrogate[1:-1] + path.surrogate[2:]) / 4
    np.testing.assert_allclose(slope, around, rtol=1e-9)
    assert broken(module, path, quotient=path.graded_quotient)
    assert broken(module, path, surrogate=0 * path.surrogate)


def test_first_spikes_learn_temporal_xor_and_neither_shuffled_labels_nor_counts_do():
    module, xor = short("temporal_xor")
    trained, shuffled = (xor.outcome[n] for n in ("one hidden layer of 4", "labels shuffled"))
    assert trained.solved.sum() >= 9
    assert shuffled.solved.sum() <= 1
    assert shuffled.accuracy.mean() <= 0.6
    assert xor.counts == 0.5
    assert (xor.task.raster.sum(dim=0) == 1).all(), "one spike an input"
    assert np.bincount(xor.task.label).tolist() == [18, 18]
    assert broken(module, xor, outcome={**xor.outcome, "one hidden layer of 4": shuffled})
    assert broken(module, xor, outcome={**xor.outcome, "labels shuffled": trained})


def test_the_surrogate_gradient_of_one_neuron_is_the_derivative_of_its_mean_output():
    _, cases = short("escape_noise")
    error = {case.name: case.error for case in cases}
    assert error["no reset, closed form"] < 1e-9
    assert error["given history, closed form"] < 1e-9
    assert error["no reset, sampled"] < 0.03
    for control in ("another surrogate", "squared loss of the count", "reset, exactly"):
        assert error[control] > 0.1
    exact, drawn = (c for c in cases if c.name.startswith("reset"))
    np.testing.assert_allclose(exact.true, drawn.true, rtol=0.05)


def test_the_smoothed_stochastic_derivative_is_the_surrogate_gradient_the_unbiased_one_is_not():
    module, found = short("stochastic_ad")
    assert max(found.largest_difference.values()) < 1e-9 < min(found.largest.values())
    triples, surrogate = (found.estimates[n] for n in ("stochastic triples", "surrogate gradient"))
    assert triples.holds(found.true)
    assert not surrogate.holds(found.true)
    assert not triples.holds(surrogate.mean)
    mistaken = {**found.estimates, "stochastic triples": surrogate}
    assert broken(module, found, estimates=mistaken)
    assert broken(module, found, largest_difference={"two layers": 1e-8})


def test_another_surrogate_is_not_the_smoothed_derivative(monkeypatch):
    import stochastic_ad

    layers, direction = stochastic_ad.weights((3, 3, 1), seed=1)
    uniform = stochastic_ad.draws((3, 3, 1), 100, seed=2)
    expected = stochastic_ad.surrogate_gradient(layers, direction, uniform)
    np.testing.assert_allclose(
        stochastic_ad.smoothed(layers, direction, uniform), expected, atol=1e-9
    )
    monkeypatch.setattr(
        stochastic_ad, "sigmoid_slope", lambda x, beta: 1 / (1 + beta * abs(x)) ** 2
    )
    other = stochastic_ad.smoothed(layers, direction, uniform)
    assert np.abs(other - expected).max() > 0.1 * np.abs(expected).max()


def test_the_surrogate_gradient_of_several_layers_is_biased():
    module, bias = short("multilayer_bias")
    assert module.true_derivative(10) == pytest.approx(1.873, abs=1e-3)
    assert module.expected_surrogate(10) == pytest.approx(0.844, abs=1e-3)
    assert bias.ratio[10] == pytest.approx(0.45, abs=0.01)
    assert bias.ratio[0.1] == pytest.approx(1, abs=0.01), "the control: flat neurons"
    assert broken(module, bias, ratio={**bias.ratio, 10.0: 1.0})
    assert broken(module, bias, sampled=dict.fromkeys(bias.sampled, bias.sampled["unbiased"]))


def test_a_flat_surrogate_has_the_wrong_sign_and_the_true_one_has_not():
    module, bias = short("multilayer_bias")
    assert bias.sign[15].disagreement == pytest.approx(0.47, abs=0.01)
    assert bias.sign[30].disagreement == pytest.approx(0.07, abs=0.01)
    assert bias.sign[100].disagreement == 0
    assert bias.sign[100].minimum == pytest.approx(bias.w[bias.y.argmin()], abs=1e-4)
    assert broken(module, bias, sign={**bias.sign, 15.0: bias.sign[100]})


def test_the_surrogate_gradient_around_a_loop_is_not_zero_and_the_true_one_is():
    module, loop = short("closed_loop")
    assert loop.surrogate[-1] == pytest.approx(1.8176, abs=1e-3)
    assert loop.last_move < 1e-3
    assert abs(loop.true[-1]) < 1e-6
    assert abs(loop.one_layer[-1]) < 1e-9
    assert abs(loop.true[0]) > 0.1, "too few points do not show it"
    assert broken(module, loop, surrogate=loop.true)
    assert broken(module, loop, true=loop.surrogate)


def test_equal_slopes_give_the_gradient_of_the_output():
    from closed_loop import gradient, output

    point = np.random.default_rng(0).normal(0, 0.5, (5, 20))
    found = gradient(point, 3.0, 3.0)
    for i, nudge in enumerate(1e-6 * np.eye(5)):
        ends = [output(point + sign * nudge[:, None], 3.0) for sign in (1, -1)]
        np.testing.assert_allclose(found[i], (ends[0] - ends[1]) / 2e-6, atol=1e-8)
    assert np.abs(gradient(point, 3.0, 1.0) - found).max() > 0.1


def test_stochastic_networks_of_several_layers_learn_digits():
    module, digits = short("stochastic_training")
    assert abs(digits.gap) < 3
    assert digits.network["stochastic"].fano.mean() > 0.1
    assert not digits.network["deterministic"].fano.any()
    silent = {**digits.network, "stochastic": digits.network["deterministic"]}
    assert broken(module, digits, network=silent)


def test_the_likelihood_and_surrogate_gradients_learn_a_target_train():
    module, learned = short("target_train")
    assert learned.error < 1e-6
    assert learned.error_without_reset > 0.01
    quality = learned.quality
    assert quality["likelihood"].hits > 0.8
    assert quality["surrogate gradient"].hits > 0.7
    assert quality["likelihood of another train"].hits < 0.5
    unlearned = {**quality, "likelihood": quality["before learning"]}
    assert broken(module, learned, quality=unlearned)


def test_memory_grows_with_the_steps_of_backpropagation_and_not_of_local_learning():
    module, memory = short("training_memory")
    through_time, local, uncut = memory.held.values()
    slope, r2 = module.fit(memory.steps, through_time)
    assert r2 > 0.99
    assert slope > module.SAMPLES * module.NEURONS * 4, "more than one state a step is kept"
    assert len({*local}) == 1
    assert uncut[-1] > 2 * uncut[0], "the control: what is kept is seen"
    mistaken = {**memory.held, "local learning": uncut}
    assert broken(module, memory, held=mistaken)


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs a script's main in short form; returns its exit code, stdout and stderr."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, "--short", *arguments])
        code = importlib.import_module(name).SCRIPT.main()
        return code, *capsys.readouterr()

    return run


def test_a_script_prints_json_and_draws_its_figure(script, tmp_path):
    figure = tmp_path / "figure.png"
    code, out, _ = script("escape_noise", "--json", "--figure", str(figure))
    document = json.loads(out)
    assert code == 0
    assert document["statement"].startswith("3.")
    assert len(document["table"]) == 7
    assert all(document["holds"].values())
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_claim_that_does_not_hold_is_a_failure(script, tmp_path, monkeypatch):
    import escape_noise

    monkeypatch.setattr(escape_noise, "NOISE", SigmoidNoise(kind="sigmoid", beta=4.0))
    code, out, err = script("escape_noise", "--figure", str(tmp_path / "figure.png"))
    assert code == 1
    assert "NO   the same without reset" in out
    assert "does not hold: the same without reset" in err


def test_a_figure_that_cannot_be_written_is_an_error(script, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = script("escape_noise", "--figure", str(tmp_path / "file" / "figure.png"))
    assert code == 9
    assert err.startswith("error: figure")
    assert not out
