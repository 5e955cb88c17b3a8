"""The chip in CI: golden runs, policies, the first difference and its cause, verdicts."""
