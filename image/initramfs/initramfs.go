// Package initramfs reads an image's initramfs: cpio archives one after the
// other, of which those at the beginning may be uncompressed (microcode, see the
// kernel's Documentation/x86/microcode.rst) and all others are zstd frames.
package initramfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
)

// Walk calls each for every file of an initramfs, over all its archives. An each
// that returns [fs.SkipAll] has seen enough.
func Walk(name string, each func(h *cpio.Header, content io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := walk(bufio.NewReader(f), each); err != nil && !errors.Is(err, fs.SkipAll) {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// File returns one of an initramfs's regular files. One that is not there is [fs.ErrNotExist].
func File(name, path string) ([]byte, error) {
	var data []byte
	found := false
	err := Walk(name, func(h *cpio.Header, content io.Reader) (err error) {
		if h.Name != strings.TrimPrefix(path, "/") || !h.Mode.IsRegular() {
			return nil
		}
		found = true
		if data, err = io.ReadAll(content); err != nil {
			return err
		}
		return fs.SkipAll
	})
	if err == nil && !found {
		err = fmt.Errorf("%s holds no /%s: %w", name, strings.TrimPrefix(path, "/"), fs.ErrNotExist)
	}
	return data, err
}

const magic = "070701" // of a cpio archive

func walk(in *bufio.Reader, each func(h *cpio.Header, content io.Reader) error) error {
	head, err := in.Peek(len(magic))
	if err == nil && string(head) == magic {
		if err := archives(in, magic, each); err != nil {
			return err
		}
	}
	d, err := zstd.NewReader(in)
	if err != nil {
		return err
	}
	defer d.Close()
	return archives(bufio.NewReader(d), "", each)
}

// archives reads archives, each padded with zeros, for as long as what follows
// begins with only; an empty only is all.
func archives(in *bufio.Reader, only string, each func(h *cpio.Header, content io.Reader) error) error {
	for {
		head, err := in.Peek(max(1, len(only)))
		if errors.Is(err, io.EOF) && len(head) == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.HasPrefix(head, []byte(only)) {
			return nil
		}
		r := cpio.NewReader(in)
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			h.Name = strings.TrimRight(h.Name, "\x00") // an aligned archive pads its names
			if err := each(h, r); err != nil {
				return err
			}
		}
		for {
			b, err := in.ReadByte()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if b != 0 {
				if err := in.UnreadByte(); err != nil {
					return err
				}
				break
			}
		}
	}
}
