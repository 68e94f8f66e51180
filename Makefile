# make demo   plain pipeline decoding and PPSD side by side, from a fresh machine
# make test   lint, types and tests, from a fresh machine
# make test-long     the same, and the end-to-end tests that take long: faults, tensor parallel
# make bench  the speed table of the README
# make test-cuda     the engine on this machine's GPUs, in the environment of PYTHON
# make conformance   vLLM's own scheduler tests against PPSD's scheduler (fetches vLLM's source)

PYTHON ?= python3
VENV   ?= .venv
CACHE  ?= .cache
BIN    := $(VENV)/bin
LOCK   := requirements/cpu.lock
TORCH  := torch==2.13.0+cpu
STAMP  := $(VENV)/.installed
MODEL  := $(CACHE)/demo-model
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# vLLM's CPU backend is much faster with Intel's OpenMP and tcmalloc preloaded.
TCMALLOC := $(firstword $(wildcard /usr/lib/*/libtcmalloc_minimal.so.4 /usr/lib64/libtcmalloc_minimal.so.4))
PRELOAD   = LD_PRELOAD=$(CURDIR)/$(VENV)/lib/libiomp5.so$(if $(TCMALLOC),:$(TCMALLOC))

.PHONY: install demo test test-long test-cuda lint types unit e2e e2e-long bench conformance clean

install: $(STAMP)

$(STAMP): $(LOCK) setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "setuptools==78.1.1" wheel
	$(PIP) --no-deps "$(TORCH)" || \
	  $(PIP) --no-deps --index-url https://download.pytorch.org/whl/cpu "$(TORCH)"
	$(PIP) --no-deps -r $(LOCK)
	$(PIP) --no-deps --no-build-isolation -e .
	touch $(STAMP)

$(MODEL): | $(STAMP)
	$(BIN)/vllm-ppsd demo-model $(MODEL)

demo: $(STAMP) $(MODEL)
	VLLM_LOGGING_LEVEL=ERROR $(PRELOAD) $(BIN)/vllm-ppsd demo $(MODEL)

test: lint types unit e2e

test-long: test e2e-long

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not e2e" -n 2

e2e: $(STAMP) $(MODEL)
	$(PRELOAD) PPSD_DEMO_MODEL=$(CURDIR)/$(MODEL) $(BIN)/python -m pytest -m "e2e and not long" -n 2 --dist loadfile

e2e-long: $(STAMP) $(MODEL)
	$(PRELOAD) PPSD_DEMO_MODEL=$(CURDIR)/$(MODEL) $(BIN)/python -m pytest -m "e2e and long" -n 2 --dist loadfile

# Where vLLM for CUDA is installed; nothing is installed here.
test-cuda:
	$(PYTHON) -m tests.cuda.run

bench: $(STAMP) $(MODEL)
	$(PRELOAD) $(BIN)/python -m benchmarks.pipeline $(MODEL) --exit-layer 17 --json benchmarks/results/pipeline.json --picture docs/speedup.png

conformance: $(STAMP)
	$(BIN)/python -m tests.conformance.run --cache $(CACHE)/conformance

clean:
	rm -rf $(VENV) $(CACHE) build *.egg-info
