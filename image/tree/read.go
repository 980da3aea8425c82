package tree

import "golang.org/x/sys/unix"

// Read returns what is at path, as it would be expected of another tree: all of its
// metadata, and a file's content as its digest. A symbolic link is not followed.
// Whether it has other names only Links says; First is empty.
func Read(path string) (*Expected, error) {
	f, st, err := readEntry(path)
	if err != nil {
		return nil, err
	}
	e := &Expected{Entry: f.Entry, Size: f.size, SHA256: f.content}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		e.Links = int(st.Nlink)
	}
	return e, nil
}

// Xattrs reads all extended attributes of a file, which may be a symbolic link
// and is not followed. A file system that has none is no error.
func Xattrs(path string) (map[string][]byte, error) { return xattrs(path) }
