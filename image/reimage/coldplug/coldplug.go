// Package coldplug loads the kernel modules for what is in the PC, and waits
// for devices. There is no udev in the initramfs, and no modprobe that the
// kernel could ask: modules are loaded for the modaliases below /sys, again
// and again until loading them reveals no new ones (a bus driver its devices),
// and then for each that the kernel announces by a uevent.
package coldplug

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Index knows the modules of a kernel: *kmod.Index is one.
type Index interface {
	// Match returns the names of the modules that serve a modalias.
	Match(modalias string) []string
	// LoadOrder returns the files to load for a module, itself among them,
	// relative to the folder of the kernel's modules.
	LoadOrder(name string) ([]string, error)
	// Builtin says whether the kernel has the module in itself.
	Builtin(name string) bool
}

// Options describe a [Loader].
type Options struct {
	// Index knows the modules below Folder (/lib/modules/6.1.0-44-amd64).
	Index  Index
	Folder string
	// Parameters are settings of modules, by name with underscores.
	Parameters map[string]string
	// Blacklist names modules, with underscores, that devices do not load.
	Blacklist []string
	// Preload names modules that [Run] loads before it looks at devices: what
	// the kernel would ask modprobe for.
	Preload []string
	// Sys is /sys; nil means the real one.
	Sys fs.FS
	// Insert loads a file; nil means [Insert].
	Insert func(file, parameters string) error
	// Workers is how many modules are loaded at the same time; 0 means 8:
	// many drivers wait for their hardware while they start.
	Workers int
	Log     *slog.Logger
}

// Loader loads modules, each once. It is safe for concurrent use.
type Loader struct {
	options Options

	mu     sync.Mutex
	seen   map[string]bool     // modaliases that were dealt with
	files  map[string]*loading // by path as the index has it
	loaded []string            // names, in the order in which they were loaded
	failed map[string]error    // by name
}

// loading is a module's file that is or was loaded.
type loading struct {
	done chan struct{} // closed at the end
	err  error
}

// New returns a loader that has loaded nothing.
func New(options Options) *Loader {
	if options.Sys == nil {
		options.Sys = os.DirFS("/sys")
	}
	if options.Insert == nil {
		options.Insert = Insert
	}
	if options.Workers == 0 {
		options.Workers = 8
	}
	return &Loader{options: options, seen: map[string]bool{}, files: map[string]*loading{}, failed: map[string]error{}}
}

// Insert loads a module's file with its parameters, by finit_module(2). One
// that is loaded already is no error.
func Insert(file, parameters string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	switch err := unix.FinitModule(int(f.Fd()), parameters, 0); {
	case err == nil, errors.Is(err, unix.EEXIST):
		return nil
	case errors.Is(err, unix.ENOENT):
		// What the kernel says for a symbol that nobody has.
		return fmt.Errorf("a module that it needs is not loaded: %w", err)
	default:
		return err
	}
}

// Load loads modules by name, with what they need, whatever the blacklist
// says. A module that fails is logged with its reason, and does not stop the others.
func (l *Loader) Load(ctx context.Context, names ...string) {
	var group errgroup.Group
	group.SetLimit(l.options.Workers)
	for _, name := range names {
		group.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			l.load(name)
			return nil
		})
	}
	_ = group.Wait() // its functions return no error
}

func (l *Loader) load(name string) {
	if l.options.Index.Builtin(name) {
		return
	}
	files, err := l.options.Index.LoadOrder(name)
	if err != nil {
		l.fail(name, err)
		return
	}
	for _, file := range files {
		// What a module only asks for softly, before or after it, may fail;
		// what it needs will show as unknown symbols when it is loaded itself.
		if err := l.insert(file); err != nil && moduleName(file) == strings.ReplaceAll(name, "-", "_") {
			l.fail(name, err)
		}
	}
}

// insert loads a file, unless that was done or is under way, and waits for its end.
func (l *Loader) insert(file string) error {
	l.mu.Lock()
	if running, ok := l.files[file]; ok {
		l.mu.Unlock()
		<-running.done
		return running.err
	}
	this := &loading{done: make(chan struct{})}
	l.files[file] = this
	l.mu.Unlock()
	defer close(this.done)

	full, name := file, moduleName(file)
	if !filepath.IsAbs(full) {
		full = filepath.Join(l.options.Folder, file)
	}
	begin := time.Now()
	this.err = l.options.Insert(full, l.options.Parameters[name])
	took := time.Since(begin).Round(time.Millisecond)
	if this.err != nil {
		l.options.Log.Debug("module failed", "module", name, "after", took, "error", this.err)
		return this.err
	}
	l.options.Log.Debug("module loaded", "module", name, "after", took)
	l.mu.Lock()
	l.loaded = append(l.loaded, name)
	l.mu.Unlock()
	return nil
}

func (l *Loader) fail(name string, err error) {
	l.mu.Lock()
	_, known := l.failed[name]
	l.failed[name] = err
	l.mu.Unlock()
	switch {
	case known:
	case errors.Is(err, unix.ENODEV):
		// Drivers for what a PC may have (a TPM, a temperature sensor) say so
		// when it has none.
		l.options.Log.Debug("module found no device", "module", name)
	default:
		l.options.Log.Warn("a module cannot be loaded", "module", name, "error", err)
	}
}

// moduleName is a module's name by its file's: with underscores, without .ko.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(filepath.ToSlash(file)), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// Loaded returns the modules that were loaded, in order.
func (l *Loader) Loaded() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.loaded)
}

// Failed returns the modules that could not be loaded, with the reasons.
func (l *Loader) Failed() map[string]error {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string]error, len(l.failed))
	for name, err := range l.failed {
		out[name] = err
	}
	return out
}

// Settle loads modules for every device that /sys has, until there are no new
// ones. Devices that their drivers find later (disks behind a controller) are
// for [Loader.Wait].
func (l *Loader) Settle(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		fresh := l.unseen(l.modaliases())
		if len(fresh) == 0 {
			return nil
		}
		l.serve(ctx, fresh)
	}
}

// serve loads the modules for modaliases.
func (l *Loader) serve(ctx context.Context, modaliases []string) {
	var names []string
	for _, m := range modaliases {
		for _, name := range l.options.Index.Match(m) {
			if slices.Contains(l.options.Blacklist, strings.ReplaceAll(name, "-", "_")) {
				l.options.Log.Info("module not loaded: it is on the blacklist", "module", name, "modalias", m)
				continue
			}
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	l.Load(ctx, names...)
}

// unseen returns those that were not dealt with yet, and marks them.
func (l *Loader) unseen(modaliases []string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var fresh []string
	for _, m := range modaliases {
		if m != "" && !l.seen[m] {
			l.seen[m] = true
			fresh = append(fresh, m)
		}
	}
	return fresh
}

// modaliases reads /sys/bus/*/devices/*/modalias, buses in parallel: every
// device that has a driver is on a bus, but for the processor (whose modules
// speed up checksums) and the board itself.
func (l *Loader) modaliases() []string {
	buses, _ := fs.ReadDir(l.options.Sys, "bus") // none is nothing to do
	found := make([][]string, len(buses), len(buses)+1)
	var group sync.WaitGroup
	for i, bus := range buses {
		group.Go(func() {
			dir := path.Join("bus", bus.Name(), "devices")
			devices, _ := fs.ReadDir(l.options.Sys, dir)
			for _, d := range devices {
				// A device may go while we look.
				if text, err := fs.ReadFile(l.options.Sys, path.Join(dir, d.Name(), "modalias")); err == nil {
					found[i] = append(found[i], strings.TrimSpace(string(text)))
				}
			}
		})
	}
	group.Wait()
	var others []string
	for _, name := range []string{"devices/system/cpu/modalias", "devices/virtual/dmi/id/modalias"} {
		if text, err := fs.ReadFile(l.options.Sys, name); err == nil {
			others = append(others, strings.TrimSpace(string(text)))
		}
	}
	return slices.Concat(append(found, others)...)
}

// Run loads what is there, and waits for what ready asks for, for at most that
// long: that it did not come is for the caller to see, and no error. Then it
// goes on serving devices that appear, in the background, until ctx ends.
func Run(ctx context.Context, o Options, patience time.Duration, ready func() bool) (*Loader, error) {
	events, err := Listen()
	if err != nil {
		return nil, err
	}
	l := New(o)
	l.Load(ctx, o.Preload...)
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := l.Wait(limited, events, ready); err != nil && limited.Err() == nil {
		return nil, errors.Join(err, events.Close())
	}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, events.Close())
	}
	go func() {
		defer events.Close()
		if err := l.Wait(ctx, events, func() bool { return false }); ctx.Err() == nil {
			o.Log.Warn("devices that appear from now on get no driver", "error", err)
		}
	}()
	return l, nil
}

// lookAgain is how often a condition is looked at when no uevent comes: not
// everything that one may wait for is announced.
const lookAgain = time.Second

// Wait loads modules for devices that appear until ready says that what is
// waited for is there, or ctx ends, whose error is then returned. ready is
// called at the start, and after each uevent.
func (l *Loader) Wait(ctx context.Context, events *Uevents, ready func() bool) error {
	for {
		if err := l.Settle(ctx); err != nil {
			return err
		}
		if ready() {
			return nil
		}
		_, err := events.Next(ctx, lookAgain)
		if err != nil && ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("wait for devices: %w", err)
		}
	}
}
