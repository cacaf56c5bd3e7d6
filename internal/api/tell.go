package api

import (
	"fmt"
	"strings"
	"syscall"
	"time"

	"aggregatord/internal/fleet"
	"aggregatord/internal/metric"
	"aggregatord/internal/pool"
	"aggregatord/internal/selector"
	"aggregatord/internal/status"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// What the rooms tell of themselves as plain values becomes the words and shapes of the API
// here.

// moment is a time in Unix seconds, 0 for the zero time.
func moment(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// Overview tells of the pools and of what they make together. Build and Started are left
// empty. The search for pools may be nil, and so may be where pools came from.
func Overview(f *fleet.Fleet, search *status.Discovery, origins map[string]Origin) status.Overview {
	o := status.Overview{Ready: f.Ready(), Pools: []status.Pool{}, Problems: []status.Problem{}}
	if !o.Ready {
		o.Problems = append(o.Problems, status.Problem{
			Severity: "warning",
			Text:     "Not all source files have been read yet, so nothing is served.",
			Action:   "Wait a moment; if it lasts, the log says why.",
		})
	}
	for _, p := range f.Pools() {
		s := p.State()
		told := poolOf(&s)
		told.Labels = labelsOf(f.TargetLabels(s.Spec))
		if o, ok := origins[s.Name]; ok {
			told.Source, told.Vanished, told.Until = o.Source, moment(o.Vanished), moment(o.Until)
		}
		wrong := problems(&told)
		told.Problems = len(wrong)
		for _, w := range wrong {
			if told.Trouble != severityError {
				told.Trouble = w.Severity
			}
		}
		m := &o.Merge
		m.Families += s.Families
		m.Samples += s.Samples
		m.Entries += s.Entries
		m.Conflicts += len(s.Conflicts)
		m.Dropped += s.Dropped
		m.Expired += s.Expired
		m.Last = max(m.Last, moment(s.LastPass))
		m.LastSeconds = max(m.LastSeconds, s.LastPassTook.Seconds())
		m.Passes = max(m.Passes, s.Passes)
		o.Limits = status.Limits{
			SeriesPerPool: s.IndexLimits.MaxSeries, SeriesPerFamily: s.IndexLimits.MaxFamilySeries,
			FamiliesPerPool: s.IndexLimits.MaxFamilies,
			BytesPerPool:    s.IndexLimits.MaxBytes,
			Labels:          s.IndexLimits.MaxLabels, LabelNameLength: s.IndexLimits.MaxLabelName,
			LabelValueLength: s.IndexLimits.MaxLabelValue,
			FileBytes:        s.FileLimits.FileBytes, KeyBytes: s.FileLimits.KeyBytes, OpenFiles: s.OpenFiles,
		}
		o.Pools = append(o.Pools, told)
		o.Problems = append(o.Problems, wrong...)
	}
	if search != nil {
		o.Discovery = search
		o.Problems = append(o.Problems, problemsOf(search)...)
	}
	if n := o.Merge.Conflicts; n > 0 {
		o.Problems = append(o.Problems, status.Problem{
			Severity: "warning",
			Text:     fmt.Sprintf("Files disagree on the type or mode of %s; the newest file's samples are served.", several(n, "metric")),
			Action:   "It ends when all workers run the same version of the application.",
		})
	}
	return o
}

// severityError is the worse severity.
const severityError = "error"

// problemsOf says in words what is wrong with the search for pools.
func problemsOf(search *status.Discovery) []status.Problem {
	var all []status.Problem
	if n := search.LeftOut; n > 0 {
		all = append(all, status.Problem{
			Severity: severityError, Text: fmt.Sprintf("%s found and not served, because there may be %d.",
				several(n, "pool was", "pools were"), search.Limit),
			Action: "Raise limits.pools.",
		})
	}
	for _, text := range search.Problems {
		p := status.Problem{
			Severity: "warning", Text: "Discovery: " + text + ".",
			Action: "Compare that with the paths and the user of the daemon.",
		}
		// The room says what helps behind the last semicolon, where it knows that.
		if i := strings.LastIndex(text, "; "); i >= 0 {
			p.Text, p.Action = "Discovery: "+text[:i]+".", strings.ToUpper(text[i+2:i+3])+text[i+3:]+"."
		}
		all = append(all, p)
	}
	return all
}

// labelsOf returns labels by name, without that of the pool's name.
func labelsOf(labels []metric.Label) map[string]string {
	out := map[string]string{}
	for _, l := range labels {
		if l.Name != "pool" {
			out[l.Name] = l.Value
		}
	}
	return out
}

// shownPath is a path in a pool's directory as people know it.
func shownPath(s pool.Spec, path string) string {
	if rest, ok := strings.CutPrefix(path, s.Path+"/"); ok && s.Origin != "" {
		return s.Origin + "/" + rest
	}
	return path
}

func poolOf(s *pool.State) status.Pool {
	p := status.Pool{
		Name: s.Name, Dir: s.Dir(), Source: "configuration", Ready: s.Ready, Up: s.Up, Series: s.Series, Entries: s.Entries,
		UsedBytes: s.Used, SizeBytes: s.Size,
		Liveness: status.Liveness{
			Method: s.Liveness.Method.String(), FileSystem: s.Liveness.FileSystem, Reason: s.Liveness.Reason, Files: map[string]int{},
		},
		Workers: status.Alive{Alive: s.Alive, Dead: s.Workers - s.Alive},
		Files: status.Files{
			Alive: s.Files[pool.FileAlive], Dead: s.Files[pool.FileDead], Staged: s.Files[pool.FileStaged],
			Removed: s.Files[pool.FileRemoved], Failed: s.Files[pool.FileFailed], Foreign: s.Foreign,
		},
		OtherArchiver: moment(s.Rival), FileErrors: byName(s.FileErrors), EntryErrors: byName(s.EntryErrors),
	}
	if s.Err != nil {
		p.Error = s.Err.Error()
	}
	for method := range watch.Method(watch.Methods) {
		p.Liveness.Files[method.String()] = s.KnownBy[method]
	}
	if s.Room.Known {
		p.FileSystem = &status.Space{
			TotalBytes: s.Room.TotalBytes, FreeBytes: s.Room.FreeBytes, TotalInodes: s.Room.TotalInodes, FreeInodes: s.Room.FreeInodes,
		}
	}
	a := &s.Archive
	p.Archive = status.Archive{
		State: archiveState(a), Path: shownPath(s.Spec, a.Path), Bytes: a.State.Bytes, Series: a.Series, Unsaved: a.Unsaved,
		Folds: a.Folds, FoldedFiles: a.Files, FoldedBytes: a.Stats.Bytes, Created: moment(a.Created), LastFold: moment(a.LastFold),
		Errors: a.Errors, Reopened: a.Reopened, Expired: a.Expired, Awaiting: a.Awaiting, Removing: a.Removing,
	}
	if m := &a.Mirror; m.Wanted {
		p.Archive.Mirror = &status.Mirror{
			Open: m.Open, Reads: m.Reads, LastRead: moment(m.Last), LongestReadSeconds: m.Longest.Seconds(),
			WaitingFiles: m.Waiting, ForcedFiles: m.Forced,
		}
	}
	if a.Err != nil {
		p.Archive.Error = a.Err.Error()
	}
	return p
}

func archiveState(a *pool.ArchiveState) string {
	switch {
	case a.ReadOnly:
		return "read-only"
	case !a.Open:
		return "closed"
	case a.Err != nil:
		return "failing"
	}
	return "open"
}

func byName(counts map[store.Reason]uint64) map[string]uint64 {
	out := make(map[string]uint64, len(counts))
	for reason, n := range counts {
		out[string(reason)] = n
	}
	return out
}

// fullPart is the part of a file system whose rest makes a problem.
const fullPart = 20

// several says how many of a thing there are.
func several[N int | uint64](n N, one string, many ...string) string {
	if n == 1 {
		return "1 " + one
	}
	if len(many) > 0 {
		return fmt.Sprintf("%d %s", n, many[0])
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// problems says in words what is wrong in a pool.
func problems(p *status.Pool) []status.Problem {
	var all []status.Problem
	say := func(severity, action, format string, args ...any) {
		all = append(all, status.Problem{Pool: p.Name, Severity: severity, Text: fmt.Sprintf(format, args...), Action: action})
	}
	switch {
	case p.Up, p.Error == "", p.Vanished > 0: // or it has not been looked at yet, or is known to be gone
	case strings.Contains(p.Error, syscall.ENOENT.Error()):
		say(severityError, "Make it before the application starts, or give the right one by --dir.", "The directory %s does not exist.",
			p.Dir)
	case strings.Contains(p.Error, syscall.EACCES.Error()):
		say(severityError, "Run the daemon as the workers' user.", "The daemon may not list the directory %s.", p.Dir)
	case p.Error == pool.ErrSilent.Error():
		say(severityError, "Look at its file system. The pool is served again as soon as it answers.",
			"The directory %s does not answer; nothing of its pool is served.", p.Dir)
	default:
		say(severityError, "Run aggregatord doctor there.", "The directory %s cannot be listed: %s.", p.Dir, p.Error)
	}
	if n := p.Liveness.Files["none"]; n > 0 {
		why, action := "", "Run the daemon as the workers' user, or grant it CAP_LEASE."
		if reason := p.Liveness.Reason; reason != "" {
			why = fmt.Sprintf(" (%s)", reason)
			if !strings.Contains(reason, "CAP_LEASE") {
				action = "Use a tmpfs or a local volume for the directory."
			}
		}
		say("warning", action, "Cannot tell whether the workers of %s are alive%s. They count as alive.", several(n, "file"), why)
	}
	// Of a directory that cannot be listed all is said.
	if p.Archive.Error != "" && p.Up {
		action := "Run aggregatord doctor there."
		switch {
		case strings.Contains(p.Archive.Error, syscall.EACCES.Error()):
			action = "Run the daemon as the workers' user."
		case strings.Contains(p.Archive.Error, syscall.ENOSPC.Error()):
			action = "Make room on its file system."
		case strings.Contains(p.Archive.Error, syscall.EROFS.Error()):
			action = "Use a file system that can be written to, for instance by --archive.dir."
		}
		say(severityError, action, "Files of dead workers are not archived: %s.", p.Archive.Error)
	}
	if p.OtherArchiver > 0 {
		say("warning", "Stop one of the two.",
			"Another archiver merges the files of dead workers into one of its own, so nothing is archived here.")
	}
	if n := p.Files.Failed; n > 0 {
		say("warning", "The section Problems of the page and the log say why.", "%s cannot be read.", several(n, "file"))
	}
	refused := uint64(0)
	for _, n := range p.EntryErrors {
		refused += n
	}
	if refused > 0 {
		say("warning", "The log names the first of each file.", "%s left out since the daemon was started.",
			several(refused, "entry", "entries"))
	}
	if s := p.FileSystem; s != nil {
		if s.TotalBytes > 0 && s.FreeBytes < s.TotalBytes/fullPart {
			say(severityError, "Make room, or give it more.",
				"The file system of %s has %d of %d bytes free; when it is full, the next value a worker stores kills it.", p.Dir,
				s.FreeBytes, s.TotalBytes)
		}
		if s.TotalInodes > 0 && s.FreeInodes < s.TotalInodes/fullPart {
			say(severityError, "Remove files, or give it more inodes.", "The file system of %s has %d of %d inodes free.", p.Dir,
				s.FreeInodes, s.TotalInodes)
		}
	}
	return all
}

// outputProblems says which outputs do not reach their receivers.
func outputProblems(outputs []status.Output) (all []status.Problem) {
	for i := range outputs {
		o := &outputs[i]
		if o.Failures < 2 {
			continue // one is made good by the next
		}
		action := "Its receiver has taken nothing yet."
		if o.LastSuccess > 0 {
			action = "What it has is from " + time.Unix(int64(o.LastSuccess), 0).UTC().Format(time.DateTime) + " UTC."
		}
		all = append(all, status.Problem{
			Severity: "warning", Action: action,
			Text: fmt.Sprintf("The last %s of the output %s failed: %s", several(o.Failures, "push", "pushes"), o.Name, sentence(o.Error)),
		})
	}
	return all
}

// sentence ends a text as a sentence ends.
func sentence(text string) string {
	if strings.HasSuffix(text, ".") || strings.HasSuffix(text, "?") {
		return text
	}
	return text + "."
}

// Workers lists the workers of all pools, by pool and ID.
func Workers(f *fleet.Fleet) []status.Worker {
	all := []status.Worker{}
	for _, p := range f.Pools() {
		for _, w := range p.Workers() {
			all = append(all, status.Worker{
				Pool: p.Spec().Name, ID: w.ID, Alive: w.Alive, KnownBy: w.KnownBy.String(), Created: moment(w.Created),
				Changed: moment(w.Changed),
				Files:   w.Files, Failed: w.Failed, Entries: w.Entries, UsedBytes: w.Used, SizeBytes: w.Size,
			})
		}
	}
	return all
}

// Files lists the files of all pools that keep says yes to, by pool and path.
func Files(f *fleet.Fleet, keep func(*status.File) bool) []status.File {
	all := []status.File{}
	for _, p := range f.Pools() {
		spec := p.Spec()
		for _, told := range p.Files(func(t *pool.File) bool {
			out := fileOf(spec, t)
			return keep(&out)
		}) {
			all = append(all, fileOf(spec, &told))
		}
	}
	return all
}

// Values lists what the files of a worker hold, of all pools that have one with this ID and that keep
// says yes to.
func Values(f *fleet.Fleet, worker string, keep func(pool string) bool) []status.WorkerValue {
	all := []status.WorkerValue{}
	for _, p := range f.Pools() {
		spec := p.Spec()
		if !keep(spec.Name) {
			continue
		}
		for _, v := range p.Values(worker) {
			key, err := store.ParseKey([]byte(v.Raw))
			if err != nil {
				continue // it is left out of every view, which the log and the page say
			}
			all = append(all, status.WorkerValue{
				Pool: spec.Name, Worker: worker, Series: selector.Format(key.Series.Sample, key.Series.Labels, "", ""),
				Type: v.Type.String(), Mode: v.Mode.String(), Value: status.Number(v.Value), Path: shownPath(spec, v.Path),
			})
		}
	}
	return all
}

func fileOf(spec pool.Spec, t *pool.File) status.File {
	f := status.File{
		Pool: spec.Name, Worker: t.ID, Path: shownPath(spec, t.Path), Type: t.Type.String(), Mode: t.Mode.String(), State: string(t.State),
		Reason:  string(t.Reason),
		Dialect: t.Dialect, Entries: t.Entries, UsedBytes: t.Used, SizeBytes: t.Size, Created: moment(t.Created),
		Changed: moment(t.Changed),
	}
	if t.Open {
		f.KnownBy = t.KnownBy.String()
	}
	if t.Err != nil {
		f.Error = t.Err.Error()
	}
	for _, reason := range t.LeftOut {
		f.LeftOut = append(f.LeftOut, string(reason))
	}
	return f
}

// Conflicts lists what files, and pools, disagreed on in the last view.
func Conflicts(f *fleet.Fleet) []status.Conflict {
	all := []status.Conflict{}
	for _, p := range f.Pools() {
		for _, k := range p.State().Conflicts {
			all = append(all, status.Conflict{Family: k.Family, Pool: p.Spec().Name, Served: k.Winner, LeftOut: k.Loser, Series: k.Series})
		}
	}
	for _, c := range f.Conflicts() {
		all = append(all, status.Conflict{
			Family: c.Loser.Family, Pool: c.Loser.Part, Served: c.Winner.String(), LeftOut: c.Loser.String(),
			Series: c.Series,
		})
	}
	return all
}
