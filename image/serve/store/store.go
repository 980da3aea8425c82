// Package store keeps what the boot server must not forget: one file, written
// through bbolt. Every [Store.Save] is one transaction that is on the disk, whole,
// when it returns, and not there at all when the machine dies before.
//
// bbolt and not SQLite: it is Go alone, so that the server stays one static
// program; a page is either the old one or the new one, without a journal to
// replay after kill -9; and what is kept here is a few thousand small JSON values
// that are looked up by name, for which SQL would be a second language.
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Entry is one value in a bucket.
type Entry struct {
	Bucket, Key string
	// Value is the new content; nil removes the entry.
	Value []byte
}

// Store is an open file. Only one process at a time has it open.
type Store struct {
	db   *bbolt.DB
	path string
}

// lockTime is how long Open waits for another process to let go of the file: a
// server that is being replaced needs a moment to end.
const lockTime = 5 * time.Second

// Open opens the file path, or makes it, for its owner only.
func Open(path string) (*Store, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTime, FreelistType: bbolt.FreelistMapType})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%s is in use: another boot server runs with the same state folder", path)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("store: %w", err)
	case err != nil:
		return nil, fmt.Errorf("%s is damaged (%w): move it away to begin with nothing known of any PC; they are then asked anew", path, err)
	}
	// bbolt keeps an old file's mode.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("store: %w", err), db.Close())
	}
	return &Store{db: db, path: path}, nil
}

// Load calls each for every entry of a bucket, in the order of the keys. The
// value is each's to keep.
func (s *Store) Load(bucket string, each func(key string, value []byte) error) error {
	err := s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error { return each(string(k), append([]byte{}, v...)) })
	})
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	return nil
}

// Get returns one value, or nil.
func (s *Store) Get(bucket, key string) ([]byte, error) {
	var value []byte
	err := s.db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket([]byte(bucket)); b != nil {
			if v := b.Get([]byte(key)); v != nil {
				value = append([]byte{}, v...)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	return value, nil
}

// Save writes all entries, or none; when it returns nil they are on the disk.
func (s *Store) Save(entries ...Entry) error {
	if len(entries) == 0 {
		return nil
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		for _, e := range entries {
			b, err := tx.CreateBucketIfNotExists([]byte(e.Bucket))
			if err != nil {
				return err
			}
			if e.Value == nil {
				err = b.Delete([]byte(e.Key))
			} else {
				err = b.Put([]byte(e.Key), e.Value)
			}
			if err != nil {
				return fmt.Errorf("%s/%s: %w", e.Bucket, e.Key, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	return nil
}

// Close lets go of the file.
func (s *Store) Close() error { return s.db.Close() }
