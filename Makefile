# make up: install, build, serve.   make test: install, test.   make test-unit: only the fast unit tests.   make down: stop.
ENGINE      = .venv
COMPRESSION = .venv-compression
GEARBOX     = $(ENGINE)/bin/gearbox
ARGS       ?=
# Even where the shell forbids it, Python writes bytecode: else each process of an engine, of Ray and of the tests compiles torch,
# vLLM and its other imports again, half of its start.
export PYTHONDONTWRITEBYTECODE =

.PHONY: up down status test test-unit check bench lock install clean

up: install
	@$(GEARBOX) up $(ARGS)

down:
	@$(GEARBOX) down

status:
	@$(GEARBOX) status

install:
	@scripts/install $(ENGINE) cpu
	@scripts/install $(COMPRESSION) compression

test: install
	@scripts/test $(ARGS)

test-unit: install
	@$(ENGINE)/bin/python -m pytest -n logical --maxprocesses=8 --dist=loadfile --no-loadscope-reorder --durations=25 --durations-min=1 -m "not slow" tests/unit $(ARGS)

check: install
	@$(ENGINE)/bin/ruff format --check .
	@$(ENGINE)/bin/ruff check .
	@$(ENGINE)/bin/mypy
	@$(ENGINE)/bin/lint-imports --no-logo

bench: install
	@$(ENGINE)/bin/python -m benchmarks.compression.variants
	@$(ENGINE)/bin/python -m benchmarks.overhead.gateway

lock:
	@scripts/lock

clean:
	rm -rf $(ENGINE) $(COMPRESSION) .venv-checkov .venv-uv
