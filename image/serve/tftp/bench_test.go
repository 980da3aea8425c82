package tftp

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// BenchmarkLab has 200 clients fetch a file at once, as PXE boot loaders do: a
// window of one block of 1428 bytes. It measures server and clients together.
func BenchmarkLab(b *testing.B) {
	const clients, size = 200, 1 << 20
	tree := newTree()
	tree.files["image"] = noise(size)
	addr := start(b, &Server{Tree: tree})
	b.SetBytes(clients * size)
	for b.Loop() {
		var all sync.WaitGroup
		for range clients {
			all.Go(func() {
				if n, err := fetch(addr, "image", 1428); err != nil || n != size {
					b.Errorf("%d bytes, %v", n, err)
				}
			})
		}
		all.Wait()
	}
}

// fetch is the least that a client can do.
func fetch(server *net.UDPAddr, name string, block int) (int, error) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	packet, from := fmt.Appendf([]byte{0, opRead}, "%s\x00octet\x00blksize\x00%d\x00", name, block), server.AddrPort()
	answer := make([]byte, 4+block)
	total, want := 0, uint16(0)
	for tries := 0; ; {
		if _, err := c.WriteToUDPAddrPort(packet, from); err != nil {
			return total, err
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, peer, err := c.ReadFromUDPAddrPort(answer)
		if err != nil {
			if tries++; tries > 5 {
				return total, err
			}
			continue
		}
		number := binary.BigEndian.Uint16(answer[2:])
		switch {
		case answer[1] == opError:
			return total, fmt.Errorf("%s", text(answer[4:n]))
		case answer[1] == opOACK:
			number = 0
		case number != want:
			continue
		}
		from, tries = peer, 0
		packet = binary.BigEndian.AppendUint16([]byte{0, opAck}, number)
		want = number + 1
		if answer[1] == opData {
			total += n - 4
			if n-4 < block {
				_, _ = c.WriteToUDPAddrPort(packet, from)
				return total, nil
			}
		}
	}
}
