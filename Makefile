# make demo   train the embedded model forward and reverse, and show what came of it
# make test   the whole test suite
# make lint   ruff
#
# Each first makes a virtual environment in .venv with the exact versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/ready
	$(BIN)/python train.py --config configs/tiny.toml --direction forward --seed 0 --resume
	$(BIN)/python train.py --config configs/tiny.toml --direction reverse --seed 0 --resume
	$(BIN)/python evaluate.py

test: .venv/ready
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name a newer one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf .venv
