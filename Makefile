# `make help` lists what there is to do. Everything runs in the project's own environment, .venv, which set-up keeps current.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Where `make cluster` was run, a renewed environment keeps Ray.
WITH_RAY := .venv/.cluster
LOCKED = requirements/locked.txt $(if $(wildcard $(WITH_RAY)),requirements/cluster.txt)

.PHONY: help repro plan results audit discard preset clean-partial soak test test-fast check bench growth fuzz search-table lock setup cluster bench-cluster

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 16

repro: $(READY)  ## check the params, run what is out of date (dvc repro), print the results
	@$(BIN)/python -m pipeline repro

plan: $(READY)  ## measure a few steps, and print the time, disk and memory of each stage (make plan NAME=cifar10 IMAGES=50000)
	@$(BIN)/python -m pipeline plan $(NAME) $(if $(IMAGES),--images $(IMAGES))

results: $(READY)  ## print the results again
	@$(BIN)/python -m pipeline results

audit: $(READY)  ## recompute what can be recomputed of the run, and compare it with what was recorded
	@$(BIN)/python -m pipeline audit

discard: $(READY)  ## make discard OUT=data/clean: delete an image set or a model that is damaged, in DVC's cache too
	@$(BIN)/python -m pipeline discard "$(OUT)"

preset: $(READY)  ## make preset NAME=cifar10: write the params.yaml of presets/NAME.yaml, keep your own
	@$(BIN)/python -m pipeline preset "$(NAME)"

clean-partial: $(READY)  ## list and delete the unfinished work of interrupted runs
	@$(BIN)/python -m pipeline clean-partial

soak: $(READY)  ## kill a tiny pipeline 200 times, refuse its writes, cut its files short, and compare every byte
	@$(BIN)/python -W ignore -m tests.faults --kills 200

test: $(READY)  ## run every test
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: $(READY)  ## the tests of a minute: those not marked slow
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

check: $(READY)  ## lint, formatting, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY)  ## measure this machine: the pipeline against the recipe as usually written, batches from the disk and from memory
	@$(BIN)/python -m benchmarks.speed
	@$(BIN)/python -m benchmarks.loading

growth: $(READY)  ## measure time and peak memory against the number and the size of images (8 GB of disk for a while)
	@$(BIN)/python -m benchmarks.growth

bench-cluster: cluster  ## what Ray costs per image and task, on 1 to 3 nodes of this machine, one of them killed
	@$(BIN)/python -m benchmarks.cluster $(if $(IMAGES),--images $(IMAGES))

fuzz: $(READY)  ## 10,000 damaged files for every reader; 1 to 2 hours
	@$(BIN)/python -m tests.fuzz

search-table: $(READY)  ## print the experiments of docs/search.md: parameters, transfer and robust accuracy
	@$(BIN)/dvc exp show --md --drop '.*' --keep 'Experiment|attacks\.(fgsm|pgd)\.(eps|alpha|steps)|metrics/.*json:(clean|transfer\.(fgsm|pgd)|robust\.(fgsm|pgd))\.accuracy'

lock: setup  ## resolve the requirements again
	@PATH="$$PATH:$(BIN)" uv pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	  --python-version 3.11 --override requirements/overrides.txt pyproject.toml --group dev -o requirements/locked.txt
	@PATH="$$PATH:$(BIN)" uv pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	  --python-version 3.11 --override requirements/overrides.txt --constraint requirements/locked.txt --group cluster -o requirements/cluster.txt

cluster: $(READY)  ## add Ray (about 600 MB), for PIPELINE_CLUSTER: docs/cluster.md
	@PATH="$$PATH:$(BIN)" uv pip install --quiet --compile-bytecode --python $(BIN)/python --requirement requirements/cluster.txt
	@touch $(WITH_RAY)

setup: $(READY)  ## make the environment current; the other commands do it by themselves

$(READY): requirements/locked.txt requirements/cluster.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; name it with make PYTHON=…")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@PATH="$$PATH:$(BIN)"; command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv
	@echo "installing what requirements/locked.txt names: about 6 GB on the disk, most of it PyTorch with CUDA's libraries"
	@PATH="$$PATH:$(BIN)" uv pip sync --quiet --compile-bytecode --python $(BIN)/python $(LOCKED)
	@# setuptools is in the lock: without build isolation nothing else is downloaded
	@PATH="$$PATH:$(BIN)" uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@touch $(READY)
