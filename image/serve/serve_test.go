package serve

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/conf"
	"reassure/image/serve/dhcp"
	"reassure/image/spec"
	"reassure/templates"
)

func load(t *testing.T, text string) (*Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), ConfigFile)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return Load(file)
}

// TestReadyConfig reads the lab.yaml that "reassure init" writes.
func TestReadyConfig(t *testing.T) {
	text, err := templates.FS.ReadFile("init/lab.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// As it is, and with every example in its comments in force.
	for name, text := range map[string]string{
		"as it is":  string(text),
		"all of it": strings.NewReplacer("\n#http:", "\nhttp:", "\n  #pool:", "\n  pool:", "\n#ssh_key:", "\nssh_key:", "\n#key:", "\nkey:").Replace(string(text)),
	} {
		c, err := load(t, text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if c.DHCP.Mode != dhcp.ModeProxy || c.Attempts.Most != 3 || *c.Waves.Canaries != 2 || c.Waves.AtOnce != 16 || *c.Waves.StopAt != 20 {
			t.Errorf("%s: %+v", name, c)
		}
		if c.Site == "" || c.Site != filepath.Dir(c.TFTP.Root) || !filepath.IsAbs(c.Site) {
			t.Errorf("%s: site %s, TFTP root %s", name, c.Site, c.TFTP.Root)
		}
	}
}

func TestDefaults(t *testing.T) {
	c, err := load(t, "dhcp: {mode: off}\ntftp: {root: /srv/tftp, off: true}\nstate: /var/lib/reassure\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.Socket != DefaultSocket || time.Duration(c.Attempts.Lease) != 10*time.Minute || time.Duration(c.Attempts.Pause) != time.Minute || c.TFTP.Root != "/srv/tftp" {
		t.Errorf("%+v", c)
	}
}

func TestMistakes(t *testing.T) {
	_, err := load(t, `interfaces: [a-name-that-is-far-too-long]
dhcp: {mode: sever, pool: 172.30.0.9}
http: {listen: ["172.30.0.5"]}
attempts: {most: -1}
waves: {canaries: -1, stop_at: 200}
speed: fast
`)
	var all conf.Errors
	if !errors.As(err, &all) {
		t.Fatalf("%v", err)
	}
	text := err.Error()
	for _, want := range []string{
		"lab.yaml:1: interfaces[0]:", `lab.yaml:2: dhcp.mode: "sever" is not a DHCP mode: write server, proxy, auto or off`, "lab.yaml:2: dhcp.pool:",
		"lab.yaml:3: http.listen[0]:", "lab.yaml:4: attempts.most:", "lab.yaml:5: waves.canaries:", "lab.yaml:5: waves.stop_at:", "lab.yaml:6:", "tftp.root: is missing", "state: is missing",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not told in:\n%s", want, text)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); err == nil || !strings.Contains(err.Error(), "reassure init") {
		t.Errorf("no file: %v", err)
	}
}

func TestToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	first, err := adminToken(path)
	if err != nil || len(first) < 20 {
		t.Fatalf("%q, %v", first, err)
	}
	if again, err := adminToken(path); err != nil || again != first {
		t.Errorf("the second start has %q, %v", again, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := adminToken(path); err == nil {
		t.Errorf("an empty file is the token %q", got)
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "sock")
	l, err := openSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := openSocket(path); err == nil || !strings.Contains(err.Error(), "another boot server answers there") {
		t.Errorf("a second server: %v", err)
	}
	// One that was killed leaves it behind.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if l, err = openSocket(path); err != nil {
		t.Errorf("after a server that was killed: %v", err)
	} else {
		l.Close()
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openSocket(path); err == nil {
		t.Error("a file of somebody's was taken for a socket")
	}
}

func TestDefaultListen(t *testing.T) {
	for url, want := range map[string]string{"http://boot/reassure": ":80", "http://172.30.0.5:8080/reassure": ":8080", "https://boot/reassure": ":443", "https://boot:8443/": ":8443"} {
		if got := defaultListen(spec.Site{}, url); !strings.HasSuffix(got, want) {
			t.Errorf("%s: %s, want ...%s", url, got, want)
		}
	}
}
