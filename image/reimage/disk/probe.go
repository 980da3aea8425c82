package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf16"

	"github.com/google/uuid"

	"reassure/image/spec"
)

// entry is a partition as a table on the disk has it.
type entry struct {
	number        int
	start, length int64 // bytes
	esp           bool
	// kind, id and name are as in spec.Existing.
	kind, id, name string
	bootable       bool
}

// espType is the type GUID of an EFI system partition as it stands in a GPT.
var espType = [16]byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}

// partitions returns what the disk's partition table names, within its bounds.
// A GPT counts only behind a protective MBR: without one it is stale.
func partitions(r io.ReaderAt, size, sector int64) []entry {
	table, _, entries := readTable(r, size, sector)
	if table == "" {
		return nil
	}
	return entries
}

// readTable returns the kind of table, its ID, and what it names.
func readTable(r io.ReaderAt, size, sector int64) (spec.Table, string, []entry) {
	lba0 := make([]byte, 512)
	if _, err := r.ReadAt(lba0, 0); err != nil || lba0[510] != 0x55 || lba0[511] != 0xaa {
		// The backup of a GPT whose start is gone still names its partitions.
		if id, entries := readGPT(r, size, sector, size/sector-1); entries != nil {
			return spec.GPT, id, entries
		}
		return "", "", nil
	}
	protective := false
	for i := range 4 {
		protective = protective || lba0[446+16*i+4] == 0xee
	}
	if protective {
		id, entries := readGPT(r, size, sector, 1)
		if entries == nil {
			id, entries = readGPT(r, size, sector, size/sector-1)
		}
		return spec.GPT, id, entries
	}
	// A file system's boot sector ends in 55 AA as well.
	if fatLike(lba0) {
		return "", "", nil
	}
	var entries []entry
	signature := fmt.Sprintf("%08x", binary.LittleEndian.Uint32(lba0[bootCode:]))
	for i := range 4 {
		e := lba0[446+16*i : 462+16*i]
		if e[0]&0x7f != 0 {
			return "", "", nil
		}
		start, length := int64(binary.LittleEndian.Uint32(e[8:]))*sector, int64(binary.LittleEndian.Uint32(e[12:]))*sector
		if e[4] == 0 || start == 0 || length == 0 || start >= size {
			continue
		}
		if e[4] == 0x05 || e[4] == 0x0f || e[4] == 0x85 {
			entries = append(entries, logical(r, size, sector, start)...)
			continue
		}
		entries = append(entries, entry{
			number: i + 1, start: start, length: min(length, size-start), esp: e[4] == 0xef,
			kind: fmt.Sprintf("%02x", e[4]), id: fmt.Sprintf("%s-%02x", signature, i+1), bootable: e[0] == 0x80,
		})
	}
	return spec.MBR, signature, entries
}

// logical follows the chain of an extended partition.
func logical(r io.ReaderAt, size, sector, extended int64) []entry {
	var entries []entry
	next := int64(0)
	for number := 5; number < 64; number++ { // a chain may be a ring
		at := extended + next
		ebr := make([]byte, 512)
		if at >= size {
			break
		}
		if _, err := r.ReadAt(ebr, at); err != nil || ebr[510] != 0x55 || ebr[511] != 0xaa {
			break
		}
		start := at + int64(binary.LittleEndian.Uint32(ebr[446+8:]))*sector
		length := int64(binary.LittleEndian.Uint32(ebr[446+12:])) * sector
		if ebr[446+4] != 0 && length > 0 && start < size {
			entries = append(entries, entry{number: number, start: start, length: min(length, size-start)})
		}
		next = int64(binary.LittleEndian.Uint32(ebr[462+8:])) * sector
		if next == 0 {
			break
		}
	}
	return entries
}

// readGPT reads the GPT whose header is at that LBA (UEFI 2.10, 5.3.2). It
// returns nil when there is none that its checksum confirms.
func readGPT(r io.ReaderAt, size, sector, lba int64) (disk string, entries []entry) {
	header := make([]byte, 512)
	if lba < 1 {
		return "", nil
	}
	if _, err := r.ReadAt(header, lba*sector); err != nil || string(header[:8]) != "EFI PART" {
		return "", nil
	}
	length := binary.LittleEndian.Uint32(header[12:])
	if length < 92 || length > 512 {
		return "", nil
	}
	sum := binary.LittleEndian.Uint32(header[16:])
	copy(header[16:20], make([]byte, 4))
	if crc32.ChecksumIEEE(header[:length]) != sum {
		return "", nil
	}
	first := int64(binary.LittleEndian.Uint64(header[72:]))
	count, each := int64(binary.LittleEndian.Uint32(header[80:])), int64(binary.LittleEndian.Uint32(header[84:]))
	if each < 128 || each > 4096 || count > 1024 || first < 1 || first > size/sector {
		return "", nil
	}
	array := make([]byte, count*each)
	if _, err := r.ReadAt(array, first*sector); err != nil || crc32.ChecksumIEEE(array) != binary.LittleEndian.Uint32(header[88:]) {
		return "", nil
	}
	entries = []entry{}
	for i := range count {
		e := array[i*each : (i+1)*each]
		start, end := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if bytes.Equal(e[:16], make([]byte, 16)) || start == 0 || end < start || end >= uint64(size/sector) {
			continue
		}
		entries = append(entries, entry{
			number: int(i) + 1, start: int64(start) * sector, length: int64(end-start+1) * sector,
			esp:  bytes.Equal(e[:16], espType[:]),
			kind: guid(e[:16]), id: guid(e[16:32]), name: utf16Text(e[56:128]),
			bootable: binary.LittleEndian.Uint64(e[48:])&legacyBootable != 0,
		})
	}
	return guid(header[56:72]), entries
}

// fatLike says whether a sector with 55 AA at its end is a file system's boot
// sector rather than a partition table.
func fatLike(s []byte) bool {
	return (s[0] == 0xeb || s[0] == 0xe9) && (string(s[54:57]) == "FAT" || string(s[82:85]) == "FAT" || string(s[3:7]) == "NTFS" || string(s[3:8]) == "EXFAT")
}

// Probe says what is on a disk of size bytes: its partition table, and what the
// whole disk and each partition hold. It never fails: what cannot be read or
// recognised is not there. r may hold anything, made by anybody.
func Probe(r io.ReaderAt, size, sector int64) (spec.Table, []spec.Content) {
	if size < 1024 || (sector != 512 && sector != 1024 && sector != 2048 && sector != 4096) {
		return "", nil
	}
	table, _, entries := readTable(r, size, sector)
	contents := recognise(r, entry{length: size})
	if table != "" {
		// A whole-disk file system behind a partition table is a leftover;
		// members of something larger are still somebody's.
		kept := contents[:0]
		for _, c := range contents {
			if c.Foreign {
				kept = append(kept, c)
			}
		}
		contents = kept
	}
	for _, e := range entries {
		contents = append(contents, recognise(r, e)...)
	}
	return table, contents
}

// region reads from one partition, within its bounds.
type region struct {
	r io.ReaderAt
	e entry
}

// bytes returns n bytes at an offset, from the end when it is negative; zeros
// where there is nothing to read.
func (g region) bytes(at int64, n int) []byte {
	b := make([]byte, n)
	if at < 0 {
		at += g.e.length
	}
	if at < 0 || at+int64(n) > g.e.length {
		return b
	}
	if _, err := g.r.ReadAt(b, g.e.start+at); err != nil {
		return make([]byte, n)
	}
	return b
}

func (g region) is(at int64, magic string) bool { return string(g.bytes(at, len(magic))) == magic }

// recognise returns every signature in a partition.
func recognise(r io.ReaderAt, e entry) []spec.Content {
	g := region{r, e}
	var found []spec.Content
	add := func(kind, label, id string) {
		found = append(found, spec.Content{Partition: e.number, Start: uint64(e.start), Size: spec.Size(e.length), Kind: kind, Label: label, UUID: id})
	}
	foreign := func(kind string) {
		add(kind, "", "")
		found[len(found)-1].Foreign = true
	}

	// File systems.
	if g.is(1080, "\x53\xef") { // superblock at 1024, s_magic (Documentation/filesystems/ext4/super.rst)
		s := g.bytes(1024, 264)
		kind := "ext2"
		switch {
		case binary.LittleEndian.Uint32(s[96:])&0x2c0 != 0: // extents, 64bit, flex_bg...
			kind = "ext4"
		case binary.LittleEndian.Uint32(s[92:])&0x4 != 0: // has_journal
			kind = "ext3"
		}
		add(kind, text(s[120:136]), id(s[104:120]))
	}
	if b := g.bytes(0, 512); b[510] == 0x55 && b[511] == 0xaa && fatLike(b) {
		switch {
		case string(b[82:87]) == "FAT32":
			add("vfat", fatLabel(b[71:82]), fatID(b[67:71]))
		case string(b[54:57]) == "FAT":
			add("vfat", fatLabel(b[43:54]), fatID(b[39:43]))
		case string(b[3:7]) == "NTFS":
			add("ntfs", "", "")
		case string(b[3:8]) == "EXFAT":
			add("exfat", "", "")
		}
	}
	if b := g.bytes(0, 512); b[510] == 0x55 && b[511] == 0xaa && string(b[3:11]) == "-FVE-FS-" {
		foreign("bitlocker")
	}
	if g.is(0, "XFSB") {
		s := g.bytes(0, 120)
		add("xfs", text(s[108:120]), id(s[32:48]))
	}
	if g.is(65600, "_BHRfS_M") {
		s := g.bytes(65536, 811)
		add("btrfs", text(s[299:555]), id(s[32:48]))
	}
	for _, page := range []int64{4096, 8192, 16384, 65536} {
		if g.is(page-10, "SWAPSPACE2") || g.is(page-10, "SWAP-SPACE") {
			s := g.bytes(1024, 48)
			add("swap", text(s[28:44]), id(s[12:28]))
			break
		}
	}
	if g.is(32769, "CD001") {
		add("iso9660", strings.TrimRight(text(g.bytes(32808, 32)), " "), "")
	}
	if g.is(1024, "\x10\x20\xf5\xf2") {
		add("f2fs", "", "")
	}

	// Members of something that may be larger than this partition.
	const md = "\xfc\x4e\x2b\xa9"
	for _, at := range mdPlaces(e.length) {
		if g.is(at, md) {
			foreign("md")
			break
		}
	}
	for _, at := range []int64{0, 512, 1024, 1536} {
		if g.is(at, "LABELONE") && g.is(at+24, "LVM2 001") {
			foreign("lvm2")
			break
		}
	}
	if g.is(0, "LUKS\xba\xbe") || g.is(16384, "SKUL\xba\xbe") {
		foreign("luks")
	}
	if zfs(g) {
		foreign("zfs")
	}
	if g.is(4096+24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81") {
		foreign("bcache")
	}
	if g.is(0x100000, "\x0d\xd0\x01\xc0") {
		foreign("vmfs")
	}
	if g.is(0x200000+0x5, "\x5e\xf1\xab\x2f") || g.is(0x1300000, "\x5e\xf1\xab\x2f") {
		foreign("vmfs")
	}
	if g.is(0, "bluestore block device") {
		foreign("ceph")
	}
	if g.is(-1024, "Intel Raid ISM Cfg Sig. ") {
		foreign("isw raid")
	}
	if g.is(-512, "\xde\x11\xde\x11") || g.is(-131072, "\xde\x11\xde\x11") {
		foreign("ddf raid")
	}
	if g.is(-4096+60, "\x83\x74\x02\x67") || g.is(-4096+60, "\x83\x74\x02\x6b") || g.is(-4096+60, "\x86\x20\x34\x00") {
		foreign("drbd")
	}
	return found
}

// mdPlaces are where Linux RAID keeps its superblock: 0.90 in the last 64 KiB
// that are whole, 1.0 in the last 8 KiB to 12 KiB, 1.1 at the start, 1.2 at 4 KiB
// (include/uapi/linux/raid/md_p.h, mdadm's super1.c).
func mdPlaces(size int64) []int64 {
	return []int64{size&^0xffff - 0x10000, (size/512 - 16) &^ 7 * 512, 0, 4096}
}

// zfs looks for an uberblock in the first and last labels: 128 KiB into each of
// 256 KiB, at the start twice and at the end twice.
func zfs(g region) bool {
	const label = 256 << 10
	end := g.e.length &^ (label - 1)
	for _, at := range []int64{0, label, end - 2*label, end - label} {
		for slot := int64(0); slot < 128; slot++ {
			if at >= 0 && (g.is(at+128<<10+slot<<10, "\x0c\xb1\xba\x00\x00\x00\x00\x00") || g.is(at+128<<10+slot<<10, "\x00\x00\x00\x00\x00\xba\xb1\x0c")) {
				return true
			}
		}
	}
	return false
}

// text is a label up to its first zero, without what a terminal would act on.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(b), "?"))
}

func fatLabel(b []byte) string {
	s := strings.TrimRight(text(b), " ")
	if s == "NO NAME" {
		return ""
	}
	return s
}

func fatID(b []byte) string {
	return fmt.Sprintf("%04X-%04X", binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint16(b))
}

func id(b []byte) string {
	u, err := uuid.FromBytes(b)
	if err != nil || u == uuid.Nil {
		return ""
	}
	return u.String()
}

// guid writes a GUID of a GPT, whose first three fields are little endian
// (UEFI 2.10, appendix A).
func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:16])
}

// utf16Text is a name of a GPT's entry.
func utf16Text(b []byte) string {
	var units []uint16
	for i := 0; i+1 < len(b); i += 2 {
		u := binary.LittleEndian.Uint16(b[i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return text([]byte(string(utf16.Decode(units))))
}

// Table reads a disk's partition table: its kind, its ID and its partitions. Like
// [Probe] it never fails.
func Table(r io.ReaderAt, size, sector int64) (spec.Table, string, []spec.Existing) {
	if size < 1024 || (sector != 512 && sector != 1024 && sector != 2048 && sector != 4096) {
		return "", "", nil
	}
	table, id, entries := readTable(r, size, sector)
	var all []spec.Existing
	for _, e := range entries {
		all = append(all, spec.Existing{
			Number: e.number, Start: uint64(e.start), Length: uint64(e.length),
			Type: e.kind, PartUUID: e.id, Name: e.name, Bootable: e.bootable,
		})
	}
	return table, id, all
}
