package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

// The page's texts and assets. Nothing comes from elsewhere: labs are offline.
//
//go:embed page
var pageFiles embed.FS

// asset is a file that pages refer to.
type asset struct {
	content []byte
	kind    string
	url     string // with the content's hash, so that it may be kept for ever
}

func loadPages(base string) (*template.Template, map[string]asset) {
	assets := map[string]asset{}
	for name, kind := range map[string]string{
		"style.css": "text/css; charset=utf-8", "live.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml",
	} {
		content, err := pageFiles.ReadFile("page/" + name)
		if err != nil {
			panic(err) // it is embedded
		}
		sum := sha256.Sum256(content)
		assets[name] = asset{content, kind, base + "/assets/" + name + "?" + hex.EncodeToString(sum[:6])}
	}
	t := template.New("").Funcs(functions()).Funcs(template.FuncMap{
		"asset": func(name string) string { return assets[name].url },
		"path": func(parts ...string) string {
			p := base
			for _, part := range parts {
				p += "/" + url.PathEscape(part)
			}
			return p
		},
	})
	return template.Must(t.ParseFS(pageFiles, "page/*.html")), assets
}

func (s *Server) asset(c *call) error {
	a, ok := s.assets[c.r.PathValue("file")]
	if !ok {
		return refusef(http.StatusNotFound, "there is no asset %s", c.r.PathValue("file"))
	}
	c.w.Header().Set("Content-Type", a.kind)
	c.w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	_, _ = c.w.Write(a.content)
	return nil
}

// policy lets a page load its own assets and nothing else; it may be framed by
// nobody. Inline scripts and styles do not run.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// frame is what all pages show.
type frame struct {
	Base, Title, Version string
	Name                 string // the page's own
	V                    visitor
	CanLogin             bool
	Here                 string // to come back to after a login
	Now                  time.Time
	Flash                []string
	Watch                string // host to watch, "*" for the lab, "" for nothing
}

func (s *Server) frame(c *call, v visitor, name string) frame {
	f := frame{
		Base: s.o.Base, Title: s.o.Title, Version: s.o.Version, Name: name, V: v,
		CanLogin: s.o.Tokens != nil && !c.local, Here: s.o.Base + "/", Now: s.o.Now(),
	}
	if c.r.Method == http.MethodGet {
		here := *c.r.URL
		q := here.Query()
		if q.Has("fragment") { // the page is the same without
			q.Del("fragment")
			q.Del("host")
		}
		here.RawQuery = q.Encode()
		f.Here = here.RequestURI()
	}
	return f
}

// render answers with a page. It is made whole before the first byte leaves.
func (s *Server) render(c *call, status int, name string, data any) error {
	var out bytes.Buffer
	if err := s.pages.ExecuteTemplate(&out, name, data); err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	h := c.w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policy)
	h.Set("Cache-Control", "no-store")
	// Not no-referrer: with it, browsers send "Origin: null" with forms, which
	// says nothing of where they come from (Fetch, 3.2).
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Content-Length", strconv.Itoa(out.Len()))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(out.Bytes())
	return nil
}

func (s *Server) refusePage(c *call, err error) {
	v, refused := s.visitor(c)
	if refused != nil {
		v = visitor{}
	}
	status := statusOf(err)
	data := struct {
		frame
		Status int
		Word   string
		Text   string
	}{s.frame(c, v, http.StatusText(status)), status, http.StatusText(status), err.Error()}
	if s.render(c, status, "error", data) != nil {
		s.refuseText(c, err)
	}
}

// row is a host in the lab's table.
type row struct {
	api.Host
	Now    time.Time
	Select bool   // it can be chosen for something
	Search string // what a search looks at
	Hidden bool   // it is not what was searched
}

func makeRow(h api.Host, now time.Time, v visitor, query []string) row {
	words := []string{h.Name, h.IP, h.Profile, h.Reason}
	for _, m := range h.MACs {
		words = append(words, m.String())
	}
	for _, g := range h.Groups {
		words = append(words, "@"+g)
	}
	if h.Hold != nil {
		words = append(words, h.Hold.Text, h.Hold.By)
	}
	r := row{Host: h, Now: now, Select: v.May, Search: strings.ToLower(strings.Join(words, " "))}
	for _, q := range query {
		r.Hidden = r.Hidden || !strings.Contains(r.Search, q)
	}
	return r
}

// count is how many hosts are in a state.
type count struct {
	State api.State
	N     int
	X, W  float64 // its place in the bar, in percent
	On    bool    // only these are shown
	URL   string
}

// shown roll-outs that are over, beside those that are not.
const oldRollouts = 3

type labPage struct {
	frame
	Total    int
	Counts   []count
	All      string // URL that shows all
	State    api.State
	Query    string
	None     bool // nothing is shown
	Rows     []row
	Rollouts []api.Rollout
	Older    []api.Rollout
	Unknown  []api.Unknown
	Lacking  []string // sentences of what the image lacks
}

// pageLab shows the lab; with ?fragment only what moves, and of the hosts only
// those that ?host names.
func (s *Server) pageLab(c *call) error {
	v, err := s.visitor(c)
	if err != nil {
		return err
	}
	q := c.r.URL.Query()
	p := labPage{frame: s.frame(c, v, "Lab"), Query: strings.TrimSpace(q.Get("q"))}
	p.Watch = "*"
	if slices.Contains(states[:], api.State(q.Get("state"))) {
		p.State = api.State(q.Get("state"))
	}
	p.All = p.link("")
	hosts := s.lab.Hosts()
	p.count(hosts)
	words := strings.Fields(strings.ToLower(p.Query))
	only, some := q["host"]
	visible := 0
	for _, h := range hosts {
		r := makeRow(h, p.Now, v, words)
		if !r.Hidden && (p.State == "" || h.State == p.State) {
			visible++
		}
		if !some || slices.Contains(only, h.Name) {
			p.Rows = append(p.Rows, r)
		}
	}
	p.None = visible == 0 && len(hosts) > 0
	for _, r := range s.lab.Rollouts() {
		if rolloutState(&r) != "finished" || len(p.Rollouts) < 1 {
			p.Rollouts = append(p.Rollouts, r)
		} else if len(p.Older) < oldRollouts {
			p.Older = append(p.Older, r)
		}
	}
	p.Unknown = s.lab.Unknown()
	if q.Has("fragment") {
		if some {
			return s.render(c, http.StatusOK, "lab-rows", p)
		}
		return s.render(c, http.StatusOK, "lab-live", p)
	}
	// An image that does not say what it has is no reason to show no lab.
	if covered, err := s.lab.Coverage(); err == nil {
		p.Lacking = covered.Sentences()
	}
	p.Flash = flash(v)
	return s.render(c, http.StatusOK, "lab", p)
}

func (p *labPage) link(state api.State) string {
	q := url.Values{}
	if state != "" {
		q.Set("state", string(state))
	}
	if p.Query != "" {
		q.Set("q", p.Query)
	}
	if len(q) == 0 {
		return p.Base + "/"
	}
	return p.Base + "/?" + q.Encode()
}

func (p *labPage) count(hosts []api.Host) {
	p.Total = len(hosts)
	n := map[api.State]int{}
	for _, h := range hosts {
		n[h.State]++
	}
	x := 0.0
	for _, state := range states {
		w := share(n[state], p.Total)
		p.Counts = append(p.Counts, count{State: state, N: n[state], X: x, W: w, On: state == p.State, URL: p.link(state)})
		x += w
	}
}

func share(n, of int) float64 {
	if of == 0 {
		return 0
	}
	return 100 * float64(n) / float64(of)
}

func flash(v visitor) []string {
	if v.session == nil {
		return nil
	}
	return v.session.told()
}

type hostPage struct {
	frame
	Host  api.HostDetail
	Asks  *question // nil: nothing
	Why   api.Why
	Steps []step
}

// step is a phase on the way of a running reimage.
type step struct {
	Name  string
	State string // done, now or later
}

// The phases of a whole reimage, as the reimager names them: in full, and by delta.
var (
	fullWay  = [...]string{"hardware", "network", "manifest", "decide", "erase", "format", "extract", "configure", "steps", "commit"}
	deltaWay = [...]string{"hardware", "network", "manifest", "decide", "uncommit", "check", "repair", "steps", "commit"}
)

func (s *Server) pageHost(c *call) error {
	v, err := s.visitor(c)
	if err != nil {
		return err
	}
	h, err := s.lab.Host(c.r.PathValue("host"))
	if err != nil {
		return err
	}
	p := hostPage{frame: s.frame(c, v, h.Name), Host: h}
	p.Watch = h.Name
	switch {
	case h.Ask == spec.AskDisk:
		p.Asks = ask("accept", &h)
	case h.PlanWaits():
		p.Asks = ask("approve", &h)
	}
	if p.Why, err = s.lab.Why(h.Name, v.May); err != nil {
		return err
	}
	if h.Progress != nil {
		way := fullWay[:]
		if h.Plan != nil && h.Plan.Mode == spec.ReimageDelta {
			way = deltaWay[:]
		}
		if at := slices.Index(way, h.Progress.Phase); at >= 0 {
			for i, name := range way {
				state := "later"
				if i < at {
					state = "done"
				} else if i == at {
					state = "now"
				}
				p.Steps = append(p.Steps, step{name, state})
			}
		}
	}
	if c.r.URL.Query().Has("fragment") {
		return s.render(c, http.StatusOK, "host-live", p)
	}
	p.Flash = flash(v)
	return s.render(c, http.StatusOK, "host", p)
}

func (s *Server) pageLog(c *call) error {
	v, err := s.visitor(c)
	if err != nil {
		return err
	}
	h, err := s.lab.Host(c.r.PathValue("host"))
	if err != nil {
		return err
	}
	p := struct {
		frame
		Host    api.HostDetail
		Attempt *api.Attempt
		ID      string
		Text    string
		Lines   int
	}{frame: s.frame(c, v, "Log of "+h.Name), Host: h, ID: c.r.URL.Query().Get("attempt")}
	if p.Text, err = s.lab.Log(h.Name, p.ID); err != nil {
		return err
	}
	p.Lines = strings.Count(p.Text, "\n")
	for i := range h.History {
		if a := &h.History[i]; a.ID == p.ID || (p.ID == "" && i == 0) {
			p.Attempt = a
		}
	}
	if p.Attempt != nil && p.Attempt.Result == api.UnderWay {
		p.Watch = h.Name
	}
	name := "log"
	if c.r.URL.Query().Has("fragment") {
		name = "log-live"
	}
	return s.render(c, http.StatusOK, name, p)
}

// form reads a request's form, from the body if there is one.
func (c *call) form() (url.Values, error) {
	if c.r.Method != http.MethodPost {
		return c.r.URL.Query(), nil
	}
	body, err := c.body(maxBody)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, refusef(http.StatusBadRequest, "the form cannot be read: %w", err)
	}
	return form, nil
}

// back is where to go after a form: a page of ours, whatever the form says.
func (s *Server) back(to string) string {
	home := s.o.Base + "/"
	u, err := url.Parse(to)
	if err != nil || u.IsAbs() || u.Host != "" || strings.ContainsAny(to, "\\\r\n") || strings.HasPrefix(to, "//") {
		return home
	}
	if path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/") && u.Path != home || !strings.HasPrefix(u.Path, home) {
		return home
	}
	return to
}

type loginPage struct {
	frame
	Next  string
	Wrong string
}

func (s *Server) pageLogin(c *call) error {
	form, err := c.form()
	if err != nil {
		return err
	}
	p := loginPage{frame: s.frame(c, visitor{}, "Log in"), Next: s.back(form.Get("next"))}
	if s.o.Tokens == nil || c.local {
		return refusef(http.StatusNotFound, "nobody can log in here: the server's configuration lists no tokens")
	}
	if c.r.Method != http.MethodPost {
		return s.render(c, http.StatusOK, "login", p)
	}
	// Else another site could log somebody in as somebody else.
	if err := s.fromHere(c); err != nil {
		return err
	}
	who, err := s.known(c, strings.TrimSpace(form.Get("token")))
	if err != nil {
		s.refused(c, "page", err)
		p.Wrong = err.Error()
		if statusOf(err) == http.StatusUnauthorized {
			p.Wrong = "That is nobody's token."
		}
		return s.render(c, statusOf(err), "login", p)
	}
	value, _ := s.sessions.begin(strings.TrimSpace(form.Get("token")))
	http.SetCookie(c.w, &http.Cookie{
		Name: s.cookieName(), Value: value, Path: s.o.Base + "/", MaxAge: int(s.o.Session.Seconds()),
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: c.r.TLS != nil,
	})
	s.o.Log.Info("login", "by", who, "from", c.from)
	http.Redirect(c.w, c.r, p.Next, http.StatusSeeOther)
	return nil
}

func (s *Server) pageLogout(c *call) error {
	if err := s.fromHere(c); err != nil {
		return err
	}
	if cookie, err := c.r.Cookie(s.cookieName()); err == nil {
		s.sessions.end(cookie.Value)
	}
	http.SetCookie(c.w, &http.Cookie{Name: s.cookieName(), Path: s.o.Base + "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	http.Redirect(c.w, c.r, s.o.Base+"/", http.StatusSeeOther)
	return nil
}

// action is something that a person can do to hosts.
type action struct {
	Name string
	Verb string // on the button
	// Wipes says that disks are lost.
	Wipes bool
}

func findAction(name string) (action, error) {
	for _, a := range []action{
		{"rollout", "Roll out", true},
		{"reimage", "Reimage", true},
		{"accept", "Accept disks", false},
		{"approve", "Approve", false},
		{"hold", "Hold", false},
		{"release", "Release", false},
	} {
		if a.Name == name {
			return a, nil
		}
	}
	return action{}, refusef(http.StatusNotFound, "there is no action %q", name)
}

type confirmPage struct {
	frame
	Action action
	Wiped  []api.Host
	Spared []api.Host // that need nothing
	// Questions are what the hosts ask, and Silent those that ask nothing.
	Questions []question
	Silent    []string
	Back      string
	Wrong     string
	Form      url.Values
}

// Hosts are all that were chosen.
func (p confirmPage) Hosts() []api.Host { return append(slices.Clone(p.Wiped), p.Spared...) }

// pageConfirm asks before something is done to hosts, and names each.
func (s *Server) pageConfirm(c *call) error {
	v, err := s.visitor(c)
	if err != nil {
		return err
	}
	if !v.May {
		return refusef(http.StatusUnauthorized, "log in to change things")
	}
	form, err := c.form()
	if err != nil {
		return err
	}
	a, err := findAction(form.Get("action"))
	if err != nil {
		return err
	}
	return s.confirm(c, v, http.StatusOK, a, form, "")
}

func (s *Server) confirm(c *call, v visitor, status int, a action, form url.Values, wrong string) error {
	p := confirmPage{frame: s.frame(c, v, a.Verb), Action: a, Back: s.back(form.Get("next")), Wrong: wrong, Form: form}
	chosen := form["host"]
	for _, h := range s.lab.Hosts() {
		switch {
		case !slices.Contains(chosen, h.Name):
		case a.Name == "rollout" && h.Candidate == h.Installed && !h.Candidate.IsZero():
			p.Spared = append(p.Spared, h)
		default:
			p.Wiped = append(p.Wiped, h)
		}
	}
	if len(p.Wiped)+len(p.Spared) == 0 {
		return refusef(http.StatusUnprocessableEntity, "no host is chosen: tick some in the table")
	}
	if a.asks() {
		for _, host := range p.Hosts() {
			h, err := s.lab.Host(host.Name)
			if err != nil {
				return err
			}
			if q := ask(a.Name, &h); q != nil {
				p.Questions = append(p.Questions, *q)
			} else {
				p.Silent = append(p.Silent, h.Name)
			}
		}
	}
	return s.render(c, status, "confirm", p)
}

// pageDo does what a form says, and goes back to where it was.
func (s *Server) pageDo(c *call) error {
	v, err := s.changer(c)
	if err != nil {
		return err
	}
	form, err := c.form()
	if err != nil {
		return err
	}
	name := c.r.PathValue("action")
	targets := api.Targets{Targets: form["host"], Why: strings.TrimSpace(form.Get("why"))}
	var told []string
	switch name {
	case "reload":
		var r api.Reload
		if r, err = s.reload(c, v); err == nil {
			told = reloadText(r)
		}
	case "stop":
		var r api.Rollout
		if r, err = s.stop(c, v, form.Get("id"), targets.Why); err == nil {
			told = []string{fmt.Sprintf("Roll-out %s is stopped: no more hosts begin.", r.ID)}
		}
	case "hold":
		if targets.Why == "" {
			err = refusef(http.StatusUnprocessableEntity, "a hold needs a reason: say why, for whoever finds the host held")
			break
		}
		var out []api.Outcome
		out, err = s.hold(c, v, targets)
		told = outcomes(out)
	case "release":
		var out []api.Outcome
		out, err = s.release(c, v, targets)
		told = outcomes(out)
	case "accept", "approve":
		var out []api.Outcome
		out, err = s.answer(c, v, name, form, targets.Why)
		told = outcomes(out)
	case "rollout", "reimage":
		var request api.RolloutRequest
		if request, err = rolloutRequest(name, form); err == nil {
			var r api.Rollout
			if r, err = s.rollout(c, v, request); err == nil {
				told = []string{rolloutText(r)}
			}
		}
	default:
		err = refusef(http.StatusNotFound, "there is no action %q", name)
	}
	if err != nil {
		// A mistake in the form is told above the form, which keeps what it had.
		if a, none := findAction(name); none == nil && form.Get("asked") != "" && statusOf(err) < 500 {
			s.refused(c, "page", err)
			return s.confirm(c, v, statusOf(err), a, form, err.Error())
		}
		return err
	}
	if v.session != nil {
		v.session.tell(told...)
	}
	http.Redirect(c.w, c.r, s.back(form.Get("next")), http.StatusSeeOther)
	return nil
}

// rolloutRequest reads a confirmed form.
func rolloutRequest(name string, form url.Values) (api.RolloutRequest, error) {
	r := api.RolloutRequest{
		Targets: form["host"], Force: name == "reimage",
		Between: strings.TrimSpace(form.Get("between")), Now: form.Get("now") != "", Why: strings.TrimSpace(form.Get("why")),
	}
	if form.Get("sure") == "" {
		return r, refusef(http.StatusUnprocessableEntity, "nothing was done: tick that the disks may be wiped")
	}
	bad := func(what, text string) error {
		return refusef(http.StatusUnprocessableEntity, "%s: %q is not a number that makes sense there", what, text)
	}
	if text := strings.TrimSpace(form.Get("canaries")); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return r, bad("canaries", text)
		}
		r.Canaries = &n
	}
	if text := strings.TrimSpace(form.Get("at_once")); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return r, bad("at once", text)
		}
		r.AtOnce = n
	}
	if text := strings.TrimSpace(form.Get("stop_at")); text != "" {
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || !(f >= 0 && f <= 100) {
			return r, bad("stop above", text)
		}
		r.StopAt = &f
	}
	return r, nil
}

func outcomes(out []api.Outcome) []string {
	var lines []string
	for _, o := range out {
		lines = append(lines, o.Host+": "+o.Text)
	}
	return lines
}

func rolloutText(r api.Rollout) string {
	text := fmt.Sprintf("Roll-out %s began: %s in it", r.ID, plural(len(r.Waiting)+len(r.Running), "host"))
	if n := len(r.Same); n > 0 {
		text += fmt.Sprintf(", %s needed nothing", plural(n, "host"))
	}
	return text + "."
}

func reloadText(r api.Reload) []string {
	text := fmt.Sprintf("The site's files were read: %s", plural(r.Hosts, "host"))
	if n := len(r.Changed); n > 0 {
		text += fmt.Sprintf(", %d with other software than before", n)
	}
	if n := len(r.Added); n > 0 {
		text += ", added " + strings.Join(r.Added, " ")
	}
	if n := len(r.Removed); n > 0 {
		text += ", removed " + strings.Join(r.Removed, " ")
	}
	lines := []string{text + "."}
	for _, h := range r.Changed {
		var changes []string
		for _, change := range h.Changes {
			changes = append(changes, change.Text)
		}
		line := h.Name + ": " + strings.Join(changes, "; ")
		if h.Armed {
			line += " (armed)"
		}
		lines = append(lines, line)
	}
	return lines
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// functions are what the pages' texts use.
func functions() template.FuncMap {
	return template.FuncMap{
		"plural": plural,
		"list":   func(q *question) []question { return []question{*q} },
		"share":  share,
		"add":    func(a, b float64) float64 { return a + b },
		"when":   when,
		"clock":  clock,
		"span":   func(seconds float64) string { return span(time.Duration(seconds * float64(time.Second))) },
		"between": func(from, to time.Time) string {
			return span(to.Sub(from))
		},
		"percent": func(p *api.Progress) int {
			if p.Total == 0 {
				return 0
			}
			return int(min(100, 100*float64(p.Done)/float64(p.Total)))
		},
		"target":       target,
		"rolloutState": func(r api.Rollout) string { return rolloutState(&r) },
		"segments":     segments,
		"phases":       phases,
		"pxe":          func(m spec.MAC) string { return m.PXE() },
		"join":         strings.Join,
		"mib":          func(n uint64) string { return strconv.FormatUint(n>>20, 10) },
		"gb":           func(s spec.Size) string { return fmt.Sprintf("%.1f GB", float64(s)/1e9) },
		"diff":         diffLines,
		"args":         func(parts ...any) []any { return parts },
		"fixed":        func(f float64) string { return strconv.FormatFloat(f, 'f', 3, 64) },
	}
}

// when writes a time for a person as how long ago it was, with the whole time
// in its title. live.js keeps it right.
func when(now, t time.Time) template.HTML {
	if t.IsZero() {
		return `<span class="muted">never</span>`
	}
	return template.HTML(fmt.Sprintf(`<time datetime="%s" title="%s" data-ago>%s</time>`,
		t.Format(time.RFC3339), t.Format("2006-01-02 15:04:05 MST"), ago(now, t)))
}

// clock writes a time of the day, with the date.
func clock(t time.Time) template.HTML {
	return template.HTML(fmt.Sprintf(`<time datetime="%s" title="%s">%s</time>`,
		t.Format(time.RFC3339), t.Format("2006-01-02 15:04:05 MST"), t.Format("2 Jan 15:04")))
}

func ago(now, t time.Time) string {
	d := now.Sub(t)
	in, after := "", " ago"
	if d < 0 {
		d = -d
		in, after = "in ", ""
	}
	switch {
	case d < 5*time.Second:
		return "just now"
	case d < time.Minute:
		return fmt.Sprintf("%s%d s%s", in, int(d.Seconds()), after)
	case d < time.Hour:
		return fmt.Sprintf("%s%d min%s", in, int(d.Minutes()), after)
	case d < 48*time.Hour:
		return fmt.Sprintf("%s%d h%s", in, int(d.Hours()), after)
	}
	return fmt.Sprintf("%s%d days%s", in, int(d.Hours()/24), after)
}

// span writes how long something takes.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}

// target is the software that a host is on its way to, or could be; zero if
// it has it.
func target(h api.Host) spec.Digest {
	switch {
	case h.Wanted != h.Installed && !h.Wanted.IsZero():
		return h.Wanted
	case h.Candidate != h.Installed:
		return h.Candidate
	}
	return spec.Digest{}
}

// segment is a part of a bar.
type segment struct {
	Class string
	Text  string
	Hosts []string
	N     int
	X, W  float64 // percent
}

// segments are the parts of a roll-out's bar.
func segments(r api.Rollout) []segment {
	all := []segment{
		{Class: "current", Text: "done", Hosts: r.Done}, {Class: "running", Text: "running", Hosts: r.Running},
		{Class: "parked", Text: "failed", Hosts: r.Failed}, {Class: "new", Text: "waiting", Hosts: r.Waiting},
	}
	total := 0
	for i := range all {
		all[i].N = len(all[i].Hosts)
		total += all[i].N
	}
	x := 0.0
	for i := range all {
		all[i].X, all[i].W = x, share(all[i].N, total)
		x += all[i].W
	}
	return all
}

// phases are the parts of an attempt's bar.
func phases(a api.Attempt) []segment {
	total := 0.0
	for _, p := range a.Phases {
		total += max(0, p.Seconds)
	}
	var all []segment
	x := 0.0
	for _, p := range a.Phases {
		class := "other"
		if slices.Contains(fullWay[:], p.Name) || slices.Contains(deltaWay[:], p.Name) {
			class = p.Name
		}
		w := 0.0
		if total > 0 {
			w = 100 * max(0, p.Seconds) / total
		}
		all = append(all, segment{Class: class, Text: p.Name + " " + span(time.Duration(p.Seconds*float64(time.Second))), X: x, W: w})
		x += w
	}
	return all
}

// line is a line of a unified diff.
type line struct{ Class, Text string }

func diffLines(diff string) []line {
	var lines []line
	for l := range strings.Lines(diff) {
		class := "same"
		switch {
		case strings.HasPrefix(l, "+++"), strings.HasPrefix(l, "---"), strings.HasPrefix(l, "@@"):
			class = "head"
		case strings.HasPrefix(l, "+"):
			class = "plus"
		case strings.HasPrefix(l, "-"):
			class = "minus"
		}
		lines = append(lines, line{class, l})
	}
	return lines
}
