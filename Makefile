# The same few commands for people and CI. Everything installs into .venv; nothing outside this folder is written but
# the user's cache (kiwi-static's table, evaluation caches).
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
MILVUS := .cache/milvus-server

export YEOUL_TEST_MILVUS_SERVER ?= $(MILVUS)/bin/python

.PHONY: demo test types unit lint serve lock clean

demo: $(VENV)/installed
	@mkdir -p .demo
	@cd .demo && ../$(BIN)/yeoul index ../pipeline/samples/articles.jsonl
	@cd .demo && for query in "보이스피싱 당했을 때 계좌 막는 법" "외국 나가서 결제할 때 손해 안 보기" "연말정산월세세액공제"; do \
	  echo; echo "── $$query"; ../$(BIN)/yeoul search "$$query" --limit 3 --explain; done
	@echo; echo "Next: make serve, then open http://127.0.0.1:8200"

test: $(VENV)/installed-test $(MILVUS)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory -j 2 types unit

# Beside the tests, which wait now and then: mypy takes a minute of one processor where it has no cache.
types:
	$(BIN)/mypy
	$(BIN)/lint-imports

# More workers than processors: tests wait for what they start.
unit: export PYTHONDONTWRITEBYTECODE =
unit: # without bytecode, if whoever runs it asks for none, each process of theirs would compile every module anew
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: $(VENV)/installed
	@mkdir -p .demo
	@cd .demo && ../$(BIN)/yeoul index ../pipeline/samples/articles.jsonl && ../$(BIN)/yeoul serve

# torch first: an open range would bring gigabytes of CUDA to every machine without a GPU.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 $@"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install "$$(grep '^torch==' requirements.lock)"
	$(PIP) install -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed requirements-test.lock
	$(PIP) install -r requirements-test.lock
	touch $@

# A real Milvus server for the tests, in an environment of its own: it needs an old setuptools.
$(MILVUS)/installed:
	$(PYTHON) -m venv $(MILVUS)
	$(MILVUS)/bin/pip --disable-pip-version-check -q install "milvus==2.3.5" "setuptools<81"
	touch $@

# Both locks anew from pyproject.toml, in a fresh environment; torch from where pip finds its CPU build.
lock:
	rm -rf .cache/lock && $(PYTHON) -m venv .cache/lock
	.cache/lock/bin/pip -q install torch==2.13.0
	.cache/lock/bin/pip -q install "setuptools>=77" .
	.cache/lock/bin/pip freeze --exclude yeoul --all | grep -v '^pip==' | sed 's/+cpu$$//' > requirements.lock
	.cache/lock/bin/pip -q install ".[test]"
	.cache/lock/bin/pip freeze --exclude yeoul --all | grep -v '^pip==' | sed 's/+cpu$$//' > requirements-test.lock
	@! grep -il nvidia requirements.lock requirements-test.lock || { echo "a lock names CUDA packages: install torch first"; exit 1; }
	rm -rf .cache/lock build *.egg-info

clean:
	rm -rf $(VENV) .demo .cache build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
