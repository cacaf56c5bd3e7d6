package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"aggregatord/internal/fleet"
	"aggregatord/internal/metric"
	"aggregatord/internal/nearest"
	"aggregatord/internal/selector"
	"aggregatord/internal/status"
	"aggregatord/internal/view"
)

// Options of an API. Fleet is needed.
type Options struct {
	Fleet *fleet.Fleet
	// Gather returns what a scrape would be made of: the workers' snapshot, then those of the
	// daemon's own. Default: the workers' alone.
	Gather func(context.Context) ([]*view.Snapshot, error)
	Build  status.Build
	// Started is when the daemon started.
	Started time.Time
	// Processes lists the processes of the pools; it must be cheap. Default: none are watched.
	Processes func() []status.Process
	// Discovery tells how the search for pools went, and where those came from that it found, by
	// name; it must be cheap. Default: no pools are looked for.
	Discovery func() (status.Discovery, map[string]Origin)
	// Config returns the configuration in force; it must be cheap. Default: an empty one.
	Config func() status.Config
	// Outputs tells about the outputs; it must be cheap. Default: there are none.
	Outputs func() []status.Output
}

// An Origin is where a pool came from that was found.
type Origin struct {
	Source string
	// Vanished is when it was not found any more, Until when it will be removed.
	Vanished, Until time.Time
}

// An API answers questions. It is safe for several goroutines.
type API struct {
	opts Options
	// steps bounds the work of one question on selectors.
	steps int

	// gathering is held while values are read, so that those who ask meanwhile share them.
	gathering sync.Mutex
	// mu guards held, heldAt and drop.
	mu     sync.Mutex
	held   []*view.Snapshot
	heldAt time.Time
	drop   *time.Timer
}

const (
	// maxAge is how old values may be that are given out.
	maxAge = 500 * time.Millisecond
	// keepFor is how long they are kept when nobody asks any more.
	keepFor = 5 * time.Second

	defaultLimit = 200
	maxLimit     = 5000
	// maxExplained bounds the series that one question has explained.
	maxExplained = 100

	// maxSteps and searchTime bound the work of one question on selectors, see
	// selector.Budget. It is done on values that nobody changes, under no lock.
	maxSteps   = 1 << 31
	searchTime = 3 * time.Second
	// maxSearch is the length of the parameter search.
	maxSearch = 256
	// maxAnswer is how many bytes of labels an answer may have.
	maxAnswer = 8 << 20
)

// New returns an API. It starts nothing.
func New(opts Options) *API {
	if opts.Gather == nil {
		opts.Gather = func(ctx context.Context) ([]*view.Snapshot, error) {
			snap, err := opts.Fleet.View(ctx, fleet.Selection{})
			if err != nil {
				return nil, err
			}
			return []*view.Snapshot{snap}, nil
		}
	}
	if opts.Processes == nil {
		opts.Processes = func() []status.Process { return nil }
	}
	if opts.Config == nil {
		opts.Config = func() status.Config { return status.Config{} }
	}
	if opts.Outputs == nil {
		opts.Outputs = func() []status.Output { return nil }
	}
	return &API{opts: opts, steps: maxSteps}
}

// failure is an answer that is an error.
type failure struct {
	code int
	kind string
	text string
}

func (f failure) Error() string { return f.text }

func badData(format string, args ...any) error {
	return failure{http.StatusBadRequest, "bad_data", fmt.Sprintf(format, args...)}
}

// Answer returns the HTTP status and the JSON for a question: a path below /api/v1/, such as
// "status", and its parameters.
func (a *API) Answer(ctx context.Context, path string, query url.Values) (code int, body []byte) {
	return a.reply(ctx, path, func() (any, error) { return a.answer(ctx, path, query) })
}

// reply makes JSON of what answer returns.
func (a *API) reply(ctx context.Context, path string, answer func() (any, error)) (code int, body []byte) {
	data, err := answer()
	r := status.Response[any]{Status: "success", Data: data}
	code = http.StatusOK
	if err != nil {
		f, ok := errors.AsType[failure](err)
		switch {
		case ok:
		case ctx.Err() != nil || errors.Is(err, fleet.ErrClosed):
			f = failure{http.StatusServiceUnavailable, "unavailable", err.Error()}
		default:
			f = failure{http.StatusInternalServerError, "internal", err.Error()}
		}
		code, r = f.code, status.Response[any]{Status: "error", ErrorType: f.kind, Error: f.text}
	}
	body, err = json.Marshal(r)
	if err != nil {
		panic(fmt.Sprintf("BUG: answer to %s has no JSON: %v", path, err))
	}
	return code, append(body, '\n')
}

// question is a handler and the parameters it takes.
type question struct {
	params []string
	// values says that the answer is about values, which are incomplete until the first look
	// at all files is done.
	values bool
	answer func(a *API, ctx context.Context, q params) (any, error)
}

var paging = []string{"search", "sort", "limit", "offset"}

var questions = map[string]question{
	"status":    {nil, false, (*API).overview},
	"pools":     {append([]string{"source"}, paging...), false, (*API).pools},
	"workers":   {append([]string{"pool"}, paging...), false, (*API).workers},
	"processes": {append([]string{"pool", "worker"}, paging...), false, (*API).processes},
	"files":     {append([]string{"pool", "worker"}, paging...), false, (*API).files},
	"values":    {append([]string{"pool", "worker"}, paging...), false, (*API).values},
	"errors":    {[]string{"limit"}, false, (*API).errors},
	"config":    {nil, false, (*API).config},
	"outputs":   {nil, false, (*API).outputs},
	"families":  {append([]string{"name", "type", "own"}, paging...), true, (*API).families},
	"series":    {append([]string{"family", "match"}, paging...), true, (*API).series},
	"explain":   {[]string{"series", "limit"}, true, (*API).explain},
}

func (a *API) answer(ctx context.Context, path string, query url.Values) (any, error) {
	return a.answerOne(ctx, questions, path, query)
}

func (a *API) answerOne(ctx context.Context, all map[string]question, path string, query url.Values) (any, error) {
	question, ok := all[path]
	if !ok {
		return nil, failure{
			http.StatusNotFound, "not_found",
			fmt.Sprintf("nothing is known about %q; ask for one of %s", path, strings.Join(namesOf(all), ", ")),
		}
	}
	for name := range query {
		if !slices.Contains(question.params, name) {
			return nil, badData("parameter %q is not known here; %s takes %s", name, path,
				cmp.Or(strings.Join(question.params, ", "), "none"))
		}
	}
	if question.values && !a.opts.Fleet.Ready() {
		return nil, failure{http.StatusServiceUnavailable, "unavailable", "not ready: not all sources have been read yet"}
	}
	return question.answer(a, ctx, params{query})
}

// params reads the parameters of a question.
type params struct{ url.Values }

func (p params) number(name string, otherwise, most int) (int, error) {
	text := p.Get(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, badData("parameter %s=%q: use a number from 0 to %d", name, text, most)
	}
	return min(n, most), nil
}

// search returns what is searched for, in lower case.
func (p params) search() (string, error) {
	text := p.Get("search")
	if len(text) > maxSearch {
		return "", badData("parameter search has %d bytes, more than %d", len(text), maxSearch)
	}
	return strings.ToLower(text), nil
}

func (p params) page(otherwise int) (offset, limit int, err error) {
	offset, err = p.number("offset", 0, 1<<31)
	if err == nil {
		limit, err = p.number("limit", otherwise, maxLimit)
	}
	return offset, limit, err
}

// snapshots returns present values: at most maxAge old, and as old for all who ask meanwhile.
// The caller releases them.
func (a *API) snapshots(ctx context.Context) ([]*view.Snapshot, time.Time, error) {
	if snaps, at := a.recent(); snaps != nil {
		return snaps, at, nil
	}
	a.gathering.Lock()
	defer a.gathering.Unlock()
	if snaps, at := a.recent(); snaps != nil {
		return snaps, at, nil
	}
	snaps, err := a.opts.Gather(ctx)
	if err != nil {
		return nil, time.Time{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	release(a.held)
	a.held, a.heldAt = snaps, time.Now()
	if a.drop == nil {
		a.drop = time.AfterFunc(keepFor, a.forget)
	}
	a.drop.Reset(keepFor)
	return retain(snaps), a.heldAt, nil
}

// recent returns the values that are held if they are new enough, for the caller to release.
func (a *API) recent() ([]*view.Snapshot, time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.held == nil || time.Since(a.heldAt) > maxAge {
		return nil, time.Time{}
	}
	return retain(a.held), a.heldAt
}

// forget gives back values that nobody asks for.
func (a *API) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	release(a.held)
	a.held = nil
}

func retain(snaps []*view.Snapshot) []*view.Snapshot {
	for _, s := range snaps {
		s.Retain()
	}
	return slices.Clone(snaps)
}

func release(snaps []*view.Snapshot) {
	for _, s := range snaps {
		s.Release()
	}
}

// refresh has values read that are too old: what workers have changed shows only then.
func (a *API) refresh(ctx context.Context) error {
	if !a.opts.Fleet.Ready() {
		return nil // there is nothing to compare with yet
	}
	snaps, _, err := a.snapshots(ctx)
	release(snaps)
	return err
}

func (a *API) outputs(context.Context, params) (any, error) {
	return append([]status.Output{}, a.opts.Outputs()...), nil
}

func (a *API) overview(ctx context.Context, _ params) (any, error) {
	if err := a.refresh(ctx); err != nil {
		return nil, err
	}
	o := a.describe()
	o.Build = a.opts.Build
	o.Started = unixSeconds(a.opts.Started)
	o.Problems = append(o.Problems, outputProblems(a.opts.Outputs())...)
	return o, nil
}

// describe is Overview with what the search for pools knows.
func (a *API) describe() status.Overview {
	if a.opts.Discovery == nil {
		return Overview(a.opts.Fleet, nil, nil)
	}
	found, origins := a.opts.Discovery()
	return Overview(a.opts.Fleet, &found, origins)
}

// pools lists the pools. Those with problems come first.
func (a *API) pools(ctx context.Context, q params) (any, error) {
	if err := a.refresh(ctx); err != nil {
		return nil, err
	}
	all := a.describe().Pools
	slices.SortStableFunc(all, func(a, b status.Pool) int { return compareTrouble(&b, &a) })
	return list(q, all, defaultLimit, listing[status.Pool]{
		keep: func(p *status.Pool) bool { return !q.Has("source") || p.Source == q.Get("source") },
		text: func(p *status.Pool) []string {
			return append([]string{p.Name, p.Dir, p.Source}, slices.Collect(maps.Values(p.Labels))...)
		},
		sorts: map[string]func(a, b *status.Pool) int{
			"name":       func(a, b *status.Pool) int { return strings.Compare(a.Name, b.Name) },
			"dir":        func(a, b *status.Pool) int { return strings.Compare(a.Dir, b.Dir) },
			"source":     func(a, b *status.Pool) int { return strings.Compare(a.Source, b.Source) },
			"trouble":    compareTrouble,
			"vanished":   func(a, b *status.Pool) int { return cmp.Compare(a.Vanished, b.Vanished) },
			"alive":      func(a, b *status.Pool) int { return cmp.Compare(a.Workers.Alive, b.Workers.Alive) },
			"dead":       func(a, b *status.Pool) int { return cmp.Compare(a.Workers.Dead, b.Workers.Dead) },
			"entries":    func(a, b *status.Pool) int { return cmp.Compare(a.Entries, b.Entries) },
			"series":     func(a, b *status.Pool) int { return cmp.Compare(a.Series, b.Series) },
			"used_bytes": func(a, b *status.Pool) int { return cmp.Compare(a.UsedBytes, b.UsedBytes) },
			"size_bytes": func(a, b *status.Pool) int { return cmp.Compare(a.SizeBytes, b.SizeBytes) },
		},
	})
}

// compareTrouble puts the pool with less to worry about first.
func compareTrouble(a, b *status.Pool) int {
	rank := func(p *status.Pool) int { return slices.Index([]string{"", "warning", "error"}, p.Trouble) }
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Problems, b.Problems))
}

func (a *API) config(context.Context, params) (any, error) {
	c := a.opts.Config()
	if c.Settings == nil {
		c.Settings = []status.Setting{}
	}
	return c, nil
}

func (a *API) workers(ctx context.Context, q params) (any, error) {
	if err := a.refresh(ctx); err != nil {
		return nil, err
	}
	workers := Workers(a.opts.Fleet)
	addProcesses(workers, a.opts.Processes())
	return list(q, workers, defaultLimit, listing[status.Worker]{
		keep: func(w *status.Worker) bool { return !q.Has("pool") || w.Pool == q.Get("pool") },
		text: func(w *status.Worker) []string { return []string{w.ID, w.Pool} },
		sorts: map[string]func(a, b *status.Worker) int{
			"id":         func(a, b *status.Worker) int { return compareIDs(a.ID, b.ID) },
			"pool":       func(a, b *status.Worker) int { return strings.Compare(a.Pool, b.Pool) },
			"alive":      func(a, b *status.Worker) int { return compareBools(a.Alive, b.Alive) },
			"known_by":   func(a, b *status.Worker) int { return strings.Compare(a.KnownBy, b.KnownBy) },
			"created":    func(a, b *status.Worker) int { return cmp.Compare(a.Created, b.Created) },
			"changed":    func(a, b *status.Worker) int { return cmp.Compare(a.Changed, b.Changed) },
			"files":      func(a, b *status.Worker) int { return cmp.Compare(a.Files, b.Files) },
			"entries":    func(a, b *status.Worker) int { return cmp.Compare(a.Entries, b.Entries) },
			"used_bytes": func(a, b *status.Worker) int { return cmp.Compare(a.UsedBytes, b.UsedBytes) },
			"size_bytes": func(a, b *status.Worker) int { return cmp.Compare(a.SizeBytes, b.SizeBytes) },
			"cpu_seconds": func(a, b *status.Worker) int {
				return cmp.Compare(processOf(a).CPUSeconds, processOf(b).CPUSeconds)
			},
			"resident_bytes": func(a, b *status.Worker) int {
				return cmp.Compare(processOf(a).ResidentBytes, processOf(b).ResidentBytes)
			},
		},
	})
}

// addProcesses has each worker tell of the process that holds its files.
func addProcesses(workers []status.Worker, processes []status.Process) {
	type id struct{ pool, worker string }
	holders := map[id]*status.Process{}
	for i := range processes {
		for _, w := range processes[i].Workers {
			if at := (id{processes[i].Pool, w}); holders[at] == nil {
				holders[at] = &processes[i]
			}
		}
	}
	for i := range workers {
		workers[i].Process = holders[id{workers[i].Pool, workers[i].ID}]
	}
}

// processOf returns what is known of a worker's process.
func processOf(w *status.Worker) status.Process {
	if w.Process == nil {
		return status.Process{}
	}
	return *w.Process
}

func (a *API) files(ctx context.Context, q params) (any, error) {
	if err := a.refresh(ctx); err != nil {
		return nil, err
	}
	all := Files(a.opts.Fleet, func(f *status.File) bool {
		return (!q.Has("pool") || f.Pool == q.Get("pool")) && (!q.Has("worker") || f.Worker == q.Get("worker"))
	})
	return list(q, all, defaultLimit, listing[status.File]{
		text: func(f *status.File) []string { return []string{f.Path, f.State, f.Reason} },
		sorts: map[string]func(a, b *status.File) int{
			"path":       func(a, b *status.File) int { return strings.Compare(a.Path, b.Path) },
			"state":      func(a, b *status.File) int { return strings.Compare(a.State, b.State) },
			"created":    func(a, b *status.File) int { return cmp.Compare(a.Created, b.Created) },
			"changed":    func(a, b *status.File) int { return cmp.Compare(a.Changed, b.Changed) },
			"entries":    func(a, b *status.File) int { return cmp.Compare(a.Entries, b.Entries) },
			"used_bytes": func(a, b *status.File) int { return cmp.Compare(a.UsedBytes, b.UsedBytes) },
			"size_bytes": func(a, b *status.File) int { return cmp.Compare(a.SizeBytes, b.SizeBytes) },
		},
	})
}

// values lists what a worker counts.
func (a *API) values(ctx context.Context, q params) (any, error) {
	worker := q.Get("worker")
	if worker == "" {
		return nil, badData("parameter worker is missing: values are those of one worker")
	}
	if err := a.refresh(ctx); err != nil {
		return nil, err
	}
	all := Values(a.opts.Fleet, worker, func(pool string) bool { return !q.Has("pool") || pool == q.Get("pool") })
	return list(q, all, defaultLimit, listing[status.WorkerValue]{
		text: func(v *status.WorkerValue) []string { return []string{v.Series, v.Type, v.Mode} },
		sorts: map[string]func(a, b *status.WorkerValue) int{
			"series": func(a, b *status.WorkerValue) int { return strings.Compare(a.Series, b.Series) },
			"type":   func(a, b *status.WorkerValue) int { return strings.Compare(a.Type, b.Type) },
			"value":  func(a, b *status.WorkerValue) int { return cmp.Compare(a.Value, b.Value) },
		},
	})
}

func (a *API) processes(_ context.Context, q params) (any, error) {
	return list(q, a.opts.Processes(), defaultLimit, listing[status.Process]{
		keep: func(p *status.Process) bool {
			return (!q.Has("pool") || p.Pool == q.Get("pool")) && (!q.Has("worker") || slices.Contains(p.Workers, q.Get("worker")))
		},
		text: func(p *status.Process) []string {
			return append([]string{strconv.Itoa(p.Pid), p.Role, p.Pool, p.Command}, p.Workers...)
		},
		sorts: map[string]func(a, b *status.Process) int{
			"pid":            func(a, b *status.Process) int { return cmp.Compare(a.Pid, b.Pid) },
			"pool":           func(a, b *status.Process) int { return strings.Compare(a.Pool, b.Pool) },
			"role":           func(a, b *status.Process) int { return strings.Compare(a.Role, b.Role) },
			"command":        func(a, b *status.Process) int { return strings.Compare(a.Command, b.Command) },
			"started":        func(a, b *status.Process) int { return cmp.Compare(a.Started, b.Started) },
			"cpu_seconds":    func(a, b *status.Process) int { return cmp.Compare(a.CPUSeconds, b.CPUSeconds) },
			"resident_bytes": func(a, b *status.Process) int { return cmp.Compare(a.ResidentBytes, b.ResidentBytes) },
			"open_fds":       func(a, b *status.Process) int { return cmp.Compare(a.OpenFDs, b.OpenFDs) },
			"files":          func(a, b *status.Process) int { return cmp.Compare(a.Files, b.Files) },
		},
	})
}

func (a *API) errors(_ context.Context, q params) (any, error) {
	limit, err := q.number("limit", defaultLimit, maxLimit)
	if err != nil {
		return nil, err
	}
	files := Files(a.opts.Fleet, func(f *status.File) bool { return f.State == "failed" || len(f.LeftOut) > 0 })
	return status.Errors{
		Files: files[:min(limit, len(files))], FilesTotal: len(files), Conflicts: Conflicts(a.opts.Fleet),
	}, nil
}

func (a *API) families(ctx context.Context, q params) (any, error) {
	snaps, at, err := a.snapshots(ctx)
	if err != nil {
		return nil, err
	}
	defer release(snaps)
	own, err := strconv.ParseBool(cmp.Or(q.Get("own"), "false"))
	if err != nil {
		return nil, badData("parameter own=%q: use true or false", q.Get("own"))
	}
	var all []status.Family
	for i, snap := range snaps {
		for f := range snap.Layout.Families {
			all = append(all, familyOf(snap, &snap.Layout.Families[f], i > 0))
		}
	}
	page, err := list(q, all, defaultLimit, listing[status.Family]{
		keep: func(f *status.Family) bool {
			return (!q.Has("name") || f.Name == q.Get("name")) && (!q.Has("type") || f.Type == q.Get("type")) &&
				(!q.Has("own") || f.Own == own)
		},
		text: func(f *status.Family) []string { return []string{f.Name, f.Help} },
		sorts: map[string]func(a, b *status.Family) int{
			"name":    func(a, b *status.Family) int { return strings.Compare(a.Name, b.Name) },
			"type":    func(a, b *status.Family) int { return strings.Compare(a.Type, b.Type) },
			"mode":    func(a, b *status.Family) int { return strings.Compare(a.Mode, b.Mode) },
			"series":  func(a, b *status.Family) int { return cmp.Compare(a.Series, b.Series) },
			"samples": func(a, b *status.Family) int { return cmp.Compare(a.Samples, b.Samples) },
			"help":    func(a, b *status.Family) int { return strings.Compare(a.Help, b.Help) },
		},
	})
	return status.Families{Page: page, Time: unixSeconds(at)}, err
}

// unixSeconds is a moment as the API gives it.
func unixSeconds(at time.Time) float64 { return float64(at.UnixMilli()) / 1000 }

func familyOf(snap *view.Snapshot, fam *view.Family, own bool) status.Family {
	out := status.Family{
		Name: fam.Name, Type: fam.Type.String(), Mode: fam.Mode.String(), Rule: fam.Rule, Unit: fam.Unit, Help: fam.Help,
		Series: len(fam.Metrics), Samples: fam.Points, Own: own,
	}
	switch {
	case fam.Type != metric.Gauge || own:
	case fam.ModeByRule:
		out.ModeSource = "rule"
	case fam.Mode != metric.NoMode:
		out.ModeSource = "file name"
	}
	if fam.Type == metric.Gauge || fam.Type == metric.Unknown {
		return out
	}
	var sum status.Number
	at := fam.First
	for m := range fam.Metrics {
		for p, point := range fam.Metrics[m].Points {
			counts := point.Kind == view.Total || point.Kind == view.Count || point.Kind == view.Value
			if counts && !view.IsAbsent(snap.Values[at+p]) {
				sum += status.Number(snap.Values[at+p])
			}
		}
		at += len(fam.Metrics[m].Points)
	}
	out.Total = &sum
	return out
}

func (a *API) series(ctx context.Context, q params) (any, error) {
	offset, limit, err := q.page(defaultLimit)
	if err != nil {
		return nil, err
	}
	if q.Has("sort") {
		return nil, badData("series come in the order of the exposition; leave out sort")
	}
	if q.Get("family") == "" && q.Get("match") == "" {
		return nil, badData("say of what: family=NAME, or match=SELECTOR as in name{label=\"value\"}")
	}
	var sel selector.Selector
	if q.Has("match") {
		if sel, err = selector.Parse(q.Get("match")); err != nil {
			return nil, badData("%v", err)
		}
	}
	snaps, at, err := a.snapshots(ctx)
	if err != nil {
		return nil, err
	}
	defer release(snaps)
	search, err := q.search()
	if err != nil {
		return nil, err
	}
	out := status.Samples{Time: unixSeconds(at)}
	out.Offset, out.Items = offset, []status.Sample{}
	size := 0
	budget := a.newBudget(ctx)
	for _, snap := range snaps {
		EachSample(snap, sel.Within(budget), func(ref view.PointRef, value int) {
			fam := &snap.Layout.Families[ref.Family]
			if q.Has("family") && fam.Name != q.Get("family") || view.IsAbsent(snap.Values[value]) {
				return
			}
			out.Total++
			if search != "" && !labelsContain(fam.Metrics[ref.Metric].AllLabels(), search) &&
				!strings.Contains(strings.ToLower(fam.Name), search) {
				return
			}
			if out.Matching++; out.Matching > offset && len(out.Items) < limit {
				if size > maxAnswer {
					return
				}
				item := SampleAt(snap, ref, value)
				size += 3 * len(item.Series) // as labels, too, and with escapes
				out.Items = append(out.Items, item)
			}
		})
	}
	if err := tooMuch(ctx, budget.Err()); err != nil {
		return nil, err
	}
	if size > maxAnswer {
		return nil, badData("the answer has more than %d MiB; ask for fewer with limit=%d", maxAnswer>>20, max(1, len(out.Items)/2))
	}
	return out, nil
}

// newBudget returns the budget of one question.
func (a *API) newBudget(ctx context.Context) *selector.Budget {
	end := time.Now().Add(searchTime)
	return &selector.Budget{Steps: a.steps, Stop: func() error {
		if time.Now().After(end) {
			return selector.ErrCost
		}
		return ctx.Err()
	}}
}

// tooMuch says why a question was given up.
func tooMuch(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return failure{http.StatusUnprocessableEntity, "too_costly", err.Error()}
}

func labelsContain(labels []metric.Label, lower string) bool {
	return slices.ContainsFunc(labels, func(l metric.Label) bool {
		return strings.Contains(strings.ToLower(l.Value), lower) || strings.Contains(strings.ToLower(l.Name), lower)
	})
}

func (a *API) explain(ctx context.Context, q params) (any, error) {
	limit, err := q.number("limit", 10, maxExplained)
	if err != nil {
		return nil, err
	}
	if q.Get("series") == "" {
		return nil, badData("say which: series=SELECTOR, as in name{label=\"value\"}")
	}
	sel, err := selector.Parse(q.Get("series"))
	if err != nil {
		return nil, badData("%v", err)
	}
	if err := a.refresh(ctx); err != nil {
		return nil, err
	}
	budget := a.newBudget(ctx)
	out, err := Explain(ctx, a.opts.Fleet, sel.Within(budget), limit)
	if err == nil {
		err = tooMuch(ctx, budget.Err())
	}
	if err != nil {
		return nil, err
	}
	if out.Matching == 0 {
		snaps, _, err := a.snapshots(ctx)
		if err != nil {
			return nil, err
		}
		defer release(snaps)
		// The first are the workers'; the daemon's own cannot be explained.
		return nil, failure{http.StatusNotFound, "not_found", NoSeries(q.Get("series"), sel, snaps[:min(1, len(snaps))])}
	}
	return out, nil
}

// NoSeries says that a selector means no series of these views, and which one may be meant.
func NoSeries(text string, sel selector.Selector, snaps []*view.Snapshot) string {
	if strings.HasPrefix(sel.Name, "aggregatord_") {
		return fmt.Sprintf("%s is a metric of the daemon itself; only what workers have written can be explained", text)
	}
	names := SampleNames(snaps)
	if sel.Name == "" || slices.Contains(names, sel.Name) {
		return fmt.Sprintf("No series has the labels of %s; leave labels out to see which there are.", text)
	}
	if meant := nearest.Name(sel.Name, names); meant != "" {
		return fmt.Sprintf("No series named %s; did you mean %s?", sel.Name, meant)
	}
	return fmt.Sprintf("No series named %s. Counters end in _total, and histograms in _bucket, _sum or _count.", sel.Name)
}

// SampleNames are the names of all samples that views can have, sorted.
func SampleNames(snaps []*view.Snapshot) []string {
	names := map[string]struct{}{}
	for _, s := range snaps {
		for f := range s.Layout.Families {
			fam := &s.Layout.Families[f]
			var seen [256]bool // by kind
			for m := range fam.Metrics {
				for _, p := range fam.Metrics[m].Points {
					if !seen[p.Kind] {
						seen[p.Kind] = true
						names[fam.Name+p.Kind.Suffix()] = struct{}{}
					}
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}
