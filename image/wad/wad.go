// Package wad makes, reads and extracts wads: tarballs of a whole operating system.
//
// [Pack] and [PackFolder] make indexed ones; [Index] says what their format is,
// and [Verify], [Diff] and [Open] look into them. [Tar] writes the archive alone.
//
// [Extract] reads a wad once, from its first byte to its last, and never needs
// it on a disk. One goroutine decompresses, the caller's parses and makes
// directories, links and devices in the archive's order, and several write
// files, whose content they get in buffers that are used again. Memory is
// bounded whatever the wad's size, but for a few dozen bytes for each entry.
//
// A [Remote] is an indexed wad on its servers: it is extracted likewise, each
// chunk checked before it is decompressed, by all processors; and the content of
// single members can be fetched by the chunks that hold it.
//
// # What is accepted
//
// Plain tar and tar compressed by gzip, bzip2, xz or zstd, known by their first
// bytes. The formats V7, ustar, GNU and pax; sparse files in all four forms;
// attributes, ACLs and labels as GNU tar, bsdtar and star write them
// (SCHILY.xattr., SCHILY.acl., LIBARCHIVE.xattr., RHT.security.selinux).
// Owners are the numbers in the archive. Names in ACLs are looked up in
// etc/passwd and etc/group of the tree itself, once it is whole.
//
// # What is refused
//
// Names with "..", hard links to what is not in the tree, entries of kinds that
// are not tar's, an archive that ends without its end marker, and anything but
// zeros after it. A leading slash is dropped. See [tree.Writer] for how names
// that lead through symbolic links are resolved, and for what happens where
// something is there already.
package wad

import (
	"fmt"
	"log/slog"

	"reassure/image/spec"
)

// Options for [Extract]. The zero value works: a wad for a fresh file system.
type Options struct {
	// Overlay allows to replace what is there already; see [tree.Writer].
	Overlay bool
	// Workers is how many files are written at a time; 0 is what was measured
	// to be best on an ext4 file system.
	Workers int
	// MemoryLimit bounds the bytes of content in flight; 0 means 32 MiB. The
	// decompressor's window comes on top: 8 MiB for zstd -19, up to 128 MiB
	// for its --ultra levels, 64 MiB for xz -9.
	MemoryLimit spec.Size
	// Progress is called by the goroutine that called Extract, at most ten
	// times a second and once at the end. It must not take long.
	Progress func(Stats)
	// Moved is called likewise with how many more of an indexed wad's own bytes
	// were used; nil is nobody.
	Moved func(bytes int64)
	// Log is told of what was handled in an unusual way; nil means silence.
	Log *slog.Logger
}

// Stats counts what an extraction has done so far.
type Stats struct {
	Entries int
	// Bytes is the content of files, holes included.
	Bytes spec.Size

	Files, Directories, Symlinks, HardLinks, Devices, FIFOs int
	// Sparse is how many of Files have holes.
	Sparse int
}

// EntryError is a failure with one entry of a wad.
type EntryError struct {
	Entry string // its name in the archive
	Err   error
}

func (e *EntryError) Error() string { return fmt.Sprintf("wad entry %q: %v", e.Entry, e.Err) }

func (e *EntryError) Unwrap() error { return e.Err }
