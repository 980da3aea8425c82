// Package templates holds everything that a site may want to change as text:
// what boot loaders and DHCP servers read, files of the systems that are
// installed, the ready profiles, and the site folder that "reassure init" starts
// with. A file of the same name in a site's templates folder takes the place of one here.
package templates

import "embed"

// FS holds the templates by name, such as "pxelinux/default".
//
//go:embed debian dhcp gentoo grub init ipxe profiles pxelinux systemd uki fstab hosts resolv.conf
var FS embed.FS
