.DEFAULT_GOAL := help
.PHONY: help env up test check bench faults lock clean
RUN := .venv/bin
# Where it is set, every process of every test compiles the whole program anew.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.ready: requirements.lock pyproject.toml infra/deploy/env.sh
	@sh infra/deploy/env.sh

env: .venv/.ready ## make the environment (.venv) from the lock file

up: env ## start everything: Postgres, NATS, gateway, core, workers (ARGS="--port 9000 --root /srv")
	@exec $(RUN)/undrift up $(ARGS)

test: env ## run the tests against real Postgres and NATS
	$(RUN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

check: env ## ruff, mypy --strict, import-linter, compose schema
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports --verbose --no-cache
	$(RUN)/python -m infra.deploy.check_compose

bench: env ## benchmarks beside their peers (bounded, loopback only)
	$(RUN)/python -m tests.benchmarks $(ARGS)

faults: env ## SIGKILLs, wiped stores, restores (bounded, loopback only)
	$(RUN)/python -m pytest tests/faults -p no:xdist $(ARGS)

lock: ## write requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --all-extras pyproject.toml -o requirements.lock

clean: ## remove the environment and caches
	rm -rf .venv .uv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
