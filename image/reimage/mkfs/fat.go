package mkfs

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// FAT32's layout, after Microsoft's "FAT: General Overview of On-Disk Format",
// version 1.03: 32 reserved sectors with the boot sector, FSInfo and a copy of
// both; two tables; then clusters, counted from 2, the first of which is the
// root folder.
const (
	fatReserved   = 32 // sectors
	fatInfoSector = 1
	fatBackup     = 6 // sector of the copies
	fatCopies     = 2
	fatRoot       = 2 // cluster

	// Fewer clusters than that are read as FAT16, by rule; more cannot be numbered.
	fatMinClusters = 65525
	fatMaxClusters = 0x0FFFFFF5 - fatRoot
)

// fatBootSector is what a FAT32 volume begins with.
type fatBootSector struct {
	Jump              [3]byte
	OEM               [8]byte
	BytesPerSector    uint16
	SectorsPerCluster uint8
	Reserved          uint16
	FATs              uint8
	RootEntries       uint16 // 0 in FAT32
	Sectors16         uint16 // 0 in FAT32
	Media             uint8
	SectorsPerFAT16   uint16 // 0 in FAT32
	SectorsPerTrack   uint16
	Heads             uint16
	Hidden            uint32
	Sectors           uint32
	SectorsPerFAT     uint32
	Mirroring         uint16
	Version           uint16
	Root              uint32
	Info              uint16
	Backup            uint16
	_                 [12]byte
	Drive             uint8
	_                 uint8
	Signature         uint8 // 0x29: the three fields that follow are there
	VolumeID          uint32
	Label             [11]byte
	Type              [8]byte
	Code              [6]byte
}

// fatInfo is the FSInfo sector.
type fatInfo struct {
	Lead   uint32
	_      [480]byte
	Struct uint32
	Free   uint32 // clusters
	Next   uint32 // where to look for a free one
	_      [12]byte
	Trail  uint32
}

// fatEntry is a folder's entry.
type fatEntry struct {
	Name       [11]byte
	Attributes uint8
	_          [10]byte
	Time       uint16
	Date       uint16
	_          [6]byte
}

// fatVolumeLabel is the attribute of the entry that holds the volume's label.
const fatVolumeLabel = 0x08

// FAT makes a FAT32 volume of size bytes, never FAT12 or FAT16: firmware must
// read it by its cluster count as what it is. So it needs at least 33 MiB where
// sectors have 512 bytes, and 257 MiB where they have 4096.
func FAT(dev Device, size int64, o Options) error {
	boot, err := layFAT(size, o)
	if err != nil {
		return err
	}
	sector := int(boot.BytesPerSector)
	tables := (fatReserved + fatCopies*int64(boot.SectorsPerFAT)) * int64(sector)
	cluster := int64(boot.SectorsPerCluster) * int64(sector)

	// The reserved cluster numbers 0 and 1, and the end of the root folder's chain.
	head := make([]byte, sector)
	binary.LittleEndian.PutUint32(head[0:], 0x0FFFFF00|uint32(boot.Media))
	binary.LittleEndian.PutUint32(head[4:], 0x0FFFFFFF)
	binary.LittleEndian.PutUint32(head[8:], 0x0FFFFFFF)

	root := make([]byte, cluster)
	if o.Label != "" {
		now := o.now().UTC()
		entry := fatEntry{Name: boot.Label, Attributes: fatVolumeLabel}
		entry.Time = uint16(now.Hour()<<11 | now.Minute()<<5 | now.Second()/2)
		entry.Date = uint16(min(max(now.Year()-1980, 0), 127)<<9 | int(now.Month())<<5 | now.Day())
		encode(root, binary.LittleEndian, &entry)
	}

	// Boot sector, FSInfo, and a third sector of which nothing but its end is used.
	start := make([]byte, 3*sector)
	encode(start, binary.LittleEndian, &boot)
	info := fatInfo{Lead: 0x41615252, Struct: 0x61417272, Free: uint32(clustersOf(boot) - 1), Next: fatRoot + 1, Trail: 0xAA550000}
	encode(start[fatInfoSector*sector:], binary.LittleEndian, &info)
	for s := range 3 {
		// Always at 510, however long the sector is.
		start[s*sector+510], start[s*sector+511] = 0x55, 0xAA
	}

	w := &writer{dev: dev}
	w.clearEnds(size)
	w.zero(foreignHead, tables, "empty allocation table")
	for c := range int64(fatCopies) {
		w.at((fatReserved+c*int64(boot.SectorsPerFAT))*int64(sector), "allocation table", head)
	}
	w.at(tables, "root folder", root)
	w.at(fatBackup*int64(sector), "copy of the boot sector", start)
	w.at(0, "boot sector", start)
	if w.err != nil {
		return fmt.Errorf("FAT volume: %w", w.err)
	}
	return nil
}

// layFAT decides the layout: the boot sector says it all.
func layFAT(size int64, o Options) (b fatBootSector, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("FAT volume of %d bytes: %w", size, err)
		}
	}()
	sector := int64(o.SectorSize)
	if sector == 0 {
		sector = 512
	}
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 {
		return b, fmt.Errorf("sectors of %d bytes: only 512, 1024, 2048 and 4096 can be", sector)
	}
	id, err := hex.DecodeString(strings.Replace(o.UUID, "-", "", 1))
	if err != nil || len(o.UUID) != 9 || o.UUID[4] != '-' {
		return b, fmt.Errorf("volume ID %q is not one: write eight hexadecimal digits as AAAA-BBBB", o.UUID)
	}
	label, err := fatLabel(o.Label)
	if err != nil {
		return b, err
	}
	sectors := size / sector
	if sectors > 1<<32 {
		return b, fmt.Errorf("it can have no more than %d TiB: make the partition smaller, or use ext4", sector>>8)
	}
	sectors = min(sectors, 1<<32-1) // the last one of exactly that much is left out

	// As Windows and mkfs.fat choose clusters.
	cluster := int64(32 << 10)
	for _, row := range []struct{ below, cluster int64 }{{260 << 20, 512}, {8 << 30, 4 << 10}, {16 << 30, 8 << 10}, {32 << 30, 16 << 10}} {
		if size < row.below {
			cluster = max(sector, row.cluster)
			break
		}
	}
	b = fatBootSector{
		Jump:              [3]byte{0xEB, 0x58, 0x90}, // jmp Code; nop
		OEM:               [8]byte([]byte("REASSURE")),
		BytesPerSector:    uint16(sector),
		SectorsPerCluster: uint8(cluster / sector),
		Reserved:          fatReserved,
		FATs:              fatCopies,
		Media:             0xF8, // a hard disk
		SectorsPerTrack:   63,
		Heads:             255,
		Sectors:           uint32(sectors),
		Root:              fatRoot,
		Info:              fatInfoSector,
		Backup:            fatBackup,
		Drive:             0x80,
		Signature:         0x29,
		VolumeID:          binary.BigEndian.Uint32(id),
		Label:             label,
		Type:              [8]byte([]byte("FAT32   ")),
		Code:              [6]byte{0xCD, 0x18, 0xF4, 0xEB, 0xFD}, // int 18h: let the BIOS try the next; hlt
	}
	// The tables must have an entry for every cluster, and take room from the
	// clusters: n of them need 4*(n+2) bytes in each table. One more fits where
	// the division leaves nearly a cluster.
	room := (sectors - fatReserved) * sector
	most := (max(room, 0)-fatCopies*4*fatRoot)/(cluster+fatCopies*4) + 1
	b.SectorsPerFAT = uint32((4*(most+fatRoot) + sector - 1) / sector)
	switch n := clustersOf(b); {
	case n < fatMinClusters:
		return b, fmt.Errorf("FAT32 with sectors of %d bytes needs at least %d MiB: make the partition larger", sector, sector>>4+1)
	case n > fatMaxClusters:
		return b, fmt.Errorf("%d clusters are more than FAT32 can number: make the partition smaller, or use ext4", n)
	}
	return b, nil
}

// clustersOf returns how many clusters a laid out volume has.
func clustersOf(b fatBootSector) int64 {
	return (int64(b.Sectors) - fatReserved - fatCopies*int64(b.SectorsPerFAT)) / int64(b.SectorsPerCluster)
}

// fatLabel returns a label as boot sector and root folder hold it. It is
// written as it was asked for: Linux looks it up by its letters' case, though
// other systems show capitals.
func fatLabel(s string) (padded [11]byte, err error) {
	copy(padded[:], "NO NAME    ")
	if s == "" {
		return padded, nil
	}
	bad := func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune(`"*+,./:;<=>?[\]|`, r) }
	if len(s) > len(padded) || s[0] == ' ' || strings.ContainsFunc(s, bad) {
		return padded, fmt.Errorf("label %q: use at most 11 ASCII letters, digits, spaces, dashes and underscores", s)
	}
	copy(padded[:], s+"           ")
	return padded, nil
}
