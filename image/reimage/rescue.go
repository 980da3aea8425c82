package reimage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"reassure/image/reimage/rescue"
	"reassure/image/spec"
)

// releasePause is how often a PC asks whether its rescue is over.
const releasePause = 5 * time.Second

// rescue lets people log in over SSH until the manifest, which is fetched again and again,
// says that it is over; whoever is logged in may also start the PC anew. Nothing is written
// but what they write. found is the system on the disk, if that is known.
func (r *Reimager) rescue(ctx context.Context, m *spec.Manifest, found *Installed) (spec.Finish, *spec.Manifest, error) {
	// Else somebody's key that the site has long taken out would open the PC again.
	if found != nil {
		if err := replayed(m, found); err != nil {
			return "", m, err
		}
	}
	r.phase("rescue")
	logins := make(chan string, 16)
	server, err := rescue.New(rescue.Options{Keys: m.Rescuers(), Log: r.Log, LoggedIn: func(who string) {
		select {
		case logins <- who:
		default: // it is in the log
		}
	}})
	if err != nil {
		return "", m, &Refusal{err}
	}
	address := r.network.Address.Addr()
	l, err := r.listenAt(ctx, netip.AddrPortFrom(address, rescue.Port))
	if err != nil {
		return "", m, fmt.Errorf("rescue: %w", err)
	}
	// What main ignores would be ignored by all that people start, Ctrl-C included.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGTSTP)

	text := fmt.Sprintf("ssh %s@%s; this boot's host key is ED25519 %s", rescue.User, address, server.Fingerprint())
	r.Log.Warn("RESCUE: " + text)
	r.Log.Warn("Compare that with what ssh shows. Nothing is written to the disk but what people write who log in. The command reboot ends it, and so does reassure release " + m.Host + ".")
	say := func() { r.event(spec.Event{Kind: spec.EventRescue, Digest: m.Digest, Text: text}) }
	say()
	serving, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(serving, l) }()
	over := func(why string) (spec.Finish, *spec.Manifest, error) {
		cancel()
		<-ended
		r.Screen.Done()
		r.Log.Info("RESCUE OVER: " + why)
		r.event(spec.Event{Kind: spec.EventErrand, Digest: m.Digest, Text: why, Phases: r.Screen.Phases()})
		r.flush(ctx)
		return spec.Reboot, m, nil
	}
	released := make(chan struct{})
	go func() {
		if r.awaitRelease(serving) {
			close(released)
		}
	}()
	ask := make(chan os.Signal, 1)
	signal.Notify(ask, rescue.Ended)
	defer signal.Stop(ask)
	for {
		select {
		case <-logins:
			say() // the log goes along
		case err := <-ended:
			return "", m, errors.Join(errors.New("the rescue has ended by itself"), err)
		case <-ask:
			return over("ended by who was logged in")
		case <-released:
			return over("released")
		}
	}
}

func (r *Reimager) listenAt(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	if r.listen != nil {
		return r.listen(at)
	}
	var how net.ListenConfig
	return how.Listen(ctx, "tcp", at.String())
}

// awaitRelease says whether a manifest said that the rescue is over, before ctx ended. A
// server that is gone, or has forgotten this boot, ends nothing: somebody may be at work here.
func (r *Reimager) awaitRelease(ctx context.Context) bool {
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, time.Minute)
		now, err := r.fetchManifest(asking)
		cancel()
		if err != nil {
			r.Log.Debug("whether the rescue is over is not known", "error", err)
		} else if !now.Rescue() || now.Errand != nil && now.Errand.Released {
			return true
		}
		if sleep(ctx, releasePause) != nil {
			break
		}
	}
	return false
}
