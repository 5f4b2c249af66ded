# Two targets that a person needs: `make up` shows Nuée at work, `make test` proves it.

CARGO ?= cargo
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
DATA_DIR ?= /var/lib/nuee
NUEE := target/release/nuee

.PHONY: help build packages test-packages up down test compare bench bench-vm bench-api soak fuzz install

help:
	@echo "make up       install what is needed, build, start Nuée and run a first workload"
	@echo "make down     stop Nuée and everything that runs on it; data stays"
	@echo "make test     install what the tests need, and run them all"
	@echo "make compare  run docker-py's suite and the differential test beside dockerd, and record what it answers"
	@echo "make bench    compare with dockerd, side by side"
	@echo "make bench-vm compare with a bare qemu-system, side by side"
	@echo "make bench-api  put load on the Kubernetes API, beside etcd driven directly"
	@echo "make soak     32 writers and 64 watchers on 50,000 objects for five minutes"
	@echo "make fuzz     every fuzz target for a minute"
	@echo "make install  put nuee into /usr/local/bin, with its systemd unit"

packages:
	$(SUDO) contrib/packages.sh run

test-packages:
	$(SUDO) contrib/packages.sh test
	$(SUDO) contrib/python-clients.sh target/python-clients

build:
	$(CARGO) build --release --locked --package nuee

up: packages build
	$(SUDO) env DATA_DIR=$(DATA_DIR) NUEE=$(abspath $(NUEE)) contrib/first-workload.sh

down:
	$(SUDO) $(NUEE) down --all --data-dir $(DATA_DIR)

test: test-packages
	$(SUDO) env "PATH=$$PATH" $(CARGO) xtask ci

compare: test-packages build
	$(SUDO) env "PATH=$$PATH" python3 tests/docker/suite.py --nuee $(NUEE) --record
	$(SUDO) env "PATH=$$PATH" python3 tests/docker/differential.py --nuee $(NUEE) --record

bench-vm: test-packages build
	$(SUDO) env "PATH=$$PATH" python3 bench/vm.py --nuee $(NUEE)

bench: test-packages build
	$(SUDO) env "PATH=$$PATH" python3 bench/docker --nuee $(NUEE)

bench-api: test-packages build
	$(CARGO) build --release --locked --package bench-api
	$(SUDO) target/release/bench-api table --nuee $(NUEE)

soak: test-packages build
	$(CARGO) build --release --locked --package bench-api
	$(SUDO) target/release/bench-api soak --nuee $(NUEE)

fuzz:
	fuzz/run.sh all 60

install: packages build
	$(SUDO) install -m 0755 $(NUEE) /usr/local/bin/nuee
	$(SUDO) install -m 0644 contrib/nuee.service /etc/systemd/system/nuee.service
