package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"aggregatord/internal/serve"
)

// crowd is how many scrapers ask at once where there is more than one.
const crowd = 8

// A steady is what growth needs to know of a shape that was measured.
type steady struct {
	shape shape
	// plain and floor are the medians in seconds.
	plain, floor float64
	// allocations is the number of allocations of a scrape.
	allocations float64
}

// The shares of families that change between two scrapes.
const (
	few = .05
	all = 1
)

// steady measures scrapes of a directory whose workers live.
func (b *bench) steady(ctx context.Context, sh shape) (err error) {
	b.say("%v: generate", sh)
	d, err := generate(b.path(sh.name), sh, b.layout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	f := newFloor(d)
	f.load()
	b.report.note("%v: %s entries in %d files of %s, %s used; %d families, %d series, %d lines of %s, %.0f %% of their numbers whole",
		sh, digits(float64(sh.entries())), d.files, b.layout.name, mebibytes(float64(d.bytes)), len(d.schema.families), sh.series,
		len(f.lines), mebibytes(float64(len(f.format()))), 100*f.integralShare())

	daemon, s, err := b.serve(ctx, d)
	if err != nil {
		return err
	}
	defer func() { s.close(); err = errors.Join(err, daemon.stop()) }()
	verify := func() error {
		if _, err := s.scrape(ctx, false); err != nil {
			return err
		}
		f.load()
		return check(s.body, f.format())
	}
	if err := verify(); err != nil {
		return err
	}
	fresh := rssAnon(daemon.cmd.Process.Pid)

	python, err := b.startPython(ctx, sh)
	if err != nil {
		return err
	}
	if python != nil {
		defer func() { err = errors.Join(err, python.remove()) }()
	}
	if err := b.steadyRounds(ctx, d, f, s, python); err != nil {
		return err
	}
	if err := verify(); err != nil {
		return fmt.Errorf("after all rounds: %w", err)
	}
	if err := b.memory(ctx, d, s, daemon.cmd.Process.Pid, fresh); err != nil {
		return err
	}
	if err := b.idle(ctx, sh, s, daemon.cmd.Process.Pid); err != nil {
		return err
	}
	return b.allocations(ctx, d)
}

// serve starts a daemon on a directory and scrapes it for the first time.
func (b *bench) serve(ctx context.Context, d *directory) (*server, *scraper, error) {
	return b.serveArgs(ctx, "--dir", d.path, "--web.self-metrics", "full")
}

// serveArgs starts a daemon and scrapes it for the first time.
func (b *bench) serveArgs(ctx context.Context, args ...string) (*server, *scraper, error) {
	daemon, err := startDaemon(ctx, b.opts.daemon, append(args, strings.Fields(b.opts.args)...)...)
	if err != nil {
		return nil, nil, err
	}
	s := newScraper(daemon.url)
	// Asking more often would take the daemon's time.
	if err := retry(ctx, 5*time.Millisecond, func() error { _, err := s.scrape(ctx, false); return err }); err != nil {
		s.close()
		return nil, nil, errors.Join(err, daemon.stop())
	}
	return daemon, s, nil
}

// steadyRounds measures in turns what takes time.
func (b *bench) steadyRounds(ctx context.Context, d *directory, f *floor, s *scraper, python *pythonPeer) (err error) {
	// The trivial server sends the daemon's own response, so that both send as much.
	body := slices.Clone(s.body)
	packed, err := newPacker()
	if err != nil {
		return err
	}
	packed.pack(body)
	trivial, err := startTrivial(ctx, body, slices.Clone(packed.buf))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, trivial.stop()) }()
	ts := newScraper(trivial.url)
	defer ts.close()
	crowdOf := func(url string) (out []*scraper) {
		for range crowd {
			out = append(out, newScraper(url))
		}
		return out
	}
	daemons, trivials := crowdOf(s.url), crowdOf(ts.url)
	defer func() {
		for _, c := range append(daemons, trivials...) {
			c.close()
		}
	}()

	touch := func(share float64) func() error {
		return func() error {
			if share > 0 {
				d.touch(share)
			}
			return nil
		}
	}
	get := func(s *scraper, packed bool) func() (float64, error) {
		return func() (float64, error) {
			took, err := s.scrape(ctx, packed)
			return took.Seconds(), err
		}
	}
	together := func(of []*scraper) func() (float64, error) {
		return func() (float64, error) {
			took, err := scrapeTogether(ctx, of, false)
			return took.Seconds(), err
		}
	}
	// passes counts how often the daemon read all files for the scrapers that came at once.
	passes, passesBefore := []float64(nil), 0.0
	countPasses := func() (float64, error) {
		if _, err := s.scrape(ctx, false); err != nil {
			return 0, err
		}
		return s.value("aggregatord_merge_passes_total"), nil
	}

	var (
		load     = &measurement{name: "floor: load every value once, one core", prepare: touch(all), run: timed(f.load)}
		loadTwo  = &measurement{name: "floor: the same, two cores", prepare: touch(all), run: timed(f.loadTwo)}
		format   = &measurement{name: "floor: format", run: timed(func() { f.format() })}
		gets     = &measurement{name: "floor: GET", run: get(ts, false)}
		pack     = &measurement{name: "floor: gzip, klauspost level 1", run: timed(func() { packed.pack(body) })}
		getsPack = &measurement{name: "floor: GET, gzip", run: get(ts, true)}
		getsMany = &measurement{name: "floor: GET, 8 at once", run: together(trivials)}

		plainNone = &measurement{name: "plain, nothing changed", run: get(s, false)}
		plainFew  = &measurement{name: "plain, 5 % of families changed", prepare: touch(few), run: get(s, false)}
		plainAll  = &measurement{name: "plain, all changed", prepare: touch(all), run: get(s, false)}
		gzipNone  = &measurement{name: "gzip, nothing changed", run: get(s, true)}
		gzipFew   = &measurement{name: "gzip, 5 % of families changed", prepare: touch(few), run: get(s, true)}
		gzipAll   = &measurement{name: "gzip, all changed", prepare: touch(all), run: get(s, true)}
		plainMany = &measurement{name: "plain, all changed, 8 scrapers at once, until all have it", prepare: func() (err error) {
			d.touch(all)
			passesBefore, err = countPasses()
			return err
		}, run: together(daemons)}
		// It comes right after the crowd; its own pass does not count.
		afterMany = &measurement{name: "(count)", run: func() (float64, error) {
			n, err := countPasses()
			passes = append(passes, n-passesBefore-1)
			return 0, err
		}}
	)
	list := []*measurement{
		load, loadTwo, format, gets, pack, getsPack, getsMany,
		plainNone, plainFew, plainAll, gzipNone, gzipFew, gzipAll, plainMany, afterMany,
	}
	// What is made on first use, connections and buffers, is made now.
	if err := inTurns(ctx, 2, list...); err != nil {
		return err
	}
	for _, m := range list {
		m.samples = nil
	}
	passes = nil
	client := &measurement{name: "Python client"}
	if python != nil {
		client.run, client.rounds = python.scrape, d.shape.python
		list = append(list, client)
	}
	b.say("%v: %d rounds", d.shape, b.opts.rounds)
	if err := inTurns(ctx, b.opts.rounds, list...); err != nil {
		return err
	}

	r, name := b.report, d.shape.String()
	floorPlain, floorGzip, floorMany := sum(load, format, gets), sum(load, format, pack, getsPack), sum(load, format, getsMany)
	for _, m := range []*measurement{load, loadTwo, format, gets, pack, getsPack, getsMany} {
		r.time(name, m.name, m.samples, "", nil)
	}
	r.time(name, "floor, plain: load on one core + format + GET", floorPlain, "", nil)
	r.time(name, "floor, gzip: load + format + gzip + GET", floorGzip, "floor, plain", floorPlain)
	r.time(name, "floor, 8 scrapers: load + format + 8 × GET", floorMany, "floor, plain", floorPlain)
	for _, m := range []*measurement{plainNone, plainFew, plainAll} {
		r.time(name, m.name, m.samples, "floor, plain", floorPlain)
	}
	r.time(name, plainMany.name, plainMany.samples, "floor, 8 scrapers", floorMany)
	r.number(name, "passes over the files that they shared", digits(median(passes)), "those that do not overlap need one each")
	r.time(name, gzipNone.name, gzipNone.samples, "plain, nothing changed", plainNone.samples)
	r.time(name, gzipFew.name, gzipFew.samples, "plain, 5 % changed", plainFew.samples)
	r.time(name, gzipAll.name, gzipAll.samples, "floor, gzip", floorGzip)

	plain, bottom := median(plainAll.samples), median(floorPlain)
	b.steadies = append(b.steadies, steady{shape: d.shape, plain: plain, floor: bottom})
	limit, want := 1.5, "≤ 1.5 × floor"
	if d.shape.entries() <= smallEntries {
		limit, want = 2, "< 2 × floor"
	}
	r.atMost(name, "plain, all changed", want, plain/bottom, times, limit)
	r.atMost(name, "gzip, 5 % of families changed", "≤ 1.5 × plain, 5 % changed", median(gzipFew.samples)/median(plainFew.samples), times,
		1.5)
	r.atMost(name, "gzip, all changed", "≤ 1.5 × floor with gzip", median(gzipAll.samples)/median(floorGzip), times, 1.5)
	r.atMost(name, "growth: 8 scrapers at once, time", "≤ 2 × floor of 8", median(plainMany.samples)/median(floorMany), times, 2)
	if python != nil {
		ours := plainAll.samples
		r.time(name, python.title()+", collect and render", client.samples, "plain, all changed", ours)
		r.number(name, python.title()+", peak memory", mebibytes(python.peak), "")
		ratio := median(client.samples) / plain
		if d.shape.entries() > smallEntries {
			r.judge(name, "against the Python client", "≥ 250 × faster", times(ratio), known(ratio), ratio >= 250)
		}
		if want := len(f.lines); python.samples != want {
			return fmt.Errorf("the Python client serves %d samples, we %d", python.samples, want)
		}
	} else {
		r.judge(name, "against the Python client", "≥ 250 × faster", "", false, false)
	}
	return nil
}

// smallEntries is up to how many entries a pool counts as small.
const smallEntries = 100_000

// A packer compresses as the floor does.
type packer struct {
	w   *gzip.Writer
	buf []byte
}

func newPacker() (*packer, error) {
	p := &packer{}
	var err error
	p.w, err = gzip.NewWriterLevel(p, gzip.BestSpeed)
	return p, err
}

// Write implements io.Writer and appends.
func (p *packer) Write(b []byte) (int, error) {
	p.buf = append(p.buf, b...)
	return len(b), nil
}

func (p *packer) pack(body []byte) {
	p.buf = p.buf[:0]
	p.w.Reset(p)
	p.w.Write(body) //nolint:errcheck // memory takes everything
	p.w.Close()     //nolint:errcheck // memory takes everything
}

// A pythonPeer is the Python client on a copy of a shape's directory.
type pythonPeer struct {
	*pythonClient
	dir     *directory
	peak    float64 // bytes
	samples int
}

// startPython makes the copy and starts the client, or returns nil, with a note, where
// there is none or the shape is too large for it.
func (b *bench) startPython(ctx context.Context, sh shape) (*pythonPeer, error) {
	if sh.python == 0 {
		return nil, nil
	}
	path := b.path(sh.name + "-python")
	client, err := startPython(ctx, b.opts.python, path)
	if errors.Is(err, errNoPython) {
		b.report.note("%v: no Python client: %v", sh, err)
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	d, err := generate(path, sh, client.layout)
	if err != nil {
		return nil, errors.Join(err, client.stop())
	}
	return &pythonPeer{pythonClient: client, dir: d}, nil
}

func (p *pythonPeer) title() string {
	return fmt.Sprintf("Python client %s (%s)", p.version, p.layout.name)
}

// scrape is the run of a measurement.
func (p *pythonPeer) scrape() (float64, error) {
	took, samples, peak, err := p.pythonClient.scrape()
	p.samples, p.peak = samples, max(p.peak, peak)
	return took.Seconds(), err
}

func (p *pythonPeer) remove() error { return errors.Join(p.stop(), p.dir.remove()) }

// memory scrapes many times and looks at the daemon's anonymous memory.
func (b *bench) memory(ctx context.Context, d *directory, s *scraper, pid int, fresh float64) error {
	name := d.shape.String()
	many := func(n int) error {
		b.say("%v: %d scrapes", d.shape, n)
		for i := range n {
			if i%10 == 0 {
				d.touch(few)
			}
			if _, err := s.scrape(ctx, i%2 == 0); err != nil {
				return err
			}
		}
		return nil
	}
	limit := 24<<20 + 12*float64(d.shape.entries()) + 1024*float64(d.shape.series)
	b.report.number(name, "RssAnon when ready", mebibytes(fresh), "")
	n := b.opts.scrapes
	if err := many(n); err != nil {
		return err
	}
	after := rssAnon(pid)
	b.report.number(name, fmt.Sprintf("RssAnon after %d scrapes", n), mebibytes(after), "")
	b.report.atMost(name, fmt.Sprintf("RssAnon after %d scrapes", n), "≤ "+mebibytes(limit)+" (24 MiB + 12 B an entry + 1 KiB a series)",
		after, mebibytes, limit)
	if d.shape.entries() > smallEntries {
		return nil
	}
	if err := many(9 * n); err != nil {
		return err
	}
	later := rssAnon(pid)
	b.report.number(name, fmt.Sprintf("RssAnon after %d scrapes", 10*n), mebibytes(later), "")
	b.report.judge(name, fmt.Sprintf("RssAnon after %d scrapes against after %d", 10*n, n), "± 10 %",
		fmt.Sprintf("%+.1f %%", 100*(later/after-1)), known(later), math.Abs(later/after-1) <= .1)
	return nil
}

// idle watches a daemon that is scraped now and then.
func (b *bench) idle(ctx context.Context, sh shape, s *scraper, pid int) error {
	if b.opts.idle <= 0 || sh.entries() > 2_000_000 {
		return nil
	}
	b.say("%v: idle for %v", sh, b.opts.idle)
	start := time.Now()
	before := cpuTime(pid)
	scrapes := 0
	for at := time.Duration(0); at < b.opts.idle; at += b.opts.idleScrape {
		if err := sleepUntil(ctx, start.Add(at)); err != nil {
			return err
		}
		if _, err := s.scrape(ctx, true); err != nil {
			return err
		}
		scrapes++
	}
	if err := sleepUntil(ctx, start.Add(b.opts.idle)); err != nil {
		return err
	}
	share := (cpuTime(pid) - before) / time.Since(start).Seconds()
	what := fmt.Sprintf("one core's share, %d scrapes in %v", scrapes, b.opts.idle)
	b.report.number(sh.String(), what, percent(share), "")
	b.report.atMost(sh.String(), "idle: "+what, "< 0.5 %", share, percent, .005)
	return nil
}

func sleepUntil(ctx context.Context, t time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(t)):
		return nil
	}
}

// allocations counts what the daemon's way from files to response allocates, in this
// process: everything but net/http's connection.
func (b *bench) allocations(ctx context.Context, d *directory) (err error) {
	g, err := newGatherer(d.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	srv := serve.New(serve.Options{Gatherer: g})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return err
	}
	const runs = 20
	for _, encoding := range []string{"identity", "gzip"} {
		req.Header.Set("Accept-Encoding", encoding)
		w := &nullResponse{header: http.Header{}}
		var before, after runtime.MemStats
		for i := range 2 + runs {
			if i == 2 {
				runtime.ReadMemStats(&before)
			}
			clear(w.header)
			d.touch(few)
			srv.ServeHTTP(w, req)
		}
		runtime.ReadMemStats(&after)
		if w.status != http.StatusOK {
			return fmt.Errorf("scrape within this process: status %d", w.status)
		}
		count := float64(after.Mallocs-before.Mallocs) / runs
		bytes := float64(after.TotalAlloc-before.TotalAlloc) / runs
		what := "allocations of a scrape, " + encoding
		b.report.number(d.shape.String(), what, fmt.Sprintf("%.0f, %.1f KiB", count, bytes/1024),
			"gather, encode and handler, without net/http")
		found := &b.steadies[len(b.steadies)-1]
		found.allocations = max(found.allocations, count)
	}
	return nil
}

// A nullResponse is a http.ResponseWriter that keeps nothing but the status.
type nullResponse struct {
	header http.Header
	status int
}

func (w *nullResponse) Header() http.Header         { return w.header }
func (w *nullResponse) WriteHeader(status int)      { w.status = status }
func (w *nullResponse) Write(p []byte) (int, error) { return len(p), nil }

var _ http.ResponseWriter = (*nullResponse)(nil)
