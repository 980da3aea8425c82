package web

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"reassure/image/serve/api"
	"reassure/image/spec"
)

var screenshots = flag.Bool("screenshots", false, "keep what the browser showed, in out/screenshots")

// browser is a real Chromium, driven by chromedriver's WebDriver interface.
// https://www.w3.org/TR/webdriver2/
type browser struct {
	t       *testing.T
	session string // URL
	netlog  string // what the whole browser did with the network
	stop    func()
}

// elementKey is WebDriver's name for a reference to an element.
const elementKey = "element-6066-11e4-a52e-4f735466cecf"

func newBrowser(t *testing.T, dark bool) *browser {
	t.Helper()
	driver, err := exec.LookPath("chromedriver")
	if err != nil {
		t.Fatalf("%v: run scripts/install-deps test", err)
	}
	dir := t.TempDir()
	b := &browser{t: t, netlog: filepath.Join(dir, "netlog.json")}
	log := filepath.Join(dir, "chromedriver.log")
	cmd := exec.Command(driver, "--port=0", "--verbose", "--log-path="+log)
	cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir)
	// The browser is in the driver's process group, so that nothing stays behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	b.stop = func() {
		if stopped {
			return
		}
		stopped = true
		if b.session != "" {
			_, _ = b.ask("DELETE", "", nil)
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}
	t.Cleanup(b.stop)
	port := ""
	lines := bufio.NewScanner(out)
	for port == "" && lines.Scan() {
		if _, after, ok := strings.Cut(lines.Text(), "started successfully on port "); ok {
			port = strings.TrimRight(after, ".")
		}
	}
	if port == "" {
		t.Fatalf("chromedriver did not say its port: %v", lines.Err())
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	b.session = "http://127.0.0.1:" + port + "/session"
	args := []string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1440,1000",
		"--user-data-dir=" + filepath.Join(dir, "profile"), "--log-net-log=" + b.netlog,
		// What the browser itself would look up (not the page) finds nothing.
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
	}
	if dark {
		args = append(args, "--blink-settings=preferredColorScheme=0")
	}
	capabilities := map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"goog:chromeOptions": map[string]any{"args": args},
		"goog:loggingPrefs":  map[string]string{"browser": "ALL"},
	}}}
	// On a busy machine Chromium now and then ends while it starts; what is judged here is the page, not that.
	var value json.RawMessage
	for try := 1; ; try++ {
		if value, err = b.ask("POST", "", capabilities); err == nil {
			break
		}
		said, _ := os.ReadFile(log)
		if try == 3 {
			b.session = ""
			t.Fatalf("start chromium, %d times: %v\n%s", try, err, said[max(0, len(said)-8000):])
		}
		t.Logf("start chromium: %v\n%s", err, said[max(0, len(said)-2000):])
	}
	var made struct{ SessionID string }
	if err := json.Unmarshal(value, &made); err != nil {
		t.Fatal(err)
	}
	b.session += "/" + made.SessionID
	return b
}

func (b *browser) ask(method, path string, body any) (json.RawMessage, error) {
	var text []byte
	if body != nil {
		text, _ = json.Marshal(body)
	} else if method == "POST" {
		text = []byte("{}")
	}
	request, err := http.NewRequest(method, b.session+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: 90 * time.Second}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	var value struct{ Value json.RawMessage }
	if err := json.NewDecoder(answer.Body).Decode(&value); err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s", method, path, value.Value)
	}
	return value.Value, nil
}

func (b *browser) must(method, path string, body any) json.RawMessage {
	b.t.Helper()
	value, err := b.ask(method, path, body)
	if err != nil {
		b.t.Fatal(err)
	}
	return value
}

func (b *browser) open(url string) { b.t.Helper(); b.must("POST", "/url", map[string]any{"url": url}) }

// run evaluates a body of JavaScript.
func (b *browser) run(script string, args ...any) string {
	b.t.Helper()
	if args == nil {
		args = []any{}
	}
	value := b.must("POST", "/execute/sync", map[string]any{"script": script, "args": args})
	var s string
	if json.Unmarshal(value, &s) == nil {
		return s
	}
	return string(value)
}

// until waits for a script to return want.
func (b *browser) until(what, want, script string, args ...any) {
	b.t.Helper()
	got := ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got = b.run(script, args...); got == want {
			return
		}
	}
	b.shoot("failed")
	b.t.Fatalf("%s: the page shows %q, want %q", what, got, want)
}

func (b *browser) find(selector string) string {
	b.t.Helper()
	value := b.must("POST", "/element", map[string]any{"using": "css selector", "value": selector})
	var e map[string]string
	if err := json.Unmarshal(value, &e); err != nil {
		b.t.Fatal(err)
	}
	return "/element/" + e[elementKey]
}

// click and type act as a person's mouse and keyboard do: on what is really
// to be seen.
func (b *browser) click(selector string) {
	b.t.Helper()
	b.must("POST", b.find(selector)+"/click", nil)
}

func (b *browser) typeInto(selector, text string) {
	b.t.Helper()
	b.must("POST", b.find(selector)+"/value", map[string]any{"text": text})
}

// shoot keeps what the window shows.
func (b *browser) shoot(name string) {
	b.t.Helper()
	dir := os.TempDir()
	if *screenshots {
		dir = filepath.Join("..", "..", "..", "out", "screenshots")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.t.Fatal(err)
		}
	} else if !b.t.Failed() && name != "failed" {
		return
	}
	var text string
	if err := json.Unmarshal(b.must("GET", "/screenshot", nil), &text); err != nil {
		b.t.Fatal(err)
	}
	png, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		b.t.Fatal(err)
	}
	file := filepath.Join(dir, "web-"+name+".png")
	if err := os.WriteFile(file, png, 0o644); err != nil {
		b.t.Fatal(err)
	}
	b.t.Logf("screenshot %s", file)
}

func (b *browser) size(w, h int) {
	b.t.Helper()
	b.must("POST", "/window/rect", map[string]any{"width": w, "height": h})
}

// quiet fails the test for anything on the browser's console.
func (b *browser) quiet() {
	b.t.Helper()
	var lines []struct{ Level, Message string }
	if err := json.Unmarshal(b.must("POST", "/se/log", map[string]any{"type": "browser"}), &lines); err != nil {
		b.t.Fatal(err)
	}
	for _, l := range lines {
		b.t.Errorf("console: %s: %s", l.Level, l.Message)
	}
}

// stayed ends the browser, and fails the test if it reached for anything but
// this machine. The log is of the whole browser, not of the page alone. Its
// lines are: constants, then one event a line. To see whether there is IPv6,
// Chromium connects a UDP socket to a public address, on which it sends nothing.
func (b *browser) stayed() {
	b.t.Helper()
	b.stop()
	text, err := os.ReadFile(b.netlog)
	if err != nil {
		b.t.Fatal(err)
	}
	first, events, _ := strings.Cut(string(text), "\n")
	var log struct {
		Constants struct {
			LogEventTypes map[string]int `json:"logEventTypes"`
		} `json:"constants"`
	}
	if err := json.Unmarshal([]byte(strings.TrimSuffix(first, ",")+"}"), &log); err != nil {
		b.t.Fatalf("the log of the network: %v", err)
	}
	types := log.Constants.LogEventTypes
	connect, sent := types["TCP_CONNECT_ATTEMPT"], types["UDP_BYTES_SENT"]
	if connect == 0 || sent == 0 {
		b.t.Fatalf("the log of the network knows other events than this test: %v", types)
	}
	connected := 0
	for line := range strings.Lines(events) {
		var e struct {
			Type   int
			Params struct{ Address string }
		}
		if json.Unmarshal([]byte(strings.TrimRight(line, ",\n")), &e) != nil {
			continue // the last line ends the list
		}
		switch e.Type {
		case sent:
			b.t.Errorf("the browser sent a datagram: %s", line)
		case connect:
			if e.Params.Address == "" {
				continue // the attempt's end
			}
			connected++
			if a, err := netip.ParseAddrPort(e.Params.Address); err != nil || !a.Addr().IsLoopback() {
				b.t.Errorf("the browser connected to %s", e.Params.Address)
			}
		}
	}
	if connected == 0 {
		b.t.Error("the log of the network names no connection: it was not understood")
	}
}

// serveFake serves a fake lab on loopback.
func serveFake(t *testing.T, n int) (*fake, string) {
	t.Helper()
	lab := newFake(n)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(lab, Options{Base: "/reassure", Title: "Lab 1", Version: "1.0", Tokens: KnownTokens(map[string]string{"ada": "demo"})})
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), l, s.Handler()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return lab, "http://" + l.Addr().String() + "/reassure/"
}

const stateOf = `const r = document.getElementById("host-" + arguments[0]); return r ? r.querySelector(".state").innerText.trim() : "absent"`

func TestPageInBrowser(t *testing.T) {
	lab, home := serveFake(t, 24)
	b := newBrowser(t, false)
	b.open(home)
	b.until("connection", "live", `return document.getElementById("live").textContent`)
	b.shoot("lab-light")

	// A host changes: its row and the counts do, and nothing else of the page.
	b.run(`window.same = document.getElementById("host-exp02")`)
	b.until("before", "current", stateOf, "exp01")
	lab.change("exp01", func(h *api.HostDetail) {
		h.State, h.Reason = api.Running, "Forced by ada."
		h.Progress = &api.Progress{Attempt: 1, Phase: "extract", Text: "debian.tar.zst", Done: 420 * spec.MiB, Total: 840 * spec.MiB, Rate: 80 * spec.MiB, ETA: 5.25, Started: time.Now()}
	})
	b.until("state", "running", stateOf, "exp01")
	b.until("percent", "50", `return String(document.querySelector("#host-exp01 progress").value)`)
	b.until("count", "7", `return document.querySelector("#summary a[data-show=running] b").textContent`)
	b.until("other rows stay", "true", `return String(window.same === document.getElementById("host-exp02"))`)
	lab.change("exp01", func(h *api.HostDetail) {
		h.State, h.Reason, h.Progress = api.Parked, "No disk. <b>Really</b>.", nil
	})
	b.until("reason", "No disk. <b>Really</b>.", `return document.querySelector("#host-exp01 .reason")?.textContent ?? ""`)
	b.until("spoken", "exp01 is parked", `return document.getElementById("say").textContent`)

	// Filters.
	const visible = `return String([...document.querySelectorAll("#rows tr")].filter(r => r.checkVisibility()).length)`
	b.until("all", "24", visible)
	b.click("#summary a[data-show=parked]")
	b.until("parked only", "2", visible)
	b.until("address", "?state=parked", `return location.search`)
	lab.change("exp02", func(h *api.HostDetail) { h.State, h.Reason = api.Parked, "Neither." })
	b.until("a host that comes into the filter", "3", visible)
	b.click("#summary a[data-show='']")
	b.until("all again", "24", visible)
	b.typeInto("#q", "@rack2 exp1")
	b.until("search", "5", visible)
	b.typeInto("#q", "zzz")
	b.until("nothing", "0", visible)
	b.until("says so", "true", `return String(document.getElementById("none").checkVisibility())`)

	// A wrong token, then the right one; then hold a host with a reason.
	b.open(home + "hosts/exp06")
	b.until("no buttons", "true", `return String(!document.querySelector("#actions"))`)
	b.click("a[href*=login]")
	b.typeInto("#token", "guess\n")
	b.until("refused", "That is nobody's token.", `return document.querySelector("[role=alert]")?.textContent ?? ""`)
	b.run(`return ""`)
	b.must("POST", "/se/log", map[string]any{"type": "browser"}) // the 401 is on the console, rightly
	b.typeInto("#token", "demo\n")
	b.until("back where it was", "/reassure/hosts/exp06", `return location.pathname`)
	b.typeInto("#why-hold", "new <fan>")
	b.click("form[action$='/do/hold'] button")
	b.until("flash", "exp06: held", `return document.querySelector(".flash")?.textContent.trim() ?? ""`)
	b.until("held", "held", `return document.querySelector("#title .state").innerText.trim()`)
	b.until("cookie is not for scripts", "", `return document.cookie`)

	// Reimage two hosts from the table: the page names both, and asks.
	b.open(home)
	b.click("#tick-exp08")
	b.click("#tick-exp11")
	b.until("chosen", "2 chosen:", `return document.getElementById("chosen").textContent`)
	lab.change("exp08", func(h *api.HostDetail) { h.Reason = "It moved." })
	b.until("moved", "It moved.", `return document.querySelector("#host-exp08 .reason").textContent`)
	b.until("a tick outlives a change", "2 chosen:", `return document.getElementById("chosen").textContent`)
	b.shoot("lab-chosen")
	b.click("#bulk button[value=reimage]")
	b.until("names", "exp08 exp11", `return [...document.querySelectorAll(".victims b")].map(e => e.textContent).join(" ")`)
	b.shoot("confirm-light")
	b.click("button.main")
	b.until("a box must be ticked first", "true", `return String(location.pathname.endsWith("/confirm"))`)
	b.typeInto("#why", "try it")
	b.click("input[name=sure]")
	b.click("button.main")
	b.until("flash", "Roll-out r13 began: 2 hosts in it.", `return document.querySelector(".flash")?.textContent.trim() ?? ""`)
	want := `rollout [exp08 exp11] force=true now=false between="" why="try it" by ada`
	if got := lab.asked(); got[len(got)-1] != want {
		t.Errorf("the lab was asked %q, want %q", got, want)
	}

	// A parked host asks whether its disk may be lost: the table is shown twice, and a box ticked.
	b.open(home + "hosts/exp07")
	const lost = `return document.querySelector("table.disks tbody td:last-child")?.textContent ?? ""`
	b.until("question", `vfat 512 MiB, ntfs "Windows" 900 GiB`, lost)
	b.shoot("asks-light")
	b.click("#asks button")
	b.until("asked", "Accept 1 disk", `return document.querySelector("h1").textContent.trim()`)
	b.until("once more", `vfat 512 MiB, ntfs "Windows" 900 GiB`, lost)
	b.shoot("accept-light")
	b.click("input[name=sure]")
	b.click("button.main")
	b.until("flash", "exp07: accepted", `return document.querySelector(".flash")?.textContent.trim() ?? ""`)
	b.until("back", "/reassure/hosts/exp07", `return location.pathname`)

	b.open(home + "hosts/exp03")
	b.until("connection", "live", `return document.getElementById("live").textContent`)
	b.size(1440, 1250)
	b.shoot("host-light")
	lab.mu.Lock()
	lab.logs["exp03 a7"] += "[   99.00] the last line\n"
	lab.mu.Unlock()
	b.open(home + "hosts/exp03/log")
	b.until("log", "true", `return String(document.getElementById("log").textContent.endsWith("the last line\n"))`)
	b.until("connection", "live", `return document.getElementById("live").textContent`)
	lab.mu.Lock()
	lab.logs["exp03 a7"] += "[  100.00] one more\n"
	lab.mu.Unlock()
	lab.change("exp03", func(h *api.HostDetail) { h.Reason = "on" })
	b.until("live tail", "true", `return String(document.getElementById("log").textContent.endsWith("one more\n"))`)
	b.shoot("log-light")
	b.quiet()
	b.stayed()
}

func TestDarkPageInBrowser(t *testing.T) {
	_, home := serveFake(t, 24)
	b := newBrowser(t, true)
	b.open(home)
	b.until("dark", "true", `return String(matchMedia("(prefers-color-scheme: dark)").matches)`)
	b.until("connection", "live", `return document.getElementById("live").textContent`)
	b.until("contrast", "", contrast)
	b.shoot("lab-dark")
	b.open(home + "hosts/exp07")
	b.until("connection", "live", `return document.getElementById("live").textContent`)
	b.until("contrast", "", contrast)
	b.size(1440, 1250)
	b.shoot("host-dark")
	b.size(420, 900)
	b.open(home)
	b.until("no sideways scrolling on a phone", "true", `return String(document.documentElement.scrollWidth <= innerWidth)`)
	b.shoot("lab-phone")
	b.quiet()
}

func TestLightPageInBrowser(t *testing.T) {
	lab, home := serveFake(t, 500)
	b := newBrowser(t, false)
	b.open(home + "login")
	b.typeInto("#token", "demo\n")
	b.until("logged in", "ada", `return document.querySelector(".who")?.textContent ?? ""`)
	b.until("rows", "500", `return String(document.querySelectorAll("#rows tr").length)`)
	b.until("connection", "live", `return document.getElementById("live").textContent`)
	// 100 hosts change at once.
	for i := range 100 {
		lab.change(fmt.Sprintf("exp%02d", i+1), func(h *api.HostDetail) { h.State, h.Reason, h.Progress = api.Held, "Everything stops.", nil })
	}
	b.until("all of them", "100", `return String([...document.querySelectorAll("#rows .reason")].filter(e => e.textContent === "Everything stops.").length)`)
	for _, path := range []string{"", "hosts/exp07", "hosts/exp03/log", "hosts/exp15"} {
		b.open(home + path)
		b.until("contrast of /"+path, "", contrast)
	}
	// What a keyboard reaches shows that it is reached, and has a name.
	b.until("names", "", `return [...document.querySelectorAll("a, button, input:not([type=hidden]), summary")].filter(e => e.checkVisibility() && !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.length)).map(e => e.outerHTML).join("\n")`)
	u, err := url.Parse(home)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/reassure/hosts/nobody"
	b.open(u.String())
	b.until("not found", "Not Found", `return document.querySelector("h1").textContent`)
}

// contrast lists texts with less than 4.5 to 1 (WCAG 2.2, 1.4.3).
const contrast = `
const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
function rgba(c) { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; }
function over(a, b) { const t = a[3] / 255; return [0, 1, 2].map(i => a[i] * t + b[i] * (1 - t)).concat(255); }
function light(c) { const [r, g, b] = c.map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; }
function behind(e) { if (!e) return [255, 255, 255, 255]; const c = rgba(getComputedStyle(e).backgroundColor); return c[3] === 255 ? c : over(c, behind(e.parentElement)); }
const bad = new Set();
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let n = walk.nextNode(), i = 0; n && i < 3000; n = walk.nextNode(), i++) {
  const e = n.parentElement;
  if (!n.data.trim() || !e.checkVisibility() || e.closest(".offscreen, [disabled], script")) continue;
  const b = behind(e), f = over(rgba(getComputedStyle(e).color), b), x = light(f), y = light(b);
  const ratio = (Math.max(x, y) + .05) / (Math.min(x, y) + .05);
  if (ratio < 4.5) bad.add(n.data.trim().slice(0, 30) + " " + ratio.toFixed(2));
}
return [...bad].slice(0, 8).join("; ")`
