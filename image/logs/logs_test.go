package logs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"reassure/image/spec"
)

func TestHandler(t *testing.T) {
	for _, tt := range []struct {
		name    string
		options Options
		log     func(*slog.Logger)
		want    string
	}{
		{name: "plain", log: func(l *slog.Logger) { l.Info("mounted", "device", "/dev/sda1", "at", "/mnt/my root") }, want: "mounted device=/dev/sda1 at=\"/mnt/my root\"\n"},
		{name: "below the level", log: func(l *slog.Logger) { l.Debug("no") }},
		{name: "debug", options: Options{Level: slog.LevelDebug}, log: func(l *slog.Logger) { l.Debug("yes") }, want: "yes\n"},
		{
			name: "levels are words", log: func(l *slog.Logger) { l.Warn("slow"); l.Error("gone", "error", errors.New("no carrier")) },
			want: "warning: slow\nerror: gone error=\"no carrier\"\n",
		},
		{
			name:    "time",
			options: Options{Since: func() time.Duration { return 12345 * time.Millisecond }},
			log:     func(l *slog.Logger) { l.Info("x") }, want: "[   12.345] x\n",
		},
		{
			name: "groups",
			log: func(l *slog.Logger) {
				l.With("a", 1).WithGroup("g").With("b", 2).Info("x", "c", "", slog.Group("h", "d", 3), slog.Group("", "e", 4))
			},
			want: "x a=1 g.b=2 g.c=\"\" g.h.d=3 g.e=4\n",
		},
		{name: "several lines", log: func(l *slog.Logger) { l.Info("one\ntwo\n") }, want: "one\ntwo\n"},
		{name: "escapes are shown", log: func(l *slog.Logger) { l.Info("a\x1b[2Jb", "k", "\x07") }, want: "a?[2Jb k=?\n"},
		{name: "cut at a character", options: Options{MaxLine: 10}, log: func(l *slog.Logger) { l.Info("12345ä890123") }, want: "12345...\n"},
		{name: "exactly fitting", options: Options{MaxLine: 10}, log: func(l *slog.Logger) { l.Info("123456789") }, want: "123456789\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			tt.log(slog.New(NewHandler(&out, tt.options)))
			if diff := cmp.Diff(tt.want, out.String()); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
}

// writes keeps each Write apart, as /dev/kmsg does.
type writes []string

func (w *writes) Write(p []byte) (int, error) { *w = append(*w, string(p)); return len(p), nil }

func TestKmsg(t *testing.T) {
	var got writes
	log := slog.New(NewKmsg(&got, slog.LevelDebug, ""))
	log.Debug("d")
	log.Info("two\nlines")
	log.Error(strings.Repeat("x", 2000))
	want := []string{"<15>reassure: d\n", "<14>reassure: two\n", "<14>reassure: lines\n", "<13>reassure: error: "}
	if len(got) != len(want) {
		t.Fatalf("%d records: %q", len(got), got)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("record %d = %.40q; want %q", i, got[i], want[i])
		}
	}
	if n := len(got[3]); n != kmsgLine || !strings.HasSuffix(got[3], "...\n") {
		t.Errorf("the long record has %d bytes; want %d, marked as cut", n, kmsgLine)
	}
}

func TestRing(t *testing.T) {
	r := NewRing(3)
	if got := r.Lines(); len(got) != 0 {
		t.Errorf("an empty ring has %q", got)
	}
	for _, p := range []string{"1\n", "2", "\n3\n4\n", "5\nunfinished"} {
		_, _ = r.Write([]byte(p))
	}
	if diff := cmp.Diff([]string{"3", "4", "5"}, r.Lines()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestRingGivesEachLineOnce(t *testing.T) {
	r := NewRing(3)
	write := func(lines ...string) {
		for _, l := range lines {
			_, _ = io.WriteString(r, l+"\n")
		}
	}
	for _, step := range []struct{ write, want []string }{
		{nil, nil},
		{[]string{"1", "2"}, []string{"1", "2"}},
		{nil, nil},
		{[]string{"3", "4", "5"}, []string{"3", "4", "5"}},
		{[]string{"6"}, []string{"6"}},
		{[]string{"7", "8", "9", "10", "11"}, []string{"(2 lines left out)", "9", "10", "11"}},
		{nil, nil},
	} {
		write(step.write...)
		if diff := cmp.Diff(step.want, r.Take(), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("after %v (-want +got):\n%s", step.write, diff)
		}
	}
	if got := len(r.Lines()); got != 3 {
		t.Errorf("%d lines are kept; want 3", got)
	}
}

func TestASecretIsHidden(t *testing.T) {
	var got writes
	log := slog.New(NewHandler(&got, Options{Hide: "s3cr3t"})).With("always", "s3cr3t")
	log.Info("a step printed reassure.token=s3cr3t", "error", errors.New("s3cr3t, twice"))
	NewKmsg(&got, nil, "s3cr3t").Handle(t.Context(), slog.NewRecord(time.Time{}, slog.LevelInfo, "s3cr3t", 0))
	if all := strings.Join(got, ""); strings.Contains(all, "s3cr3t") || strings.Count(all, "(hidden)") != 4 {
		t.Errorf("lines are %q", all)
	}
}

func TestRingIsConcurrent(t *testing.T) {
	r := NewRing(50)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 100 {
				_, _ = r.Write([]byte("line\n"))
				r.Lines()
			}
		})
	}
	all.Wait()
	if got := len(r.Lines()); got != 50 {
		t.Errorf("%d lines; want 50", got)
	}
}

// stuck is a console that takes nothing until it is released or closed.
type stuck struct {
	release chan struct{}
	once    sync.Once
	bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) { <-s.release; return s.Buffer.Write(p) }
func (s *stuck) Close() error                { s.once.Do(func() { close(s.release) }); return nil }

func TestAStuckConsoleStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := &stuck{release: make(chan struct{})}
		c := NewConsole("ttyS0", false, bad)
		for range queued + 100 {
			_, _ = c.Write([]byte("line\n"))
		}
		begin := time.Now()
		c.Close(3 * time.Second)
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("Close took %v; want its limit of 3s", took)
		}
		c.Close(time.Second) // again, and nothing happens
		_, _ = c.Write([]byte("late\n"))
		synctest.Wait()
		got := bad.String()
		if !strings.Contains(got, "lines were lost here") || strings.Count(got, "line\n") != queued || strings.Contains(got, "late") {
			t.Errorf("after release it got %d lines, ending %q", strings.Count(got, "line\n"), got[max(0, len(got)-80):])
		}
	})
}

type closer struct{ bytes.Buffer }

func (*closer) Close() error { return nil }

func TestOpenConsoles(t *testing.T) {
	for _, tt := range []struct {
		name, active string
		devices      []string
		want         map[string]bool // name: is a VT
		wantErr      bool
	}{
		{name: "screen and serial", active: "tty0 ttyS0\n", devices: []string{"tty0", "ttyS0", "console"}, want: map[string]bool{"tty0": true, "ttyS0": false}},
		{name: "one is missing", active: "ttyS0 hvc0\n", devices: []string{"hvc0", "console"}, want: map[string]bool{"hvc0": false}},
		{name: "none named", devices: []string{"console"}, want: map[string]bool{"console": false}},
		{name: "nothing at all", active: "ttyS0\n", wantErr: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			if tt.active != "" {
				write(t, filepath.Join(root, "sys/class/tty/console/active"), tt.active)
			}
			for _, d := range tt.devices {
				write(t, filepath.Join(root, "dev", d), "")
			}
			consoles, err := OpenConsoles(root)
			if (err != nil) != tt.wantErr {
				t.Fatalf("OpenConsoles = %v", err)
			}
			got := map[string]bool{}
			for _, c := range consoles {
				got[c.Name] = c.VT
				_, _ = io.WriteString(c, "hello "+c.Name+"\n")
				c.Close(10 * time.Second)
				if text, _ := os.ReadFile(filepath.Join(root, "dev", c.Name)); string(text) != "hello "+c.Name+"\n" {
					t.Errorf("%s got %q", c.Name, text)
				}
			}
			if !tt.wantErr {
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("consoles (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestMeter(t *testing.T) {
	now := time.Unix(0, 0)
	m := NewMeter(1000*spec.MiB, now)
	if s := m.At(0, now); s.Rate != 0 || s.ETA != 0 || s.Percent() != 0 {
		t.Errorf("at the start: %+v", s)
	}
	var s Sample
	for i := range 20 {
		now = now.Add(time.Second)
		s = m.At(spec.Size(i+1)*10*spec.MiB, now)
	}
	if s.Rate != 10*spec.MiB || s.Percent() != 20 || s.ETA != 80*time.Second {
		t.Errorf("steady 10 MiB/s: %+v", s)
	}
	// A stall pulls the rate down within a few seconds, not at once.
	s = m.At(s.Done, now.Add(time.Second))
	if s.Rate >= 10*spec.MiB || s.Rate < 7*spec.MiB {
		t.Errorf("one second of stall: %v/s", s.Rate)
	}
	s = m.At(s.Done, now.Add(30*time.Second))
	if s.Rate > 100*spec.KiB {
		t.Errorf("thirty seconds of stall: %v/s", s.Rate)
	}
	// A mirror that begins anew is no giant step.
	if s = m.At(spec.MiB, now.Add(31*time.Second)); s.Done != spec.MiB || s.Rate > 100*spec.KiB {
		t.Errorf("anew: %+v", s)
	}
	if s = NewMeter(0, now).At(5, now); s.Percent() != 0 || s.ETA != 0 {
		t.Errorf("unknown total: %+v", s)
	}
}

func TestLineFits(t *testing.T) {
	for _, s := range []Sample{
		{},
		{Done: 370 * spec.MiB, Total: 370 * spec.MiB, Rate: 1},
		{Done: 123 * spec.MiB, Total: 370 * spec.MiB, Rate: 117 * spec.MiB, ETA: 125 * time.Second},
		{Done: 1 << 62, Total: 1 << 63, Rate: 1 << 62, ETA: 300 * time.Hour},
		{Done: 1 << 62, Rate: 999 * spec.MiB},
	} {
		if got := Line("a wad with quite a long name.tar.zst", s); len(got) >= columns {
			t.Errorf("%d columns: %q", len(got), got)
		}
	}
	want := "    root.tar.zst           [######..............]  33%  117 MiB/s  2:05 left"
	if got := Line("root.tar.zst", Sample{Done: 123, Total: 370, Rate: 117 * spec.MiB, ETA: 125 * time.Second}); got != want {
		t.Errorf("Line = %q; want %q", got, want)
	}
}

// TestScreen shows the same on a VT and on a serial line, under a clock of its own.
func TestScreen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var vt, serial closer
		s := NewScreen([]*Console{NewConsole("tty0", true, &vt), NewConsole("ttyS0", false, &serial)})
		log := slog.New(NewHandler(s, Options{}))
		s.Banner("ReAssure: reimaging exp01", "profile debian", strings.Repeat("long ", 40))
		s.Phase("partition /dev/sda")
		time.Sleep(1500 * time.Millisecond)
		s.Phase("extract")
		var samples []Sample
		p := s.Progress("root.tar.zst", 100*spec.MiB, func(s Sample) { samples = append(samples, s) })
		for i := range 80 {
			time.Sleep(drawEvery)
			p.Add(uint64(spec.MiB))
			if i == 20 {
				log.Warn("the server is slow")
			}
		}
		p.End()
		p.End()
		s.Failed(context.DeadlineExceeded)
		s.Close(time.Second)

		if len(samples) < 79 || samples[len(samples)-1].Rate < 3*spec.MiB || samples[len(samples)-1].Rate > 5*spec.MiB {
			t.Errorf("%d samples, the last %+v", len(samples), samples[len(samples)-1])
		}
		text := serial.String()
		if strings.ContainsAny(text, "\x1b\r") {
			t.Errorf("escapes on the serial line: %q", text)
		}
		for _, want := range []string{
			" ReAssure: reimaging exp01\n", " -> extract\n", "warning: the server is slow\n", "context deadline exceeded",
			" ok     partition /dev/sda ..", ".. 1.5 s\n", " FAILED extract ..",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("the serial line lacks %q:\n%s", want, text)
			}
		}
		// 20 s and 79 %: a line at each 10 % or 5 s, not 80 of them.
		if n := strings.Count(text, "% "); n < 5 || n > 12 {
			t.Errorf("%d progress lines on the serial line:\n%s", n, text)
		}
		for line := range strings.Lines(text) {
			if len(line) > columns {
				t.Errorf("%d columns: %q", len(line), line)
			}
		}
		if n := strings.Count(vt.String(), eraseLine); n < 70 {
			t.Errorf("%d draws on the VT", n)
		}
		if !strings.Contains(vt.String(), eraseLine+"warning: the server is slow\n    root.tar.zst") {
			t.Error("a log line on the VT does not stand above the progress line")
		}
		got := s.Phases()
		if len(got) != 2 || got[0].Name != "partition /dev/sda" || got[0].Seconds != 1.5 || got[1].Seconds != 20 {
			t.Errorf("phases = %+v", got)
		}
	})
}

func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var good closer
		bad := &stuck{release: make(chan struct{})}
		s := NewScreen([]*Console{NewConsole("tty0", true, &good), NewConsole("ttyS0", false, bad)})
		_, _ = s.Write([]byte("last words\n"))
		begin := time.Now()
		s.Flush(2 * time.Second)
		if took := time.Since(begin); good.String() != "last words\n" || took < 2*time.Second || took > 3*time.Second {
			t.Errorf("after %v the screen shows %q", took, good.String())
		}
		s.Close(0)
	})
}

func TestWrap(t *testing.T) {
	if got, want := wrap("one two three", 7, "  "), "  one two\n  three\n"; got != want {
		t.Errorf("wrap = %q; want %q", got, want)
	}
}
