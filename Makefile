# Two commands on a machine with Python and make only: `make demo` and `make test`.
# An importable torch is reused; otherwise the tested versions are installed into .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := OMP_WAIT_POLICY=passive $(BIN)/python

.PHONY: demo test quick nightly lint docs build release bench paper gpu lowest clean

demo: $(VENV)/.ready
	$(BIN)/lightning-lrnn demo text

# The times of all tests: build/test_durations.tsv. By WORKERS processes, each file by one of them,
# as its fixtures compile what its tests share, in the order of tests/conftest.py; 0 for none but
# pytest's own.
WORKERS ?= 2
test: $(VENV)/.ready
	$(RUN) -m pytest -m "not gpu and not nightly" --cpu-durations=25 -n $(WORKERS) --dist loadfile \
		--no-loadscope-reorder

# Without what takes over 10 s.
quick: $(VENV)/.ready
	$(RUN) -m pytest -q -m "not gpu and not nightly and not slow"

# All of what `make test` takes a sample of.
nightly: $(VENV)/.ready
	$(RUN) -m pytest -m "nightly and not gpu" --cpu-durations=25
	LIGHTNING_LRNN_FUZZ=2000 $(RUN) -m pytest tests/data/test_table_fuzz.py

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The site, into build/site; a link that leads nowhere is an error.
docs: $(VENV)/.ready
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/python tools/site.py

# What docs/performance.md shows; on two cores some 35 minutes.
bench: $(VENV)/.ready
	$(BIN)/python benchmarks/recurrence.py --plot benchmarks/results/cpu-recurrence.png
	$(BIN)/python benchmarks/layer_times.py
	$(BIN)/python benchmarks/stand_in_times.py
	$(BIN)/python benchmarks/equal_time.py
	$(BIN)/python benchmarks/threads.py
	$(BIN)/python benchmarks/step.py

# The paper's tables, ours beside the published; on two cores some 12 minutes.
paper: $(VENV)/.ready
	$(BIN)/python benchmarks/paper.py

# Everything a GPU is needed for, with the interpreter and packages that are there.
# `make gpu STAGE=ab`, or test, sanitize, bench, rivals, paper.
gpu:
	$(PYTHON) benchmarks/gpu.py $(STAGE)

# Wheel and sdist, the wheel installed into an empty environment.
build: $(VENV)/.ready
	rm -rf dist build
	$(BIN)/python -m build --quiet
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/pip install --quiet -c constraints.txt dist/*.whl
	cd dist && ../.venv-wheel/bin/python -W error::UserWarning ../tests/smoke_wheel.py
	.venv-wheel/bin/lightning-lrnn backends
	.venv-wheel/bin/lightning-lrnn configs list
	.venv-wheel/bin/lightning-lrnn fit --help > /dev/null

# `make release VERSION=1.2.3`: version, changelog, wheel and sdist, commit, tag, notes. Pushes nothing.
release: $(VENV)/.ready
	$(BIN)/python tools/release.py "$(VERSION)"

# The oldest versions that pyproject.toml allows, where they install beside the pinned torch; and the
# kernels by the oldest NVRTC.
lowest: $(VENV)/.ready
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/pip install --quiet -c constraints-lowest.txt -e . pytest hypothesis expecttest \
		nvidia-cuda-nvrtc-cu12
	LIGHTNING_LRNN_OTHER_PYTHON=.venv-lowest/bin/python $(BIN)/python -m pytest -q -k other \
		tests/backends/test_nvrtc.py tests/backends/test_kernels_compile.py
	.venv-lowest/bin/python -m pytest -q -m "not gpu" tests/gates/test_gates.py tests/backends/test_backends.py \
		tests/nn/test_layers.py tests/modules/test_lightning.py tests/switch/test_replace.py

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once; a few minutes)"
	@if $(PYTHON) -c "import torch" 2>/dev/null; \
		then $(PYTHON) -m venv --system-site-packages $(VENV); \
		else $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet -c constraints.txt torch; fi
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test,lint]" \
		|| $(BIN)/pip install --quiet -e ".[test,lint]"
	@touch $@

clean:
	rm -rf .venv .venv-wheel .venv-lowest dist build runs
