package mkfs

import (
	"encoding/binary"
	"fmt"
)

// pageSize is the page that a swap area's header is written for: x86's.
const pageSize = 4096

// swapHeader is union swap_header of the kernel's include/linux/swap.h: it
// follows 1024 bytes left for boot code.
type swapHeader struct {
	Version  uint32
	LastPage uint32
	BadPages uint32
	UUID     [16]byte
	Label    [16]byte
}

// Swap makes a swap area of size bytes, as mkswap does.
func Swap(dev Device, size int64, o Options) error {
	pages := size / pageSize
	if pages < 10 || pages > 1<<32 {
		return fmt.Errorf("swap area of %d bytes: use from 40 KiB to 16 TiB", size)
	}
	id, err := o.uuid()
	if err != nil {
		return fmt.Errorf("swap area: %w", err)
	}
	label, err := o.label(15)
	if err != nil {
		return fmt.Errorf("swap area: %w", err)
	}
	page := make([]byte, pageSize)
	header := swapHeader{Version: 1, LastPage: uint32(pages - 1), UUID: id, Label: label}
	encode(page[1024:], binary.LittleEndian, &header)
	copy(page[pageSize-10:], "SWAPSPACE2")

	w := &writer{dev: dev}
	w.clearEnds(size)
	w.at(0, "swap header", page)
	if w.err != nil {
		return fmt.Errorf("swap area: %w", w.err)
	}
	return nil
}
