package local

import (
	"errors"
	"fmt"
	"slices"

	"reassure/image/reimage/efivars"
	"reassure/image/reimage/power"
)

// Leave has the firmware start what comes after this image, as a boot loader does
// that returns to it, whatever that is: no disk is looked at. Of the options only
// Before and Log count. It returns only with an error.
func Leave(o Options) error {
	entry, err := following(efivars.Vars{})
	if err != nil {
		return fmt.Errorf("go on to the firmware's next boot entry: %w: put the disk first in the firmware's boot order and start the PC again", err)
	}
	o.Log.Info("the firmware goes on to its next boot entry", "entry", entry.String())
	o.Before(entry.String())
	return power.Reboot()
}

// following has the entry after the current one that boots neither from the network nor
// into the firmware itself started next. Behind the last comes the first.
func following(vars efivars.Vars) (efivars.Entry, error) {
	order, err := vars.BootOrder()
	if err != nil {
		return efivars.Entry{}, err
	}
	entries, err := vars.Entries()
	if err != nil {
		return efivars.Entry{}, err
	}
	current, err := vars.BootCurrent()
	if err != nil {
		return efivars.Entry{}, err
	}
	if i := slices.IndexFunc(entries, func(e efivars.Entry) bool { return e.Number == current }); i >= 0 {
		entries = slices.Concat(entries[i+1:], entries[:i])
	}
	for _, e := range entries {
		if e.Active && !e.Network && !e.App && slices.Contains(order, e.Number) {
			return e, vars.SetBootNext(e.Number)
		}
	}
	return efivars.Entry{}, errors.New("there is none but the network's")
}
