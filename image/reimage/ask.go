package reimage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"reassure/image/fetch"
	"reassure/image/reimage/efivars"
	"reassure/image/reimage/local"
	"reassure/image/reimage/netup"
	"reassure/image/spec"
)

// bootedFrom has the firmware say which card the PC booted from, as boot loaders do.
// An entry may be older than the card: only one that is there counts.
func (r *Reimager) bootedFrom() {
	if r.Options.BootMAC != (spec.MAC{}) {
		return
	}
	mac, err := efivars.Vars{}.BootMAC()
	if err != nil {
		r.Log.Warn("the firmware does not say which card the PC booted from", "error", err)
		return
	}
	if mac != (spec.MAC{}) && netup.Present(netup.Options{BootMAC: mac}) {
		r.Options.BootMAC = mac
	}
}

// ask asks the server for the boot decision, as boot loaders do that have loaded an
// image, until it is not to wait: remote says that it is Remote, and then the options hold
// what the server has to say. A server that has nothing for this PC means Local.
func (r *Reimager) ask(ctx context.Context) (remote bool, err error) {
	if r.base == "" {
		return false, refuse("nobody says where the server is: have the DHCP server name a next-server, or build an image with reassure.url=http://SERVER/PATH in command_line below unified")
	}
	for {
		told, err := r.askOnce(ctx)
		if err != nil {
			return false, err
		}
		if told.Say != "" {
			r.Log.Info(told.Say)
		}
		switch {
		case told.Local:
			r.Log.Info("told Local")
			return false, nil
		case told.Remote:
			for _, w := range r.Options.Add(told.CommandLine) {
				r.Log.Warn(w.Error())
			}
			r.told = true
			r.base = baseURL(r.Options, r.network.NextServer, r.Trust != nil)
			r.reportByToken()
			return true, nil
		}
		r.Log.Info(fmt.Sprintf("this PC asks again in %v", told.Again))
		if err := sleep(ctx, told.Again); err != nil {
			return false, err
		}
		r.limit = time.Time{} // the server is there
	}
}

func (r *Reimager) askOnce(ctx context.Context) (spec.Told, error) {
	waiting, cancel := r.patience(ctx)
	defer cancel()
	address := spec.URL(r.base, spec.ToldPath(r.network.MAC))
	text, err := r.fetcher().Get(waiting, address, spec.MaxTold)
	var status *fetch.StatusError
	if errors.As(err, &status) && status.Status == http.StatusNotFound {
		return spec.Told{Local: true, Say: "the server has no boot decision for this PC: " + address}, nil
	}
	if err != nil {
		return spec.Told{}, fmt.Errorf("the boot decision: %w", err)
	}
	told, err := spec.ParseTold(text)
	if err != nil {
		return spec.Told{}, &Refusal{fmt.Errorf("%s: %w", address, err)}
	}
	return told, nil
}

// leave goes on to what the firmware would start after this image. It returns only
// when it could not.
func (r *Reimager) leave(ctx context.Context) error {
	r.flush(ctx)
	return &Refusal{local.Leave(local.Options{Log: r.Log, Before: func(string) { r.Screen.Flush(2 * time.Second) }})}
}
