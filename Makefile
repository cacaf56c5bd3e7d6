# make run needs Go and make, nothing else. make help lists the rest.

GO ?= go
BIN := bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(BIN)/golangci-lint-$(GOLANGCI_VERSION)
# How long make fuzz tries each target: a time (1m) or a number of inputs (20000x). make test
# counts inputs, so that a slow machine takes longer and does not run into a deadline.
FUZZTIME ?= 1m
TEST_FUZZTIME := 100000x
# How long make soak tries to break the archive, and how long it has receivers of outputs misbehave.
SOAK ?= 1h
SOAK_RECEIVERS ?= 10m
# How often make bench-go runs each benchmark; benchstat wants ten or so.
COUNT ?= 1
# The version of the packages must begin with a digit: a tag v1.2.3 is 1.2.3, and anything else
# comes before every release.
PACKAGE_VERSION ?= $(if $(filter v0% v1% v2% v3% v4% v5% v6% v7% v8% v9%,$(VERSION)),$(patsubst v%,%,$(VERSION)),0.0.0~$(VERSION))
NFPM_VERSION := v2.43.4
NFPM := $(BIN)/nfpm-$(NFPM_VERSION)
LDFLAGS := -s -w -X aggregatord/internal/buildinfo.Version=$(VERSION)
# Where make release puts its files.
DIST := dist

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run build check test test-deps format check-format vet vet-darwin test-unit test-allocations test-fuzz test-race test-deploy test-receivers test-readers lint fuzz soak bench bench-go docs pictures extras release clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build ## Build, and start the daemon with a demo pool of workers
	$(BIN)/aggregatord demo

build: ## Build bin/aggregatord
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/aggregatord ./cmd/aggregatord

check: check-format vet lint test-unit ## Format, vet, lint and the tests of every room: for each commit; installs no package

test: test-deps $(NFPM) check-format vet vet-darwin lint test-allocations test-fuzz test-race test-deploy test-receivers test-readers ## Everything that must hold; installs the peers it needs on Debian as root

test-deps:
	.ci/deps

# The formatters of .golangci.yml, gofumpt and goimports, are the ones that count.
format: $(GOLANGCI) ## Format all Go files
	$(GOLANGCI) fmt

check-format: $(GOLANGCI)
	@$(GOLANGCI) fmt --diff >/dev/null || { echo "make format is due:"; $(GOLANGCI) fmt --diff | grep '^diff'; exit 1; }

vet:
	$(GO) vet ./...

# Nobody here has a Mac: that everything compiles for one is the least we can check.
vet-darwin:
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GO) build ./...
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GO) vet ./...

# What needs no other program: all but internal/integration and cmd/bench.
test-unit:
	$(GO) test $$($(GO) list ./... | grep -v -e /internal/integration -e /cmd/bench)

# The race detector has every sync.Pool throw things away, so how many objects a scrape makes is
# counted without it.
test-allocations:
	$(GO) test -count=1 -run 'Allocat' ./internal/...

# Fuzz targets are found, not listed. Each room's test program is built once for all of its targets,
# and counts the branches of our own code and of the formats' readers: `go test -fuzz` counts
# those of the whole standard library, which compiles everything a second time and halves the speed.
FUZZED := aggregatord/... go.etcd.io/bbolt/... go.yaml.in/... regexp/...
FUZZ_PROGRAM := $(CURDIR)/$(BIN)/fuzz.test

define fuzz_all
@set -e; built=; cache=$$($(GO) env GOCACHE)/fuzz; \
targets=$$(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' cmd internal | sort | sed 's|/[^/]*:func | |'); \
echo "$$targets" | { while read -r room func; do \
	if [ "$$built" != "$$room" ]; then \
		$(GO) test -c -vet=off $(foreach p,$(FUZZED),-gcflags=$(p)=-d=libfuzzer) -o $(FUZZ_PROGRAM) "./$$room"; \
		$(GO) tool nm $(FUZZ_PROGRAM) | grep libfuzzerTrace >/dev/null || { echo "$$room: no branches are counted"; exit 1; }; \
		built=$$room; \
	fi; \
	echo "fuzz $$room $$func"; \
	(cd "$$room" && $(FUZZ_PROGRAM) -test.run '^$$' -test.fuzz "^$$func$$" -test.fuzztime $(1) -test.fuzzminimizetime 1x \
		-test.fuzzcachedir "$$cache/aggregatord/$$room" </dev/null); \
done; }
endef

test-fuzz:
	$(call fuzz_all,$(TEST_FUZZTIME))

# -count=1: the tests depend on programs that the test cache knows nothing of.
test-race:
	$(GO) test -race -count=1 -timeout 30m ./...

# A module of its own: Kubernetes' types are larger than the daemon.
test-deploy:
	cd deploy/test && $(GO) vet ./... && $(GO) test -count=1 -timeout 10m ./...

# A module of its own: Prometheus, whose code receives here, is larger than the daemon.
test-receivers:
	cd internal/output/receivertest && $(GO) vet ./... && $(GO) test -count=1 -timeout 10m ./...

# A module of its own: so is VictoriaMetrics, whose code reads here beside Prometheus's.
test-readers:
	cd internal/exposition/readertest && $(GO) vet ./... && $(GO) test -count=1 -timeout 10m ./...

lint: $(GOLANGCI) ## golangci-lint
	$(GOLANGCI) run

# The version is in the name, so a new pin installs a new binary.
$(GOLANGCI):
	GOBIN=$(CURDIR)/$(BIN) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(BIN)/golangci-lint $@

fuzz: ## Fuzz each target for FUZZTIME
	$(call fuzz_all,$(FUZZTIME))

# Those beside the first and the mirror's need a minute or two each, however long SOAK is.
soak: test-deps ## Try to break the archive for SOAK, and what hostile files, clients and receivers do for minutes
	CI=true AGGREGATORD_SOAK=$(SOAK) $(GO) test -race -count=1 -timeout 0 -v -run '^Test(Chaos|ChaosOfGuests|Racers|HostileClients|GuessedPasswords|AttacksTogether|DiscoveredApplications|MirrorInApp)$$' ./internal/integration
	CI=true AGGREGATORD_SOAK=$(SOAK) AGGREGATORD_MIRROR=auto $(GO) test -race -count=1 -timeout 0 -v -run '^Test(Chaos|ChaosOfGuests|Racers)$$' ./internal/integration
	AGGREGATORD_SOAK=$(SOAK) $(GO) test -race -count=1 -timeout 0 -run '^TestMirror' ./internal/pool
	CI=true AGGREGATORD_SOAK=$(SOAK_RECEIVERS) $(GO) test -count=1 -timeout 0 -parallel 1 -v \
		-run '^Test(ProcessesUnderLoad|BadReceivers|KilledWhilePushing)$$' ./internal/integration

# BENCHFLAGS=-h lists what it takes; -large adds the largest shape.
bench: build ## Measure the daemon beside a floor and the Python client, with BENCHFLAGS
	$(GO) run ./cmd/bench $(BENCHFLAGS)

bench-go: ## Go benchmarks, COUNT times, in the form benchstat reads
	$(GO) test -run '^$$' -bench . -benchmem -count $(COUNT) ./...

docs: ## Write the tables of docs/ that are made from the code
	$(GO) test ./cmd/aggregatord ./internal/config -run Documented -update

pictures: ## Take the screenshots of docs/images anew
	CI=true AGGREGATORD_PICTURES=1 $(GO) test -count=1 ./internal/integration -run '^TestPictures$$'

$(NFPM):
	GOBIN=$(CURDIR)/$(BIN) $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)
	mv $(BIN)/nfpm $@

extras: build ## Man pages and completions for shells, into bin
	rm -rf $(BIN)/man $(BIN)/completions
	mkdir -p $(BIN)/completions
	$(BIN)/aggregatord man $(BIN)/man
	$(BIN)/aggregatord completion bash >$(BIN)/completions/aggregatord.bash
	$(BIN)/aggregatord completion zsh >$(BIN)/completions/_aggregatord
	$(BIN)/aggregatord completion fish >$(BIN)/completions/aggregatord.fish

# Everything in dist/ depends on the commit alone: two builds give the same bytes.
release: extras $(NFPM) ## Binaries, deb, rpm, image, SBOM and checksums, into dist
	$(GO) run ./deploy/release -version '$(VERSION)' -package-version '$(PACKAGE_VERSION)' -extras $(BIN) -nfpm $(NFPM) -out $(DIST)

clean: ## Remove what make built
	rm -rf $(BIN) $(DIST)
