PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test unit check format clean

# Makes toy scenes, meta-learns on them, evaluates: everything there is, small, on a CPU.
demo: $(VENV)/installed
	$(BIN)/python data_scripts/make_toy_scenes.py
	$(BIN)/python train.py toy
	$(BIN)/python eval.py runs/toy --num-scenes 8 --query 4 10 16 --stages 0 1 10 32 100

test: check unit

unit: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) data/toy runs/toy

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[dev]
	touch $@
