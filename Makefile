PYTHON ?= python3
CODE := src tests benchmarks examples
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# nnU-Net's packages ask for timm, which brings gigabytes that none of its own networks needs: docs/how-to-nnunet.md
NNUNET := nnunetv2 dynamic-network-architectures batchgenerators batchgeneratorsv2 acvl-utils
# One thread a process: two test workers share the cores.
ONE := OMP_NUM_THREADS=1

.PHONY: demo test bench clean help

help:
	@echo "make demo   quantize a real network on a real head MRI, and open the numbers"
	@echo "make test   lint, types, layers, tests"
	@echo "make bench  peers side by side (an hour)"
	@echo "make clean  remove what these made, but for $(VENV)"
	@echo "PYTHON=python3.12 chooses the Python of a new $(VENV)"

demo: $(VENV)/.installed-demo
	$(BIN)/fptq demo brain -o demo-out

test: $(VENV)/.installed-dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(ONE) $(BIN)/pytest -n 2

bench: $(VENV)/.installed-demo
	$(BIN)/python benchmarks/main.py

clean:
	rm -rf demo-out dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "fptq needs Python 3.11 or newer; name one, such as: make PYTHON=python3.12 demo" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: installing is not repeated until what is to be installed changes.
$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	$(INSTALL) --no-deps $(NNUNET)
	@touch $@ $(VENV)/.installed-demo
