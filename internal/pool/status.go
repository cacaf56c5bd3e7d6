package pool

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/selector"
	"aggregatord/internal/status"
	"aggregatord/internal/view"
	"aggregatord/internal/watch"
)

// What a Collector tells about itself. All of it is about the moment, changes nothing that
// is served, and takes time in proportion to the files and their entries at most, without a
// system call for more than each file's fstat.

// look is what was seen of a file's values when they were last looked at.
type look struct {
	hash    uint64
	known   bool
	changed time.Time
}

// Overview tells of the pools and of what they make together. Build, Started and the rest
// that a Collector does not know are left empty.
func (c *Collector) Overview() status.Overview {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := status.Overview{
		Ready:    c.ready.Load(),
		Merge:    c.mergeStatusLocked(),
		Limits:   c.limitsLocked(),
		Pools:    make([]status.Pool, 0, len(c.dirs)),
		Problems: []status.Problem{},
	}
	if !o.Ready {
		o.Problems = append(o.Problems, status.Problem{Severity: "warning", Text: "not ready: not all source files have been read yet"})
	}
	for _, d := range c.dirs {
		p := d.status()
		o.Merge.Entries += p.Entries
		o.Pools = append(o.Pools, p)
		o.Problems = append(o.Problems, problems(&p)...)
	}
	if n := o.Merge.Conflicts; n > 0 {
		o.Problems = append(o.Problems, status.Problem{Severity: "warning", Text: fmt.Sprintf("files disagree on the type or mode of metrics (%d); the newest file's samples are served", n)})
	}
	return o
}

func (c *Collector) mergeStatusLocked() status.Merge {
	m := status.Merge{
		Passes: uint64(c.metrics.passes.Value()), Shared: uint64(c.metrics.shared.Value()),
		LastSeconds: c.lastPassTook.Seconds(), Last: moment(c.lastPass),
		Conflicts: len(c.index.Conflicts()), Dropped: c.index.Dropped(), Expired: c.index.Expired(),
	}
	if !c.closed {
		layout := c.index.Layout()
		m.Families, m.Samples = len(layout.Families), layout.Points
	}
	return m
}

func (c *Collector) limitsLocked() status.Limits {
	index, files := c.index.Limits(), c.dirs[0].limits.InForce()
	return status.Limits{
		SeriesPerPool: index.MaxSeries, SeriesPerFamily: index.MaxFamilySeries, Labels: index.MaxLabels,
		LabelNameLength: index.MaxLabelName, LabelValueLength: index.MaxLabelValue,
		FileBytes: files.FileBytes, KeyBytes: files.KeyBytes, OpenFiles: c.maxFiles,
	}
}

// moment is a time in Unix seconds, 0 for the zero time.
func moment(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

func (d *dir) status() status.Pool {
	m, pool := d.c.metrics, d.spec.Pool
	p := status.Pool{
		Name: pool, Dir: d.spec.Path, Up: d.scanErr == nil && d.listed, Series: d.c.index.Series(pool),
		Liveness:   status.Liveness{Method: d.method.String(), Files: map[string]int{}},
		Files:      status.Files{Foreign: d.foreign},
		FileErrors: map[string]uint64{}, EntryErrors: map[string]uint64{},
	}
	choice := d.prober.Choice()
	p.Liveness.FileSystem, p.Liveness.Reason = choice.FileSystem, choice.Reason
	if d.scanErr != nil {
		p.Error = d.scanErr.Error()
	}
	for method := range watch.Method(watch.Methods) {
		p.Liveness.Files[method.String()] = 0
	}
	for t := range d.all() {
		switch d.state(t) {
		case "failed":
			p.Files.Failed++
		case "staged":
			p.Files.Staged++
		case "removed":
			p.Files.Removed++
		case "dead":
			p.Files.Dead++
		default:
			p.Files.Alive++
		}
		if t.file == nil {
			continue
		}
		p.Liveness.Files[t.method.String()]++
		p.Entries += t.source.Entries()
		p.UsedBytes += t.file.UsedBytes()
		p.SizeBytes += t.file.Size()
		if !t.alive {
			p.Archive.Awaiting++
		}
	}
	for _, alive := range d.workers {
		if alive {
			p.Workers.Alive++
		} else {
			p.Workers.Dead++
		}
	}
	for _, reason := range fileReasons() {
		if n := m.fileErrors.With(pool, string(reason)).Value(); n > 0 {
			p.FileErrors[string(reason)] = uint64(n)
		}
	}
	for _, reason := range entryReasons() {
		if n := m.entryErrors.With(pool, string(reason)).Value(); n > 0 {
			p.EntryErrors[string(reason)] = uint64(n)
		}
	}
	var st unix.Statfs_t
	if unix.Statfs(d.spec.Path, &st) == nil {
		block := uint64(st.Bsize)
		p.FileSystem = &status.Space{
			TotalBytes: st.Blocks * block, FreeBytes: st.Bavail * block,
			TotalInodes: st.Files, FreeInodes: st.Ffree,
		}
	}
	d.archiveStatus(&p.Archive)
	return p
}

func (d *dir) archiveStatus(a *status.Archive) {
	m, pool := d.c.metrics, d.spec.Pool
	stats := d.archive.Stats()
	switch {
	case d.opts == nil:
		a.State = "read-only"
	case !d.archive.Attached():
		a.State = "closed"
	case d.foldErr != nil:
		a.State = "failing"
	default:
		a.State = "open"
	}
	if err := cmp.Or(d.foldErr, d.attachErr); err != nil {
		a.Error = err.Error()
	}
	a.Path, a.Bytes = d.archive.Path(), d.archive.SizeBytes()
	if d.view != nil {
		a.Path, a.Bytes = d.view.Path(), d.view.SizeBytes()
	}
	a.Series, a.Unsaved = d.archive.Totals().Series(), d.archive.Unsaved()
	a.Folds, a.FoldedFiles, a.FoldedBytes = stats.Folds, stats.Files, stats.Bytes
	a.Created, a.LastFold = moment(stats.Created), moment(stats.LastFold)
	a.Errors = uint64(m.foldErrors.With(pool).Value())
	a.Reopened = uint64(m.reopened.With(pool).Value())
	a.Expired = uint64(m.expired.With(pool).Value())
	a.Removing = len(d.removing)
}

// fullPart is the part of a file system whose rest makes a problem.
const fullPart = 20

// problems says in words what is wrong in a pool.
func problems(p *status.Pool) []status.Problem {
	var all []status.Problem
	say := func(severity, format string, args ...any) {
		all = append(all, status.Problem{Pool: p.Name, Severity: severity, Text: fmt.Sprintf(format, args...)})
	}
	if !p.Up {
		say("error", "directory %s cannot be listed: %s", p.Dir, cmp.Or(p.Error, "not looked at yet"))
	}
	if p.Liveness.Files["none"] > 0 {
		say("warning", "of %d files nobody can tell whether their workers live, so they count as alive: %s", p.Liveness.Files["none"], cmp.Or(p.Liveness.Reason, "a lease was refused; run as the workers' user"))
	}
	if p.Archive.Error != "" {
		say("error", "the archive is %s, and no file is removed: %s", p.Archive.State, p.Archive.Error)
	}
	if p.Files.Failed > 0 {
		say("warning", "files that cannot be read: %d", p.Files.Failed)
	}
	refused := uint64(0)
	for _, n := range p.EntryErrors {
		refused += n
	}
	if refused > 0 {
		say("warning", "entries left out since the start: %d", refused)
	}
	if s := p.FileSystem; s != nil {
		if s.TotalBytes > 0 && s.FreeBytes < s.TotalBytes/fullPart {
			say("error", "the file system of %s has %d of %d bytes free; when it is full, the next value a worker stores kills it", p.Dir, s.FreeBytes, s.TotalBytes)
		}
		if s.TotalInodes > 0 && s.FreeInodes < s.TotalInodes/fullPart {
			say("error", "the file system of %s has %d of %d inodes free", p.Dir, s.FreeInodes, s.TotalInodes)
		}
	}
	return all
}

// state is what has become of a file.
func (d *dir) state(t *tracked) string {
	switch {
	case t.file == nil || t.failure != "":
		return "failed"
	case t.staged != "":
		return "staged"
	case d.files[t.name.Base] != t:
		return "removed"
	case !t.alive:
		return "dead"
	}
	return "alive"
}

// lookAt returns when a file was last seen to change: when it was resized, or when one of
// its values was another one than at the last look, as far as the two are known.
func (d *dir) lookAt(t *tracked) float64 {
	if t.file == nil {
		return 0
	}
	h := uint64(14695981039346656037)
	for _, v := range t.source.Values() {
		h = (h ^ math.Float64bits(v)) * 0x9e3779b97f4a7c15
	}
	if t.looked.known && h != t.looked.hash {
		t.looked.changed = d.c.now()
	}
	t.looked.known, t.looked.hash = true, h
	changed := t.looked.changed
	var st unix.Stat_t
	if unix.Fstat(int(t.file.Fd()), &st) == nil {
		if m := time.Unix(st.Mtim.Unix()); m.After(changed) {
			changed = m
		}
	}
	return moment(changed)
}

// Workers lists all workers, by pool and ID.
func (c *Collector) Workers() []status.Worker {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []status.Worker{}
	for _, d := range c.dirs {
		workers := map[string]*status.Worker{}
		for t := range d.all() {
			if t.name.Archive {
				continue
			}
			w := workers[t.name.ID]
			if w == nil {
				w = &status.Worker{Pool: d.spec.Pool, ID: t.name.ID}
				workers[t.name.ID] = w
			}
			w.Files++
			if d.state(t) == "failed" {
				w.Failed++
			}
			if t.file == nil {
				continue
			}
			if created := moment(t.file.Created()); w.Created == 0 || created < w.Created {
				w.Created = created
			}
			w.Changed = max(w.Changed, d.lookAt(t))
			w.Entries += t.source.Entries()
			w.UsedBytes += t.file.UsedBytes()
			w.SizeBytes += t.file.Size()
			// It lives if any of its files does, and that is known as that file tells.
			if method := t.method.String(); w.KnownBy == "" || t.alive && !w.Alive || t.alive == w.Alive && method == "lease" {
				w.KnownBy = method
			}
			w.Alive = w.Alive || t.alive
		}
		for _, id := range slices.Sorted(maps.Keys(workers)) {
			all = append(all, *workers[id])
		}
	}
	return all
}

// Files lists the files that keep says yes to, by pool and path.
func (c *Collector) Files(keep func(*status.File) bool) []status.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []status.File{}
	for _, d := range c.dirs {
		for t := range d.all() {
			f := d.fileStatus(t)
			if keep(&f) {
				f.Changed = d.lookAt(t)
				all = append(all, f)
			}
		}
	}
	slices.SortFunc(all, func(a, b status.File) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Path, b.Path))
	})
	return all
}

func (d *dir) fileStatus(t *tracked) status.File {
	f := status.File{
		Pool: d.spec.Pool, Worker: t.name.ID, Path: t.path, Type: t.name.Type.String(), Mode: t.name.Mode.String(),
		State: d.state(t), Reason: string(t.failure),
	}
	if t.file != nil {
		f.KnownBy, f.Dialect = t.method.String(), dialect(t)
		f.Entries, f.UsedBytes, f.SizeBytes = t.source.Entries(), t.file.UsedBytes(), t.file.Size()
		f.Created = moment(t.file.Created())
	}
	if t.failure != "" && t.failed != nil {
		f.Error = t.failed.Error()
	}
	for _, reason := range slices.Sorted(maps.Keys(t.seen)) {
		f.LeftOut = append(f.LeftOut, string(reason))
	}
	return f
}

// Conflicts lists what files disagreed on in the last view.
func (c *Collector) Conflicts() []status.Conflict {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []status.Conflict{}
	for _, k := range c.index.Conflicts() {
		all = append(all, status.Conflict{Family: k.Family, Pool: k.Pool, Served: k.Winner, LeftOut: k.Loser, Series: k.Series})
	}
	return all
}

// Explain says of the series that are meant, at most limit of them, what made their values:
// those of the last Gather, with no other read in between. The time it takes grows with all
// entries, not with the number of series explained.
func (c *Collector) Explain(sel selector.Selector, limit int) (status.Explanations, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := status.Explanations{Time: moment(c.lastPass), Items: []status.Explanation{}}
	if c.closed {
		return out, ErrClosed
	}
	snap := c.index.Snapshot()
	merged, from := snap.Layout, []uint32(nil)
	if c.relabel != nil {
		relabeled := c.relabel.Apply(merged)
		from = relabeled.From
		snap = snap.Map(relabeled.Layout, from)
	}
	defer snap.Release()
	var refs []view.PointRef // in merged
	EachSample(snap, sel, func(ref view.PointRef, value int) {
		out.Matching++
		if len(refs) == limit {
			return
		}
		fam := &snap.Layout.Families[ref.Family]
		e := status.Explanation{
			Sample: SampleAt(snap, ref, value), Family: fam.Name, Type: fam.Type.String(), Help: fam.Help, Contributions: []status.Contribution{},
		}
		if view.IsAbsent(snap.Values[value]) {
			e.Value, e.Absent = 0, "it was never set, or has not changed for longer than a rule allows"
		}
		if from != nil {
			ref = merged.RefAt(int(from[value]))
			if was := seriesAt(merged, ref); was != e.Series {
				e.RelabeledFrom = was
			}
		}
		refs = append(refs, ref)
		out.Items = append(out.Items, e)
	})
	if len(refs) == 0 {
		return out, nil
	}
	sources := c.sourcesLocked()
	for i, a := range c.index.Explain(refs) {
		e := &out.Items[i]
		e.Operation, e.Cumulative, e.Rule, e.Mode = a.Operation.String(), a.Cumulative, a.Rule, a.Mode.String()
		e.ModeSource = modeSource(a.Mode, a.ModeByRule)
		for _, k := range a.Contributions {
			out := contributionOf(sources[k.Source], k.Source)
			out.Value, out.Counts, out.Why = status.Number(k.Value), k.Counts, k.Why
			if a.Operation == metric.MostRecent {
				out.Set = max(k.Stamp, 0)
			}
			e.Contributions = append(e.Contributions, out)
		}
	}
	return out, nil
}

// modeSource says where the mode in force comes from.
func modeSource(mode metric.Mode, byRule bool) string {
	switch {
	case mode == metric.NoMode:
		return ""
	case byRule:
		return "rule"
	}
	return "file name"
}

// place is what a source of the index stands for: a file, or else what is archived in a dir.
type place struct {
	d *dir
	t *tracked
}

func (c *Collector) sourcesLocked() map[*merge.Source]place {
	sources := map[*merge.Source]place{}
	for _, d := range c.dirs {
		for t := range d.all() {
			if t.source != nil {
				sources[t.source] = place{d, t}
			}
		}
		for _, f := range d.folded {
			sources[f.source] = place{d, nil}
		}
	}
	return sources
}

func contributionOf(p place, s *merge.Source) status.Contribution {
	switch {
	case p.d == nil:
		return status.Contribution{Kind: "configuration", Pool: s.Spec().Pool}
	case p.t == nil:
		out := status.Contribution{Kind: "archive", Pool: p.d.spec.Pool, Worker: s.Spec().ID, Path: p.d.archive.Path()}
		if p.d.view != nil {
			out.Path = p.d.view.Path()
		}
		return out
	}
	t := p.t
	return status.Contribution{
		Kind: "file", Pool: p.d.spec.Pool, Worker: t.name.ID, Path: t.path,
		State: p.d.state(t), KnownBy: t.method.String(), Gains: t.baseline != nil,
	}
}

// EachSample calls yield for the samples of a snapshot that are meant, in output order, the
// absent ones too, with the index of the value.
func EachSample(snap *view.Snapshot, sel selector.Selector, yield func(ref view.PointRef, value int)) {
	for f := range snap.Layout.Families {
		fam := &snap.Layout.Families[f]
		if sel.Name != "" && !strings.HasPrefix(sel.Name, fam.Name) {
			continue
		}
		at := fam.First
		var names [view.Count + 1]string // by kind, once for each family
		for m := range fam.Metrics {
			points := fam.Metrics[m].Points
			for p, point := range points {
				if names[point.Kind] == "" {
					names[point.Kind] = fam.Name + point.Kind.Suffix()
				}
				name := names[point.Kind]
				if sel.Name != "" && sel.Name != name {
					continue
				}
				boundLabel, bound := boundOf(point)
				if sel.Matches(name, fam.Metrics[m].Labels, boundLabel, bound) {
					yield(view.PointRef{Family: f, Metric: m, Point: p}, at+p)
				}
			}
			at += len(points)
		}
	}
}

// SampleAt returns one sample of a snapshot, as EachSample names it.
func SampleAt(snap *view.Snapshot, ref view.PointRef, value int) status.Sample {
	fam := &snap.Layout.Families[ref.Family]
	labels, point := fam.Metrics[ref.Metric].Labels, fam.Metrics[ref.Metric].Points[ref.Point]
	boundLabel, bound := boundOf(point)
	s := status.Sample{
		Name: fam.Name + point.Kind.Suffix(), Labels: make(map[string]string, len(labels)+1),
		Series: seriesAt(snap.Layout, ref), Value: status.Number(snap.Values[value]),
	}
	for _, l := range labels {
		s.Labels[l.Name] = l.Value
	}
	if boundLabel != "" {
		s.Labels[boundLabel] = bound
	}
	return s
}

// seriesAt spells the series of a point.
func seriesAt(l *view.Layout, ref view.PointRef) string {
	fam := &l.Families[ref.Family]
	point := fam.Metrics[ref.Metric].Points[ref.Point]
	boundLabel, bound := boundOf(point)
	return selector.Format(fam.Name+point.Kind.Suffix(), fam.Metrics[ref.Metric].Labels, boundLabel, bound)
}

// boundOf returns the label that tells a bucket or quantile from the others.
func boundOf(p view.Point) (label, value string) {
	switch p.Kind {
	case view.Bucket:
		return "le", string(metric.AppendBound(nil, p.Bound))
	case view.Quantile:
		return "quantile", string(metric.AppendBound(nil, p.Bound))
	}
	return "", ""
}
