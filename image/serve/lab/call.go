package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"reassure/image/serve/hosts"
	"reassure/image/spec"
)

// call starts the PCs whose turn has come in roll-outs that want them now: it
// restarts those that run, and wakes those that are off. A PC that was called
// takes a place of its wave until it asks, or for a lease; then the place goes to
// those that have not been called for longer. One that does not ask is left alone
// after [hosts.MostCalls].
func (l *Lab) call(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.Now()
	for _, roll := range l.rollouts {
		if !roll.Now {
			continue
		}
		var due []string
		for _, k := range roll.Hosts {
			r := l.records[k]
			if r != nil && l.candidates[k] != nil && r.Rollout == roll.ID && r.Boot == nil && r.Calls < hosts.MostCalls && !r.Awaited(now, l.Policy) {
				due = append(due, k)
			}
		}
		slices.SortStableFunc(due, func(a, b string) int { return l.records[a].CalledAt.Compare(l.records[b].CalledAt) })
		stands := map[*hosts.Rollout]hosts.Standing{}
		for _, k := range due {
			r, h := l.records[k], l.hostOf(k)
			if d, _ := r.Decide(now, l.Policy, l.turn(k, now, stands)); d != hosts.Remote {
				continue
			}
			// Saved first: a server that is restarted must not call everybody again.
			if l.change(k, func(r *hosts.Record) { r.Call(now) }) != nil {
				return
			}
			clear(stands) // it has a place now
			go l.start(ctx, *h, append([]string{}, r.HostKeys...))
		}
	}
}

// start restarts a PC that runs, or wakes it.
func (l *Lab) start(ctx context.Context, h spec.Host, keys []string) {
	err := l.restart(ctx, h, keys)
	if err == nil {
		l.Logger.Info("restarted over SSH", "host", h.Name)
		return
	}
	l.Logger.Info("not restarted over SSH; waking it", "host", h.Name, "reason", err)
	for _, mac := range h.MACs {
		for _, card := range l.Interfaces {
			if err := Wake(card, mac); err != nil {
				l.Logger.Warn("cannot wake a PC", "host", h.Name, "interface", card, "error", err)
			}
		}
	}
}

// restartTime limits a restart over SSH.
const restartTime = 15 * time.Second

// restart has a PC restart itself.
func (l *Lab) restart(ctx context.Context, h spec.Host, keys []string) error {
	ctx, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	client, err := l.login(ctx, h, keys)
	if err != nil {
		return err
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return err
	}
	defer session.Close()
	err = session.Run("sync; reboot")
	var ended *ssh.ExitError
	if errors.As(err, &ended) {
		return fmt.Errorf("reboot: %w", err)
	}
	return nil // the connection may go before the command's end is told
}

// login logs in as root, to nobody but the PC whose keys were reported. The
// connection ends with ctx.
func (l *Lab) login(ctx context.Context, h spec.Host, keys []string) (*ssh.Client, error) {
	if l.SSH == nil {
		return nil, errors.New("no ssh_key is configured in lab.yaml")
	}
	known := map[string]bool{}
	for _, line := range keys {
		if k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err == nil {
			known[string(k.Marshal())] = true
		}
	}
	if len(known) == 0 {
		return nil, fmt.Errorf("%s has reported no SSH host key", h.Name)
	}
	conn, err := (&net.Dialer{Timeout: restartTime}).DialContext(ctx, "tcp", net.JoinHostPort(h.IP.String(), l.sshPort))
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(restartTime)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c, channels, requests, err := ssh.NewClientConn(conn, h.IP.String(), &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(l.SSH)},
		HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error {
			if !known[string(k.Marshal())] {
				return fmt.Errorf("%s shows a host key that it has not reported", h.Name)
			}
			return nil
		},
	})
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return ssh.NewClient(c, channels, requests), nil
}

// Wake sends a wake-on-LAN packet to a card: 6 bytes FF and 16 times its address,
// by UDP to port 9 of the broadcast address (AMD publication 20213, Magic Packet Technology).
func Wake(card string, mac spec.MAC) error {
	i, err := net.InterfaceByName(card)
	if err != nil {
		return err
	}
	addresses, err := i.Addrs()
	if err != nil {
		return err
	}
	packet := append(bytes.Repeat([]byte{0xff}, 6), bytes.Repeat(mac[:], 16)...)
	for _, a := range addresses {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.To4() == nil {
			continue
		}
		ip, mask := n.IP.To4(), n.Mask
		to := make(net.IP, 4)
		for j := range to {
			to[j] = ip[j] | ^mask[len(mask)-4+j]
		}
		conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: ip}, &net.UDPAddr{IP: to, Port: 9})
		if err != nil {
			return err
		}
		_, err = conn.Write(packet)
		if err := conn.Close(); err != nil {
			return err
		}
		return err
	}
	return fmt.Errorf("%s has no IPv4 address", card)
}
