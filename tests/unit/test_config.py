import json
from pathlib import Path

import pytest

from nmtool.chip import ChipFile, HardwareConfig
from nmtool.config import (
    ArctanSurrogate,
    EscapeSurrogate,
    Experiment,
    LatencyEncoding,
    RandomEncoding,
    RateEncoding,
    SlayerSurrogate,
    experiment_from_json,
    load_experiment,
    resolved_json,
)
from nmtool.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples/digits/experiment.yaml"


def refused(*overrides):
    with pytest.raises(ConfigError) as caught:
        load_experiment(EXAMPLE, overrides)
    return str(caught.value)


def test_the_example_loads():
    experiment = load_experiment(EXAMPLE)
    assert (experiment.name, experiment.seed) == ("digits", 7)
    assert experiment.data.encoding == RateEncoding(kind="rate", steps=32)
    assert [layer.name for layer in experiment.network.layers] == ["hidden", "output"]
    assert experiment.train.optimizer.lr == 4e-3
    assert experiment.checks[0].on == ["reference", "emulator", "lava-sim"]


@pytest.mark.parametrize(
    "path", sorted(EXAMPLE.parents[1].glob("*/experiment.yaml")), ids=lambda p: p.parent.name
)
def test_every_example_loads(path):
    experiment = load_experiment(path)
    assert experiment.data.n_steps > 0
    assert experiment_from_json(resolved_json(experiment), "f") == experiment


def test_the_resolved_config_gives_the_same_experiment():
    experiment = load_experiment(EXAMPLE, ["data.encoding={kind: random, steps: 5}"])
    text = resolved_json(experiment)
    assert experiment_from_json(text, "f") == experiment
    assert json.loads(text)["schema"] == "nmtool.experiment/v1"
    assert json.loads(text)["data"]["encoding"] == {
        "kind": "random",
        "steps": 5,
        "max_rate": 1.0,
        "seed": 0,
    }


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_another_json_file_is_refused(text):
    with pytest.raises(ConfigError, match=r"f\.json: not a resolved experiment") as caught:
        experiment_from_json(text, "f.json")
    assert "pydantic" not in str(caught.value)


def test_an_empty_experiment_says_what_is_missing():
    with pytest.raises(ConfigError, match=r"f\.json:1:1: train: found nothing, allowed a value"):
        experiment_from_json("{}", "f.json")


def test_a_rule_that_is_misspelt_gets_the_nearest_match_and_the_override_the_blame():
    text = refused("finetune.rule=bpt")
    assert " with -s finetune.rule: found 'bpt', allowed 'dcll'" in text
    assert text.endswith("did you mean bptt-injected?")
    assert "did you mean" not in refused("finetune.rule=xyz")


@pytest.mark.parametrize(
    ("override", "encoding"),
    [
        ("{kind: rate, steps: 3, max_rate: 0.5}", RateEncoding(kind="rate", steps=3, max_rate=0.5)),
        ("{kind: random, steps: 3, seed: 9}", RandomEncoding(kind="random", steps=3, seed=9)),
        ("{kind: latency, steps: 3}", LatencyEncoding(kind="latency", steps=3)),
    ],
)
def test_encodings_by_kind(override, encoding):
    loaded = load_experiment(EXAMPLE, [f"data.encoding={override}"])
    assert loaded.data.encoding == encoding


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.encoding={kind: rat, steps: 3}", "did you mean rate?"),
        (
            "data.encoding={kind: latency, steps: 3, max_rate: 1}",
            "found an unknown key, allowed kind, steps",
        ),
        ("data.encoding={kind: rate, steps: 0}", "encoding.steps: found 0, allowed greater than"),
        ("surrogate={beta: 10}", "unknown key, allowed kind, scale_factor, scale_grad, tau_factor"),
        ("surrogate=arctan", "surrogate: found 'arctan', allowed a mapping of keys and values"),
        ("train.optimizer.schedule=step", "optimizer.schedule.every: found nothing, allowed a val"),
        (
            "data.encoding={kind: rate, steps: 3, max_rate: 1.5}",
            "max_rate: found 1.5, allowed less",
        ),
        ("data.encoding={steps: 3}", "data.encoding.kind: found nothing, allowed a value"),
        ("data.name=mnist", "data.name: found 'mnist', allowed 'digits', 'japanese_vowels', "),
        ("data.name=mnist", "did you mean nmnist?"),
        ("name=two words", "name: found 'two words'"),
        ("seed=-1", "seed: found -1"),
        ("network.layers=[]", "network.layers: found a list"),
        ("network.layers=[{dense: 3, name: a}, {dense: 3, name: a}]", "layer names that differ"),
        ("network.layers=[{dense: 3, name: input}]", "layer names that differ and are not input"),
        ("network.layers=[{dense: 3, name: 1a}]", "network.layers.0.name: found '1a'"),
        ("network.layers=[{dense: 3, name: a, delay: -1}]", "network.layers.0.delay: found -1"),
        ("network.entry=a.b:c", "either layers or entry"),
        ("network.entry=a b", "network.entry: found 'a b'"),
        ("network.neuron=null", "a neuron for the network, or one for each of its layers"),
        ("network.neuron.threshold=0", "network.neuron.threshold: found 0, allowed greater than 0"),
        ("network.neuron.threshold=.inf", "allowed a finite number"),
        ("network.neuron.voltage_decay=1.1", "voltage_decay: found 1.1"),
        ("network.neuron.treshold=1", "did you mean threshold?"),
        ("train.weight_bits=7", "train.weight_bits: found 7, allowed 1, 2, 3, 4, 5, 6 or 8"),
        ("train.epochs=0", "train.epochs: found 0"),
        ("train.epochs=2.5", "train.epochs: found 2.5"),
        ("train.loss={kind: spike_rat}", "did you mean spike_rate?"),
        ("train.optimizer.lr='0.1'", "train.optimizer.lr: found '0.1'"),
        ("checks=[{metric: accuracy, on: [reference]}]", "a min, a max, or both"),
        (
            "checks=[{metric: acuracy, min: 1, on: []}]",
            "allowed 'accuracy'; did you mean accuracy?",
        ),
        ("finetune.controls=[transfr]", "did you mean transfer?"),
        ("schema=nmtool.experiment/v2", "schema: found 'nmtool.experiment/v2', allowed"),
    ],
)
def test_wrong_values_are_refused_with_what_is_allowed(override, message):
    assert message in refused(override)


def test_overrides_give_all_their_errors_at_once():
    text = refused("train.epochs=0", "seed=-1", "nam=x")
    assert len(text.splitlines()) == 3
    assert all(line.startswith(str(EXAMPLE)) for line in text.splitlines())


@pytest.mark.parametrize(
    ("model", "schema"),
    [
        (Experiment, "nmtool.experiment/v1"),
        (HardwareConfig, "nmtool.hardware/v1"),
        (ChipFile, "nmtool.chip/v1"),
    ],
)
def test_the_json_schema_names_every_key(model, schema):
    text = json.dumps(model.model_json_schema(by_alias=True))
    result = json.loads(text)
    assert result["properties"]["schema"]["const"] == schema
    assert result["additionalProperties"] is False
    keys = {info.alias or name for name, info in model.model_fields.items()}
    assert set(result["properties"]) == keys


@pytest.mark.parametrize("name", ["referense", "lava_sim", "my-target"])
def test_a_check_for_an_unknown_target_is_refused(name):
    with pytest.raises(ConfigError, match=f"found '{name}'"):
        load_experiment(EXAMPLE, [f"checks=[{{metric: accuracy, min: 0.5, on: [{name}]}}]"])


def test_a_check_may_name_the_file_of_a_target():
    override = "checks=[{metric: accuracy, min: 0.5, on: [hw/my-target.yaml, reference]}]"
    check = load_experiment(EXAMPLE, [override]).checks[0]
    assert check.concerns("my-target")
    assert check.concerns("reference")
    assert not check.concerns("lava-sim")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["surrogate={kind: fast_sigmod}"], "allowed 'slayer', 'fast_sigmoid', 'sigmoid'"),
        (["surrogate={kind: fast_sigmod}"], "did you mean fast_sigmoid?"),
        (["surrogate={kind: box, widht: 2}"], "allowed kind, width; did you mean width?"),
        (["surrogate={kind: sigmoid, beta: 0}"], "surrogate.beta: found 0, allowed greater than 0"),
        (["surrogate={kind: escape}"], "escape only with a train.noise"),
        (["train.noise={kind: sigmoid, beta: -1}"], "train.noise.beta: found -1"),
        (["train.noise={kind: exponential, p0: 2}"], "train.noise.p0: found 2"),
        (["train.noise={kind: gauss}"], "train.noise.kind: found 'gauss', allowed 'sigmoid'"),
        (["train.loss={kind: first_spike}"], "train.loss.tau: found nothing"),
        (["train.loss={kind: spike_time, true_steps: [-1]}"], "true_steps.0: found -1"),
        (["train.optimizer.name=adem"], "did you mean adam?"),
        (
            ["train.optimizer.momentum=0.9"],
            "allowed betas, decay_lr, delay_lr, eps, lr, name, schedule, weight_decay",
        ),
        (["train.optimizer.betas=[0.9]"], "train.optimizer.betas: found a list"),
        (["train.optimizer.betas=[0.9, 1]"], "train.optimizer.betas.1: found 1, allowed less"),
        (["train.optimizer.schedule=stp"], "did you mean step?"),
        (["train.optimizer.schedule={kind: step}"], "schedule.every: found nothing"),
        (
            ["train.optimizer={name: sgd, lr: 1, nesterov: true}"],
            "train.optimizer.nesterov: found True, allowed true only with a momentum above 0",
        ),
        (
            ["train.regularizers=[{kind: sparsity, rate: 2, weight: 1}]"],
            "train.regularizers.0.rate: found 2",
        ),
        (["network.readout.kind=fisrt_spike"], "did you mean first_spike?"),
    ],
)
def test_wrong_settings_of_training_are_refused(overrides, message):
    assert message in refused(*overrides)


def test_the_surrogate_follows_the_noise_unless_it_is_given():
    noise = "train.noise={kind: exponential, p0: 0.5, du: 0.2}"
    without = load_experiment(EXAMPLE, ["surrogate=null"])
    assert without.surrogate == SlayerSurrogate()
    followed = load_experiment(EXAMPLE, ["surrogate=null", noise])
    assert followed.surrogate == EscapeSurrogate(kind="escape")
    assert experiment_from_json(resolved_json(followed), "f") == followed
    given = load_experiment(EXAMPLE, ["surrogate={kind: arctan}", noise])
    assert given.surrogate == ArctanSurrogate(kind="arctan", alpha=2.0)
    assert load_experiment(EXAMPLE, ["surrogate={tau_grad: 0.5}"]).surrogate.tau_grad == 0.5


def test_a_schedule_may_be_its_name_alone():
    short = load_experiment(EXAMPLE, ["train.optimizer.schedule=plateau"])
    long = load_experiment(EXAMPLE, ["train.optimizer.schedule={kind: plateau}"])
    assert short == long
    assert short.train.optimizer.schedule.patience == 10
