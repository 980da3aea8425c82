# Written by reassure publish; a PC is reimaged while its file (01-MAC) is a link to this one.
# What cannot be loaded leads on to the PC's own disk: by onerror, or from a prompt that nobody answers.
default Remote
prompt 0
timeout 50
onerror Local
ontimeout Local

label Remote
  kernel /bzImage
  append initrd=/initramfs.cpio.zst
  ipappend 2

label Local
  localboot 0