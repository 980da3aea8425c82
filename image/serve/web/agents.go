package web

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"reassure/image/spec"
)

// kinds are all kinds of events.
var kinds = [...]spec.EventKind{
	spec.EventStart, spec.EventPlan, spec.EventPhase, spec.EventProgress, spec.EventStep,
	spec.EventKeys, spec.EventFailure, spec.EventDone, spec.EventUpToDate, spec.EventErrand, spec.EventRescue,
}

// agent is the token of a PC, if it has one and has not asked too often.
func (s *Server) agent(c *call) (string, error) {
	if !s.agents.take(c.from) {
		c.w.Header().Set("Retry-After", "1")
		return "", refusef(http.StatusTooManyRequests, "too many requests from %s: wait a second", c.from)
	}
	token := bearer(c.r)
	if token == "" {
		c.w.Header().Set("WWW-Authenticate", "Bearer")
		return "", refusef(http.StatusUnauthorized, "this is for PCs that are told Remote: send the token of the kernel command line (reassure.token) as Authorization: Bearer TOKEN")
	}
	return token, nil
}

// manifest serves a PC's manifest, 01-MAC.json, and its signature,
// 01-MAC.json.minisig.
func (s *Server) manifest(c *call) error {
	file := c.r.PathValue("file")
	name, signed := strings.CutSuffix(file, ".minisig")
	name, isJSON := strings.CutSuffix(name, ".json")
	mac, err := spec.ParsePXE(name)
	if err != nil || !isJSON || mac.PXE() != name {
		return refusef(http.StatusNotFound, "there is no manifest %s: ask for 01-MAC.json or 01-MAC.json.minisig, in lower case", file)
	}
	token, err := s.agent(c)
	if err != nil {
		return err
	}
	text, signature, err := s.lab.Manifest(mac, token, c.from)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", file, err)
	}
	c.w.Header().Set("Cache-Control", "no-store") // it may hold secrets
	c.w.Header().Set("Content-Type", "application/json")
	if signed {
		c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		text = signature
	}
	c.w.Header().Set("Content-Length", fmt.Sprint(len(text)))
	_, _ = c.w.Write(text)
	return nil
}

// event takes one event of a PC.
func (s *Server) event(c *call) error {
	host := c.r.PathValue("host")
	token, err := s.agent(c)
	if err != nil {
		return err
	}
	var e spec.Event
	if err := c.decode(&e, maxEvent); err != nil {
		return fmt.Errorf("event of %s: %w", host, err)
	}
	if !slices.Contains(kinds[:], e.Kind) {
		return refusef(http.StatusBadRequest, "event of %s: kind %q is not known", host, e.Kind)
	}
	if err := s.lab.Event(token, c.from, host, e); err != nil {
		return fmt.Errorf("event of %s: %w", host, err)
	}
	s.metrics.events.WithLabelValues(string(e.Kind)).Inc()
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// capture takes the system of a PC as a tarball.
func (s *Server) capture(c *call) error {
	host := c.r.PathValue("host")
	token, err := s.agent(c)
	if err != nil {
		return err
	}
	done, err := s.lab.Capture(c.r.Context(), token, c.from, host, moving{c})
	// What follows may take longer than the last piece could.
	_ = c.w.control.SetReadDeadline(time.Time{})
	if err != nil {
		return fmt.Errorf("capture of %s: %w", host, err)
	}
	return c.json(done, nil)
}

// moving is a body of any length of which every piece must come in time.
type moving struct{ *call }

func (m moving) Read(p []byte) (int, error) {
	_ = m.w.control.SetReadDeadline(time.Now().Add(stallTime)) // only tests have none
	n, err := m.r.Body.Read(p)
	if err != nil && err != io.EOF {
		err = refusef(http.StatusBadRequest, "the tarball broke off: %w", err)
	}
	return n, err
}
