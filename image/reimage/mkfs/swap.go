package mkfs

import (
	"encoding/binary"
	"errors"
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
	page, err := swapPage(size, o)
	if err != nil {
		return fmt.Errorf("swap area of %d bytes: %w", size, err)
	}
	w := &writer{dev: dev}
	w.clearEnds(size)
	w.at(0, "swap header", page)
	if w.err != nil {
		return fmt.Errorf("swap area: %w", w.err)
	}
	return nil
}

// swapPage returns the first page of a swap area.
func swapPage(size int64, o Options) ([]byte, error) {
	pages := size / pageSize
	if pages < 10 || pages > 1<<32 {
		return nil, errors.New("use from 40 KiB to 16 TiB")
	}
	id, err := o.uuid()
	if err != nil {
		return nil, err
	}
	label, err := o.label(15)
	if err != nil {
		return nil, err
	}
	page := make([]byte, pageSize)
	header := swapHeader{Version: 1, LastPage: uint32(pages - 1), UUID: id, Label: label}
	encode(page[1024:], binary.LittleEndian, &header)
	copy(page[pageSize-10:], "SWAPSPACE2")
	return page, nil
}
