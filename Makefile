# setup check test bench train docs: each makes what it needs, in .venv. ARGS passes words on:
#   make train ARGS="lbae-mnist --data.root ~/data"
# The install is editable, so Python sources act as they are; it is repeated when the core's sources
# or settings (FASTLATENT_CUDA=0 and the like) or pyproject.toml change. PYTHON=python3.12 chooses
# what a new .venv is made from.

PYTHON ?= python3
VENV ?= .venv
RESULT ?= benchmarks/results/cpu.json
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup check test bench train docs
.DELETE_ON_ERROR:

setup: $(VENV)/.dev
	@echo "$(BIN) has fastlatent, editable, and the tools to work on it"

check: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python -m mypy
	$(BIN)/clang-format --dry-run -Werror csrc/*

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

bench: $(VENV)/.bench
	@mkdir -p $(dir $(RESULT))
	$(BIN)/python -m pytest benchmarks/bench_*.py --benchmark-json=$(RESULT) $(ARGS)
	$(BIN)/python benchmarks/table.py

train: $(VENV)/.train
	$(BIN)/python -m fastlatent.train $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build $(ARGS)
	@echo "docs/_build/index.html"

NO_PYTHON := $(PYTHON) was not found: install Python 3.11 or newer, or name it with PYTHON=
OLD_PYTHON := $(PYTHON) is older than Python 3.11: install a newer one, or name it with PYTHON=
NO_VENV := $(PYTHON) lacks its module venv: install it (on Debian and Ubuntu, the package python3-venv)
NO_HEADERS := $(PYTHON) lacks its C headers: install them (on Debian and Ubuntu, the package python3-dev)
NO_COMPILER := no C++17 compiler was found: install g++ or clang++, or name one with CXX=
NO_INDEX := pip reaches no package index: check the network, or name an index with PIP_INDEX_URL
fail = { echo "error: $(1)" >&2; exit 1; }

HEADER := sysconfig.get_path("include") + "/Python.h"
compiles = echo 'static_assert(__cplusplus >= 201703L, "");' | $(1) -std=c++17 -fsyntax-only -x c++ - 2>/dev/null
reachable = $(PIP) download -q --no-deps -d $(VENV)/probe pybind11 >/dev/null 2>&1
install = echo "pip install $(1)"; $(PIP) install $(1) || { $(reachable) || $(call fail,$(NO_INDEX)); exit 1; }

# Named after the settings that the core is built with: other settings, another build.
CORE := $(VENV)/.core-$(FASTLATENT_CORE)-$(FASTLATENT_CUDA)-$(subst ;,+,$(CMAKE_CUDA_ARCHITECTURES))

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || $(call fail,$(NO_PYTHON))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || $(call fail,$(OLD_PYTHON))
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(call fail,$(NO_VENV))
	$(PYTHON) -m venv $(VENV)

# The first time pip shows what it fetches, which is gigabytes; later it speaks of errors only.
$(CORE): pyproject.toml CMakeLists.txt $(wildcard csrc/*) | $(VENV)/pyvenv.cfg
ifneq ($(FASTLATENT_CORE),0)
	@$(BIN)/python -c 'import os, sysconfig; os.stat($(HEADER))' 2>/dev/null || $(call fail,$(NO_HEADERS))
	@if [ -n "$$CXX" ]; then $(call compiles,$$CXX); \
	  else $(call compiles,c++) || $(call compiles,g++) || $(call compiles,clang++); \
	  fi || $(call fail,$(NO_COMPILER))
endif
	@rm -f $(VENV)/.core-*
	@$(call install,$(if $(wildcard $(VENV)/.core-*),-q )-e .)
	@touch $@

$(VENV)/.%: $(CORE)
	@$(call install,-q 'fastlatent[$*]')
	@touch $@
