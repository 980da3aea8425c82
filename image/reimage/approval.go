package reimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"reassure/image/spec"
)

// rehearse does what a reimage does besides writing: every wad is fetched and found
// right. Its error says that it was a dry run, or what a reimage would have failed at.
func (r *Reimager) rehearse(ctx context.Context, m *spec.Manifest) error {
	r.phase("rehearse")
	wads, err := r.openWads(ctx, m)
	if err != nil {
		return err
	}
	defer func() {
		for _, w := range wads {
			w.Close()
		}
	}()
	for i, w := range wads {
		if err := r.read(ctx, w, i, len(wads)); err != nil {
			return err
		}
	}
	return question(spec.AskDryRun, "dry run: all wads are there and right, and nothing was written; take dry_run out of the profile, or reassure.dry_run out of the kernel command line, to have it done")
}

// read fetches one wad and drops it.
func (r *Reimager) read(ctx context.Context, w openedWad, i, n int) error {
	bar := r.Screen.Progress(fmt.Sprintf("%s (%d of %d)", w.Name, i+1, n), w.Size, r.progressEvents())
	defer bar.End()
	var err error
	if w.indexed != nil {
		err = w.indexed.Check(ctx, func(bytes int64) { bar.Add(uint64(bytes)) })
	} else {
		_, err = io.Copy(bar, w.plain)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("wad %s: %w", w.Name, err)
	}
	return nil
}

const (
	// approvalTime is how long a PC stands there before it goes on into its own system.
	approvalTime  = time.Hour
	approvalPause = 5 * time.Second
)

// approval waits until a person has found the plan right, where the profile wants that.
// The word comes with the manifest, signed, which is fetched again and again.
func (r *Reimager) approval(ctx context.Context, m *spec.Manifest, plan *spec.Plan) error {
	if m.Approve == "" || m.Approve == spec.ApproveAuto {
		return nil
	}
	sum := plan.Sum()
	if m.Approved == sum {
		return nil
	}
	ask := question(spec.AskPlan, "the plan waits for a person: reassure plan %s shows it, reassure approve %s says that it is right", m.Host, m.Host)
	r.phase(spec.PhaseApproval)
	r.Log.Info(ask.Error())
	patience := r.patienceForApproval
	if patience == 0 {
		patience = approvalTime
	}
	for until := time.Now().Add(patience); time.Now().Before(until); {
		now, err := r.fetchManifest(ctx)
		switch {
		case err != nil:
			return err
		case now.Digest != m.Digest || now.Serial != m.Serial || now.Order != m.Order:
			return fmt.Errorf("the manifest changed while its plan waited for a person")
		case now.Approved == sum:
			r.Log.Info("the plan was approved")
			return nil
		}
		if err := sleep(ctx, min(approvalPause, patience)); err != nil {
			return err
		}
	}
	return ask
}
