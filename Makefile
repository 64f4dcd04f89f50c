# Everything from a fresh clone, with only python3, git, make and g++: `make demo` or `make test`.
#   PYTHON=python3.12                          another interpreter
#   VENV=.venv-old CONSTRAINTS= TORCH=torch==2.11.0   another torch, with whatever versions pip then finds
PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
TORCH       ?= torch==2.13.0
BUDGET      ?= 3m
COUNT       ?= 40
WORKERS     ?= 2

PIP   = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
STAMP = $(VENV)/.installed

.PHONY: demo test starters evil endurance lint types format wheel-smoke check setup clean

demo: $(STAMP)  ## the main job: a real model, profiled and made faster, with a report at the end
	$(VENV)/bin/autokernel run models/llama.py --budget $(BUDGET)

test: $(STAMP)  ## all tests but most of the evil kernels and of the starters'; two at a time, a file in one process
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

starters: $(STAMP)  ## every starter, in every dtype and for every architecture; make test has a spread of them
	AUTOKERNEL_STARTERS=all $(VENV)/bin/python -m pytest -n $(WORKERS) tests/backends tests/regions/test_generate.py tests/regions/test_generate_cuda.py

evil: $(STAMP)  ## every kernel that cheats and every honest one that looks so, with a table of what stopped what
	$(VENV)/bin/python -m pytest -q tests/evil --evil-all

endurance: $(STAMP)  ## mixed candidates in a row, and whether the judge grew; 500 of them: COUNT=500
	$(VENV)/bin/python benchmarks/endurance.py --count $(COUNT) --every $(COUNT)

lint: $(STAMP)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

types: $(STAMP)
	$(VENV)/bin/mypy

format: $(STAMP)
	$(VENV)/bin/ruff format
	$(VENV)/bin/ruff check --fix

wheel-smoke: $(STAMP)  ## the wheel in an empty environment, used from another folder
	PYTHON="$(PYTHON)" BUILDER="$(VENV)/bin/python" TORCH="$(TORCH)" CONSTRAINTS="$(CONSTRAINTS)" bash tests/wheel_smoke.sh

check: lint types wheel-smoke test

setup: $(STAMP)

# torch first and by its pinned version: otherwise a dependency may pull in another build of it.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@command -v g++ >/dev/null || { echo "expected a C++ compiler and found none: install g++ (Debian, Ubuntu: apt-get install g++)"; exit 2; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "expected '$(PYTHON) -m venv' to work: install the venv module (Debian, Ubuntu: apt-get install python3-venv)"; exit 2; }
	@echo "setting up $(VENV): $(TORCH) and the rest (a few minutes the first time)"
	@$(PIP) "$(TORCH)"
	@$(PIP) "$(TORCH)" -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
