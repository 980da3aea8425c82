# Each recipe is one call; what it does is in scripts/ and in the programs.

FLAVOUR ?= full
OUT ?= out
# What is tried of what takes hours, and how often.
SHARE ?= 1
COUNT ?= 200
# Go tests that boot PCs take longer than go test allows by itself.
QEMU_TIMEOUT ?= 40m
# Tests that take minutes each, most of them of virtual PCs, and are not part of make test.
LONG = ^(TestDeltaOnPC|TestCutInDelta|TestPreservedOnPC|TestServe|TestDHCPConfig|TestServerLost|TestGentooReassure|TestDebianUpgrade|TestCaptured|TestVerify|TestFirmwareBoots|TestTwoCheckouts|TestAsTar|TestLongSpanningTree|TestSmallMemory|TestVLANOnPC|TestFirmware|TestSecureBoot|TestUEFIServed|TestIPXEFromFiles|TestUEFI|TestDebianUEFI|TestUEFIVerified|TestSecureBootInstalled|TestRightDisk|TestHTTPS|TestFirstDay|TestUEFIFromFiles|TestUnifiedServed|TestUnifiedSecureBoot|TestRescueOnPC)$$

.PHONY: help image test test-long lint unit qemu vulnerabilities fuzz load demo bench clean build-deps test-deps bench-deps test-hardware test-faults

help: ## this list
	@sed -n 's/^\([a-z-]*\):.* ## /  make \1\t/p' Makefile | expand -t 24
	@echo '  FLAVOUR=full|vm OUT=FOLDER CONFIG=FILE KEYS=FOLDER INSECURE=1 KERNEL=FILE MODULES=FOLDER SECUREBOOT_KEY=FILE SECUREBOOT_CERT=FILE go with make image'

image: build-deps ## the kernel and initramfs that PCs boot, as a TFTP root in out/
	@go run ./cmds/mkimage build -flavour '$(FLAVOUR)' -out '$(OUT)' \
		$(if $(CONFIG),-config '$(CONFIG)') $(if $(KEYS),-keys '$(KEYS)') $(if $(INSECURE),-insecure) \
		$(if $(KERNEL),-kernel '$(KERNEL)') $(if $(MODULES),-modules '$(MODULES)') \
		$(if $(SECUREBOOT_KEY),-secureboot-key '$(SECUREBOOT_KEY)') $(if $(SECUREBOOT_CERT),-secureboot-cert '$(SECUREBOOT_CERT)')

test: lint unit qemu ## lint, unit tests, and virtual PCs that are reimaged

lint: test-deps ## gofmt, go vet, staticcheck, shellcheck
	@scripts/lint

unit: test-deps ## the unit tests, with the race detector
	go test -race -timeout 20m -skip '$(LONG)' ./cmds/... ./image/... ./templates/...

qemu: test-deps ## virtual PCs that PXE boot, are reimaged, and boot from their disks
	go test -timeout $(QEMU_TIMEOUT) -skip '$(LONG)' ./qemu-tests/...

test-long: test-deps ## those that take minutes each: boot ROMs, other DHCP servers, servers that are lost, two builds from nothing; SHARE=N takes every Nth
	go test -timeout 80m -run "$$(scripts/share $(SHARE) '$(LONG)')" ./qemu-tests ./image/serve/dhcp ./image/build ./image/wad ./image/reimage/netup

test-hardware: test-deps ## virtual PCs of many kinds, into out/hardware.json; SHARE=N takes every Nth
	@go run ./qemu-tests/hardware -out out/hardware.json -share $(SHARE)

test-faults: test-deps ## power cuts and other faults, into out/faults.json; COUNT=N power cuts, SHARE=N takes every Nth
	@go run ./qemu-tests/faults -out out/faults.json -count $(COUNT) -share $(SHARE)

vulnerabilities: test-deps ## known ones in what the programs call
	@scripts/check-vulnerabilities

fuzz: test-deps ## fuzz what reads the network, disks and wads, FUZZTIME=1m each
	@scripts/fuzz $(FUZZTIME)

load: test-deps ## 200 PCs that are switched on at once, into out/load.json
	@go run ./qemu-tests/load -out out/load.json

demo: test-deps ## a lab of two virtual PCs and its boot server, live in the terminal
	@go run ./qemu-tests/demo

bench: bench-deps ## measure sizes and times, into out/bench.json
	@go run ./qemu-tests/bench -out out/bench.json

clean: ## remove out/; what was cached stays
	rm -rf '$(OUT)'

build-deps:
	@scripts/install-deps build

test-deps:
	@scripts/install-deps test

bench-deps:
	@scripts/install-deps bench
