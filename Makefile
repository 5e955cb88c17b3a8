PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo surrogate-gradients in-the-loop test test-all bench bench-compile soak lint format clean

setup: $(READY)

# One environment with everything: nmtool, its tools, the two Lava wheels, whose metadata refuses
# every current Python although they run on it, and aeon, of which only the Japanese vowels are used
# and whose metadata wants an older numba.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lava,dev]'
	$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python lava-nc==0.10.0 lava-dl==0.6.0
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt aeon
	touch $@

demo: $(READY)
	$(BIN)/python examples/digits/demo.py --force

# One script a statement, each with its table and figure (docs/surrogate_gradients.md).
STATEMENTS := interpolation temporal_xor escape_noise stochastic_ad multilayer_bias closed_loop \
	stochastic_training target_train training_memory
surrogate-gradients: $(READY)
	for s in $(STATEMENTS); do $(BIN)/python examples/surrogate_gradients/$$s.py || exit 1; done

# What a target in the loop repairs, family of defects by family (docs/when_the_loop_is_worth_it.md).
in-the-loop: $(READY)
	mkdir -p runs
	for s in faults delayed_xor japanese_vowels; do OMP_NUM_THREADS=1 $(BIN)/python \
		examples/in_the_loop/$$s.py --json --figure docs/figures/in-the-loop-$$s.png \
		> runs/in-the-loop-$$s.json || exit 1; done

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2

test-all: $(READY)
	$(BIN)/python -m pytest

# What training is measured against. Without what they name as needed: vision, chips, plotting.
PEERS := $(VENV)/.peers
$(PEERS): $(READY) constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt \
		snntorch spikingjelly norse sinabs loguru nir nirtorch pbr
	touch $@

bench: $(READY) $(PEERS)
	$(BIN)/python benchmarks/simulation.py --output runs/simulation.json --plot docs/figures/simulation.png
	$(BIN)/python benchmarks/training.py --output runs/training.json

bench-compile: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compile_scale.py --output runs/compile-scale.json --plot docs/figures/compile-scale.png
	$(BIN)/python benchmarks/utilisation.py --output runs/utilisation.json

soak: $(READY)
	$(BIN)/python benchmarks/soak.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
