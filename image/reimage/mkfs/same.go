package mkfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// Ext4Same says, by an error, that a file system is not one that [Ext4] would
// make with the same size and options, whatever has become of its content: who
// has root on a PC can change its features, its size and how it behaves, and
// none of that is seen in its files. What e2fsck judges is not looked at.
func Ext4Same(dev io.ReaderAt, size int64, o Options) error {
	e, err := newExt4(size, o)
	if err != nil {
		return err
	}
	raw := make([]byte, 1024)
	if _, err := dev.ReadAt(raw, 1024); err != nil {
		return fmt.Errorf("read the superblock: %w", err)
	}
	var is superblock
	if _, err := binary.Decode(raw, binary.LittleEndian, &is); err != nil {
		return fmt.Errorf("read the superblock: %w", err)
	}
	want := e.superblock(0, inode{})
	for _, f := range []struct {
		what     string
		is, want any
	}{
		{"magic number", is.Magic, want.Magic},
		{"UUID", is.UUID, want.UUID},
		{"label", is.Label, want.Label},
		// Of the incompatible ones bit 2 says that the journal is to be replayed.
		{"features", [3]uint32{is.FeatureCompat, is.FeatureIncompat &^ needsRecovery, is.FeatureROCompat}, [3]uint32{want.FeatureCompat, want.FeatureIncompat, want.FeatureROCompat}},
		{"blocks", [2]uint32{is.BlocksLo, is.BlocksHi}, [2]uint32{want.BlocksLo, want.BlocksHi}},
		{"reserved blocks", [2]uint32{is.ReservedLo, is.ReservedHi}, [2]uint32{want.ReservedLo, want.ReservedHi}},
		{"inodes", [2]uint32{is.Inodes, is.InodesPerGroup}, [2]uint32{want.Inodes, want.InodesPerGroup}},
		{"inode size", [4]uint32{uint32(is.InodeSize), is.FirstInode, uint32(is.MinExtraInodeSize), uint32(is.WantExtraInodeSize)}, [4]uint32{uint32(want.InodeSize), want.FirstInode, uint32(want.MinExtraInodeSize), uint32(want.WantExtraInodeSize)}},
		{"block size", [5]uint32{is.LogBlockSize, is.LogClusterSize, is.BlocksPerGroup, is.ClustersPerGroup, is.FirstDataBlock}, [5]uint32{want.LogBlockSize, want.LogClusterSize, want.BlocksPerGroup, want.ClustersPerGroup, want.FirstDataBlock}},
		{"groups", [4]uint32{uint32(is.GroupDescSize), uint32(is.LogGroupsPerFlex), uint32(is.ReservedGDTBlocks), is.FirstMetaGroup}, [4]uint32{uint32(want.GroupDescSize), uint32(want.LogGroupsPerFlex), uint32(want.ReservedGDTBlocks), want.FirstMetaGroup}},
		{"journal", [2]uint32{is.JournalInode, is.JournalDevice}, [2]uint32{want.JournalInode, want.JournalDevice}},
		{"reserved owner", [2]uint16{is.ReservedUID, is.ReservedGID}, [2]uint16{want.ReservedUID, want.ReservedGID}},
		{"behaviour after errors", is.Errors, want.Errors},
		{"checks", [2]uint32{uint32(is.MaxMounts), is.CheckInterval}, [2]uint32{uint32(want.MaxMounts), want.CheckInterval}},
		{"default mount options", is.DefaultMountOpts, want.DefaultMountOpts},
		{"revision", [2]uint32{is.Revision, is.Creator}, [2]uint32{want.Revision, want.Creator}},
		{"folder hash", [3]uint32{uint32(is.HashVersion), is.Flags, uint32(is.ChecksumType)}, [3]uint32{uint32(want.HashVersion), want.Flags, uint32(want.ChecksumType)}},
	} {
		if f.is != f.want {
			return fmt.Errorf("it was not made by us, or changed since: %s %v, and not %v", f.what, f.is, f.want)
		}
	}
	// s_mount_opts: the kernel takes them as if they were given to mount.
	if options := raw[0x200:0x240]; !bytes.Equal(options, make([]byte, len(options))) {
		return fmt.Errorf("it was not made by us, or changed since: it asks for the mount options %q", bytes.TrimRight(options, "\x00"))
	}
	return nil
}

// needsRecovery is the feature that says that a journal is to be replayed.
const needsRecovery = 0x4

// Ext4Times returns the latest time, in seconds since 1970, that a superblock
// names, and whether the kernel has noted errors in the file system.
func Ext4Times(dev io.ReaderAt) (latest int64, errors bool, err error) {
	raw := make([]byte, 1024)
	if _, err := dev.ReadAt(raw, 1024); err != nil {
		return 0, false, fmt.Errorf("read the superblock: %w", err)
	}
	var s superblock
	if _, err := binary.Decode(raw, binary.LittleEndian, &s); err != nil {
		return 0, false, fmt.Errorf("read the superblock: %w", err)
	}
	const errorState = 2 // s_state: EXT4_ERROR_FS
	for _, t := range [][2]int64{
		{int64(s.MountTimeHi), int64(s.MountTime)}, {int64(s.WriteTimeHi), int64(s.WriteTime)},
		{int64(s.LastCheckHi), int64(s.LastCheck)}, {int64(s.MakeTimeHi), int64(s.MakeTime)},
	} {
		latest = max(latest, t[0]<<32|t[1])
	}
	return latest, s.State&errorState != 0, nil
}
