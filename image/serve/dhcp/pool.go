package dhcp

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"time"

	"reassure/image/spec"
)

const (
	// holdTime is how long an offered address waits for its client.
	holdTime = time.Minute
	// restTime is how long an address rests that somebody else uses.
	restTime = 10 * time.Minute
)

// leases are the pool's addresses in use. Each map has one entry an address of the
// pool at most, whatever the network sends.
type leases struct {
	card map[spec.MAC]Lease // the last of each card, ended ones too: it gets the same again
	ip   map[netip.Addr]spec.MAC
	held map[netip.Addr]hold
	rest map[netip.Addr]time.Time // until then
}

type hold struct {
	mac   spec.MAC
	until time.Time
}

func loadLeases(store LeaseStore) (*leases, error) {
	l := &leases{map[spec.MAC]Lease{}, map[netip.Addr]spec.MAC{}, map[netip.Addr]hold{}, map[netip.Addr]time.Time{}}
	if store == nil {
		return l, nil
	}
	kept, err := store.Leases()
	if err != nil {
		return nil, fmt.Errorf("leases of the DHCP pool: %w", err)
	}
	for _, k := range kept {
		if mac, taken := l.ip[k.IP]; taken && l.card[mac].Expires.After(k.Expires) {
			continue
		}
		l.grant(k)
	}
	return l, nil
}

// grant notes a lease, and returns the card that had the address before.
func (l *leases) grant(lease Lease) (before spec.MAC, other bool) {
	if had, ok := l.card[lease.MAC]; ok {
		delete(l.ip, had.IP)
	}
	before, other = l.ip[lease.IP]
	delete(l.card, before)
	l.card[lease.MAC], l.ip[lease.IP] = lease, lease.MAC
	delete(l.held, lease.IP)
	return before, other
}

func (l *leases) drop(mac spec.MAC) {
	delete(l.ip, l.card[mac].IP)
	delete(l.card, mac)
}

// hold keeps an address for a card; a card has one at most.
func (l *leases) hold(ip netip.Addr, mac spec.MAC, now time.Time) {
	for other, h := range l.held {
		if h.mac == mac || !now.Before(h.until) {
			delete(l.held, other)
		}
	}
	l.held[ip] = hold{mac, now.Add(holdTime)}
}

// trim forgets what has ended and is outside the pool, which may have changed.
func (l *leases) trim(pool Range, now time.Time) (ended []spec.MAC) {
	for mac, lease := range l.card {
		if !pool.Contains(lease.IP) && !now.Before(lease.Expires) {
			l.drop(mac)
			ended = append(ended, mac)
		}
	}
	for ip, until := range l.rest {
		if !now.Before(until) {
			delete(l.rest, ip)
		}
	}
	return ended
}

// view is what [Answer] sees of the pool.
type view struct {
	*leases
	s       *Settings
	backend Backend
}

func (v view) Lease(mac spec.MAC) (Lease, bool) {
	lease, ok := v.card[mac]
	return lease, ok
}

func (v view) Reserved(ip netip.Addr) bool { return v.backend.Reserved(ip) }

// Free chooses as RFC 2131, 4.3.1, says: what the card has or had, what it wishes,
// one that nobody had yet, the one that has been free for the longest.
func (v view) Free(mac spec.MAC, wish netip.Addr, now time.Time) (netip.Addr, bool) {
	if lease, ok := v.card[mac]; ok && v.free(lease.IP, mac, now) {
		return lease.IP, true
	}
	if v.free(wish, mac, now) {
		return wish, true
	}
	// A card begins at a place of its own, so that it is likely to get the same
	// address even when nothing is remembered of it.
	h := fnv.New32a()
	_, _ = h.Write(mac[:])
	n := v.s.Pool.size()
	var oldest Lease
	for i := range n {
		ip := v.s.Pool.at((int(h.Sum32()%uint32(n)) + i) % n)
		if !v.free(ip, mac, now) {
			continue
		}
		owner, had := v.ip[ip]
		if !had {
			return ip, true
		}
		if lease := v.card[owner]; !oldest.IP.IsValid() || lease.Expires.Before(oldest.Expires) {
			oldest = lease
		}
	}
	return oldest.IP, oldest.IP.IsValid()
}

// free says whether the card may have this address.
func (v view) free(ip netip.Addr, mac spec.MAC, now time.Time) bool {
	if !v.s.Pool.Contains(ip) {
		return false
	}
	if owner, ok := v.ip[ip]; ok && owner != mac && now.Before(v.card[owner].Expires) {
		return false
	}
	if h, ok := v.held[ip]; ok && h.mac != mac && now.Before(h.until) {
		return false
	}
	return !now.Before(v.rest[ip]) && v.s.mayGive(ip) && !v.backend.Reserved(ip)
}
