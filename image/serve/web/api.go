package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

// Limits of bodies.
const (
	maxBody  = 64 << 10
	maxEvent = 1 << 20
)

func (s *Server) refuseAPI(c *call, err error) {
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Cache-Control", "no-store")
	c.w.WriteHeader(statusOf(err))
	_ = json.NewEncoder(c.w).Encode(api.Error{Text: err.Error()})
}

// json answers with a value, or passes on why there is none.
func (c *call) json(value any, err error) error {
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Cache-Control", "no-store")
	_, _ = c.w.Write(append(text, '\n'))
	return nil
}

// list makes JSON's [] of nothing, not null.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// body reads a request's body, whole, in time and up to a limit.
func (c *call) body(limit int64) ([]byte, error) {
	_ = c.w.control.SetReadDeadline(time.Now().Add(bodyTime)) // only tests have none
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, limit))
	// What follows may take longer than the body could; the deadline would end
	// the request.
	_ = c.w.control.SetReadDeadline(time.Time{})
	if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, fmt.Errorf("the body is larger than %v: %w", spec.Size(large.Limit), err)
	}
	if err != nil {
		return nil, refusef(http.StatusBadRequest, "the body broke off: %w", err)
	}
	return body, nil
}

// decode reads a request's JSON. Fields that are not known are refused: a
// mistyped one must not silently mean its default.
func (c *call) decode(into any, limit int64) error {
	if t := c.r.Header.Get("Content-Type"); t != "" {
		if kind, _, err := mime.ParseMediaType(t); err != nil || kind != "application/json" {
			return refusef(http.StatusUnsupportedMediaType, "the body is %s: send application/json", t)
		}
	}
	body, err := c.body(limit)
	if err != nil {
		return err
	}
	d := json.NewDecoder(strings.NewReader(string(body)))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		if errors.Is(err, io.EOF) {
			return refusef(http.StatusBadRequest, "the body is empty: send one JSON object")
		}
		return refusef(http.StatusBadRequest, "the body is not what is wanted here: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return refusef(http.StatusBadRequest, "something follows the JSON object: send one")
	}
	return nil
}

func (s *Server) apiHosts(c *call) error {
	if _, err := s.visitor(c); err != nil {
		return err
	}
	return c.json(list(s.lab.Hosts()), nil)
}

func (s *Server) apiHost(c *call) error {
	if _, err := s.visitor(c); err != nil {
		return err
	}
	h, err := s.lab.Host(c.r.PathValue("host"))
	h.History = list(h.History)
	return c.json(h, err)
}

func (s *Server) apiWhy(c *call) error {
	v, err := s.visitor(c)
	if err != nil {
		return err
	}
	why, err := s.lab.Why(c.r.PathValue("host"), v.May)
	return c.json(why, err)
}

func (s *Server) apiLog(c *call) error {
	if _, err := s.visitor(c); err != nil {
		return err
	}
	text, err := s.lab.Log(c.r.PathValue("host"), c.r.URL.Query().Get("attempt"))
	if err != nil {
		return err
	}
	return c.text(text)
}

func (s *Server) apiUnknown(c *call) error {
	if _, err := s.visitor(c); err != nil {
		return err
	}
	return c.json(list(s.lab.Unknown()), nil)
}

func (s *Server) apiCoverage(c *call) error {
	if _, err := s.visitor(c); err != nil {
		return err
	}
	covered, err := s.lab.Coverage()
	covered.Lacking = list(covered.Lacking)
	return c.json(covered, err)
}

func (s *Server) apiKnownHosts(c *call) error {
	if _, err := s.visitor(c); err != nil {
		return err
	}
	return c.text(s.lab.KnownHosts())
}

func (s *Server) apiRollouts(c *call) error {
	if c.r.Method != http.MethodPost {
		if _, err := s.visitor(c); err != nil {
			return err
		}
		return c.json(list(s.lab.Rollouts()), nil)
	}
	v, err := s.changer(c)
	if err != nil {
		return err
	}
	var request api.RolloutRequest
	if err := c.decode(&request, maxBody); err != nil {
		return err
	}
	r, err := s.rollout(c, v, request)
	return c.json(r, err)
}

func (s *Server) apiStop(c *call) error {
	v, err := s.changer(c)
	if err != nil {
		return err
	}
	var request api.StopRequest
	if err := c.decode(&request, maxBody); err != nil {
		return err
	}
	r, err := s.stop(c, v, c.r.PathValue("id"), request.Why)
	return c.json(r, err)
}

func (s *Server) apiHold(c *call) error {
	v, targets, err := s.targets(c)
	if err != nil {
		return err
	}
	out, err := s.hold(c, v, targets)
	return c.json(list(out), err)
}

func (s *Server) apiRelease(c *call) error {
	v, targets, err := s.targets(c)
	if err != nil {
		return err
	}
	out, err := s.release(c, v, targets)
	return c.json(list(out), err)
}

func (s *Server) apiAccept(c *call) error {
	v, err := s.changer(c)
	if err != nil {
		return err
	}
	var r api.AcceptRequest
	if err := c.decode(&r, maxEvent); err != nil {
		return err
	}
	out, err := s.accept(c, v, r)
	return c.json(list(out), err)
}

func (s *Server) apiApprove(c *call) error {
	v, err := s.changer(c)
	if err != nil {
		return err
	}
	var r api.ApproveRequest
	if err := c.decode(&r, maxEvent); err != nil {
		return err
	}
	out, err := s.approve(c, v, r)
	return c.json(list(out), err)
}

func (s *Server) apiErrand(c *call) error {
	v, err := s.changer(c)
	if err != nil {
		return err
	}
	var r api.ErrandRequest
	if err := c.decode(&r, maxBody); err != nil {
		return err
	}
	if len(r.Targets.Targets) == 0 {
		return refusef(http.StatusUnprocessableEntity, "no targets: name hosts, @groups or patterns")
	}
	out, err := s.lab.Errand(c.r.Context(), r, v.By)
	if err == nil {
		s.o.Log.Info("errand", "kind", r.Kind, "by", v.By, "targets", r.Targets.Targets, "why", r.Why)
	}
	return c.json(list(out), err)
}

func (s *Server) apiVerify(c *call) error {
	v, err := s.changer(c)
	if err != nil {
		return err
	}
	out, err := s.lab.VerifyRunning(c.r.Context(), c.r.PathValue("host"), v.By)
	return c.json(out, err)
}

func (s *Server) targets(c *call) (visitor, api.Targets, error) {
	var targets api.Targets
	v, err := s.changer(c)
	if err == nil {
		err = c.decode(&targets, maxBody)
	}
	return v, targets, err
}

func (s *Server) apiReload(c *call) error {
	v, err := s.changer(c)
	if err != nil {
		return err
	}
	r, err := s.reload(c, v)
	return c.json(r, err)
}

// What the interface and the page do alike: ask the lab, and log who did.

func (s *Server) rollout(c *call, v visitor, r api.RolloutRequest) (api.Rollout, error) {
	if len(r.Targets) == 0 {
		return api.Rollout{}, refusef(http.StatusUnprocessableEntity, "no targets: name hosts, @groups or patterns")
	}
	out, err := s.lab.Rollout(c.r.Context(), r, v.By)
	if err == nil {
		s.o.Log.Info("roll-out", "id", out.ID, "by", v.By, "targets", r.Targets, "force", r.Force, "why", r.Why)
	}
	return out, err
}

func (s *Server) stop(c *call, v visitor, id, why string) (api.Rollout, error) {
	out, err := s.lab.StopRollout(c.r.Context(), id, why, v.By)
	if err == nil {
		s.o.Log.Info("roll-out stopped", "id", id, "by", v.By, "why", why)
	}
	return out, err
}

func (s *Server) hold(c *call, v visitor, t api.Targets) ([]api.Outcome, error) {
	if len(t.Targets) == 0 {
		return nil, refusef(http.StatusUnprocessableEntity, "no targets: name hosts, @groups or patterns")
	}
	out, err := s.lab.Hold(c.r.Context(), t, v.By)
	if err == nil {
		s.o.Log.Info("hold", "by", v.By, "targets", t.Targets, "why", t.Why)
	}
	return out, err
}

func (s *Server) release(c *call, v visitor, t api.Targets) ([]api.Outcome, error) {
	if len(t.Targets) == 0 {
		return nil, refusef(http.StatusUnprocessableEntity, "no targets: name hosts, @groups or patterns")
	}
	out, err := s.lab.Release(c.r.Context(), t, v.By)
	if err == nil {
		s.o.Log.Info("release", "by", v.By, "targets", t.Targets, "why", t.Why)
	}
	return out, err
}

func (s *Server) accept(c *call, v visitor, r api.AcceptRequest) ([]api.Outcome, error) {
	if len(r.Disks) == 0 {
		return nil, refusef(http.StatusUnprocessableEntity, "no disks: name hosts, each with its disk")
	}
	out, err := s.lab.AcceptDisks(c.r.Context(), r, v.By)
	if err == nil {
		s.o.Log.Info("accept", "by", v.By, "disks", len(r.Disks), "why", r.Why)
	}
	return out, err
}

func (s *Server) approve(c *call, v visitor, r api.ApproveRequest) ([]api.Outcome, error) {
	if len(r.Plans) == 0 {
		return nil, refusef(http.StatusUnprocessableEntity, "no plans: name hosts, each with the digest of its plan")
	}
	out, err := s.lab.Approve(c.r.Context(), r, v.By)
	if err == nil {
		s.o.Log.Info("approve", "by", v.By, "plans", len(r.Plans), "why", r.Why)
	}
	return out, err
}

func (s *Server) reload(c *call, v visitor) (api.Reload, error) {
	out, err := s.lab.Reload(c.r.Context(), v.By)
	if err == nil {
		s.o.Log.Info("reload", "by", v.By, "hosts", out.Hosts, "changed", len(out.Changed))
	}
	return out, err
}
