package logs

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"reassure/image/spec"
)

// Screen is what a person sees of a reimage, on every console: a banner, a
// line for each phase and its time, log lines in between, and how far the
// present phase is. On a VT that is one line drawn again and again; a serial
// line gets a new one every few seconds or ten percent. Nothing is wider than
// 80 columns but log lines. It is safe for concurrent use.
type Screen struct {
	consoles []*Console
	now      func() time.Time

	mu       sync.Mutex
	phase    string
	began    time.Time
	phases   []spec.PhaseTime
	bar      string              // the progress line that VTs show now; empty is none
	reported map[*Console]report // what serial consoles were last told
}

type report struct {
	at      time.Time
	percent int
}

const (
	columns = 80
	// A serial console gets a progress line when one of these has passed.
	serialEvery   = 5 * time.Second
	serialPercent = 10
	// drawEvery is how often progress is looked at.
	drawEvery = 250 * time.Millisecond

	eraseLine = "\r\x1b[K"
	bold      = "\x1b[1m"
	red       = "\x1b[1;31m"
	green     = "\x1b[1;32m"
	plain     = "\x1b[0m"
)

// NewScreen returns a screen on these consoles, which may be none.
func NewScreen(consoles []*Console) *Screen {
	return &Screen{consoles: consoles, now: time.Now}
}

// Write shows log lines, each ended; it is meant for a [Handler]. It never fails.
func (s *Screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.print(string(p), string(p))
	return len(p), nil
}

// print writes text to serial consoles and vt to VTs, above the progress line.
func (s *Screen) print(text, vt string) {
	for _, c := range s.consoles {
		switch {
		case !c.VT:
			_, _ = c.Write([]byte(text)) // never fails
		case s.bar != "":
			_, _ = c.Write([]byte(eraseLine + vt + s.bar))
		default:
			_, _ = c.Write([]byte(vt))
		}
	}
}

// Banner shows a title and lines of facts below it.
func (s *Screen) Banner(title string, facts ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rule := strings.Repeat("-", columns-1) + "\n"
	title = clip(title, columns-2)
	below := ""
	for _, f := range facts {
		below += " " + clip(f, columns-2) + "\n"
	}
	s.print("\n"+rule+" "+title+"\n"+below+rule, "\n"+rule+" "+bold+title+plain+"\n"+below+rule)
}

// Phase ends the phase before, showing how long it took, and begins another.
func (s *Screen) Phase(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end("ok", green)
	s.phase, s.began = name, s.now()
	line := " -> " + clip(name, columns-5) + "\n"
	s.print(line, line)
}

// Done ends the last phase.
func (s *Screen) Done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end("ok", green)
}

// Failed ends the present phase and shows the reason, whole: whoever stands
// before the PC has nothing else.
func (s *Screen) Failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end("FAILED", red)
	text := "\n" + wrap(printable(strings.ReplaceAll(err.Error(), "\n", "; ")), columns-4, "    ") + "\n"
	s.print(text, red+text+plain)
}

// Phases returns the phases that have ended, with their times, in order.
func (s *Screen) Phases() []spec.PhaseTime {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]spec.PhaseTime(nil), s.phases...)
}

// Reset forgets the phases, for another try.
func (s *Screen) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.phases = "", nil
}

func (s *Screen) end(how, colour string) {
	s.dropBar()
	if s.phase == "" {
		return
	}
	took := s.now().Sub(s.began)
	s.phases = append(s.phases, spec.PhaseTime{Name: s.phase, Seconds: took.Seconds()})
	time := fmt.Sprintf(" %.1f s", took.Seconds())
	name := clip(s.phase, columns-30)
	dots := strings.Repeat(".", columns-1-len(" FAILED ")-len([]rune(name))-len(time)-1)
	s.print(fmt.Sprintf(" %-6s %s %s%s\n", how, name, dots, time),
		fmt.Sprintf(" %s%-6s%s %s %s%s\n", colour, how, plain, name, dots, time))
	s.phase = ""
}

func (s *Screen) dropBar() {
	if s.bar == "" {
		return
	}
	s.bar = ""
	for _, c := range s.consoles {
		if c.VT {
			_, _ = c.Write([]byte(eraseLine)) // never fails
		}
	}
}

// Flush waits, at most that long, until every console has taken what was shown:
// what still waits is lost when the PC restarts.
func (s *Screen) Flush(wait time.Duration) {
	s.mu.Lock()
	consoles := s.consoles
	s.mu.Unlock()
	deadline := s.now().Add(wait)
	for _, c := range consoles {
		for !c.idle() && s.now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// Close shows what is left, waiting at most that long for slow consoles, and
// gives the consoles up.
func (s *Screen) Close(wait time.Duration) {
	s.mu.Lock()
	s.dropBar()
	consoles := s.consoles
	s.consoles = nil
	s.mu.Unlock()
	var all sync.WaitGroup
	for _, c := range consoles {
		all.Go(func() { c.Close(wait) })
	}
	all.Wait()
}

// Progress is work under way, shown on a [Screen] until it is ended.
type Progress struct {
	done  atomic.Uint64
	stop  chan struct{}
	ended chan struct{}
	once  sync.Once
}

// Progress begins to show how far the work of that name is, of total bytes (0
// when unknown). each, unless nil, is called with every sample, a few times a
// second, from one goroutine: it is where events come from.
func (s *Screen) Progress(name string, total spec.Size, each func(Sample)) *Progress {
	p := &Progress{stop: make(chan struct{}), ended: make(chan struct{})}
	s.mu.Lock()
	s.reported = map[*Console]report{}
	s.mu.Unlock()
	meter := NewMeter(total, s.now())
	ticker := time.NewTicker(drawEvery)
	go func() {
		defer close(p.ended)
		defer ticker.Stop()
		begin := s.now()
		for {
			select {
			case <-ticker.C:
			case <-p.stop:
				s.mu.Lock()
				s.dropBar()
				s.mu.Unlock()
				return
			}
			now := s.now()
			sample := meter.At(spec.Size(p.done.Load()), now)
			s.draw(name, sample, begin, now)
			if each != nil {
				each(sample)
			}
		}
	}()
	return p
}

// Write counts len(b) bytes as done, so that a Progress can stand in an
// [io.MultiWriter] or behind an [io.TeeReader].
func (p *Progress) Write(b []byte) (int, error) {
	p.done.Add(uint64(len(b)))
	return len(b), nil
}

// Add counts n bytes as done.
func (p *Progress) Add(n uint64) { p.done.Add(n) }

// Set says how many bytes are done.
func (p *Progress) Set(done uint64) { p.done.Store(done) }

// End stops showing the progress; each is not called any more after it returned.
func (p *Progress) End() {
	p.once.Do(func() { close(p.stop) })
	<-p.ended
}

func (s *Screen) draw(name string, sample Sample, begin, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bar = Line(name, sample)
	for _, c := range s.consoles {
		if c.VT {
			// A console that is behind gets the next one.
			if c.idle() {
				_, _ = c.Write([]byte(eraseLine + s.bar)) // never fails
			}
			continue
		}
		last, told := s.reported[c]
		if !told {
			last = report{at: begin}
		}
		if now.Sub(last.at) < serialEvery && sample.Percent() < last.percent+serialPercent {
			continue
		}
		s.reported[c] = report{at: now, percent: sample.Percent()}
		_, _ = c.Write([]byte(s.bar + "\n")) // never fails
	}
}

// Line writes a sample as one line of less than 80 columns, without its end.
func Line(name string, s Sample) string {
	const name0, bar0 = 22, 20
	var b bytes.Buffer
	fmt.Fprintf(&b, "    %-*s ", name0, clip(name, name0))
	if s.Total > 0 {
		full := s.Percent() * bar0 / 100
		fmt.Fprintf(&b, "[%s%s] %3d%%", strings.Repeat("#", full), strings.Repeat(".", bar0-full), s.Percent())
	} else {
		fmt.Fprintf(&b, "%v", s.Done)
	}
	if s.Rate > 0 {
		fmt.Fprintf(&b, "  %v/s", s.Rate)
	}
	if s.ETA > 0 {
		fmt.Fprintf(&b, "  %s left", clock(s.ETA))
	}
	return clip(b.String(), columns-1)
}

// clock writes a time as minutes and seconds, or hours and minutes.
func clock(d time.Duration) string {
	s := int(d.Round(time.Second) / time.Second)
	if s >= 3600 {
		return fmt.Sprintf("%dh%02dm", s/3600, s%3600/60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// clip makes text fit into width columns, each character taken for one.
func clip(text string, width int) string {
	runes := []rune(printable(text))
	if len(runes) <= width {
		return string(runes)
	}
	return string(runes[:width-1]) + "~"
}

// wrap breaks text at spaces into lines of at most width columns, each with
// indent before it and ended.
func wrap(text string, width int, indent string) string {
	var out strings.Builder
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len([]rune(line))+1+len([]rune(word)) > width {
			out.WriteString(indent + line + "\n")
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	if line != "" {
		out.WriteString(indent + line + "\n")
	}
	return out.String()
}
