package main

import (
	"fmt"
	"io"
	"sync/atomic"

	"reassure/image/spec"
	"reassure/image/wad"
)

// progress is a line on a terminal that tells how far something has come. Where
// there is no terminal it is silent.
type progress struct {
	app   *app
	look  look
	shown bool
}

func (a *app) progress() *progress {
	p := &progress{app: a}
	if f := terminal(a.stderr); f != nil {
		p.look = (&app{stdout: f}).look()
	}
	return p
}

// count shows what was counted; a total of 0 is one that nobody knows.
func (p *progress) count(s wad.PackStats, now, total spec.Size) {
	if p.look.width == 0 {
		return
	}
	line := fmt.Sprintf("%d entries, %s", s.Entries, s.Bytes)
	if total > 0 {
		line = p.look.bar(float64(now)/float64(total), 24) + " " + line
	}
	p.shown = true
	fmt.Fprintf(p.app.stderr, "\r%s\x1b[K", p.look.clip(line, 1))
}

// done takes the line away.
func (p *progress) done() {
	if p.shown {
		fmt.Fprint(p.app.stderr, "\r\x1b[K")
	}
}

// counted counts what is read.
type counted struct {
	io.Reader
	n atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}
