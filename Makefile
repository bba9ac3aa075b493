# make train   sets up everything and trains LeNet; make train ARGS="optimizer.lr=0.5" passes overrides
# make test    sets up the same and runs the quick tests, make test-all all of them; make lint checks style and types
# make gpu     checks and measures what is special on a GPU, in a few minutes
# make data    obtains and verifies Fashion-MNIST; make clean removes the environment, not the data or the runs

PYTHON ?= python3
ARGS ?=
# The tested versions; empty for the newest that pyproject.toml allows.
CONSTRAINTS ?= --constraint constraints.txt

VENV := .venv/bin/python
ENVIRONMENT := .venv/installed
# The last of the four files to be put in its place.
DATA := data/FashionMNIST/raw/t10k-labels-idx1-ubyte

.PHONY: train test test-all gpu lint data clean

# Where the user names other data, the run itself sees to it.
train: $(ENVIRONMENT) $(if $(findstring data=synthetic,$(ARGS))$(findstring data.root=,$(ARGS)),,$(DATA))
	$(VENV) train.py model=lenet $(ARGS)

PYTEST := $(VENV) -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test: $(ENVIRONMENT) $(DATA)
	$(PYTEST) -m "not long"

test-all: $(ENVIRONMENT) $(DATA)
	$(PYTEST)

gpu: $(ENVIRONMENT) $(DATA)
	$(VENV) -m pytest tests/test_gpu.py -rP
	$(VENV) scripts/benchmark.py train --device gpu --rounds 5 --epochs 20 --batch-size 256 8192

lint: $(ENVIRONMENT)
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy

data: $(DATA)

# Installed anew when what is to be installed has changed.
$(ENVIRONMENT): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed, $$($(PYTHON) --version) was found; name another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(VENV) -m pip install --quiet --disable-pip-version-check --editable ".[dev]" $(CONSTRAINTS)
	touch $@

# Where none of the usual sources has the files, Debian's package can help.
$(DATA): | $(ENVIRONMENT)
	$(VENV) scripts/get_data.py --root data || { scripts/install_debian_package.sh dataset-fashion-mnist && $(VENV) scripts/get_data.py --root data; }

clean:
	rm -rf .venv
