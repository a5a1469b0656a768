# `make help` lists what there is. Options: ARGS="..." for demo and test, PYTHON=... for setup.
SHELL := /bin/sh
IN_ENV := tools/setup.sh tools.in_env
SETUP_ARGS = $(if $(PYTHON),--python "$(PYTHON)")

.PHONY: help setup demo test lint unit test-312 docs clean

help:
	@echo 'make setup     .venv with ROS 2, torch and the built package; seconds when nothing changed'
	@echo 'make demo      a simulated arm solves tasks given in words   (ARGS="--help" for options)'
	@echo 'make test      lint, types, import contracts, all tests      (ARGS="-k name" for pytest)'
	@echo 'make lint      ruff, mypy, import-linter'
	@echo 'make test-312  messages built and used on Python 3.12, where there is one'
	@echo 'make docs      the user guide as a site in out/guide, complete without a network'
	@echo 'make clean     remove everything that was generated, .venv included'
	@echo
	@echo 'PYTHON=python3.12 make setup   chooses the Python of .venv'
	@echo 'source /opt/ros/jazzy/setup.bash && make setup   uses that ROS 2 instead of its wheels'

setup:
	@PYTHON='$(PYTHON)' tools/setup.sh tools.bootstrap $(SETUP_ARGS)

demo: setup
	@$(IN_ENV) python -m thor_policy_ros.ros.demo $(ARGS)

test: lint unit

lint: setup
	$(IN_ENV) ruff check .
	$(IN_ENV) ruff format --check .
	$(IN_ENV) mypy
	$(IN_ENV) lint-imports --no-logo --no-cache

unit: setup
	$(IN_ENV) python -m pytest --timeout 300 $(ARGS)

test-312:
	@tools/messages_on_python.sh 3.12

docs: setup
	@$(IN_ENV) python -m tools.guide

clean:
	rm -rf .venv build install log out .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
