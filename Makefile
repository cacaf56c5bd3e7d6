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
# How long make soak goes on.
SOAK ?= 1h
# How often make bench-go runs each benchmark; benchstat wants ten or so.
COUNT ?= 1
# What make deb calls the package's version; it must begin with a digit.
DEB_VERSION ?= 0.0.0~$(VERSION)
NFPM_VERSION := v2.43.4

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run build test test-deps check-format vet vet-darwin test-fuzz test-race test-deploy lint fuzz soak bench bench-go extras deb clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build ## Build, and start the daemon with a demo pool of workers
	$(BIN)/aggregatord demo

build: ## Build bin/aggregatord
	$(GO) build -trimpath -ldflags '-X aggregatord/internal/buildinfo.Version=$(VERSION)' -o $(BIN)/aggregatord ./cmd/aggregatord

test: test-deps check-format vet vet-darwin test-fuzz test-race test-deploy ## Everything that must hold; installs the peers it needs on Debian as root

test-deps:
	.ci/deps

check-format:
	@files=$$(gofmt -l cmd internal); if [ -n "$$files" ]; then echo "gofmt -w is due for:"; echo "$$files"; exit 1; fi

vet:
	$(GO) vet ./...

# Nobody here has a Mac: that everything compiles for one is the least we can check.
vet-darwin:
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GO) build ./...
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GO) vet ./...

# Fuzz targets are found, not listed. The pipe's last command decides the exit status.
define fuzz_all
@grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' cmd internal | sort | while IFS=: read -r file func; do \
	echo "fuzz $${file%/*} $${func#func }"; \
	$(GO) test -run '^$$' -fuzz "^$${func#func }$$" -fuzztime $(1) -fuzzminimizetime 1x "./$${file%/*}" </dev/null || exit 1; \
done
endef

test-fuzz:
	$(call fuzz_all,$(TEST_FUZZTIME))

# -count=1: the tests depend on programs that the test cache knows nothing of.
test-race:
	$(GO) test -race -count=1 -timeout 15m ./...

# A module of its own: Kubernetes' types are larger than the daemon.
test-deploy:
	cd deploy/test && $(GO) vet ./... && $(GO) test -count=1 -timeout 10m ./...

lint: $(GOLANGCI) ## golangci-lint
	$(GOLANGCI) run

# The version is in the name, so a new pin installs a new binary.
$(GOLANGCI):
	GOBIN=$(CURDIR)/$(BIN) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(BIN)/golangci-lint $@

fuzz: ## Fuzz each target for FUZZTIME
	$(call fuzz_all,$(FUZZTIME))

soak: test-deps ## Try to break the archive for SOAK
	CI=true AGGREGATORD_SOAK=$(SOAK) $(GO) test -race -count=1 -timeout 0 -v -run '^TestChaos$$' ./internal/integration

# BENCHFLAGS=-h lists what it takes; -large adds the largest shape.
bench: build ## Measure the daemon beside a floor and the Python client, with BENCHFLAGS
	$(GO) run ./cmd/bench $(BENCHFLAGS)

bench-go: ## Go benchmarks, COUNT times, in the form benchstat reads
	$(GO) test -run '^$$' -bench . -benchmem -count $(COUNT) ./...

extras: build ## Man pages and completions for shells, into bin
	rm -rf $(BIN)/man $(BIN)/completions
	mkdir -p $(BIN)/completions
	$(BIN)/aggregatord man $(BIN)/man
	$(BIN)/aggregatord completion bash >$(BIN)/completions/aggregatord.bash
	$(BIN)/aggregatord completion zsh >$(BIN)/completions/_aggregatord
	$(BIN)/aggregatord completion fish >$(BIN)/completions/aggregatord.fish

deb: extras ## A package for Debian, into bin; DEB_VERSION is its version
	VERSION=$(DEB_VERSION) GOARCH=$$($(GO) env GOARCH) $(GO) run github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION) package --config deploy/packaging/nfpm.yaml --packager deb --target $(BIN)

clean: ## Remove what make built
	rm -rf $(BIN)
