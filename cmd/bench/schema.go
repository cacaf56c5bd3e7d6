package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// A kind is what one file of a worker holds.
type kind uint8

// The kinds, in the order of cells.
const (
	counter kind = iota
	histogram
	summary
	gaugeSum
	gaugeMax
	kinds
)

// prefix is how the kind's file names begin.
func (k kind) prefix() string {
	return [...]string{counter: "counter", histogram: "histogram", summary: "summary", gaugeSum: "gauge_livesum", gaugeMax: "gauge_max"}[k]
}

// typ is what the TYPE line of the kind's families says.
func (k kind) typ() metric.Type {
	return [...]metric.Type{
		counter: metric.Counter, histogram: metric.Histogram, summary: metric.Summary, gaugeSum: metric.Gauge,
		gaugeMax: metric.Gauge,
	}[k]
}

// A schema is which series every worker of a shape has. Each series has a cell; the cells
// of one kind, of one family and of one child follow each other.
type schema struct {
	families []family
	// keys are the raw keys by cell; integral says whose values are whole numbers.
	keys     [][]byte
	integral []bool
	// firstCell is where each kind's cells begin; the last element is how many there are.
	firstCell [kinds + 1]int
}

type family struct {
	kind     kind
	name     string // without _total
	help     string
	bounds   []float64 // of a histogram, +Inf last
	children []child
}

// A child is one set of labels of a family, and its entries: one, or sum and buckets, or
// count and sum.
type child struct {
	labels      []metric.Label // sorted by name
	first, size int            // cells
}

func (f *family) firstCell() int { return f.children[0].first }

func (f *family) endCell() int {
	last := f.children[len(f.children)-1]
	return last.first + last.size
}

// perChild is how many entries a child of the family has.
func (f *family) perChild() int {
	switch f.kind {
	case histogram:
		return 1 + len(f.bounds)
	case summary:
		return 2
	}
	return 1
}

// Words that real applications use. What a name is made of decides how long keys are.
var (
	subjects = []string{
		"http_request", "db_query", "cache_lookup", "queue_job", "payment", "search", "mail_send", "login", "session",
		"render", "upstream_call", "order", "stock_sync", "webhook", "image_resize", "export", "report", "rpc", "lock_wait", "retry",
	}
	handlers = []string{
		"/", "/login", "/logout", "/api/v1/orders", "/api/v1/orders/{id}", "/api/v1/items", "/api/v1/items/{id}", "/api/v1/users/{id}",
		"/api/v1/carts/{id}", "/api/v2/search", "/checkout", "/checkout/confirm", "/static/{path}", "/health", "/admin/reports",
		"/webhooks/stripe",
	}
	methods = []string{"GET", "POST", "PUT", "DELETE"}
	codes   = []string{"200", "201", "204", "302", "400", "403", "404", "500"}
	regions = []string{"eu1", "us1", "ap2"}
	tenants = []string{
		"acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "wonka", "cyberdyne", "tyrell", "soylent",
		"vandelay",
	}

	latencies = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, math.Inf(1)}
	sizes     = []float64{64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, math.Inf(1)}
	waits     = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, math.Inf(1)}
)

// A species is a sort of family, and which share of all entries it has.
type species struct {
	kind   kind
	suffix string
	help   string
	bounds []float64
	share  float64
}

// The shares are like those of web applications: mostly histograms, then counters. With them nine values in ten are whole numbers. What is
// missing to 1 goes to the first. Values of what ends in _seconds, and sums, are no whole
// numbers.
var allSpecies = []species{
	{kind: counter, suffix: "s", help: "How often, by outcome."},
	{kind: histogram, suffix: "_duration_seconds", help: "How long it took.", bounds: latencies, share: .30},
	{kind: counter, suffix: "_bytes", help: "Bytes moved.", share: .10},
	{kind: histogram, suffix: "_size_bytes", help: "Size of the payload.", bounds: sizes, share: .18},
	{kind: gaugeSum, suffix: "s_in_progress", help: "Under way now.", share: .03},
	{kind: counter, suffix: "_cpu_seconds", help: "CPU time spent.", share: .03},
	{kind: histogram, suffix: "_wait_seconds", help: "Time spent in the queue.", bounds: waits, share: .12},
	{kind: summary, suffix: "_age_seconds", help: "Age when it was handled.", share: .05},
	{kind: gaugeMax, suffix: "_lag_seconds", help: "Longest lag seen.", share: .02},
}

// deadSpecies are those of a shape with two files a worker.
var deadSpecies = []species{
	{kind: counter, suffix: "s", help: "How often, by outcome."},
	{kind: histogram, suffix: "_duration_seconds", help: "How long it took.", bounds: latencies, share: .55},
	{kind: counter, suffix: "_cpu_seconds", help: "CPU time spent.", share: .06},
}

// newSchema generates the series of a shape. The same shape gives the same series.
func newSchema(sh shape) *schema {
	from := allSpecies
	if sh.dead {
		from = deadSpecies
	}
	// More series make for more families, and for larger ones.
	subjectCount := min(max(int(math.Sqrt(float64(sh.series))/12), 2), len(subjects))
	s := &schema{}
	left := sh.series
	for i, sp := range slices.Backward(from) {
		left -= s.addSpecies(sp, subjectCount, left, int(sp.share*float64(sh.series)), i == 0)
	}
	if left != 0 {
		panic(fmt.Sprintf("BUG: %v lacks %d series", sh, left))
	}
	slices.SortStableFunc(s.families, func(a, b family) int { return int(a.kind) - int(b.kind) })
	s.number()
	return s
}

// addSpecies adds one family for each subject, with about want entries in all, or exactly
// what is left. It returns how many entries they have.
func (s *schema) addSpecies(sp species, subjectCount, left, want int, rest bool) (entries int) {
	if rest {
		want = left
	}
	// The share of a subject falls with its number: some families are ten times as large
	// as others.
	weights := 0.0
	for i := range subjectCount {
		weights += 1 / float64(i+1)
	}
	for i := range subjectCount {
		name := subjects[i] + sp.suffix
		f := family{kind: sp.kind, name: name, help: sp.help, bounds: sp.bounds}
		n := int(float64(want) / weights / float64(i+1) / float64(f.perChild()))
		if rest && i == subjectCount-1 {
			n = want - entries
		}
		for c := range max(n, 1) {
			f.children = append(f.children, child{labels: labelsOf(c, i), size: f.perChild()})
			entries += f.perChild()
		}
		s.families = append(s.families, f)
	}
	return entries
}

// labelsOf returns the labels of the child with a number: five of them, and with le six
// on buckets. Numbers that differ give labels that differ.
func labelsOf(n, salt int) []metric.Label {
	digit := func(of []string) string {
		v := of[(n+salt)%len(of)]
		n /= len(of)
		return v
	}
	handler, method, code := digit(handlers), digit(methods), digit(codes)
	region, tenant := digit(regions), digit(tenants)
	return []metric.Label{
		{Name: "code", Value: code},
		{Name: "handler", Value: handler},
		{Name: "method", Value: method},
		{Name: "region", Value: region},
		{Name: "tenant", Value: tenant},
	}
}

// number gives every child its cells and every cell its key.
func (s *schema) number() {
	var raw []byte
	add := func(f *family, sample string, labels []metric.Label, whole bool) {
		raw = store.AppendKey(raw[:0], metric.Key{Family: f.name, Series: metric.Series{Sample: sample, Labels: labels}, Help: f.help})
		s.keys = append(s.keys, slices.Clone(raw))
		s.integral = append(s.integral, whole)
	}
	for i := range s.families {
		f := &s.families[i]
		whole := !strings.HasSuffix(f.name, "_seconds")
		for j := range f.children {
			c := &f.children[j]
			c.first = len(s.keys)
			// The order within a child is that in which prometheus_client's metrics.py makes
			// its values.
			switch f.kind {
			case counter:
				add(f, f.name+"_total", c.labels, whole)
			case gaugeSum, gaugeMax:
				add(f, f.name, c.labels, whole)
			case summary:
				add(f, f.name+"_count", c.labels, true)
				add(f, f.name+"_sum", c.labels, false)
			case histogram:
				add(f, f.name+"_sum", c.labels, false)
				for _, b := range f.bounds {
					labels := append(slices.Clone(c.labels), metric.Label{Name: "le", Value: string(metric.AppendBound(nil, b))})
					metric.SortLabels(labels)
					add(f, f.name+"_bucket", labels, true)
				}
			}
		}
		for k := f.kind; k < kinds; k++ {
			s.firstCell[k+1] = len(s.keys)
		}
	}
}

// has reports whether there are series of a kind.
func (s *schema) has(k kind) bool { return s.firstCell[k+1] > s.firstCell[k] }

// witness returns the first child of a counter of whole numbers, by which one can see
// whether a total is right to the last digit, and the name of its family.
func (s *schema) witness() (family string, c *child) {
	for i := range s.families {
		if f := &s.families[i]; f.kind == counter && s.integral[f.firstCell()] {
			return f.name, &f.children[0]
		}
	}
	panic("BUG: a shape without counters of whole numbers")
}

// disorder is by how many places the children of a worker may trade places, because
// handlers are hit in another order in each. With it, the key that follows another one in
// one worker follows it in the next in about two of three cases, as in real directories.
const disorder = 2

// order returns the children of a kind in the order in which a worker makes them.
func (s *schema) order(k kind, rng *rand.Rand) []*child {
	type place struct {
		child *child
		at    float64
	}
	var places []place
	for i := range s.families {
		f := &s.families[i]
		if f.kind != k {
			continue
		}
		for j := range f.children {
			// A request that is the first of its sort makes a child in several families, so
			// families come interleaved.
			places = append(places, place{&f.children[j], float64(j) + disorder*rng.Float64()})
		}
	}
	slices.SortStableFunc(places, func(a, b place) int {
		if a.at < b.at {
			return -1
		}
		return 1
	})
	out := make([]*child, len(places))
	for i, p := range places {
		out[i] = p.child
	}
	return out
}
