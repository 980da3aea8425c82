package store

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lab.db")
	s := open(t, path)
	if err := s.Save(Entry{"hosts", "b", []byte("2")}, Entry{"hosts", "a", []byte("1")}, Entry{"meta", "x", []byte("y")}); err != nil {
		t.Fatal(err)
	}
	// A batch with one entry that cannot be written leaves nothing of the others.
	if err := s.Save(Entry{"hosts", "c", []byte("3")}, Entry{"hosts", "", []byte("no key")}); err == nil {
		t.Error("an entry without a key was taken")
	}
	if err := s.Save(Entry{"hosts", "a", nil}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	defer s.Close()
	var got []string
	if err := s.Load("hosts", func(k string, v []byte) error { got = append(got, k+"="+string(v)); return nil }); err != nil {
		t.Fatal(err)
	}
	if strings.Join(got, " ") != "b=2" {
		t.Errorf("hosts: %v, want b=2 alone", got)
	}
	if v, err := s.Get("meta", "x"); err != nil || string(v) != "y" {
		t.Errorf("meta/x: %q, %v", v, err)
	}
	if v, err := s.Get("nowhere", "x"); err != nil || v != nil {
		t.Errorf("what is not there: %q, %v", v, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v, %v", info.Mode(), err)
	}
}

func TestRefusals(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lab.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("not a store ", 2000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("a damaged file: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none", "lab.db")); err == nil {
		t.Error("a file in a folder that is not there was opened")
	}
}

// TestKill has another process save numbers until it is killed: everything that
// it said was saved is there.
func TestKill(t *testing.T) {
	if path := os.Getenv("REASSURE_STORE_TEST"); path != "" {
		s := open(t, path)
		for i := 0; ; i++ {
			text := []byte(strconv.Itoa(i))
			if err := s.Save(Entry{"n", "last", text}, Entry{"n", "also", text}); err != nil {
				t.Fatal(err)
			}
			fmt.Println("saved", i)
		}
	}
	path := filepath.Join(t.TempDir(), "lab.db")
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "REASSURE_STORE_TEST="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := -1
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if n, ok := strings.CutPrefix(lines.Text(), "saved "); ok {
				said, _ = strconv.Atoi(n)
			}
			if said == 10*(round+1) {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // it was killed
		s := open(t, path)
		last, err := s.Get("n", "last")
		if err != nil {
			t.Fatal(err)
		}
		also, err := s.Get("n", "also")
		if err != nil {
			t.Fatal(err)
		}
		if n, _ := strconv.Atoi(string(last)); n < said || string(last) != string(also) {
			t.Errorf("round %d: it said %d; the store has %s and %s", round, said, last, also)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
