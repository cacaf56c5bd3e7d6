package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// options of a run.
type options struct {
	shapes string
	large  bool
	// rounds is how often each thing is measured in turns.
	rounds int
	// scrapes is after how many scrapes memory is looked at; on small shapes also after ten
	// times as many.
	scrapes int
	// coldRounds is how often the directory of the dead is made and folded.
	coldRounds int
	// idle is for how long the idle daemon is watched, idleScrape the time between two
	// scrapes meanwhile.
	idle, idleScrape time.Duration
	// churn is for how long workers of a small shape are replaced.
	churn time.Duration
	// deaths is for how long workers of a shape of deaths die.
	deaths         time.Duration
	quick          bool
	markdown       bool
	layout         string
	daemon, python string
	// args are for the daemon of every shape.
	args string
	dir  string
}

// processDisable keeps the daemon from looking at the benchmark as a worker of every pool.
const processDisable = "--process.disable"

func (o *options) addFlags(f *flag.FlagSet) {
	f.StringVar(&o.shapes, "shapes", "small,medium,dead",
		"`NAMES` of shapes, separated by commas: small, medium, large, dead, pools, wide, deaths, archive; with tiny- in front, or tiny, to try it out")
	f.BoolVar(&o.large, "large", false, "add the shape large, which needs 3 GiB and some minutes")
	f.IntVar(&o.rounds, "rounds", 21, "how often each thing is measured, in turns")
	f.IntVar(&o.scrapes, "scrapes", 1000, "after how many scrapes memory is looked at; small shapes get ten times as many more")
	f.IntVar(&o.coldRounds, "cold-rounds", 3, "how often the dead are folded")
	f.DurationVar(&o.idle, "idle", 30*time.Second,
		"for how long the idle daemon is watched; whole multiples of 15 s are fair; 0: not at all")
	f.DurationVar(&o.churn, "churn", 0,
		"for how long the workers of a small shape are replaced, four a second; an hour shows whether memory stays flat")
	f.DurationVar(&o.deaths, "deaths", 20*time.Second, "for how long the workers of the shape deaths die")
	f.BoolVar(&o.quick, "quick", false, "tiny shapes and 3 rounds, to see that everything works")
	f.BoolVar(&o.markdown, "markdown", false, "print Markdown")
	f.StringVar(&o.layout, "layout", py16.name, "`LAYOUT` of the source files that the daemon reads: py16 or py8")
	f.StringVar(&o.daemon, "daemon", "bin/aggregatord", "the daemon's `PROGRAM`, as make build leaves it")
	f.StringVar(&o.args, "daemon-args", processDisable,
		"further `ARGUMENTS` of the daemon, separated by spaces; here one process plays all workers, so there are no processes to watch")
	f.StringVar(&o.python, "python", "/usr/bin/python3", "Python `PROGRAM` with prometheus_client")
	f.StringVar(&o.dir, "dir", "", "`DIR` to make the directories in (default: /dev/shm, or else where temporary files are)")
	o.idleScrape = 15 * time.Second
}

func (o *options) finish() error {
	if o.quick {
		o.shapes, o.rounds, o.scrapes, o.coldRounds = "tiny,tiny-dead,tiny-pools,tiny-wide,tiny-deaths,tiny-archive", 3, 50, 1
		o.idle, o.idleScrape, o.churn = 500*time.Millisecond, 250*time.Millisecond, 3*time.Second
		o.deaths = 2 * time.Second
	}
	if o.large {
		o.shapes += ",large"
	}
	if o.rounds < 1 || o.coldRounds < 1 || o.scrapes < 1 {
		return errors.New("-rounds, -cold-rounds and -scrapes must be at least 1")
	}
	if o.layout != py16.name && o.layout != py8.name {
		return fmt.Errorf("-layout %q: use py16 or py8", o.layout)
	}
	return nil
}

func main() {
	if os.Getenv(roleVariable) != "" {
		if err := serveTrivial(); err != nil {
			fmt.Fprintln(os.Stderr, "bench: trivial server:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	o.addFlags(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	r, err := run(ctx, o, os.Stderr)
	if err == nil {
		err = r.print(os.Stdout, r.heading(), o.markdown)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A bench is one run.
type bench struct {
	opts   options
	layout layout
	// base is the directory of all directories.
	base     string
	report   *report
	progress io.Writer
	// steadies are what was found out about shapes that are alive, by size.
	steadies []steady
}

// run measures all shapes and removes what it made. It says on progress what it is at.
func run(ctx context.Context, o options, progress io.Writer) (r *report, err error) {
	if err := o.finish(); err != nil {
		return nil, err
	}
	list, err := parseShapes(o.shapes)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(o.daemon); err != nil {
		return nil, fmt.Errorf("%w (make build makes it; -daemon names another)", err)
	}
	b := &bench{opts: o, layout: py16, report: &report{}, progress: progress}
	if o.layout == py8.name {
		b.layout = py8
	}
	need := int64(0)
	for _, sh := range list {
		// Twice an entry of 200 bytes, because of Python's copy, and a page for each file.
		need = max(need, int64(sh.entries())*2*230+int64(sh.files())*2*4096)
	}
	if b.base, err = baseDir(o.dir, need); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.base)) }()
	if o.quick {
		b.report.note("-quick: the numbers mean nothing")
	}
	b.report.note("load average before: %s", load())
	for _, sh := range list {
		alive := false
		switch {
		case sh.dead:
			err = b.cold(ctx, sh)
		case sh.pools > 0:
			err = b.pools(ctx, sh)
		case sh.deaths > 0:
			err = b.deaths(ctx, sh)
		case sh.archived:
			err = b.archive(ctx, sh)
		default:
			alive = true
			err = b.steady(ctx, sh)
		}
		if err == nil && alive && b.opts.churn > 0 && sh.entries() <= smallEntries {
			err = b.churn(ctx, sh)
		}
		if err != nil {
			return nil, fmt.Errorf("shape %s: %w", sh.name, err)
		}
	}
	b.growth()
	b.report.note("load average after: %s (the benchmark itself makes some)", load())
	return b.report, nil
}

// say tells what is going on.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "bench: "+format+"\n", args...) //nolint:errcheck // nobody depends on it
}

func (b *bench) path(name string) string { return filepath.Join(b.base, name) }

// heading is what is printed above the tables.
func (r *report) heading() []string {
	return []string{machine(), "medians of rounds in turns; ratios are between medians of the same run"}
}

// growth judges how cost grows with the number of entries, if there are two shapes.
func (b *bench) growth() {
	s := b.steadies
	if len(s) < 2 {
		return
	}
	slices.SortFunc(s, func(x, y steady) int { return x.shape.entries() - y.shape.entries() })
	for i := 1; i < len(s); i++ {
		from, to := s[i-1], s[i]
		perEntry := func(st steady, v float64) float64 { return v / float64(st.shape.entries()) * 1e9 }
		ours, floors := perEntry(to, to.plain)/perEntry(from, from.plain), perEntry(to, to.floor)/perEntry(from, from.floor)
		b.report.judge(to.shape.String(), "growth: time per entry, against shape "+from.shape.name,
			"≤ 1.5 × the floor's growth ("+digits(floors)+")",
			fmt.Sprintf("%s → %s ns: %s", digits(perEntry(from, from.plain)), digits(perEntry(to, to.plain)), times(ours)),
			known(ours) && known(floors), ours <= 1.5*floors)
		b.report.judge(to.shape.String(), "growth: allocations of a scrape, against shape "+from.shape.name, "a constant few: + 10 at most",
			fmt.Sprintf("%.0f → %.0f", from.allocations, to.allocations), true, to.allocations <= from.allocations+10)
	}
}
