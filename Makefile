# Sluice's repository commands. Each installs the Debian packages that it needs and that are
# missing; `make test` and `make bench` need no other preparation.

SWIFT ?= swift
# Debian's own Python: its libnbd binding belongs to it.
PYTHON ?= /usr/bin/python3
CONFIGURATION = release
# `make build` and `make test` share these, and so every object file.
SWIFT_FLAGS = -c $(CONFIGURATION)
FORMATTED = Package.swift Sources Tests

# A count, or a range A..B.
SEEDS ?= 10000
SEED_RANGE = $(if $(findstring ..,$(SEEDS)),$(SEEDS),1..$(SEEDS))

.DEFAULT_GOAL := build
.PHONY: build run test bench soak format format-check clean

build:
	@scripts/install-packages.sh build
	$(SWIFT) build $(SWIFT_FLAGS) --product sluice

run: build
	@scripts/run.sh

# One stage or more by name: make test STAGES="unit interop"
test:
	@scripts/install-packages.sh test
	@SWIFT="$(SWIFT)" $(PYTHON) scripts/run-tests.py $(STAGES)

# A short run for a first look: make bench QUICK=1. With REPORT=1 the results go into
# docs/performance.md; BENCH="--rows blender,sync1 --growth none" chooses, "--points all" adds the
# points that want time or space.
bench:
	@scripts/install-packages.sh bench
	$(SWIFT) build $(SWIFT_FLAGS) --product sluice
	$(SWIFT) build $(SWIFT_FLAGS) --product sluice-null
	@QUICK=$(QUICK) $(PYTHON) bench/bench.py $(if $(REPORT),--report) $(BENCH)

# As many simulated histories as one wants; a failing one prints the command that replays it.
soak:
	@scripts/install-packages.sh build
	$(SWIFT) build $(SWIFT_FLAGS) --product sluice-sim
	.build/$(CONFIGURATION)/sluice-sim run --seeds $(SEED_RANGE)

format:
	$(SWIFT) format format --in-place --recursive $(FORMATTED)

format-check:
	$(SWIFT) format lint --strict --recursive $(FORMATTED)

# What was built and measured; the pool of `make run` (var/pool) stays.
clean:
	rm -rf .build bench/tmp var/guest var/test-logs
