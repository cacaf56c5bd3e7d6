package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/config"
	"aggregatord/internal/output"
	"aggregatord/internal/policy"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/watch"
)

// reloader has the daemon do what the configuration file says now. A reload does all of it
// or nothing: what cannot be loaded leaves everything as it was.
type reloader struct {
	opts  Options
	apply func(*policy.Policy) error
	// outputs are those of the file, and of flags. May be nil.
	outputs *output.Outputs
	logger  *zap.Logger
	// settle is how long a changed file must stay as it is before it is believed: editors
	// and copying programs empty a file before they fill it.
	settle time.Duration

	ok, okTime, hash, pending telemetry.Gauge
	reloads                   telemetry.CounterVec // outcome

	// mu lets one reload happen at a time, and guards the rest.
	mu sync.Mutex
	// inForce is the last that was loaded.
	inForce *config.Config
	// failed is why the last attempt failed, if it did.
	failed error
	// tried tells the content that was last tried from others.
	tried string
}

// configPoll is how often the file is looked at although nothing told that it changed: a
// symbolic link may lead to a directory that is not watched.
const configPoll = 5 * time.Second

// newReloader returns a reloader for the configuration that the daemon starts with.
func newReloader(opts Options, set *telemetry.Set, apply func(*policy.Policy) error) *reloader {
	r := &reloader{
		opts: opts, apply: apply, logger: opts.Logger, settle: 200 * time.Millisecond, inForce: opts.Config,
		ok: set.Gauge("aggregatord_config_last_reload_successful",
			"1 if the configuration file could be loaded the last time it was tried; 0: an earlier one is in force."),
		okTime: set.Gauge("aggregatord_config_last_reload_success_timestamp_seconds",
			"When the configuration was loaded last, in Unix seconds."),
		hash: set.Gauge("aggregatord_config_hash", "Hash of the configuration file in force; 0 without a file."),
		pending: set.Gauge("aggregatord_config_restart_pending_keys",
			"Keys of the configuration in force that were changed and need a restart; the log names them."),
		reloads: set.CounterVec("aggregatord_config_reloads_total", "Reloads of the configuration, by outcome.", "outcome"),
	}
	for _, outcome := range []string{"success", "failure"} {
		r.reloads.With(outcome)
	}
	r.loaded(opts.Config)
	r.tried = opts.Config.Hash()
	return r
}

// loaded notes that a configuration is in force.
func (r *reloader) loaded(c *config.Config) {
	r.inForce = c
	r.ok.Set(1)
	r.okTime.Set(float64(time.Now().UnixMilli()) / 1000)
	if h := c.Hash(); h != "" {
		n, err := strconv.ParseUint(h[:12], 16, 64) // 48 bits, which a float holds
		if err != nil {
			panic(fmt.Sprintf("BUG: hash %q: %v", h, err))
		}
		r.hash.Set(float64(n))
	}
	served := map[string]bool{}
	for _, spec := range r.opts.Fleet.Pools {
		served[spec.Name] = true
	}
	for _, p := range c.Pools {
		if !served[p.Name] && p.Glob == "" {
			r.logger.Warn("the configuration has rules for a pool that is not served", zap.String("config", c.File()),
				zap.String("pool", p.Name))
		}
	}
	for _, sentence := range c.Policy().Idle() {
		r.logger.Warn("a step of metric_relabel_configs can match nothing", zap.String("config", c.File()), zap.String("step", sentence))
	}
}

// reload loads the file and applies it; why says who asked. It logs how that ended.
func (r *reloader) reload(why string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reloadLocked(why)
}

func (r *reloader) reloadLocked(why string) error {
	path := r.opts.Config.File()
	if path == "" {
		r.logger.Info("no configuration file to reload; start with --config.file", zap.String("trigger", why))
		return nil
	}
	start := time.Now()
	r.tried = stateOf(path)
	c, err := config.Load(path)
	if err == nil {
		r.tried = c.Hash()
		specs := slices.Concat(c.OutputSpecs(), r.opts.Outputs)
		if err = output.Check(specs); err == nil {
			err = r.apply(c.Policy())
		}
		if err == nil && r.outputs != nil {
			err = r.outputs.Apply(specs) // nothing is wrong with them
		}
	}
	if r.failed = err; err != nil {
		r.ok.Set(0)
		r.reloads.With("failure").Inc()
		r.logger.Error("the configuration was not reloaded; the earlier one stays in force",
			zap.String("config", path), zap.String("trigger", why), zap.Error(err))
		return err
	}
	r.loaded(c)
	r.reloads.With("success").Inc()
	later := restartKeys(r.opts.Config, c, r.opts.ByFlag)
	r.pending.Set(float64(len(later)))
	r.logger.Info("configuration reloaded", zap.String("config", path), zap.String("trigger", why),
		zap.String("hash", c.Hash()[:12]), zap.Duration("duration", time.Since(start)))
	if len(later) > 0 {
		r.logger.Warn("part of the new configuration needs a restart, and is not in force until then", zap.Strings("keys", later))
	}
	return nil
}

// run reloads when the file changes and when a signal comes, until ctx is done.
func (r *reloader) run(ctx context.Context) {
	wake := make(chan struct{}, 1)
	var notifying sync.WaitGroup
	defer notifying.Wait()
	if path := r.opts.Config.File(); path != "" {
		// Its directory may be one where much else happens.
		n := watch.NewNotifier(watch.NotifierOptions{Quiet: 100 * time.Millisecond, OnFallback: func(err error) {
			r.logger.Warn("inotify is unavailable; looking at the configuration file every second", zap.String("config", path),
				zap.Error(err))
		}})
		// Ends when ctx is done.
		notifying.Go(func() {
			err := n.Run(ctx, filepath.Dir(path), func() {
				select {
				case wake <- struct{}{}:
				default: // one is pending already
				}
			})
			if err != nil && ctx.Err() == nil {
				r.logger.Warn("inotify is unavailable; looking at the configuration file every few seconds", zap.Error(err))
			}
		})
	}
	poll := time.NewTicker(configPoll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.opts.ReloadSignals:
			r.reload("signal") //nolint:errcheck // logged there
		case <-wake:
			r.follow(ctx)
		case <-poll.C:
			r.follow(ctx)
		}
	}
}

// follow reloads if the file has another content than the one tried last, as soon as it
// has stayed the same for a while.
func (r *reloader) follow(ctx context.Context) {
	path := r.opts.Config.File()
	if path == "" {
		return
	}
	r.mu.Lock()
	tried := r.tried
	r.mu.Unlock()
	now := stateOf(path)
	for now != tried {
		select {
		case <-ctx.Done():
			return
		case <-r.opts.ReloadSignals: // somebody knows that it is whole
			r.reload("signal") //nolint:errcheck // logged there
			return
		case <-time.After(r.settle):
		}
		before := now
		if now = stateOf(path); now == before {
			break
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now != r.tried { // nobody else has tried it meanwhile
		r.reloadLocked("file changed") //nolint:errcheck // logged there
	}
}

// stateOf is the hash of a file's content as config.Config has it or, where there is none to
// be had, why.
func stateOf(path string) string {
	data, err := config.Read(path)
	if err != nil {
		return err.Error()
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// restartKeys names the keys that differ between two configurations and that only a start
// reads, without those that flags override.
func restartKeys(from, to *config.Config, byFlag []string) []string {
	a, b := fixedOf(from), fixedOf(to)
	keys := map[string]bool{}
	for key := range a {
		keys[key] = true
	}
	for key := range b {
		keys[key] = true
	}
	var changed []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		name, _, _ := strings.Cut(key, "=") // pools=NAME
		if a[key] != b[key] && !slices.Contains(byFlag, name) {
			changed = append(changed, strings.Replace(key, "=", ".", 1))
		}
	}
	return changed
}

// orZero is what p points to, or nothing.
func orZero[T any](p *T) (zero T) {
	if p == nil {
		return zero
	}
	return *p
}

// fixedOf returns what only a start reads, by key.
func fixedOf(c *config.Config) map[string]string {
	fixed := map[string]string{}
	for _, p := range c.Pools {
		if p.Glob != "" {
			// Labels and names are made when a pool is found.
			fixed["pools"] += fmt.Sprintln(p.Pattern())
			continue
		}
		fixed["pools="+p.Name] = p.Dir + "\n" + p.GunicornControl + "\n" + p.UWSGIStats
	}
	for _, p := range c.Process {
		fixed["process"] += p.Namespace + "\n" + p.PidFile + "\n"
	}
	for _, d := range c.Discovery {
		fixed["discovery"] += fmt.Sprintln(orZero(d.Processes), orZero(d.Kubelet))
	}
	if v := c.Limits.Pools; v != nil {
		fixed["limits.pools"] = strconv.Itoa(*v)
	}
	if v := c.Archive.Dir; v != nil {
		fixed["archive.dir"] = *v
	}
	if v := c.Archive.Disable; v != nil && *v {
		fixed["archive.disable"] = "true"
	}
	if v := c.Archive.Rest; v != nil {
		fixed["archive.rest"] = v.String()
	}
	if v := c.Archive.GaugeRetention; v != nil {
		fixed["archive.gauge_retention"] = v.String()
	}
	if v := c.Archive.GaugeWorkers; v != nil {
		fixed["archive.gauge_workers"] = strconv.Itoa(*v)
	}
	if v := c.Archive.Mirror; v != nil {
		fixed["archive.mirror"] = *v
	}
	if v := c.Archive.MirrorWait; v != nil {
		fixed["archive.mirror_wait"] = v.String()
	}
	if v := c.Archive.MirrorFiles; v != nil {
		fixed["archive.mirror_files"] = strconv.Itoa(*v)
	}
	return fixed
}
