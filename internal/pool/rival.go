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
func (g *gain) mayHold(t *file) bool {
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
		t.pool.checkLocked(t)
	}
	return t.state == dead || t.method == watch.MethodNone
}

// gainLocked returns what a file has gained since the load before, if that may be the values of
// others.
func (p *Pool) gainLocked(t *file) *gain {
	if t.source == nil || t.name.Type == metric.Gauge || t.state == folding || t.muted != nil || t.place != named {
		return nil
	}
	fresh := t.before == nil
	if fresh && !t.late {
		return nil // it was there when the daemon came
	}
	removedOnly := false
	switch {
	case t.isArchive(), p.heirs[t.name.Base], fresh && t.renamedOver():
	case t.state == dead && t.mayAccumulate():
		removedOnly = true
	default:
		return nil
	}
	left := sums(t.source.Cells(), t.source.Values(), t.before)
	if len(left) == 0 {
		return nil
	}
	return &gain{heir: t, left: left, removedOnly: removedOnly, since: p.now(), after: p.loadedAt}
}

// isArchive reports whether the name says that others are merged into the file.
func (t *file) isArchive() bool { return t.name.Archive || strings.Contains(t.name.ID, "archive") }

// mayAccumulate reports whether the name is one that an archiver may choose, or one that has chosen it.
func (t *file) mayAccumulate() bool {
	return t.name.ID == "0" || !strings.ContainsAny(t.name.ID, "0123456789") || t.pool.heirs[t.name.Base]
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

// compareWithMergedLocked looks for files that others have merged. The values of all files were
// just loaded, and loads has those that are muted or have gained something.
func (p *Pool) compareWithMergedLocked() {
	now := p.now()
	// What is left of a gain may be the values of a file that is not known to be dead yet.
	p.gains = slices.DeleteFunc(p.gains, func(g *gain) bool {
		return g.heir.place != named || g.heir.file == nil || now.Sub(g.since) > muteFor
	})
	for _, t := range p.loads {
		if t.muted != nil && t.place != orphan && t.state != folding && now.Sub(t.muted.since) > muteFor {
			p.unmuteLocked(t)
		}
		if !t.gained {
			continue
		}
		if g := p.gainLocked(t); g != nil {
			p.gains = append(p.gains, g)
		}
		t.gained, t.late, t.replaced = false, false, nil
	}
	p.loadedAt = time.Now()
	for _, g := range p.gains {
		g.just = g.removedOnly && p.holdsAllLocked(g)
	}
	for _, t := range p.orphans {
		p.claimLocked(t)
	}
	if len(p.gains) == 0 {
		return
	}
	for _, t := range p.files {
		if t.state == dead {
			p.claimLocked(t)
		}
	}
}

// holdsAllLocked reports whether a gain is just what all files held that may have been merged into it.
func (p *Pool) holdsAllLocked(g *gain) bool {
	all := map[uint32]float64{}
	for _, t := range p.orphans {
		if g.mayHold(t) {
			for cell, v := range sums(t.source.Cells(), t.source.Values(), nil) {
				all[cell] += v
			}
		}
	}
	return len(all) > 0 && maps.EqualFunc(g.left, all, near)
}

// claimLocked mutes a dead file whose values are part of a gain.
func (p *Pool) claimLocked(t *file) {
	if t.muted != nil || t.state == folding || t.source == nil || t.name.Type == metric.Gauge {
		return
	}
	own := sums(t.source.Cells(), t.source.Values(), nil)
	if len(own) == 0 {
		return
	}
	for _, g := range p.gains {
		switch {
		case g.heir == t, g.heir.name.Type != t.name.Type, t.place == orphan && !g.mayHold(t):
			continue
		case g.removedOnly && (t.place != orphan || !g.just && !maps.EqualFunc(g.left, own, near)):
			continue
		case !take(g.left, own):
			continue
		}
		if p.muteLocked(t, own, g.heir.name.Base) && t.place == orphan {
			p.mergedLocked(t)
		}
		return
	}
	if t.place != orphan {
		return
	}
	// One of two files with the same values was merged, and the other one was muted for it.
	for _, other := range p.files {
		if other.muted != nil && other.name.Type == t.name.Type && maps.EqualFunc(other.muted.amount, own, near) {
			heir := other.muted.heir
			p.unmuteLocked(other)
			if p.muteLocked(t, own, heir) {
				p.mergedLocked(t)
			}
			return
		}
	}
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

// muteLocked has a file count with what it gains from now on.
func (p *Pool) muteLocked(t *file, own map[uint32]float64, heir string) (ok bool) {
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
	t.muted = &muted{p.now(), t.baseline, t.base, own, heir}
	t.base = nil // not to be written over
	t.rebase(f)
	return true
}

// unmuteLocked has a file count again with all that it did before.
func (p *Pool) unmuteLocked(t *file) {
	t.baseline, t.base = t.muted.baseline, t.muted.base
	t.muted = nil
	if err := t.load(); err != nil {
		p.noteLocked(t, err)
	}
}

// mergedLocked takes note that another archiver has merged and removed a file.
func (p *Pool) mergedLocked(t *file) {
	p.heirs[t.muted.heir] = true
	p.metrics.merged.With(p.spec.Name).Inc()
	if p.rival.IsZero() {
		p.logger.Warn("another archiver merges the files of dead workers into one of its own and removes them; "+
			"its totals are served, and nothing is archived here until it has ended. Stop one of the two archivers",
			zap.String("path", t.path))
	}
	p.rival = p.now()
}

// rivalLocked reports whether another archiver is at work.
func (p *Pool) rivalLocked() bool {
	if !p.rival.IsZero() && p.now().Sub(p.rival) > rivalFor {
		p.logger.Info("the other archiver seems to have ended; dead workers' files are archived again")
		p.rival = time.Time{}
	}
	return !p.rival.IsZero()
}
