package pool

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"aggregatord/internal/archive"
	"aggregatord/internal/fold"
	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// What a Pool tells about itself. All of it is about the moment, changes nothing that is
// served, and takes time in proportion to the files and their entries at most, without a
// system call for more than each file's fstat. The values belong to the caller.

// A FileState says in one word what is true of a file.
type FileState string

// The states of files.
const (
	FileAlive   FileState = "alive"
	FileDead    FileState = "dead"
	FileStaged  FileState = "staged"  // waits to be archived
	FileRemoved FileState = "removed" // by somebody else
	FileFailed  FileState = "failed"  // cannot be read
)

// State is a pool as a whole.
type State struct {
	Spec
	// Up says that the directory could be listed the last time; Err why not.
	Up  bool
	Err error
	// Silent says that the pool does not answer: see ErrSilent.
	Silent bool
	// Ready says that all files were read once.
	Ready bool
	// Liveness is how the death of workers is known, and KnownBy counts files by the method that
	// their own answer rests on.
	Liveness watch.Choice
	KnownBy  map[watch.Method]int
	// Workers counts worker IDs, Alive those of them that are alive.
	Workers, Alive int
	// Files counts source files by state, Foreign other files.
	Files   map[FileState]int
	Foreign int
	// Entries are the values that a view is made of, Series the series that the limits count.
	Entries, Series int
	// Used and Size are of the source files, in bytes.
	Used, Size int64
	// Room is the file system's.
	Room Room
	// Families and Samples are those of the next view; Dropped and Expired series are left out
	// of it by rules, and Conflicts are disagreements between files.
	Families, Samples, Dropped, Expired int
	Conflicts                           []merge.Conflict
	// LastPass is when a view was taken last, LastPassTook how long that was, and Passes how many
	// there were.
	LastPass     time.Time
	LastPassTook time.Duration
	Passes       uint64
	Archive      ArchiveState
	// FileErrors and EntryErrors count by reason since the pool was made.
	FileErrors, EntryErrors map[store.Reason]uint64
	// Rival is when another archiver was last seen to merge a file; zero while none is at work.
	Rival time.Time
	// IndexLimits and FileLimits are those in force; OpenFiles is how many files all pools
	// together may have open.
	IndexLimits merge.Options
	FileLimits  store.Limits
	OpenFiles   int
}

// ArchiveState is what a pool tells about its archive.
type ArchiveState struct {
	fold.State
	archive.Stats
	// Series counts its keys, Unsaved those with values that are in memory alone.
	Series, Unsaved int
	// Errors, Reopened and Expired count since the pool was made.
	Errors, Reopened, Expired uint64
	// Awaiting are dead workers' files to be archived, Removing those archived and about to be
	// removed.
	Awaiting, Removing int
	// Mirror is what others see who read the directory.
	Mirror fold.MirrorState
}

// State tells about the pool. Of one that does not answer it tells only that.
func (p *Pool) State() State {
	if !p.mu.lockWithin(p.patience) {
		return State{Spec: p.Spec(), Err: ErrSilent, Ready: p.ready.Load(), Silent: true}
	}
	defer p.mu.Unlock()
	s := State{
		Spec: p.Spec(), Up: p.scanErr == nil && p.listed, Err: p.scanErr, Ready: p.ready.Load(),
		Liveness: p.prober.Choice(), KnownBy: map[watch.Method]int{}, Workers: len(p.census.workers), Alive: p.census.alive,
		Files: map[FileState]int{}, Foreign: p.foreign, Series: p.index.Series(), Conflicts: p.index.Conflicts(),
		Dropped: p.index.Dropped(), Expired: p.index.Expired(), LastPass: p.lastPass, LastPassTook: p.lastPassTook, Passes: p.passes,
		FileErrors: map[store.Reason]uint64{}, EntryErrors: map[store.Reason]uint64{},
		Rival: p.rivals.seen, IndexLimits: p.index.Limits(), FileLimits: p.limits.InForce(), OpenFiles: p.descriptors.Max(),
		Room: p.room,
	}
	s.Liveness.Method = p.method
	if !p.closed {
		layout := p.index.Layout()
		s.Families, s.Samples = len(layout.Families), layout.Points
	}
	for t := range p.allLocked() {
		s.Files[t.describe()]++
		if t.file == nil {
			continue
		}
		if t.answered() {
			s.KnownBy[t.method]++
		}
		s.Entries += t.source.Entries()
		s.Used += t.file.UsedBytes()
		s.Size += t.file.Size()
		if !t.isAlive() {
			s.Archive.Awaiting++
		}
	}
	for _, reason := range fileReasons() {
		if n := p.metrics.fileErrors.With(p.spec.Name, string(reason)).Value(); n > 0 {
			s.FileErrors[reason] = uint64(n)
		}
	}
	for _, reason := range entryReasons() {
		if n := p.metrics.entryErrors.With(p.spec.Name, string(reason)).Value(); n > 0 {
			s.EntryErrors[reason] = uint64(n)
		}
	}
	a := p.folder.Archive()
	s.Archive.State, s.Archive.Stats = p.folder.State(), a.Stats()
	s.Archive.Series, s.Archive.Unsaved = a.Totals().Series(), a.Unsaved()
	s.Archive.Errors, s.Archive.Reopened = p.folds.Errors(), p.folds.Reopened()
	s.Archive.Expired = uint64(p.metrics.expired.With(p.spec.Name).Value())
	s.Archive.Removing = p.folder.RemovingFiles()
	s.Archive.Mirror = p.folder.Mirror()
	return s
}

// describe says what is true of the file.
func (t *file) describe() FileState {
	switch {
	case t.failure != "" || t.file == nil && t.state != absorbed:
		return FileFailed
	case t.place == staged:
		return FileStaged
	case t.place == orphan:
		return FileRemoved
	case !t.isAlive():
		return FileDead
	}
	return FileAlive
}

// dialect names how a file is laid out, as far as it shows.
func (t *file) dialect() string {
	switch {
	case t.name.Archive:
		return "postmates-archive"
	case t.file == nil || t.file.Width() == 0:
		return "empty"
	case t.file.Width() == 16:
		return "wide"
	}
	return "narrow"
}

// look is what was seen of a file's values when they were last looked at.
type look struct {
	hash    uint64
	known   bool
	changed time.Time
}

// changedLocked returns when a file was last seen to change: when it was resized, or when one
// of its values was another one than at the last look, as far as the two are known.
func (t *file) changedLocked() time.Time {
	if t.file == nil {
		return time.Time{}
	}
	h := uint64(14695981039346656037)
	for _, v := range t.source.Values() {
		h = (h ^ math.Float64bits(v)) * 0x9e3779b97f4a7c15
	}
	if t.looked.known && h != t.looked.hash {
		t.looked.changed = t.pool.now()
	}
	t.looked.known, t.looked.hash = true, h
	changed := t.looked.changed
	var st unix.Stat_t
	if unix.Fstat(int(t.file.Fd()), &st) == nil {
		if m := time.Unix(st.Mtim.Unix()); m.After(changed) {
			changed = m
		}
	}
	return changed
}

// A Worker is a process, or several that had one ID.
type Worker struct {
	ID    string
	Alive bool
	// KnownBy is how that is known.
	KnownBy watch.Method
	// Created is when the oldest of its files was made, Changed when one of its values was last
	// seen to be another one, or a file to have grown.
	Created, Changed time.Time
	// Files counts its files, Failed those that cannot be read.
	Files, Failed int
	Entries       int
	Used, Size    int64 // in bytes
}

// Workers lists all workers, by ID; none of a pool that does not answer.
func (p *Pool) Workers() []Worker {
	if !p.mu.lockWithin(p.patience) {
		return nil
	}
	defer p.mu.Unlock()
	counts := map[string]worker{}
	countWorkers(p.allLocked(), counts)
	workers := make(map[string]*Worker, len(counts))
	for id, n := range counts {
		workers[id] = &Worker{ID: id, Alive: n.alive, Files: n.files}
	}
	for t := range p.allLocked() {
		w := workers[t.name.ID]
		if w == nil || t.name.Archive {
			continue
		}
		if t.describe() == FileFailed {
			w.Failed++
		}
		if t.file == nil {
			continue
		}
		if created := t.file.Created(); w.Created.IsZero() || created.Before(w.Created) {
			w.Created = created
		}
		if changed := t.changedLocked(); changed.After(w.Changed) {
			w.Changed = changed
		}
		w.Entries += t.source.Entries()
		w.Used += t.file.UsedBytes()
		w.Size += t.file.Size()
		// It is alive if any of its files is, and that is known as that file tells.
		if t.isAlive() == w.Alive {
			w.KnownBy = max(w.KnownBy, t.method)
		}
	}
	all := make([]Worker, 0, len(workers))
	for _, id := range slices.Sorted(maps.Keys(workers)) {
		all = append(all, *workers[id])
	}
	return all
}

// A File is one source file.
type File struct {
	store.SourceName
	Path  string
	State FileState
	// Open says that the fields up to Changed are known.
	Open             bool
	KnownBy          watch.Method
	Dialect          string
	Entries          int
	Used, Size       int64 // in bytes
	Created, Changed time.Time
	Identity         store.Identity
	// Reason and Err say why it cannot be read, if it cannot; LeftOut for which reasons single
	// entries of it are left out.
	Reason  store.Reason
	Err     error
	LeftOut []store.Reason
}

// Files lists the files that keep says yes to, by path; none of a pool that does not answer.
func (p *Pool) Files(keep func(*File) bool) []File {
	if !p.mu.lockWithin(p.patience) {
		return nil
	}
	defer p.mu.Unlock()
	var all []File
	for t := range p.allLocked() {
		f := t.tellLocked()
		if keep(&f) {
			f.Changed = t.changedLocked()
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return all
}

func (t *file) tellLocked() File {
	f := File{SourceName: t.name, Path: t.path, State: t.describe(), Reason: t.failure, Err: t.failed}
	if t.file != nil {
		f.Open, f.KnownBy, f.Dialect = true, t.method, t.dialect()
		f.Entries, f.Used, f.Size = t.source.Entries(), t.file.UsedBytes(), t.file.Size()
		f.Created, f.Identity = t.file.Created(), t.file.Identity()
	}
	f.LeftOut = slices.Sorted(maps.Keys(t.seen))
	return f
}

// A Value is what a file holds under one key, less what of it is archived.
type Value struct {
	// Raw is the key, for store.ParseKey.
	Raw   string
	Type  metric.Type
	Mode  metric.Mode
	Path  string
	Value float64
}

// Values lists what the files of a worker held at the last view, file after file; nothing of a pool that
// does not answer.
func (p *Pool) Values(worker string) []Value {
	if !p.mu.lockWithin(p.patience) {
		return nil
	}
	defer p.mu.Unlock()
	var all []Value
	for t := range p.allLocked() {
		if t.source == nil || t.name.Archive || t.name.ID != worker {
			continue
		}
		p.index.Each(t.source, func(raw string, value, _ float64) {
			if raw != "" { // else it is left out
				all = append(all, Value{raw, t.name.Type, t.name.Mode, t.path, value})
			}
		})
	}
	slices.SortStableFunc(all, func(a, b Value) int { return cmp.Compare(a.Path, b.Path) })
	return all
}
