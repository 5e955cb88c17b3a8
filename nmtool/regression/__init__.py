"""The chip in CI: golden runs, policies, the first difference and its cause, verdicts."""

from nmtool.regression.golden import Golden, load_golden, save_golden
from nmtool.regression.policies import Policy, Verdict, judge, parse_policy

__all__ = ["Golden", "Policy", "Verdict", "judge", "load_golden", "parse_policy", "save_golden"]
