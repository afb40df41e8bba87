# `make` lists the targets. The set-up is done once and checked in a fraction of a second after that.
SHELL := /bin/bash
PYTHON ?= python3
TORCH ?=
VENV := .venv$(if $(TORCH),-torch-$(TORCH))
BIN := $(VENV)/bin
SETUP = timeout 1800 $(PYTHON) scripts/setup_environment.py --venv $(VENV) $(if $(TORCH),--torch $(TORCH)) --extras
CSRC = $(shell find csrc tests/emulator -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
NP ?= 2 4
JOBS ?= 2
TRANSPORT ?= horovod torch
ARGS ?=
CALL ?= 1
EXPERIMENTS ?= when_weights_help vincent averaging_frequency topology scaling norm_vs_gap per_step convergence \
  flatness communication

.PHONY: help demo cluster bench-kernels bench-step bench-round bench-cluster soak cost-model experiments readme test \
  elastic-test cluster-test faults docs lint format cuda-check cuda-load \
  dist-check sanitize wheels gpu-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## train on handwritten digits with 4 workers; ARGS="..." goes to examples/digits.py
	@$(SETUP) examples
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 timeout 900 \
	  $(BIN)/horovodrun -np 4 -H localhost:4 $(BIN)/python examples/digits.py $(ARGS)

cluster: ## the demo on 12 workers, 4 on each of 3 hosts (network namespaces, 1 Gbit/s); needs root; ARGS="..." as for demo
	@$(SETUP) examples
	scripts/cluster up --hosts 3 --rate 1gbit || exit 1; trap 'scripts/cluster down' EXIT; \
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/cluster exec --timeout 900 host1 -- \
	  horovodrun --gloo -np 12 -H host1:4,host2:4,host3:4 --network-interfaces eth0 \
	  python examples/digits.py --epochs 16 --period 8 $(ARGS)

bench-kernels: ## time the kernels beside PyTorch's own and a plain copy; ARGS="--help" lists the options
	@$(SETUP) examples
	timeout 1800 $(BIN)/python -m benchmarks.kernels $(ARGS)

bench-round: ## time a round over loopback beside a bare allreduce and its peers; ARGS="--models resnet20 --seconds 5", OUT=name
	@$(SETUP) examples
	runs=$$(mktemp -d); trap 'rm -rf "$$runs"' EXIT; \
	for np in $(NP); do \
	  PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 timeout 900 $(BIN)/horovodrun -np $$np -H localhost:$$np \
	    $(BIN)/python -m benchmarks.round --json $$runs/$$np.json $(ARGS) || exit 1; \
	  OMP_NUM_THREADS=1 timeout 900 $(BIN)/torchrun --nproc-per-node $$np \
	    -m benchmarks.round --transport torch --json $$runs/torch-$$np.json $(ARGS) || exit 1; \
	done; \
	out=$(or $(OUT),benchmarks/results/round_loopback); \
	$(BIN)/python -m benchmarks.round_report $$runs/*.json --json $$out.json --plot $$out.png

bench-step: ## time a local step beside the bare torch optimizer, on 2 processes; ARGS="--help" lists the options
	@$(SETUP) examples
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 timeout 900 $(BIN)/horovodrun -np 2 -H localhost:2 \
	  $(BIN)/python -m benchmarks.local_step $(ARGS)

bench-cluster: ## 12 ranks on 3 hosts beside Horovod's optimizer, at 3 rates; needs root; ARGS="--rates 1gbit --seconds 20"
	@$(SETUP) examples
	timeout 3600 $(BIN)/python -m benchmarks.cluster \
	  --json benchmarks/results/cluster.json --plot benchmarks/results/cluster.png $(ARGS)

soak: ## an elastic job whose workers are killed, beside Horovod's optimizer, MINUTES=10 each; ARGS=--cluster: 12 on 3 hosts
	@$(SETUP) examples
	out=benchmarks/results/$(or $(OUT),$(if $(findstring --cluster,$(ARGS)),soak_cluster,soak)); \
	timeout 7200 $(BIN)/python -m benchmarks.soak $(if $(MINUTES),--minutes $(MINUTES)) \
	  --json $$out.json --plot $$out.png $(ARGS)

cost-model: ## fit the cost model to the results of bench-cluster and bench-round; writes docs/cost_model.md
	@$(SETUP) examples
	timeout 600 $(BIN)/python -m benchmarks.cost_model_report $(ARGS)

experiments: ## run what is missing of the experiments in experiments/README.md; ARGS="--splits 8", EXPERIMENTS=name
	@$(SETUP) examples flatness
	for name in $(EXPERIMENTS); do OMP_NUM_THREADS=1 $(BIN)/python -m experiments.$$name $(ARGS) || exit 1; done

readme: ## put the tables of the committed results into README.md and docs/
	@$(SETUP) examples
	$(BIN)/python -m benchmarks.readme $(ARGS)

test: ## all tests, on 1, 2 and 4 processes; TORCH=2.12.0 or TORCH=newest: with that torch; TRANSPORT=torch: over that alone
	@$(SETUP) test examples flatness
	failed=0; run="$(BIN)/python tests/parallel/run.py -np $(NP)"; \
	timeout 1500 $(BIN)/python -m pytest tests/single -n $(JOBS) --dist loadfile $(ARGS) || failed=1; \
	$(if $(filter horovod,$(TRANSPORT)), \
	  timeout 3300 $$run --timeout 1600 $(ARGS) || failed=1;) \
	$(if $(filter torch,$(TRANSPORT)), timeout 1900 $$run --timeout 900 --transport torch $(ARGS) || failed=1;) \
	exit $$failed

elastic-test: ## workers that are added, taken away, stopped and killed; ARGS="-m quick": two minutes of them
	@$(SETUP) test examples
	timeout 3600 $(BIN)/python -m pytest tests/elastic $(ARGS)

faults: ## run all tests that do something to workers, and count them in benchmarks/results; ARGS="--help" lists the options
	@$(SETUP) test examples
	timeout 7200 $(BIN)/python -m benchmarks.faults $(ARGS)

cluster-test: ## 12 workers on 3 hosts against the formulas, and scripts/cluster itself; skipped where there is no root
	@$(SETUP) test examples
	timeout 1500 $(BIN)/python -m pytest tests/cluster -rs $(ARGS)

# --quiet would hide from --strict what it is to find.
docs: ## build the documentation site into build/docs, in an environment of its own; a broken link is an error
	@timeout 600 $(PYTHON) scripts/setup_environment.py --venv .venv-docs --extras-alone --extras docs
	NO_MKDOCS_2_WARNING=1 timeout 300 .venv-docs/bin/mkdocs build --strict
	@echo "build/docs/index.html"

lint: ## ruff, mypy, clang-format and the documentation site, changing no source
	@$(SETUP) lint
	failed=0; \
	$(BIN)/ruff check . || failed=1; \
	$(BIN)/ruff format --check . || failed=1; \
	timeout 300 $(BIN)/mypy --strict -p grawa_hvd || failed=1; \
	timeout 300 $(BIN)/mypy --strict tests/types/train.py || failed=1; \
	$(BIN)/clang-format --dry-run -Werror $(CSRC) || failed=1; \
	$(MAKE) --no-print-directory docs || failed=1; \
	exit $$failed

format: ## ruff and clang-format, in place
	@$(SETUP) lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

cuda-check: ## without a GPU: the CUDA kernels' tests on an emulator; with nvcc also their registers, machine code, link
	@$(SETUP) test cuda-check
	timeout 1500 $(BIN)/python scripts/emulator.py
	timeout 900 $(BIN)/python scripts/cuda_check.py

cuda-load: ## also link and load them, with a CUDA build of PyTorch (the first time, 3 GB of download), and run their tests
	@timeout 3600 $(PYTHON) scripts/cuda_load.py $(ARGS)

dist-check: ## build a wheel from an sdist alone, and use it
	@$(SETUP)
	timeout 900 $(BIN)/python scripts/dist_check.py

sanitize: ## the C++ operators' tests with AddressSanitizer and UndefinedBehaviorSanitizer; ARGS="-k pack" goes to pytest
	@$(SETUP) test
	OMP_NUM_THREADS=2 timeout 900 $(BIN)/python scripts/sanitize.py -- $(ARGS)

wheels: ## build what an offline GPU machine lacks, into wheels/: make wheels PYTHON=3.12 TORCH=2.11.0
	@timeout 5400 python3 scripts/make_wheels.py --python $(PYTHON) $(if $(TORCH),--torch $(TORCH)) $(ARGS)

gpu-check: ## on a GPU machine, with wheels/ but no network: CALL=1 tests and times kernels, CALL=2 builds and trains; OUT=folder
	@timeout 590 $(PYTHON) scripts/gpu_check.py --call $(CALL) --out $(or $(OUT),build/gpu-results) $(ARGS)

clean: ## remove the environments and all that was built
	rm -rf .venv .venv-torch-* .venv-docs .venv-cuda .venv-wheels-* wheels build dist ./*.egg-info grawa_hvd/_C*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
