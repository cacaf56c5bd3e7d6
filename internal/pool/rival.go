package pool

import (
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"aggregatord/internal/fold"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// Other archivers may work in the directory: they add what a dead worker's file holds to a file
// of their own, in place or by renaming a new one over it, and remove the worker's. Whoever
// keeps the last values of a file that somebody removed, and reads them in the other file as
// well, counts them twice.
//
// So what such a file gained is compared with the files of the dead: one of which every value is
// part of the gain was merged. It is muted: it counts with what it gains from then on. No total falls
// by that, as the gain is no less than what is muted; a file that is still there after muteFor counts
// again.
//
// Workers that live for a moment leave files that look the same, and a start script removes files that
// nobody has merged. To take those for merged would lose what they counted, so not every gain counts:
//
//	a file called archive                    what it gains, or comes with
//	a file that was renamed over another     what it came with
//	a file that has merged others before     what it gains
//	a file that nobody has open, of the ID   what it gains or comes with, if it is just what files had
//	0 or one without a digit                 that were removed then
//
// A file that was removed was merged at about that time, its worker being dead; and, where the name
// tells nothing, into a file that was there already: who empties the directory leaves none that is
// older.

const (
	// muteFor is how long a file that seems merged may stay before it counts again.
	muteFor = 15 * time.Second
	// rivalFor is how long after the last merged file nothing is folded, so that the other
	// archiver finds the files that it means to merge.
	rivalFor = 10 * time.Minute
	// removedBefore is how long before what it held is read elsewhere a file may have been removed.
	removedBefore = time.Second
)

// rivals knows the other archivers at work in a pool's directory. Guarded by Pool.mu.
type rivals struct {
	now func() time.Time
	// check asks whether a process may write to a file, and note takes note of whether it can be read.
	check func(*file)
	note  func(*file, error)

	// seen is when another archiver was last seen to merge a file, zero while none is at work.
	seen time.Time
	// heirs are the names of the files that others are merged into.
	heirs map[string]bool
	gains []*gain
	// loadedAt is when all files were loaded last, by the kernel's clock.
	loadedAt time.Time
}

// muted is what a file counted with before it was muted.
type muted struct {
	since          time.Time
	baseline, base []float64
	// amount is the same by series, and heir the name of the file that seems to have it.
	amount map[uint32]float64
	heir   string
}

// gain is what a file has gained that may be the values of others.
type gain struct {
	heir *file
	left map[uint32]float64
	// removedOnly says that it must be just what files held that were removed, and just that it is
	// what all of them held.
	removedOnly, just bool
	since             time.Time
	// after is when the file had not gained it yet, by the kernel's clock; zero if that was not seen.
	after time.Time
}

// mayHold reports whether a removed file may have been merged into the gain's.
func (r *rivals) mayHold(g *gain, t *file) bool {
	if t.muted != nil || t.state == folding || t.source == nil || t.name.Type != g.heir.name.Type {
		return false
	}
	var st unix.Stat_t
	if unix.Fstat(int(t.file.Fd()), &st) != nil {
		return false
	}
	// The last that happened to the inode of a dead worker's file is that it lost its name.
	removed := time.Unix(st.Ctim.Unix())
	if g.removedOnly && g.heir.file.Born() && g.heir.file.Created().After(removed) {
		return false
	}
	if removed.Before(g.after.Add(-removedBefore)) {
		return false
	}
	if t.state != dead {
		r.check(t)
	}
	return t.state == dead || t.method == watch.MethodNone
}

// gain returns what a file has gained since the load before, if that may be the values of
// others.
func (r *rivals) gain(t *file) *gain {
	if t.source == nil || t.name.Type == metric.Gauge || t.state == folding || t.muted != nil || t.place != named {
		return nil
	}
	fresh := t.before == nil
	if fresh && !t.late {
		return nil // it was there when the daemon came
	}
	removedOnly := false
	switch {
	case t.isArchive(), r.heirs[t.name.Base], fresh && t.renamedOver():
	case t.state == dead && r.mayAccumulate(t):
		removedOnly = true
	default:
		return nil
	}
	left := sums(t.source.Cells(), t.source.Values(), t.before)
	if len(left) == 0 {
		return nil
	}
	return &gain{heir: t, left: left, removedOnly: removedOnly, since: r.now(), after: r.loadedAt}
}

// isArchive reports whether the name says that others are merged into the file.
func (t *file) isArchive() bool { return t.name.Archive || strings.Contains(t.name.ID, "archive") }

// mayAccumulate reports whether the name is one that an archiver may choose, or one that has chosen it.
func (r *rivals) mayAccumulate(t *file) bool {
	return t.name.ID == "0" || !strings.ContainsAny(t.name.ID, "0123456789") || r.heirs[t.name.Base]
}

// renamedOver reports whether the file was renamed over another one. Then it was made before the
// other one went; both times are of the kernel's clock, which ticks some hundred times a second.
func (t *file) renamedOver() bool {
	if t.replaced == nil || t.replaced.file == nil || !t.file.Born() || t.state != dead {
		return false
	}
	var st unix.Stat_t
	return unix.Fstat(int(t.replaced.file.Fd()), &st) == nil && t.file.Created().Before(time.Unix(st.Ctim.Unix()))
}

// compare looks for files that others have merged, and returns those that were removed since. The values
// of all files were just loaded; those with which more was to be done are in loads, and among them all
// that are muted or have gained something. files are those with a name, and orphans those without.
func (r *rivals) compare(loads []*file, files map[string]*file, orphans []*file) (merged []*file) {
	now := r.now()
	// What is left of a gain may be the values of a file that is not known to be dead yet.
	r.gains = slices.DeleteFunc(r.gains, func(g *gain) bool {
		return g.heir.place != named || g.heir.file == nil || now.Sub(g.since) > muteFor
	})
	for _, t := range loads {
		if t.muted != nil && t.place != orphan && t.state != folding && now.Sub(t.muted.since) > muteFor {
			r.unmute(t)
		}
		if !t.gained {
			continue
		}
		if g := r.gain(t); g != nil {
			r.gains = append(r.gains, g)
		}
		t.gained, t.late, t.replaced = false, false, nil
	}
	r.loadedAt = time.Now()
	for _, g := range r.gains {
		g.just = g.removedOnly && r.holdsAll(g, orphans)
	}
	for _, t := range orphans {
		own := t.ownSums()
		heir := r.claim(t, own)
		if heir == "" {
			heir = r.exchange(t, own, files)
		}
		if heir != "" && r.mute(t, own, heir) {
			merged = append(merged, t)
		}
	}
	if len(r.gains) == 0 {
		return merged
	}
	for _, t := range files {
		if t.state != dead {
			continue
		}
		own := t.ownSums()
		if heir := r.claim(t, own); heir != "" {
			r.mute(t, own, heir)
		}
	}
	return merged
}

// holdsAll reports whether a gain is just what all files held that may have been merged into it.
func (r *rivals) holdsAll(g *gain, orphans []*file) bool {
	all := map[uint32]float64{}
	for _, t := range orphans {
		if r.mayHold(g, t) {
			for cell, v := range sums(t.source.Cells(), t.source.Values(), nil) {
				all[cell] += v
			}
		}
	}
	return len(all) > 0 && maps.EqualFunc(g.left, all, near)
}

// ownSums returns what a file holds that others may have merged; nothing if there is nothing.
func (t *file) ownSums() map[uint32]float64 {
	if t.muted != nil || t.state == folding || t.source == nil || t.name.Type == metric.Gauge {
		return nil
	}
	return sums(t.source.Cells(), t.source.Values(), nil)
}

// claim takes what a dead file holds from a gain of which it is a part, and returns the name of the file
// that has gained it; "" if there is none.
func (r *rivals) claim(t *file, own map[uint32]float64) (heir string) {
	for _, g := range r.gains {
		switch {
		case g.heir == t, g.heir.name.Type != t.name.Type, t.place == orphan && !r.mayHold(g, t):
		case g.removedOnly && (t.place != orphan || !g.just && !maps.EqualFunc(g.left, own, near)):
		case take(g.left, own):
			return g.heir.name.Base
		}
	}
	return ""
}

// exchange is claim for a removed file that holds the same as another one, which was muted for it: one of
// the two was merged. The other one counts again.
func (r *rivals) exchange(t *file, own map[uint32]float64, files map[string]*file) (heir string) {
	if len(own) == 0 {
		return ""
	}
	for _, other := range files {
		if other.muted != nil && other.name.Type == t.name.Type && maps.EqualFunc(other.muted.amount, own, near) {
			heir = other.muted.heir
			r.unmute(other)
			return heir
		}
	}
	return ""
}

const rounding = 1e-9

func near(a, b float64) bool { return math.Abs(a-b) <= rounding*math.Abs(a) }

// sums adds up values by series, less earlier ones.
func sums(cells []uint32, values, earlier []float64) map[uint32]float64 {
	out := make(map[uint32]float64, len(cells))
	for i, c := range cells {
		v := values[i]
		if i < len(earlier) {
			v -= earlier[i]
		}
		if v != 0 && !math.IsNaN(v) {
			out[c] += v
		}
	}
	return out
}

// take takes values from a gain, if all of them are part of it.
func take(gain, values map[uint32]float64) bool {
	if len(values) == 0 {
		return false
	}
	for cell, v := range values {
		if gain[cell] < v-rounding*math.Abs(v) {
			return false
		}
	}
	for cell, v := range values {
		gain[cell] -= v
	}
	return true
}

// mute has a file count with what it gains from now on.
func (r *rivals) mute(t *file, own map[uint32]float64, heir string) (ok bool) {
	f := &fold.File{Served: make([]float64, 0, t.source.Entries())}
	slots := t.source.Slots().Numbers()
	if err := t.file.Walk(func(e store.Entry) {
		f.Values = append(f.Values, e.Value)
		if k := len(f.Served); k < len(slots) && slots[k] == e.Slot {
			f.Served = append(f.Served, e.Value)
		}
	}); err != nil || len(f.Served) != len(slots) {
		return false // it changes: it counts until it is looked at again
	}
	t.muted = &muted{r.now(), t.baseline, t.base, own, heir}
	t.base = nil // not to be written over
	t.rebase(f)
	return true
}

// unmute has a file count again with all that it did before.
func (r *rivals) unmute(t *file) {
	t.baseline, t.base = t.muted.baseline, t.muted.base
	t.muted = nil
	if err := t.load(); err != nil {
		r.note(t, err)
	}
}

// merged takes note that another archiver has merged and removed a file. It reports whether that one was
// not at work before.
func (r *rivals) merged(t *file) (first bool) {
	r.heirs[t.muted.heir] = true
	first = r.seen.IsZero()
	r.seen = r.now()
	return first
}

// ended reports whether an archiver that was at work has not been seen for long: it counts as gone.
func (r *rivals) ended() bool {
	if r.seen.IsZero() || r.now().Sub(r.seen) <= rivalFor {
		return false
	}
	r.seen = time.Time{}
	return true
}

// mergedLocked takes note of a file that another archiver has merged and removed.
func (p *Pool) mergedLocked(t *file) {
	p.metrics.merged.With(p.spec.Name).Inc()
	if p.rivals.merged(t) {
		p.logger.Warn("another archiver merges the files of dead workers into one of its own and removes them; "+
			"its totals are served, and nothing is archived here until it has ended. Stop one of the two archivers",
			zap.String("path", t.path))
	}
}

// rivalLocked reports whether another archiver is at work.
func (p *Pool) rivalLocked() bool {
	if p.rivals.ended() {
		p.logger.Info("the other archiver seems to have ended; dead workers' files are archived again")
	}
	return !p.rivals.seen.IsZero()
}
