# make setup    a .venv with everything in it (LOCKED=1: exactly the versions of requirements.lock)
# make report   run the notebooks, write out/report/index.html
# make test     the tests (SELECT= runs the slow ones too)
# make lint     ruff (check and format, notebooks too), mypy --strict, import directions
# make reference  the manual and all modules as pages in out/reference
# make fuzz     the fuzzers, for FUZZ_SECONDS (600) altogether; findings go to out/fuzz
# make lab      JupyterLab on the notebooks (LAB_ARGS= goes to it: LAB_ARGS='--no-browser --port 9000')
# make lock     requirements.lock anew from pyproject.toml; needs uv

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

JOBS   ?= 2
SELECT ?= -m "not slow"
FUZZ_SECONDS ?= 600
LOCKED ?=
LAB_ARGS ?=
LOCK   := requirements.lock

# The first of these interpreters that runs and has a supported version.
PYTHONS  ?= python3 python3.13 python3.12 python3.11 python
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.PHONY: setup report test lint reference fuzz lab lock clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@for python in $(PYTHONS); do \
	    if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then exec "$$python" -m venv $(VENV); fi; \
	done; \
	echo "make setup: none of '$(PYTHONS)' is a Python 3.11 to 3.13; install one or set PYTHONS" >&2; exit 1
ifeq ($(LOCKED),)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
else
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --require-hashes --requirement $(LOCK)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
endif
	@touch $@

report: $(STAMP)
	$(BIN)/mmulab report

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(SELECT)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

reference: $(STAMP)
	$(BIN)/python -m mmulab.report.reference out/reference

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz.run --total $(FUZZ_SECONDS) --jobs $(JOBS)

lock:
	echo 'setuptools>=65' | uv pip compile --quiet --universal --generate-hashes --no-annotate --python-version 3.11 --extra dev \
	    --custom-compile-command 'make lock' --output-file $(LOCK) pyproject.toml -

lab: $(STAMP)
	$(BIN)/jupyter lab --notebook-dir=notebooks $(LAB_ARGS)

clean:
	rm -rf $(VENV) out build *.egg-info
