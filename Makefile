# Everything from nothing, with Python 3.11+ alone:  make demo | make test
# Another interpreter: make PYTHON=python3.13 ...   On Linux, plain torch brings CUDA libraries of several GB;
# without a GPU point pip at PyTorch's CPU index first (environment variable PIP_EXTRA_INDEX_URL).

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: demo test clean

demo: $(VENV)/installed
	$(BIN)/dummyforcing generate "a red ball bounces on a green floor" -o ball.mp4

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

$(VENV)/installed: pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	$(INSTALL) -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV)
