# make up: install, build, serve.   make test: install, test.   make down: stop.
ENGINE      = .venv
COMPRESSION = .venv-compression
GEARBOX     = $(ENGINE)/bin/gearbox
ARGS       ?=

.PHONY: up down status test check bench lock install clean

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

check: install
	@$(ENGINE)/bin/ruff format --check .
	@$(ENGINE)/bin/ruff check .
	@$(ENGINE)/bin/mypy

bench: install
	@$(ENGINE)/bin/python -m benchmarks.compression.variants
	@$(ENGINE)/bin/python -m benchmarks.overhead.gateway

lock:
	@scripts/lock

clean:
	rm -rf $(ENGINE) $(COMPRESSION) .venv-checkov .venv-uv
