package qemutests

import (
	"bytes"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reassure/image/bootfiles"
	"reassure/image/command"
	"reassure/image/spec"
)

// TestHTTPS has an image with the site's own authority reimage a PC by HTTPS, and take
// nothing from the same server by plain HTTP, which somebody could have led it to.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	lab := smallLab(t, SmallProfile)
	plain := lab.Web.URL()
	site := lab.inventory()
	certified := filepath.Join(lab.Dir, "certified")
	if err := os.Mkdir(certified, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := lab.reassure(t.Context(), "certificate", "--site", lab.Site, "--out", certified); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(certified, "server.pem"), filepath.Join(certified, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	go lab.Web.server.Serve(listener) //nolint:errcheck // it ends with the lab
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	secure := "https://" + net.JoinHostPort(Server, port)

	// An image of the lab's own.
	text, err := os.ReadFile(filepath.Join(lab.programs.Dir, "image.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config, image := filepath.Join(lab.Dir, "image.yaml"), filepath.Join(lab.Dir, "image")
	text = append(bytes.Clone(text), "\nca: "+filepath.Join(lab.programs.Dir, "config/reassure/ca.pem")+"\n"...)
	if err := os.WriteFile(config, text, 0o644); err != nil {
		t.Fatal(err)
	}
	err = command.Command{
		Args: []string{filepath.Join(lab.programs.Dir, "mkimage"), "build", "-flavour", "vm", "-config", config, "-out", image},
		Dir:  lab.programs.Tree, Env: lab.programs.Env(), Timeout: 10 * time.Minute,
	}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	initramfs := filepath.Join(lab.TFTP, bootfiles.Initramfs)
	if err := os.Remove(initramfs); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(image, "tftproot", bootfiles.Initramfs), initramfs); err != nil {
		t.Fatal(err)
	}

	disk := &Disk{Size: 1 * spec.GiB, Fill: previous}
	if err := disk.Make(filepath.Join(lab.Dir, "disk")); err != nil {
		t.Fatal(err)
	}
	before := sum(t, disk)
	lab.publish()
	lab.decide("remote")
	pc := lab.powerOn(Machine{Disks: []*Disk{disk}})
	pc.expect(`REIMAGE FAILED: (?s:.{0,200}?)takes no manifest from http://`, 4*time.Minute)
	pc.off()
	if sum(t, disk) != before {
		t.Error("the disk was written to")
	}

	if err := lab.Write("site.yaml", strings.Replace(site, "url: "+plain+"\n", "url: "+secure+"\n", 1)); err != nil {
		t.Fatal(err)
	}
	lab.publish()
	pc = lab.powerOn(Machine{Disks: []*Disk{disk}})
	pc.expect(`REIMAGE DONE`, 4*time.Minute)
	pc.off()
	bootable(t, disk, true)
}
