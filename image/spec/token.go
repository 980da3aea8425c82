package spec

import (
	"fmt"
	"regexp"
)

// A token stands, in a rendered file or a step, for what only the PC knows: the
// UUIDs of file systems that it is about to make, the names of its devices. The
// digest of a host's software covers the token, never what it becomes.
//
//	@reassure:uuid:root@      UUID of the file system on partition "root"
//	@reassure:partuuid:root@  PARTUUID of partition "root"
//	@reassure:device:root@    device node of partition "root", /dev/sda1
//	@reassure:disk@           device node of the target disk, /dev/sda
var tokenPattern = regexp.MustCompile(`@reassure:([a-z]+)(?::([A-Za-z0-9._-]+))?@`)

// Token kinds.
const (
	TokenUUID     = "uuid"
	TokenPartUUID = "partuuid"
	TokenDevice   = "device"
	TokenDisk     = "disk"
)

// Token returns the token of a kind for a partition; partition is empty for [TokenDisk].
func Token(kind, partition string) string {
	if partition == "" {
		return "@reassure:" + kind + "@"
	}
	return "@reassure:" + kind + ":" + partition + "@"
}

// ExpandTokens replaces every token in s by what value returns for it. The
// first error of value is returned, naming the token.
func ExpandTokens(s string, value func(kind, partition string) (string, error)) (string, error) {
	var failed error
	out := tokenPattern.ReplaceAllStringFunc(s, func(token string) string {
		m := tokenPattern.FindStringSubmatch(token)
		v, err := value(m[1], m[2])
		if err != nil && failed == nil {
			failed = fmt.Errorf("%s: %w", token, err)
		}
		return v
	})
	if failed != nil {
		return "", failed
	}
	return out, nil
}
