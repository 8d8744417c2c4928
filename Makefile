# Everything runs in .venv, which is created if necessary and recreated when its requirements change.

PYTHON ?= python3
PYTEST_FLAGS ?= --numprocesses=auto --maxprocesses=4
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet --quiet
INSTALLED_FROM := pyproject.toml requirements/constraints.txt $(wildcard kernels/cpu/csrc/*)

.PHONY: help demo test test-fast test-all lint types docs wheel clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    draw the self-information of a photograph, sia_map.png, and of a model's maps, sia_sites.png"
	@echo "make test       run the tests (options for pytest: PYTEST_FLAGS=...)"
	@echo "make test-fast  run the quick ones, in a minute or two"
	@echo "make test-all   run every case of every test, and more examples"
	@echo "make lint    check the style with ruff and clang-format"
	@echo "make types   check the types with mypy"
	@echo "make docs    build the documentation, its gallery too: docs/_build/html (GALLERY=0: without running the gallery)"
	@echo "make wheel   build the source distribution and the wheel: dist/"
	@echo "make clean   remove all that was made, .venv too"

demo: $(VENV)/demo.installed
	$(RUN) -m sia_layers map -o sia_map.png
	$(RUN) -m sia_layers map --model efficientnet_b4 -o sia_sites.png

test: $(VENV)/dev.installed
	$(RUN) -m pytest $(PYTEST_FLAGS)

# Tests that need no compiler, no separate process and no large library.
FAST := test_api test_aggregation test_attention test_functional test_inspection test_photo \
    kernels/test_backend_agreement kernels/test_backends kernels/test_contracts kernels/test_invariants \
    kernels/test_ops kernels/test_private_torch kernels/test_reference \
    cli/test_cli_folders injection/test_injection_state injection/test_injection_trial

test-fast: $(VENV)/dev.installed
	$(RUN) -m pytest $(PYTEST_FLAGS) --hypothesis-profile=fast -k "not triton" $(FAST:%=tests/%.py)

test-all: $(VENV)/dev.installed
	$(RUN) -m pytest $(PYTEST_FLAGS) --hypothesis-profile=all -m "slow or not slow"

C_FILES := $(wildcard kernels/cpu/csrc/*.[ch] benchmarks/*.c tests/kernels/csrc/*.c)

lint: $(VENV)/dev.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)

types: $(VENV)/dev.installed
	$(RUN) -m mypy

GALLERY ?= 1
SPHINX = $(RUN) -m sphinx --fail-on-warning --keep-going --quiet --doctree-dir docs/_build/doctrees -D plot_gallery=$(GALLERY)

docs: $(VENV)/docs.installed
	$(SPHINX) --builder html docs docs/_build/html
	$(SPHINX) --builder doctest docs docs/_build/doctest

wheel: $(VENV)/dev.installed
	rm -rf build dist
	$(RUN) -m build --quiet

clean:
	rm -rf $(VENV) build dist docs/_build docs/examples *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis kernels/cpu/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per installed extra.
$(VENV)/%.installed: $(INSTALLED_FROM) | $(VENV)/bin/pip
	@echo "Installing sia-layers[$*] into $(VENV); the first time takes some minutes"
	@$(PIP) install --constraint requirements/constraints.txt --editable '.[$*]'
	@touch $@

# pip is installed last, so that an interrupted environment is recreated.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "$(PYTHON) has no venv module: installing python3-venv"; \
	        apt-get -qq update && apt-get -qq install --yes python3-venv >/dev/null; \
	    else \
	        echo "$(PYTHON) has no venv module: install it first (Debian, Ubuntu: sudo apt-get install python3-venv)" >&2; \
	        exit 1; \
	    fi; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
