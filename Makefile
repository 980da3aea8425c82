# Each recipe is one call; what it does is in scripts/ and in the programs.

FLAVOUR ?= full
OUT ?= out
# Go tests that boot PCs take longer than go test allows by itself.
QEMU_TIMEOUT ?= 40m

.PHONY: help image test lint unit qemu demo bench clean build-deps test-deps

help: ## this list
	@sed -n 's/^\([a-z]*\):.* ## /  make \1\t/p' Makefile | expand -t 16
	@echo '  FLAVOUR=full|vm OUT=FOLDER CONFIG=FILE KEYS=FOLDER INSECURE=1 KERNEL=FILE MODULES=FOLDER go with make image'

image: build-deps ## the kernel and initramfs that PCs boot, as a TFTP root in out/
	@go run ./cmds/mkimage build -flavour '$(FLAVOUR)' -out '$(OUT)' \
		$(if $(CONFIG),-config '$(CONFIG)') $(if $(KEYS),-keys '$(KEYS)') $(if $(INSECURE),-insecure) \
		$(if $(KERNEL),-kernel '$(KERNEL)') $(if $(MODULES),-modules '$(MODULES)')

test: lint unit qemu ## lint, unit tests, and virtual PCs that are reimaged

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

clean: ## remove out/; what was cached stays
	rm -rf '$(OUT)'

build-deps:
	@scripts/install-deps build

test-deps:
	@scripts/install-deps test
