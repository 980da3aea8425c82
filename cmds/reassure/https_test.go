package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reassure/image/fetch"
)

// TestServeHTTPS runs the boot server with a certificate of the site's own authority. By
// plain HTTP it serves what everybody may have, and nothing else.
func TestServeHTTPS(t *testing.T) {
	plainly(t)
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	dir := t.TempDir()
	site, root, socket := filepath.Join(dir, "lab"), filepath.Join(dir, "tftp"), filepath.Join(dir, "socket")
	must(t, "init", site)
	var addresses [2]string
	for i := range addresses {
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addresses[i] = free.Addr().String()
		free.Close()
	}
	lab := fmt.Sprintf("dhcp: {mode: \"off\"}\ntftp: {root: %s, off: true}\nstate: %s/state\nsocket: %s\nhttp: {certificate: server.pem, key: server.key}\n", root, dir, socket)
	inventory := fmt.Sprintf("site: {url: \"https://%s/reassure\", boot_url: \"http://%s/reassure\", server: 127.0.0.1, network: 127.0.0.0/8}\nhosts: []\n", addresses[0], addresses[1])
	if err := errors.Join(os.Mkdir(root, 0o755), os.WriteFile(filepath.Join(root, "bzImage"), []byte("a kernel"), 0o644),
		os.WriteFile(filepath.Join(site, "lab.yaml"), []byte(lab), 0o644), os.WriteFile(filepath.Join(site, "site.yaml"), []byte(inventory), 0o644)); err != nil {
		t.Fatal(err)
	}
	said, errs, code := reassure(t, "certificate", "--site", site, "--out", site)
	authority := filepath.Join(config, "reassure", "ca.pem")
	if code != 0 || !strings.Contains(said, "server.pem is for [127.0.0.1]") || !strings.Contains(errs, authority) {
		t.Fatalf("code %d: %s%s", code, said, errs)
	}
	for _, key := range []string{filepath.Join(config, "reassure", "ca.key"), filepath.Join(site, "server.key")} {
		if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", key, info, err)
		}
	}
	var out, log lines
	stop := start(t, nil, &out, &log, "serve", "--config", filepath.Join(site, "lab.yaml"))
	defer stop()
	until(t, &log, "msg=ready")

	text, err := os.ReadFile(authority)
	if err != nil {
		t.Fatal(err)
	}
	dial, err := fetch.Trust(text)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialTLSContext: dial, DisableKeepAlives: true}}
	get := func(url string) (int, string) {
		t.Helper()
		a, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		body, err := io.ReadAll(a.Body)
		if err != nil {
			t.Fatal(err)
		}
		return a.StatusCode, string(body)
	}
	for _, c := range []struct {
		path          string
		secure, plain int
	}{
		{"/reassure/boot/bzImage", 200, 200},
		{"/healthz", 200, 200},
		{"/reassure/", 200, 403},
		{"/reassure/api/v1/hosts", 200, 403},
		{"/reassure/manifests/01-00-09-3d-12-20-ed.json", 401, 403},
		{"/reassure/login", 200, 403},
		{"/metrics", 200, 403},
	} {
		if code, _ := get("https://" + addresses[0] + c.path); code != c.secure {
			t.Errorf("%s by https: %d; want %d", c.path, code, c.secure)
		}
		code, body := get("http://" + addresses[1] + c.path)
		if code != c.plain || code == 403 && !strings.Contains(body, "https") {
			t.Errorf("%s by plain http: %d %s; want %d", c.path, code, body, c.plain)
		}
	}

	// It is renewed under the running server.
	serial := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", addresses[0], &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	if _, errs, code := reassure(t, "certificate", "--site", site, "--out", site); code != 0 || errs != "" {
		t.Errorf("a second time: %d, %s", code, errs)
	}
	if serial() == before {
		t.Error("the server shows its old certificate still")
	}
	if code, _ := get("https://" + addresses[0] + "/healthz"); code != 200 {
		t.Errorf("after it was renewed: %d", code)
	}
}

// TestServeHTTPSRefuses has the server not start where PCs would not believe it.
func TestServeHTTPSRefuses(t *testing.T) {
	plainly(t)
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	dir := t.TempDir()
	site := filepath.Join(dir, "lab")
	must(t, "init", site)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(site, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lab := "dhcp: {mode: \"off\"}\ntftp: {root: " + dir + ", off: true}\nstate: " + dir + "/state\nsocket: " + dir + "/s\n"
	inventory := "site: {url: \"https://127.0.0.1:1/reassure\", server: 127.0.0.1, network: 127.0.0.0/8}\nhosts: []\n"
	write("site.yaml", inventory)
	must(t, "certificate", "--site", site, "--out", site)
	for _, c := range []struct {
		name, lab, site string
		mode            os.FileMode
		says            string
	}{
		{"no certificate", "", inventory, 0o600, "http.certificate"},
		{"no key", "http: {certificate: server.pem}\n", inventory, 0o600, "go together"},
		{"for another name", "http: {certificate: server.pem, key: server.key}\n", strings.Replace(inventory, "//127.0.0.1", "//boot.lab", 1), 0o600, "boot.lab"},
		{"a key that everybody may read", "http: {certificate: server.pem, key: server.key}\n", inventory, 0o644, "chmod 0600"},
		{"no https", "http: {certificate: server.pem, key: server.key}\n", strings.Replace(inventory, "https", "http", 1), 0o600, "site.url is not https"},
		{"files that do not belong together", "http: {certificate: server.pem, key: lab.yaml}\n", inventory, 0o600, "server.pem with"},
	} {
		write("lab.yaml", lab+c.lab)
		write("site.yaml", c.site)
		if err := errors.Join(os.Chmod(filepath.Join(site, "server.key"), c.mode), os.Chmod(filepath.Join(site, "lab.yaml"), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, errs, code := reassure(t, "serve", "--config", filepath.Join(site, "lab.yaml")); code != 1 || !strings.Contains(errs, c.says) {
			t.Errorf("%s: code %d, %s; want %q", c.name, code, errs, c.says)
		}
	}
}
