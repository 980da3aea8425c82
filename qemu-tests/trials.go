package qemutests

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"reassure/image/command"
)

// Trial is one of many that are tried one after the other, over several runs if need be.
type Trial struct {
	Name string
	// Run tries it; dir is its own, and stays when it fails. What is worth keeping of it
	// goes into facts.
	Run func(ctx context.Context, p *Programs, dir string, facts map[string]string) error
}

// Result is what came of one trial.
type Result struct {
	Trial   string            `json:"trial"`
	Result  string            `json:"result"`
	Text    string            `json:"text,omitempty"` // why it failed
	Commit  string            `json:"commit"`         // ends in + if the tree had changes
	Seconds float64           `json:"seconds"`
	At      time.Time         `json:"at"`
	Facts   map[string]string `json:"facts,omitempty"`
}

// What a trial ends in.
const (
	passed    = "passed"
	notPassed = "FAILED"
)

// Trials is a program that tries many things. Its flags are those of [Trials.Register].
type Trials struct {
	// Flavour is that of the image that the PCs boot.
	Flavour string

	out, only   string
	share       int
	list, again bool
}

// Register defines the flags; name is that of the file with the results.
func (t *Trials) Register(f *flag.FlagSet, name string) {
	f.StringVar(&t.out, "out", "out/"+name, "add the results to this `file`")
	f.IntVar(&t.share, "share", 1, "try every `N`th one only, others with every commit")
	f.StringVar(&t.only, "only", "", "try only those whose names match this `regexp`")
	f.BoolVar(&t.list, "list", false, "print their names, and try none")
	f.BoolVar(&t.again, "again", false, "try those that have passed, too")
}

// Run tries all. It is run in the root of the source tree. One that has passed with the
// same commit is not tried again: a run that was stopped goes on where it was.
func (t *Trials) Run(ctx context.Context, stdout io.Writer, all []Trial) (err error) {
	chosen, err := regexp.Compile(t.only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if t.share < 1 {
		return fmt.Errorf("-share %d: give at least 1", t.share)
	}
	tree, err := os.Getwd()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(tree, "go.mod")); err != nil {
		return fmt.Errorf("run it from the root of the source tree: %w", err)
	}
	commit, count, err := revision(ctx)
	if err != nil {
		return err
	}
	var mine []Trial
	for i, x := range slices.DeleteFunc(slices.Clone(all), func(x Trial) bool { return !chosen.MatchString(x.Name) }) {
		if (i+count)%t.share == 0 {
			mine = append(mine, x)
		}
	}
	if t.list {
		for _, x := range mine {
			fmt.Fprintln(stdout, x.Name)
		}
		return nil
	}
	results, err := readResults(t.out)
	if err != nil {
		return err
	}
	if !t.again {
		mine = slices.DeleteFunc(mine, func(x Trial) bool { return results.passed(x.Name, commit) })
	}
	fmt.Fprintf(stdout, "%d of %d to try\n", len(mine), len(all))
	if len(mine) == 0 {
		return nil
	}
	dir, err := os.MkdirTemp("", "reassure-trials")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	programs, err := Build(ctx, tree, dir, t.Flavour)
	if err != nil {
		return err
	}
	bad := 0
	for _, x := range mine {
		r := Result{Trial: x.Name, Commit: commit, At: time.Now().UTC(), Result: passed, Facts: map[string]string{}}
		own := filepath.Join(dir, strings.NewReplacer("/", "-", " ", "-").Replace(x.Name))
		err := x.Run(ctx, programs, own, r.Facts)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.Seconds = time.Since(r.At).Seconds()
		if err != nil {
			bad++
			r.Result, r.Text = notPassed, err.Error()
			kept := filepath.Join(os.TempDir(), "reassure-"+filepath.Base(own))
			if err := errors.Join(os.RemoveAll(kept), os.Rename(own, kept)); err != nil {
				return err
			}
			fmt.Fprintf(stdout, "  kept in %s\n", kept)
		} else if err := os.RemoveAll(own); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%-48s %s %5.0f s %s\n", x.Name, r.Result, r.Seconds, r.Text)
		if err := addResult(r, t.out); err != nil {
			return err
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d failed: see %s", bad, len(mine), t.out)
	}
	return nil
}

// revision is the commit that is tried, with "+" where the tree has changes, and how many
// came before it.
func revision(ctx context.Context) (commit string, count int, err error) {
	var text [3]string
	for i, args := range [][]string{{"rev-parse", "HEAD"}, {"rev-list", "--count", "HEAD"}, {"status", "--porcelain"}} {
		out, err := command.Command{Args: append([]string{"git"}, args...), Timeout: time.Minute}.Output(ctx)
		if err != nil {
			return "", 0, err
		}
		text[i] = strings.TrimSpace(string(out))
	}
	if text[2] != "" {
		text[0] += "+"
	}
	count, err = strconv.Atoi(text[1])
	return text[0], count, err
}

// results are those of a file, one a trial.
type results []Result

func readResults(file string) (results, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all results
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("earlier results: %s: %w", file, err)
	}
	return all, nil
}

// passed says whether a trial has passed with a commit.
func (r results) passed(trial, commit string) bool {
	return slices.ContainsFunc(r, func(x Result) bool { return x.Trial == trial && x.Commit == commit && x.Result == passed })
}

// addResult takes the place of the trial's earlier result in the file, to which another
// run may have added meanwhile.
func addResult(x Result, file string) error {
	all, err := readResults(file)
	if err != nil {
		return err
	}
	all = append(slices.DeleteFunc(all, func(old Result) bool { return old.Trial == x.Trial }), x)
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return renameio.WriteFile(file, append(text, '\n'), 0o644)
}

// Listing says whether names are only to be printed.
func (t *Trials) Listing() bool { return t.list }
