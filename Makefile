# make demo    set everything up, compile SmolLM2-135M-Instruct for this CPU and ask it a question
# make test    set everything up, check the code and run the tests
# make test-long   run the tests that `make test` leaves out: about 45 minutes on two cores
# make setup   only the set-up
# make dist    a wheel and a source distribution in dist/
# make site    the documentation as a site in build/site
# make qemu    install the emulators that tests for other CPUs run under (Debian and Ubuntu, as root)
# Another interpreter: make PYTHON=python3.12 setup

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
QUESTION ?= What is the capital of France?

.PHONY: setup dist site qemu demo test test-long test-arm64 test-cuda lint bench bench-arm64 clean

setup: $(INSTALLED)

# Again whenever what is to be installed changes.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "smc needs Python 3.10 or newer: make PYTHON=python3.12 setup")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[compile,cuda,serve,dev]'
	@touch $@

dist: setup
	$(PY) -m build

site: setup
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

qemu:
	@test "$$(id -u)" = 0 || { echo "make qemu installs qemu-user-static: run it as root" >&2; exit 1; }
	apt-get update --quiet
	apt-get install --quiet --yes --no-install-recommends qemu-user-static

demo: setup
	$(PY) -m benchmarks.models smollm2-gguf build/models/SmolLM2-135M-Instruct.gguf
	$(PY) -m smc compile build/models/SmolLM2-135M-Instruct.gguf --quant int4 -o build/smollm2.smc
	$(PY) -m smc run build/smollm2.smc "$(QUESTION)"

lint: setup
	$(PY) -m ruff check .
	$(PY) -m mypy
	find benchmarks smc tests -path benchmarks/build -prune -o -name '*.[ch]' -print | xargs $(VENV)/bin/clang-format --dry-run --Werror

# One thread per worker: the workers already use every core.
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest --quiet --numprocesses auto -m "not slow and not arm64"

# All that `make test` leaves out: about 30 minutes on two cores beside those of test-arm64.
test-long: setup test-arm64
	OMP_NUM_THREADS=1 $(PY) -m pytest --quiet --numprocesses auto -m "slow and not arm64"

# Programs for GPUs on the tests' stand-in, every encoding and family: part of `make test` and of `make test-long`.
test-cuda: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest --quiet --numprocesses auto tests/codegen/cuda

# The part of it that emulated CPUs run; a whole SmolLM2 too: about 15 minutes on two cores. Without the emulators of
# `make qemu` it is skipped.
test-arm64: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest --quiet --numprocesses auto -m arm64

# Every case of docs/benchmarks.md beside llama.cpp, which is built from source first: takes hours on two cores.
bench: setup
	$(PY) -m benchmarks.llama_cpp

# Instructions per token on 64-bit ARM, beside llama.cpp. The emulator that counts and llama.cpp are built from source first.
bench-arm64: setup
	$(PY) -m benchmarks.instructions --prefill 128,512 --by-symbol
	$(PY) -m benchmarks.instructions_mca

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find smc tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
