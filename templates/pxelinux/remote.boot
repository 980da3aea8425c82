# Written by {{.Writer}}; a PC is reimaged while its file (01-MAC) is a link to this one.
default Remote
prompt 1
timeout 3

label Remote
  kernel /bzImage
  append initrd=/initramfs.cpio.zst{{with .URL}} reassure.url={{.}}{{end}}{{with .CommandLine}} {{.}}{{end}}
  ipappend 2
