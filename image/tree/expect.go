package tree

import "crypto/sha256"

// Expected is an entry of a tree as it should be, its content included: what
// a disk is compared with, and repaired to.
type Expected struct {
	Entry
	// Size is a regular file's, in bytes, holes included.
	Size int64
	// SHA256 is that of a regular file's content; holes read as zeros.
	SHA256 [sha256.Size]byte
	// Pieces are the parts of a large file that can be fetched by themselves, in
	// order and without gaps. Empty means that it comes as a whole.
	Pieces []Piece
	// First is, for an entry that is one of several names of the same file, the
	// path of the one that comes first in the order of [Before], itself included;
	// a file with one name has "". All names of a file agree in everything but Path.
	First string
	// Links is how many entries name the file, itself included: where an entry
	// takes the place of one of its names, they are one fewer. 0 and 1 mean one.
	Links int
	// Implied marks a folder that the archive has only as part of a path: it has
	// to be there, and its time does not count.
	Implied bool
	// Origin is the caller's own: where the content comes from, say. Nothing here looks at it.
	Origin any
}

// Piece is a part of a file's content.
type Piece struct {
	Offset, Length int64 // in the file, bytes
	SHA256         [sha256.Size]byte
}

// Before says whether path a comes before path b in the order in which trees
// are walked: a folder before what is in it, and that before the folder's next
// neighbour; names by their bytes. "." comes before all others.
func Before(a, b string) bool {
	if a == b || b == "." {
		return false
	}
	if a == "." {
		return true
	}
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return a[i] == '/' || b[i] != '/' && a[i] < b[i]
		}
	}
	return len(a) < len(b)
}
