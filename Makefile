# make run     search for students of a network that reads handwritten digits, then train the three best; watch it in the browser
# make test    ruff, mypy and the test suite
# make docs    the site of docs/ in build/site/index.html
# make reproduce SCALE=tiny    the paper's tables and figures in results/index.html, on digits in minutes; SCALE=short takes
#              a night and CIFAR-10, SCALE=paper is the full recipe: see reproduce.yml
#
# All first lay out .venv from requirements.lock, once: PyTorch, NNI and their company, about 6 GB on disk.
# PYTHON=python3.12 chooses its interpreter, any CPython from 3.10 to 3.13.

BIN := .venv/bin
INSTALLED := .venv/.installed
WORKERS ?= logical
SCALE ?= tiny

.PHONY: run test docs pictures reproduce lint format lock clean

run: $(INSTALLED)
	@$(BIN)/blockswap run config.yml

reproduce: $(INSTALLED)
	@$(BIN)/blockswap reproduce reproduce.yml --scale $(SCALE) --out results

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The site of docs/, in build/site; a link that leads nowhere is an error.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Those of docs/images that a program takes, of config.yml's experiment or, pictures EXPERIMENT=ID, of another; needs chromium.
pictures: $(INSTALLED)
	$(BIN)/python -m pip install --quiet playwright
	$(BIN)/python docs/pictures.py $(EXPERIMENT)

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(INSTALLED): requirements.lock pyproject.toml
	@tools/install

# Pins what pyproject.toml newly asks for and keeps the other pins; `make lock LOCK=--upgrade` renews them all.
# Wheels only: a package that is built on installation breaks with the first build tool that it does not know.
lock: | $(BIN)/uv
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.10 --only-binary :all: \
		--generate-hashes --quiet --custom-compile-command "make lock" --output-file requirements.lock $(LOCK)

# Any environment will do to write a lock: one that has uv is left as it is.
$(BIN)/uv:
	@tools/install

# Leaves .venv, data and results alone.
clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
