# Everything from nothing, with Python 3.11+ alone:  make demo | make live | make test | make docs
# Another interpreter: make PYTHON=python3.13 ...   On Linux, plain torch brings CUDA libraries of several GB;
# without a GPU point pip at PyTorch's CPU index first (environment variable PIP_EXTRA_INDEX_URL).

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet -c constraints.txt

export NO_MKDOCS_2_WARNING = 1

.PHONY: demo live test docs pages clean

demo: $(VENV)/installed
	$(BIN)/dummyforcing generate "a red ball bounces on a green floor" -o ball.mp4

# The live page at http://127.0.0.1:8000, in a browser if there is one.
live: $(VENV)/installed-live
	$(BIN)/dummyforcing serve --open

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal
	$(BIN)/mkdocs build --strict --quiet

# The site of the documentation, in site/: open site/index.html.
docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict

# Pages, tables and pictures that are made of the code and of benchmarks/results/.
pages: $(VENV)/installed-dev
	$(BIN)/python -m research.pages

$(VENV)/installed: pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

$(VENV)/installed-live: pyproject.toml constraints.txt
	$(INSTALL) -e ".[server]"
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	$(INSTALL) -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) site
