"""What a study may claim, and what not."""

import pytest

from nmtool.learning.study import Study
from nmtool.learning.verdict import Difference, judge

GOOD = {
    "fault_free": [0.98, 0.98, 0.98],
    "transfer": [0.60, 0.50, 0.70],
    "simulation": [0.70, 0.62, 0.75],
    "readout": [0.90, 0.88, 0.91],
    "loop": [0.95, 0.94, 0.96],
}


def test_a_difference_is_taken_seed_by_seed():
    found = Difference.of([0.5, 0.9], [0.4, 0.78])
    assert found.mean == pytest.approx(0.11)
    assert found.error == pytest.approx(0.01)
    assert found.better
    assert str(found) == "+11.00 +- 1.00"


def test_a_loop_that_earned_its_time():
    verdict = judge(GOOD)
    assert verdict.claim == "earned"
    assert verdict.text.startswith("the loop earned its board time: the target costs +38.00 +- ")
    assert "+5.33 +- 0.33 on readout" in verdict.text
    assert "3 seeds" in verdict.text


@pytest.mark.parametrize("control", ["transfer", "simulation", "readout"])
def test_one_control_that_is_as_good_is_enough(control):
    verdict = judge({**GOOD, control: [0.96, 0.92, 0.97]})
    if control == "transfer":
        verdict = judge({**GOOD, control: [0.96, 0.93, 0.965]})
    assert verdict.claim == "not earned"
    assert f"it is not better than {control};" in verdict.text


def test_a_gain_within_its_error_is_none():
    assert judge({**GOOD, "readout": [0.99, 0.86, 0.97]}).claim == "not earned"


def test_nothing_is_claimed_from_one_seed():
    one = {name: values[:1] for name, values in GOOD.items()}
    verdict = judge(one)
    assert verdict.claim == "no claim"
    assert "one seed" in verdict.text


def test_nothing_is_claimed_without_the_controls():
    some = {name: values for name, values in GOOD.items() if name != "simulation"}
    assert judge(some).text == "no claim: the controls simulation did not run"


def test_a_loop_that_is_the_control_earns_nothing_and_loses_nothing():
    verdict = judge({**GOOD, "loop": GOOD["readout"]}, "two rounds")
    assert verdict.claim == "no claim"
    assert "no hidden layer learned, the loop is the control readout: two rounds" in verdict.text
    assert verdict.gains["readout"].mean == 0
    same = {**GOOD, "transfer": GOOD["fault_free"]}
    assert judge(same, "two rounds").claim == "nothing to recover"


def test_a_target_that_costs_nothing():
    same = {**GOOD, "transfer": [0.985, 0.975, 0.98]}
    verdict = judge(same)
    assert verdict.claim == "nothing to recover"
    assert judge({n: v[:1] for n, v in same.items()}).claim == "no claim"
    equal = {n: v[:1] for n, v in {**GOOD, "transfer": GOOD["fault_free"]}.items()}
    assert judge(equal).claim == "nothing to recover", "the same program, spike for spike"


def test_a_fault_free_target_of_8_bits_has_nothing_to_recover(study, experiment, tmp_path):
    """However much the loop learns; with faults the same study does not say so."""
    sizes = {"hidden": 8, "steps": 6, "validation": 30, "test": 1700, "batch": 32, "seeds": 2}
    claims = {}
    for target, overrides in (("emulator", ()), ("loihi2-faulty", ["faults.stuck_neurons=0.4"])):
        case = study(experiment(**sizes, rounds=1, readout_rounds=0), target, overrides)
        settings = (case.program, case.shadow, case.hardware, case.hardware.with_faults())
        result = Study(case.experiment, *settings, tmp_path / target).run()
        claims[target] = result.verdict
        columns = result.columns
        if target == "emulator":
            assert columns["transfer"].seeds == columns["fault_free"].seeds
            assert [*result.rounds] == [
                *("simulation-seed5", "simulation-seed6", "readout-seed5"),
                *("readout-seed6", "loop-seed5", "loop-seed6"),
            ], "seeds of the loop itself"
    assert claims["emulator"].claim == "nothing to recover"
    assert "loses +0.00 +- 0.00 points" in claims["emulator"].text
    assert claims["loihi2-faulty"].claim != "nothing to recover"
