package spec

// Version is ReAssure's own.
const Version = "0.1"

// Where the parts of the image and of an installed system find each other. The
// build wing writes the first group, the reimage wing reads it.
const (
	// ImageReimage and ImageChrootHelper are our programs in the initramfs.
	ImageReimage      = "/usr/lib/reassure/reimage"
	ImageChrootHelper = "/usr/lib/reassure/chroothelper"
	// ImageInfo is a JSON [ImageInfoFile].
	ImageInfo = "/etc/reassure/image.json"
	// ImageKeys holds minisign public keys (*.pub) whose manifests are trusted.
	ImageKeys = "/etc/reassure/keys"
	// ImageCA are the certificates of the site's own authorities, if it has any: then
	// manifests are fetched by HTTPS only.
	ImageCA = "/etc/reassure/ca.pem"
	// ImageComplete is the last entry of the initramfs: without it the kernel
	// ran out of room while unpacking.
	ImageComplete = "/etc/reassure/complete"
	// ImageModules is where lib/modules/RELEASE lies, with modules.dep,
	// modules.alias, modules.softdep and modules.builtin in depmod's form.
	ImageModules = "/lib/modules"

	// StampFile is the record, in an installed system, of what it holds.
	StampFile = "/etc/reassure/stamp.json"
	// FinishedFile is the index, in an installed system, of what neither wads nor
	// templates hold: what steps made. Users may have changed it: it is believed only by
	// the digest that the boot server remembers.
	FinishedFile = "/etc/reassure/finished"
	// MountRoot is where the new system is mounted while it is made, unless
	// the kernel command line names another place.
	MountRoot = "/mnt/gentoo"
)

// ImageInfoFile is what an image says of itself, in [ImageInfo].
type ImageInfoFile struct {
	Version string `json:"version"` // of ReAssure
	Kernel  string `json:"kernel"`  // release that the modules are for
	Flavour string `json:"flavour"`
	// Insecure images take manifests without a signature, and say so at every boot.
	Insecure bool `json:"insecure,omitempty"`
	// DebugShell images open a shell for reassure.shell at once, whatever a profile says.
	DebugShell bool `json:"debug_shell,omitempty"`
	// Preload lists modules that are loaded before anything else: what the
	// kernel would ask modprobe for.
	Preload []string `json:"preload,omitempty"`
}
