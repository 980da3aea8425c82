package mkfs

import (
	"errors"
	"fmt"
)

// The geometry of every ext4 that this package makes. Blocks always have 4 KiB,
// where mke2fs takes 1 KiB below 512 MiB: it fits any sector, what is on a small
// /boot is a few large files, and one geometry is tested better than two.
const (
	blockSize      = 4096
	blocksPerGroup = 8 * blockSize // as many as one block's bits
	groupDescSize  = 64            // feature 64bit
	groupsPerFlex  = 16
	inodeSize      = 256
	inodesPerBlock = blockSize / inodeSize
	extraInodeSize = 32

	ext4Min = 16 << 20 // bytes
	ext4Max = 64 << 40
)

// Numbers of inodes.
const (
	rootInode      = 2
	journalInode   = 8
	lostFoundInode = 11 // the first that is not reserved
)

// lostFoundBlocks is mke2fs's: e2fsck needs names there when it cannot allocate.
const lostFoundBlocks = 4

// Features: the defaults of mke2fs 1.47, but for resize_inode, which only helps
// to grow a mounted file system.
const (
	featureCompat   = 0x4 /* has_journal */ | 0x8 /* ext_attr */ | 0x20                  /* dir_index */
	featureIncompat = 0x2 /* filetype */ | 0x40 /* extents */ | 0x80 /* 64bit */ | 0x200 /* flex_bg */
	featureROCompat = 0x1 /* sparse_super */ | 0x2 /* large_file */ | 0x8 /* huge_file */ |
		0x20 /* dir_nlink */ | 0x40 /* extra_isize */ | 0x400 /* metadata_csum */
)

// Flags of a group's descriptor.
const (
	inodesUninit = 0x1 // inode table and bitmap were never written
	blocksUninit = 0x2 // block bitmap was never written: only the group's own metadata is in use
)

// reservedMax is the most that is kept for root: 5 %, as mke2fs does, of a large
// disk would be tens of gigabytes that no daemon's log ever needs.
const reservedMax = 4 << 30 // bytes

// superblock is struct ext4_super_block of the kernel's fs/ext4/ext4.h.
type superblock struct {
	Inodes             uint32 // 0x00
	BlocksLo           uint32
	ReservedLo         uint32
	FreeBlocksLo       uint32
	FreeInodes         uint32
	FirstDataBlock     uint32
	LogBlockSize       uint32 // 2: 1024<<2
	LogClusterSize     uint32
	BlocksPerGroup     uint32 // 0x20
	ClustersPerGroup   uint32
	InodesPerGroup     uint32
	MountTime          uint32
	WriteTime          uint32
	Mounts             uint16
	MaxMounts          uint16 // 0xFFFF: no check by count
	Magic              uint16
	State              uint16 // 1: clean
	Errors             uint16 // 1: continue
	MinorRevision      uint16
	LastCheck          uint32 // 0x40
	CheckInterval      uint32
	Creator            uint32 // 0: Linux
	Revision           uint32 // 1: dynamic
	ReservedUID        uint16
	ReservedGID        uint16
	FirstInode         uint32
	InodeSize          uint16
	Group              uint16 // which group's copy this is
	FeatureCompat      uint32
	FeatureIncompat    uint32 // 0x60
	FeatureROCompat    uint32
	UUID               [16]byte
	Label              [16]byte
	LastMounted        [64]byte
	_                  uint32 // 0xC8
	_                  uint16
	ReservedGDTBlocks  uint16
	JournalUUID        [16]byte // 0xD0
	JournalInode       uint32
	JournalDevice      uint32
	LastOrphan         uint32
	HashSeed           [16]byte // of folders' indexes
	HashVersion        uint8    // 1: half MD4
	JournalBackupType  uint8    // 1: JournalBackup is set
	GroupDescSize      uint16
	DefaultMountOpts   uint32 // 0x100
	FirstMetaGroup     uint32
	MakeTime           uint32
	JournalBackup      [17]uint32 // the journal's inode: block map, size high, size low
	BlocksHi           uint32     // 0x150
	ReservedHi         uint32
	FreeBlocksHi       uint32
	MinExtraInodeSize  uint16
	WantExtraInodeSize uint16
	Flags              uint32 // 0x160; 1: hashes are of signed characters
	_                  [16]byte
	LogGroupsPerFlex   uint8 // 0x174
	ChecksumType       uint8 // 1: crc32c
	_                  [210]byte
	Overhead           uint32 // 0x248, in clusters
	_                  [40]byte
	WriteTimeHi        uint8 // 0x274
	MountTimeHi        uint8
	MakeTimeHi         uint8
	LastCheckHi        uint8
	_                  [388]byte
	Checksum           uint32 // 0x3FC
}

// groupDesc is struct ext4_group_desc. Lo and Hi are halves of one number.
type groupDesc struct {
	BlockBitmapLo    uint32
	InodeBitmapLo    uint32
	InodeTableLo     uint32
	FreeBlocksLo     uint16
	FreeInodesLo     uint16
	FoldersLo        uint16
	Flags            uint16
	_                uint32
	BlockBitmapSumLo uint16
	InodeBitmapSumLo uint16
	UnusedInodesLo   uint16 // at the end of the table
	Checksum         uint16
	BlockBitmapHi    uint32
	InodeBitmapHi    uint32
	InodeTableHi     uint32
	FreeBlocksHi     uint16
	FreeInodesHi     uint16
	FoldersHi        uint16
	UnusedInodesHi   uint16
	_                uint32
	BlockBitmapSumHi uint16
	InodeBitmapSumHi uint16
	_                uint32
}

// inode is struct ext4_inode, up to what extraInodeSize covers.
type inode struct {
	Mode       uint16
	UID        uint16
	SizeLo     uint32
	Atime      uint32
	Ctime      uint32
	Mtime      uint32
	Dtime      uint32
	GID        uint16
	Links      uint16
	Sectors    uint32 // of 512 bytes, whatever the device has
	Flags      uint32
	Version    uint32
	Map        [60]byte // the root of the extent tree
	Generation uint32
	_          uint32
	SizeHi     uint32
	_          [12]byte
	ChecksumLo uint16 // 0x7C
	_          uint16
	ExtraSize  uint16 // 0x80
	ChecksumHi uint16
	CtimeExtra uint32
	MtimeExtra uint32
	AtimeExtra uint32
	Crtime     uint32
	CrExtra    uint32
	_          uint32
	_          uint32
	_          [96]byte
}

// usesExtents is the flag of an inode whose Map is an extent tree.
const usesExtents = 0x80000

// extent is a run of blocks of a file.
type extent struct {
	logical uint32 // in blocks from the file's start
	start   uint64 // block of the file system
	count   uint32
}

// maxExtent is the most blocks in one extent: ext4_extent's length is 16 bits,
// and above this it means "not written yet".
const maxExtent = 1 << 15

// layout is where everything of a file system is. Whatever a group holds at the
// start lies without gaps at its front, so one number says what is in use.
type layout struct {
	blocks         uint64
	groups         uint32
	descBlocks     uint32   // that the group descriptors take
	inodesPerGroup uint32   // a multiple of inodesPerBlock
	used           []uint32 // by group: blocks in use at its front
	overhead       uint64   // blocks that no file can have, the journal's among them

	root, lostFound uint64 // first block
	journal         []extent
	journalTree     uint64 // the block of the journal's extents; 0 if they fit its inode
}

// Ext4 makes an ext4 file system of size bytes, 16 MiB to 64 TiB; less than a
// block at the end, and a last group too short to be of use, are left out.
//
// It has the features, numbers of inodes and journal size that mke2fs 1.47 gives
// by default, but no resize_inode, 4 KiB blocks always, and 5 % of its blocks but
// no more than 4 GiB reserved for root. Inode tables are left for the kernel to
// clear in the background (mount with noinit_itable to put that off), or for
// nobody: group checksums tell what was never used.
func Ext4(dev Device, size int64, o Options) error {
	e, err := newExt4(size, o)
	if err != nil {
		return err
	}
	e.dev = dev
	e.clearEnds(size)
	e.write()
	if e.err != nil {
		return fmt.Errorf("ext4: %w", e.err)
	}
	return nil
}

// newExt4 decides everything about a file system but the device.
func newExt4(size int64, o Options) (*ext4, error) {
	if size < ext4Min || size > ext4Max {
		return nil, fmt.Errorf("ext4 of %d bytes: use from 16 MiB to 64 TiB", size)
	}
	id, err := o.uuid()
	if err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	label, err := o.label(16)
	if err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	l, err := layExt4(uint64(size))
	if err != nil {
		return nil, fmt.Errorf("ext4 of %d bytes: %w", size, err)
	}
	return &ext4{layout: l, id: id, label: label, now: o.now(), seed: crc32c(^uint32(0), id[:])}, nil
}

// layExt4 decides where everything goes in size bytes.
func layExt4(size uint64) (*layout, error) {
	l := &layout{blocks: size / blockSize}
	for {
		l.groups = uint32((l.blocks + blocksPerGroup - 1) / blocksPerGroup)
		l.descBlocks = (l.groups*groupDescSize + blockSize - 1) / blockSize
		perGroup := (l.blocks*blockSize/inodeRatio(l.blocks) + uint64(l.groups) - 1) / uint64(l.groups)
		l.inodesPerGroup = uint32(perGroup+inodesPerBlock-1) / inodesPerBlock * inodesPerBlock
		// As mke2fs: a last group with less than 50 blocks for files is none.
		last := l.groups - 1
		if l.groupBlocks(last) >= l.front(last)+2+l.tableBlocks()+50 {
			break
		}
		if last == 0 {
			return nil, errors.New("there is no room for anything but its tables: make the partition larger")
		}
		l.blocks = uint64(last) * blocksPerGroup
	}

	l.used = make([]uint32, l.groups)
	for g := range l.groups {
		l.used[g] = l.front(g)
		if g%groupsPerFlex == 0 {
			l.used[g] += l.flexGroups(g) * (2 + l.tableBlocks())
		}
		if l.used[g] > l.groupBlocks(g) {
			return nil, fmt.Errorf("group %d has no room for its tables", g)
		}
		l.overhead += uint64(l.used[g])
	}
	journal := journalBlocks(l.blocks)
	if l.overhead+uint64(journal)+50 > l.blocks {
		return nil, errors.New("there is no room for a journal: make the partition larger")
	}
	l.overhead += uint64(journal)

	l.root = l.take(0, 1)[0].start
	l.lostFound = l.take(0, lostFoundBlocks)[0].start
	// The journal lies in the middle, so that a disk's head is never far from
	// it, and at a flex group's start, where the longest runs of free blocks are.
	middle := (l.groups - 1) / 2
	middle -= middle % groupsPerFlex
	l.journal = l.take(middle, journal)
	if len(l.journal) > inodeExtents {
		l.journalTree = l.take(middle, 1)[0].start
	}
	return l, nil
}

// take puts count blocks into use, from a group on and round to the first after
// the last, and says which. There must be as many free ones.
func (l *layout) take(group, count uint32) []extent {
	var taken []extent
	for logical := uint32(0); logical < count; group = (group + 1) % l.groups {
		n := min(count-logical, l.groupBlocks(group)-l.used[group])
		start := l.firstBlock(group) + uint64(l.used[group])
		l.used[group] += n
		for n > 0 {
			run := min(n, maxExtent)
			if i := len(taken) - 1; i >= 0 && taken[i].start+uint64(taken[i].count) == start && taken[i].count < maxExtent {
				run = min(run, maxExtent-taken[i].count)
				taken[i].count += run
			} else {
				taken = append(taken, extent{logical: logical, start: start, count: run})
			}
			logical, start, n = logical+run, start+uint64(run), n-run
		}
	}
	return taken
}

// firstBlock returns where a group begins.
func (l *layout) firstBlock(group uint32) uint64 { return uint64(group) * blocksPerGroup }

// groupBlocks returns how many blocks a group has; the last may be short.
func (l *layout) groupBlocks(group uint32) uint32 {
	return uint32(min(blocksPerGroup, l.blocks-l.firstBlock(group)))
}

// tableBlocks returns how many blocks a group's inode table has.
func (l *layout) tableBlocks() uint32 { return l.inodesPerGroup / inodesPerBlock }

// front returns how many blocks the superblock and the group descriptors, or
// their copies, take at a group's front.
func (l *layout) front(group uint32) uint32 {
	if !hasSuperblock(group) {
		return 0
	}
	return 1 + l.descBlocks
}

// flexGroups returns how many groups have their bitmaps and tables in this
// group, the first of its flex group.
func (l *layout) flexGroups(first uint32) uint32 { return min(groupsPerFlex, l.groups-first) }

// tables returns where the bitmaps and the inode table of a group are: in the
// first group of its flex group, first all block bitmaps, then all inode
// bitmaps, then all tables.
func (l *layout) tables(group uint32) (blockBitmap, inodeBitmap, inodeTable uint64) {
	first, i := group-group%groupsPerFlex, uint64(group%groupsPerFlex)
	base, n := l.firstBlock(first)+uint64(l.front(first)), uint64(l.flexGroups(first))
	return base + i, base + n + i, base + 2*n + i*uint64(l.tableBlocks())
}

// hasSuperblock says which groups hold a superblock: 0, 1 and the powers of 3,
// 5 and 7 (sparse_super).
func hasSuperblock(group uint32) bool {
	if group <= 1 {
		return true
	}
	for _, base := range []uint32{3, 5, 7} {
		g := group
		for g%base == 0 {
			g /= base
		}
		if g == 1 {
			return true
		}
	}
	return false
}

// inodeRatio returns how many bytes there are for one inode: mke2fs.conf's
// default, and its types small, big and huge.
func inodeRatio(blocks uint64) uint64 {
	switch size := blocks * blockSize; {
	case size < 512<<20:
		return 4096
	case size < 4<<40:
		return 16384
	case size < 16<<40:
		return 32768
	}
	return 65536
}

// journalBlocks returns how long the journal is: e2fsprogs' choice, lib/ext2fs/mkjournal.c.
func journalBlocks(blocks uint64) uint32 {
	switch {
	case blocks < 32<<10:
		return 1 << 10
	case blocks < 256<<10:
		return 4 << 10
	case blocks < 512<<10:
		return 8 << 10
	case blocks < 4<<20:
		return 16 << 10
	case blocks < 8<<20:
		return 32 << 10
	case blocks < 16<<20:
		return 64 << 10
	case blocks < 32<<20:
		return 128 << 10
	}
	return 256 << 10
}
