# Hauberk. `make help` lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
VERSION ?= dev
NODES   ?= 2
BIN     := bin
CLUSTER := .cluster/bin/cluster

export CGO_ENABLED ?= 0
LDFLAGS := -s -w -buildid= \
  -X github.com/hauberk-mesh/hauberk/internal/version.Version=$(VERSION) \
  -X github.com/hauberk-mesh/hauberk/internal/version.Commit=$(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
GOBUILD = $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-zA-Z0-9_-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ The two commands
.PHONY: demo demo-down
demo: $(CLUSTER) ## bring up a real cluster, the mesh and the bank yaobank; play and check each act
	$(GO) run ./tests/demo

demo-down: cluster-down ## end the demo: the cluster and all that it made

.PHONY: test
test: verify test-unit test-packet test-e2e ## everything: verify, unit, packet and end-to-end tests

##@ Tests
.PHONY: test-unit test-packet test-e2e
test-unit: ## unit tests with the race detector, all modules; fuzzers of the data path for 3 s each
	CGO_ENABLED=1 $(GO) test -race -short ./...
	cd tests/cluster && $(GO) test ./...
	cd tests/collector && $(GO) test ./...
	tests/fuzz.sh 3s proxy internal/identity # what strangers send; make fuzz has all
	cd tests/h2spec && $(GO) test ./...

test-packet: tools-packet ## packet-level tests in network namespaces (root)
	$(GO) test -count=1 ./node/... ./cni-plugin/... ./proxy/... ./install/images/... ./tests/conformance/replay ./tests/differential
	@[ "$$(id -u)" = 0 ] || echo "left out: the packet-level tests that make network namespaces and kernel rules, which need root: sudo make test-packet"

test-e2e: $(CLUSTER) ## end-to-end tests on the local cluster (root)
	$(GO) run ./tests/e2e/run

.PHONY: conformance
conformance: $(CLUSTER) ## Kubernetes' conformance suites (root); SUITE=cyclonus|clusternetworkpolicy ARGS='flags'
	$(GO) run ./tests/conformance -nodes $(NODES) $(if $(SUITE),-suite $(SUITE)) $(ARGS)

.PHONY: fuzz
fuzz: ## each fuzzer for FUZZTIME (30s); ARGS=--list names them
	tests/fuzz.sh $(or $(ARGS),$(FUZZTIME),30s)

##@ A local Kubernetes
.PHONY: cluster cluster-down cluster-load cluster-status
cluster: $(CLUSTER) ## a real Kubernetes of NODES (2) nodes on this machine; kubeconfig at .cluster/kubeconfig
	$(CLUSTER) up $(NODES)

cluster-down: $(CLUSTER) ## take it away without a trace
	$(CLUSTER) down

cluster-load: $(CLUSTER) ## load ARCHIVE=image.tar into every node
	@test -n "$(ARCHIVE)" || { echo "say which archive: make cluster-load ARCHIVE=image.tar" >&2; exit 64; }
	$(CLUSTER) load $(ARCHIVE)

cluster-status: $(CLUSTER) ## what runs
	$(CLUSTER) status

$(CLUSTER): FORCE
	@mkdir -p $(@D)
	@cd tests/cluster && $(GO) build -trimpath -buildvcs=false -o ../../$(CLUSTER) .

##@ Build
.PHONY: build images
build: ## the hauberk command and the components, into bin/
	@mkdir -p $(BIN)
	@for c in cmd/*; do $(GOBUILD) -o $(BIN)/$$(basename $$c) ./$$c; done
	@ls $(BIN)

images: ## OCI archives of all images into dist/images; PUSH=host/path pushes them
	$(GO) run ./install/images -version $(VERSION) $(if $(PUSH),-push $(PUSH))

.PHONY: generate
generate: tools ## protobuf code, deepcopy code and custom resource definitions
	cd api/proto && PATH="$(CURDIR)/.tools:$$PATH" ../../.tools/buf lint && PATH="$(CURDIR)/.tools:$$PATH" ../../.tools/buf generate
	.tools/controller-gen object paths=./api/v1alpha1/...
	.tools/controller-gen crd paths=./api/v1alpha1/... output:crd:dir=./install/crds

##@ Checks
.PHONY: verify
verify: tools ## gofmt, vet, staticcheck, generated code current, go mod tidy, architecture
	tests/verify.sh

##@ Benchmarks
.PHONY: bench bench-go bench-kernel pgo bench-tools
bench: bench-tools ## what a pair of sidecars costs beside its peers; QUICK=1 takes two minutes, DOCS=1 publishes that too, ARGS='-pairs floor,hauberk' chooses
	dist/bench/harness -hauberk dist/bench/hauberk-proxy $(if $(QUICK),-quick) \
	  $(if $(or $(DOCS),$(if $(QUICK)$(ARGS),,full)),-docs docs/benchmarks.md -svg docs/bench) $(ARGS)
	$(if $(QUICK)$(ARGS),,$(MAKE) bench-kernel)

bench-kernel: ## what policy in the kernel costs: loading it, changing it, and each packet; needs root, takes ten minutes
	$(GO) test -run '^$$' -bench 'Kernel(ColdLoad|Change|Forget)' -benchtime 10x ./node/firewall
	$(GO) test -run '^$$' -bench KernelPacket -benchtime 200x -timeout 60m ./node/firewall

bench-go: ## benchmarks of the packages
	$(GO) test -run '^$$' -bench . -benchmem ./policy/... ./proxy/...

pgo: bench-tools ## profile the sidecar under load and refresh cmd/hauberk-proxy/default.pgo
	dist/bench/harness -hauberk dist/bench/hauberk-proxy -profile dist/bench/pgo -duration 20s
	$(GO) tool pprof -proto dist/bench/pgo/client.cpu.pprof dist/bench/pgo/server.cpu.pprof > dist/bench/pgo/merged.pgo
	mv dist/bench/pgo/merged.pgo cmd/hauberk-proxy/default.pgo

bench-tools:
	@tests/bench/packages.sh
	@mkdir -p dist/bench
	@$(GOBUILD) -o dist/bench/hauberk-proxy ./cmd/hauberk-proxy
	@$(GO) build -trimpath -buildvcs=false -o dist/bench/harness ./tests/bench

##@ Tools
.PHONY: tools tools-packet
tools: .tools/stamp ## the generators and linters, built from tools/go.mod
.tools/stamp: tools/go.mod tools/go.sum
	@mkdir -p .tools
	@echo "building generators and linters (once; a few minutes on a new machine)" >&2
	@cd tools && GOBIN="$(CURDIR)/.tools" $(GO) install -trimpath tool
	@touch $@

tools-packet: ## Debian packages that packet-level tests need (root)
	@tests/packages.sh

.PHONY: clean
clean: ## built files; caches and the cluster stay
	rm -rf $(BIN) dist .tools

.PHONY: FORCE
FORCE:
