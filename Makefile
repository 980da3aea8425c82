# Each recipe is one call; what it does is in scripts/ and in the programs.

# Tests that boot PCs take longer than go test allows by itself.
QEMU_TIMEOUT ?= 40m

.PHONY: test lint unit qemu demo bench test-deps

test: lint unit qemu ## lint, unit tests, and virtual PCs that are reimaged

test-deps:
	@scripts/install-test-deps

lint: test-deps ## gofmt, go vet, staticcheck, shellcheck
	@scripts/lint

unit: test-deps ## the unit tests, with the race detector
	go test -race ./cmds/... ./image/... ./templates/...

qemu: test-deps ## virtual PCs that PXE boot, are reimaged, and boot from their disks
	go test -timeout $(QEMU_TIMEOUT) ./qemu-tests/...

demo: test-deps ## one reimage, live in the terminal
	@go run ./qemu-tests/demo

bench: test-deps ## measure sizes and times, into out/bench.json
	@go run ./qemu-tests/bench -out out/bench.json
