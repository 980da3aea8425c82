package spec

// LocalBoot says how a boot loader that is told Local goes on to the PC's own disk:
// firmware differs in what it does right.
type LocalBoot struct {
	// BIOS is for pxelinux: a type of its localboot (0, 4, 5, or -1 for the BIOS's
	// next boot device), or LocalDisk, the boot record of the first disk. Empty is 0.
	BIOS string `yaml:"bios" json:"bios,omitempty"`
	// UEFI is for GRUB: LocalDisk, the loader on the disk itself, or LocalNext, the
	// firmware's next boot entry. Empty is LocalDisk. iPXE knows the latter only.
	UEFI string `yaml:"uefi" json:"uefi,omitempty"`
}

// What LocalBoot may say, besides pxelinux's numbers.
const (
	LocalDisk = "disk"
	LocalNext = "next"
)

// Or returns what l says, and what other says where l says nothing; what both leave
// out is the default.
func (l LocalBoot) Or(other LocalBoot) LocalBoot {
	for _, o := range []LocalBoot{other, {BIOS: "0", UEFI: LocalDisk}} {
		if l.BIOS == "" {
			l.BIOS = o.BIOS
		}
		if l.UEFI == "" {
			l.UEFI = o.UEFI
		}
	}
	return l
}

func (l LocalBoot) validate(ps *Problems, at string) {
	oneOf(ps, at+".bios", l.BIOS, "", "0", "4", "5", "-1", LocalDisk)
	oneOf(ps, at+".uefi", l.UEFI, "", LocalDisk, LocalNext)
}
