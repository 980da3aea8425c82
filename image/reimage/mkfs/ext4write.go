package mkfs

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"math/bits"
	"time"
)

// ext4 writes what a layout describes.
type ext4 struct {
	*layout
	writer
	id    [16]byte
	label [16]byte
	now   time.Time
	seed  uint32 // of all checksums but the superblock's
}

// write writes everything; the first superblock comes last.
func (e *ext4) write() {
	descs := make([]byte, e.descBlocks*blockSize)
	free := uint64(0)
	for g := range e.groups {
		free += uint64(e.groupBlocks(g) - e.used[g])
		e.writeGroup(g, descs[g*groupDescSize:][:groupDescSize])
	}
	inodes := e.writeInodes()
	e.writeFolders()
	e.writeJournal()

	super := e.superblock(free, inodes[journalInode-1])
	copyOf := make([]byte, blockSize, blockSize+len(descs))
	copyOf = append(copyOf, descs...)
	for g := uint32(1); g < e.groups; g++ {
		if hasSuperblock(g) {
			// Copies are marked as not clean, so that whoever falls back on one checks first.
			super.Group, super.State = uint16(g), 0
			copy(copyOf, encodeSuperblock(super))
			e.at(int64(e.firstBlock(g))*blockSize, "copy of the superblock and group descriptors", copyOf)
		}
	}
	e.at(blockSize, "group descriptors", descs)
	super.Group, super.State = 0, 1
	first := make([]byte, blockSize)
	copy(first[1024:], encodeSuperblock(super))
	e.at(0, "superblock", first)
}

// writeGroup fills in a group's descriptor and writes its bitmaps, unless they
// may be left unwritten.
func (e *ext4) writeGroup(g uint32, descriptor []byte) {
	blockBitmap, inodeBitmap, inodeTable := e.tables(g)
	usedInodes, folders := uint32(0), uint16(0)
	if g == 0 {
		usedInodes, folders = lostFoundInode, 2
	}
	freeBlocks, freeInodes := e.groupBlocks(g)-e.used[g], e.inodesPerGroup-usedInodes
	d := groupDesc{
		BlockBitmapLo: uint32(blockBitmap), BlockBitmapHi: uint32(blockBitmap >> 32),
		InodeBitmapLo: uint32(inodeBitmap), InodeBitmapHi: uint32(inodeBitmap >> 32),
		InodeTableLo: uint32(inodeTable), InodeTableHi: uint32(inodeTable >> 32),
		FreeBlocksLo: uint16(freeBlocks), FreeBlocksHi: uint16(freeBlocks >> 16),
		FreeInodesLo: uint16(freeInodes), FreeInodesHi: uint16(freeInodes >> 16),
		UnusedInodesLo: uint16(freeInodes), UnusedInodesHi: uint16(freeInodes >> 16),
		FoldersLo: folders,
	}
	// The last group's bitmap must show what is past its end, as mke2fs has it.
	if e.used[g] == e.front(g) && g != e.groups-1 {
		d.Flags |= blocksUninit
	} else {
		bitmap := bitmapOf(e.used[g], e.groupBlocks(g))
		sum := crc32c(e.seed, bitmap)
		d.BlockBitmapSumLo, d.BlockBitmapSumHi = uint16(sum), uint16(sum>>16)
		e.at(int64(blockBitmap)*blockSize, "block bitmap", bitmap)
	}
	if usedInodes == 0 {
		d.Flags |= inodesUninit
	} else {
		bitmap := bitmapOf(usedInodes, e.inodesPerGroup)
		sum := crc32c(e.seed, bitmap[:e.inodesPerGroup/8])
		d.InodeBitmapSumLo, d.InodeBitmapSumHi = uint16(sum), uint16(sum>>16)
		e.at(int64(inodeBitmap)*blockSize, "inode bitmap", bitmap)
	}
	encode(descriptor, binary.LittleEndian, &d)
	d.Checksum = uint16(crc32c(crc32c(e.seed, le32(g)), descriptor))
	encode(descriptor, binary.LittleEndian, &d)
}

// bitmapOf returns a block of bits, set below used and from size on.
func bitmapOf(used, size uint32) []byte {
	bitmap := make([]byte, blockSize)
	for i := range used / 8 {
		bitmap[i] = 0xFF
	}
	if used%8 != 0 {
		bitmap[used/8] = 1<<(used%8) - 1
	}
	for i := (size + 7) / 8; i < blockSize; i++ {
		bitmap[i] = 0xFF
	}
	if size%8 != 0 {
		bitmap[size/8] |= 0xFF << (size % 8)
	}
	return bitmap
}

// writeInodes writes the first block of group 0's inode table and returns its
// inodes.
func (e *ext4) writeInodes() []inode {
	inodes := make([]inode, inodesPerBlock)
	// mke2fs dates the inode of bad blocks, though it has none.
	stamp := func(i *inode) {
		i.Atime, i.Ctime, i.Mtime = uint32(e.now.Unix()), uint32(e.now.Unix()), uint32(e.now.Unix())
	}
	stamp(&inodes[0])
	inodes[rootInode-1] = e.inode(0o040755, 3, []extent{{start: e.root, count: 1}})
	inodes[lostFoundInode-1] = e.inode(0o040700, 2, []extent{{start: e.lostFound, count: lostFoundBlocks}})
	inodes[journalInode-1] = e.inode(0o100600, 1, e.journal)

	block := make([]byte, blockSize)
	for i := range lostFoundInode {
		raw := block[i*inodeSize:][:inodeSize]
		encode(raw, binary.LittleEndian, &inodes[i])
		sum := crc32c(e.inodeSeed(uint32(i+1)), raw)
		// An inode without room for the upper half has none (the reserved ones).
		inodes[i].ChecksumLo = uint16(sum)
		if inodes[i].ExtraSize != 0 {
			inodes[i].ChecksumHi = uint16(sum >> 16)
		}
		encode(raw, binary.LittleEndian, &inodes[i])
	}
	_, _, table := e.tables(0)
	e.at(int64(table)*blockSize, "inodes", block)
	return inodes
}

// inode returns the inode of a file, whole blocks long.
func (e *ext4) inode(mode, links uint16, blocks []extent) inode {
	seconds := e.now.Unix()
	// fs/ext4/ext4.h, ext4_encode_extra_time: two more bits of the seconds, then nanoseconds.
	extra := uint32((seconds-int64(int32(seconds)))>>32)&3 | uint32(e.now.Nanosecond())<<2
	i := inode{
		Mode: mode, Links: links, Flags: usesExtents, ExtraSize: extraInodeSize,
		Atime: uint32(seconds), Ctime: uint32(seconds), Mtime: uint32(seconds), Crtime: uint32(seconds),
		AtimeExtra: extra, CtimeExtra: extra, MtimeExtra: extra, CrExtra: extra,
	}
	count := uint64(0)
	for _, x := range blocks {
		count += uint64(x.count)
	}
	i.SizeLo, i.SizeHi = uint32(count*blockSize), uint32(count*blockSize>>32)
	if len(blocks) <= inodeExtents {
		putExtents(i.Map[:], blocks)
	} else {
		putExtentIndex(i.Map[:], e.journalTree)
		count++
	}
	i.Sectors = uint32(count * blockSize / 512)
	return i
}

// inodeExtents is how many extents an inode itself can hold: more are in a tree block.
const inodeExtents = 4

const extentMagic = 0xF30A

// putExtents writes a leaf of an extent tree (struct ext4_extent_header and
// ext4_extent) with as much room as node has.
func putExtents(node []byte, extents []extent) {
	putExtentHeader(node, len(extents), 0)
	for i, x := range extents {
		entry := node[12+12*i:]
		binary.LittleEndian.PutUint32(entry[0:], x.logical)
		binary.LittleEndian.PutUint16(entry[4:], uint16(x.count))
		binary.LittleEndian.PutUint16(entry[6:], uint16(x.start>>32))
		binary.LittleEndian.PutUint32(entry[8:], uint32(x.start))
	}
}

// putExtentIndex writes the root of a tree with one leaf (struct ext4_extent_idx).
func putExtentIndex(node []byte, leaf uint64) {
	putExtentHeader(node, 1, 1)
	binary.LittleEndian.PutUint32(node[16:], uint32(leaf))
	binary.LittleEndian.PutUint16(node[20:], uint16(leaf>>32))
}

func putExtentHeader(node []byte, entries, depth int) {
	binary.LittleEndian.PutUint16(node[0:], extentMagic)
	binary.LittleEndian.PutUint16(node[2:], uint16(entries))
	binary.LittleEndian.PutUint16(node[4:], uint16((len(node)-12)/12))
	binary.LittleEndian.PutUint16(node[6:], uint16(depth))
}

// writeFolders writes the root folder and lost+found.
func (e *ext4) writeFolders() {
	e.at(int64(e.root)*blockSize, "root folder", e.folderBlock(rootInode,
		name{rootInode, "."}, name{rootInode, ".."}, name{lostFoundInode, "lost+found"}))
	blocks := e.folderBlock(lostFoundInode, name{lostFoundInode, "."}, name{rootInode, ".."})
	for range lostFoundBlocks - 1 {
		blocks = append(blocks, e.folderBlock(lostFoundInode, name{})...)
	}
	e.at(int64(e.lostFound)*blockSize, "lost+found", blocks)
}

// name is a folder's name in another; the zero value is an unused entry.
type name struct {
	inode uint32
	text  string
}

// folderTail is the size of struct ext4_dir_entry_tail: a checksum that looks
// like an unused entry to those who do not know it.
const folderTail = 12

// folderBlock returns one block of a folder, the last entry of which takes all
// the room that is left (struct ext4_dir_entry_2).
func (e *ext4) folderBlock(folder uint32, names ...name) []byte {
	block := make([]byte, blockSize)
	at := 0
	for i, n := range names {
		length := (8 + len(n.text) + 3) &^ 3
		if i == len(names)-1 {
			length = blockSize - folderTail - at
		}
		binary.LittleEndian.PutUint32(block[at:], n.inode)
		binary.LittleEndian.PutUint16(block[at+4:], uint16(length))
		block[at+6] = uint8(len(n.text))
		if n.inode != 0 {
			block[at+7] = 2 // a folder
		}
		copy(block[at+8:], n.text)
		at += length
	}
	binary.LittleEndian.PutUint16(block[at+4:], folderTail)
	block[at+7] = 0xDE
	binary.LittleEndian.PutUint32(block[at+8:], crc32c(e.inodeSeed(folder), block[:at]))
	return block
}

// journalHeader is journal_superblock_t of include/linux/jbd2.h, big-endian.
type journalHeader struct {
	Magic     uint32
	BlockType uint32 // 4: superblock, version 2
	_         uint32
	BlockSize uint32
	Blocks    uint32
	First     uint32
	Sequence  uint32 // of the first transaction
	Start     uint32 // 0: nothing to replay
	_         [4]uint32
	UUID      [16]byte
	Users     uint32
}

// writeJournal writes the journal's first block, and its extents' block if it
// has one. The rest of the journal is left as it is. A disk that is made anew
// has its last journal in the very same place, so what is there must not be
// taken for this one's: its checksums depend on the UUID, and its transactions
// are counted from a number that is another one every time.
func (e *ext4) writeJournal() {
	block := make([]byte, blockSize)
	header := journalHeader{
		Magic: 0xC03B3998, BlockType: 4, BlockSize: blockSize, First: 1, UUID: e.id, Users: 1,
		Sequence: binary.LittleEndian.Uint32(e.derived("journal"))>>2 + 1,
	}
	for _, x := range e.journal {
		header.Blocks += x.count
	}
	encode(block, binary.BigEndian, &header)
	e.at(int64(e.journal[0].start)*blockSize, "journal", block)

	if e.journalTree != 0 {
		leaf := make([]byte, blockSize)
		putExtents(leaf, e.journal)
		end := 12 + (blockSize-12)/12*12 // struct ext4_extent_tail follows the last entry that would fit
		binary.LittleEndian.PutUint32(leaf[end:], crc32c(e.inodeSeed(journalInode), leaf[:end]))
		e.at(int64(e.journalTree)*blockSize, "journal's extents", leaf)
	}
}

// superblock returns the first superblock.
func (e *ext4) superblock(free uint64, journal inode) superblock {
	reserved := min(e.blocks/20, reservedMax/blockSize)
	seconds := uint64(e.now.Unix())
	lo, hi := uint32(seconds), uint8(seconds>>32)
	s := superblock{
		Inodes: e.groups * e.inodesPerGroup, FreeInodes: e.groups*e.inodesPerGroup - lostFoundInode,
		BlocksLo: uint32(e.blocks), BlocksHi: uint32(e.blocks >> 32),
		ReservedLo: uint32(reserved), ReservedHi: uint32(reserved >> 32),
		FreeBlocksLo: uint32(free), FreeBlocksHi: uint32(free >> 32),
		LogBlockSize: 2, LogClusterSize: 2,
		BlocksPerGroup: blocksPerGroup, ClustersPerGroup: blocksPerGroup, InodesPerGroup: e.inodesPerGroup,
		WriteTime: lo, WriteTimeHi: hi, LastCheck: lo, LastCheckHi: hi, MakeTime: lo, MakeTimeHi: hi,
		MaxMounts: 0xFFFF, Magic: 0xEF53, State: 1, Errors: 1, Revision: 1,
		FirstInode: lostFoundInode, InodeSize: inodeSize,
		FeatureCompat: featureCompat, FeatureIncompat: featureIncompat, FeatureROCompat: featureROCompat,
		UUID: e.id, Label: e.label,
		JournalInode: journalInode, JournalBackupType: 1,
		HashSeed: [16]byte(e.derived("folder index")), HashVersion: 1, Flags: 1,
		GroupDescSize:     groupDescSize,
		DefaultMountOpts:  0xC, // user_xattr, acl
		MinExtraInodeSize: extraInodeSize, WantExtraInodeSize: extraInodeSize,
		LogGroupsPerFlex: uint8(bits.TrailingZeros(groupsPerFlex)), ChecksumType: 1,
		Overhead: uint32(e.overhead),
	}
	for i := range 15 {
		s.JournalBackup[i] = binary.LittleEndian.Uint32(journal.Map[4*i:])
	}
	s.JournalBackup[15], s.JournalBackup[16] = journal.SizeHi, journal.SizeLo
	return s
}

// encodeSuperblock returns a superblock with its checksum.
func encodeSuperblock(s superblock) []byte {
	raw := make([]byte, 1024)
	encode(raw, binary.LittleEndian, &s)
	s.Checksum = crc32c(^uint32(0), raw[:1020])
	encode(raw, binary.LittleEndian, &s)
	return raw
}

// derived returns 16 bytes that look random and are the same whenever the same
// file system is made at the same time.
func (e *ext4) derived(purpose string) []byte {
	text := append([]byte(purpose), e.id[:]...)
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64(text, uint64(e.now.UnixNano())))
	return sum[:16]
}

// inodeSeed starts the checksums of an inode of generation 0 and of its blocks.
func (e *ext4) inodeSeed(inode uint32) uint32 {
	return crc32c(crc32c(e.seed, le32(inode)), le32(0))
}

// crc32c goes on with a checksum as the kernel does, which inverts neither what
// it starts from nor what it ends with.
func crc32c(sum uint32, data []byte) uint32 {
	return ^crc32.Update(^sum, crc32.MakeTable(crc32.Castagnoli), data)
}

func le32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
