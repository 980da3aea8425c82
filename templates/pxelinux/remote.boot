# Written by {{.Writer}}; a PC is reimaged while its file (01-MAC) is a link to this one.
# What cannot be loaded leads on to the PC's own disk: by onerror, or from a prompt that nobody answers.
default Remote
prompt 0
timeout 50
onerror Local
ontimeout Local

label Remote
  kernel /bzImage
  append initrd=/initramfs.cpio.zst{{with .URL}} reassure.url={{.}}{{end}}{{with .CommandLine}} {{.}}{{end}}
  ipappend 2

{{template "local" .}}