package exposition

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/common/model"

	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// clients are processes that an input of FuzzReaders describes. What they write is as odd as
// clients allow; that it is nothing else is up to what is written here.
type clients struct {
	input []byte
	files []*clientFile
}

// A clientFile is what one process has in one file.
type clientFile struct {
	typ    metric.Type
	mode   metric.Mode
	id     string
	raw    []string
	values []float64
	series []wrote
}

// wrote is a series as a process wrote it. A histogram's has its bounds, which are not cumulative.
type wrote struct {
	family string // the OpenMetrics name
	sample string
	labels []metric.Label
	bound  float64
	value  float64
}

var (
	// Names that share suffixes, and names that are spelled in other ways.
	clientNames = []string{
		"a", "a_b", "a.b", "a-b", "a_total", "a_count", "a_sum", "a_bucket", "a_created", "a_info", "a.b_total", "a.b.sum",
		"ж", "ы.ж", "_", "x:y", "le", "pid", "c", "d",
	}
	clientLabels  = []string{"q", "q_r", "q.r", "q-r", "q:r", "ж", "pid", "quantile", "type", "A", "_z"}
	clientTexts   = []string{"v", "\"", "\\", "\n", "ж", " ", "1", "\r", "}", "{a=\"b\"}", "# EOF", "\x00"}
	clientModes   = []metric.Mode{metric.All, metric.Max, metric.LiveSum, metric.LiveAll, metric.Min}
	clientBounds  = [][]float64{{1, 2.5}, {0.5}, {1e10}, {}, {1, 1e6}}
	clientFloats  = []float64{math.Inf(1), math.Inf(-1), math.MaxFloat64, math.SmallestNonzeroFloat64, 1e15, 1 << 53, 1e21, -1.5}
	clientAccepts = []string{
		acceptPrometheus3, acceptProtobuf3, "text/plain;version=0.0.4;q=1,*/*;q=0.1",
		"application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
	}
)

// next returns the next number of the input, below n; 0 when there is no more.
func (c *clients) next(n int) int {
	if len(c.input) == 0 {
		return 0
	}
	b := c.input[0]
	c.input = c.input[1:]
	return int(b) % n
}

// choose returns one of a list.
func choose[T any](c *clients, list []T) T { return list[c.next(len(list))] }

// run has the processes write.
func (c *clients) run() {
	for i := range 1 + c.next(3) {
		f := &clientFile{id: strconv.Itoa(i + 1), typ: metric.Counter + metric.Type(c.next(4))}
		if f.typ == metric.Gauge {
			f.mode = choose(c, clientModes)
		}
		ruby := c.next(2) == 1 && f.typ != metric.Histogram // its buckets are package store's
		for range 1 + c.next(2) {
			c.write(f, ruby)
		}
		c.files = append(c.files, f)
	}
}

// write has a process declare a metric and use it once.
func (c *clients) write(f *clientFile, ruby bool) {
	name := choose(c, clientNames)
	var labels []metric.Label
	for range c.next(3) {
		l := metric.Label{Name: choose(c, clientLabels), Value: choose(c, clientTexts)}
		if f.typ == metric.Summary && l.Name == "quantile" {
			continue // clients refuse it
		}
		if !slices.ContainsFunc(labels, func(o metric.Label) bool { return o.Name == l.Name }) {
			labels = append(labels, l)
		}
	}
	// Not in a series without pid: beside one with pid, whose pid is served as exported_pid, it
	// could become the same series. No client has both in one metric.
	if slices.ContainsFunc(labels, func(l metric.Label) bool { return l.Name == "pid" }) && c.next(4) == 1 {
		labels = append(labels, metric.Label{Name: "exported_pid", Value: choose(c, clientTexts)})
	}
	metric.SortLabels(labels)
	positive := float64(c.next(256)) / 2 // sums of it are exact
	add := func(family, sample, le string, bound, value float64) {
		w := wrote{metric.FamilyName(family, f.typ), sample, labels, bound, value}
		if slices.ContainsFunc(f.series, func(o wrote) bool { return o.node() == w.node() && o.sample == w.sample && o.bound == w.bound }) {
			return // it has it already, under a name that comes to the same
		}
		key := labels
		if le != "" {
			key = append(slices.Clone(labels), metric.Label{Name: "le", Value: le})
			metric.SortLabels(key)
		}
		raw := store.AppendKey(nil, metric.Key{Family: family, Help: "Help.", Series: metric.Series{Sample: sample, Labels: key}})
		if ruby {
			raw = rubyKey(family, sample, key)
		}
		f.raw, f.values, f.series = append(f.raw, string(raw)), append(f.values, value), append(f.series, w)
	}
	switch f.typ {
	case metric.Counter:
		if ruby {
			add(name, name, "", 0, positive)
			break
		}
		family := metric.FamilyName(name, metric.Counter)
		add(family, family+"_total", "", 0, positive)
	case metric.Gauge:
		value := positive
		if f.mode != metric.LiveSum && c.next(2) == 1 {
			value = choose(c, clientFloats)
		}
		if f.mode.Base() == metric.All && c.next(8) == 1 {
			value = math.NaN()
		}
		add(name, name, "", 0, value)
	case metric.Histogram:
		add(name, name+"_sum", "", 0, positive)
		for _, b := range append(slices.Clone(choose(c, clientBounds)), math.Inf(1)) {
			add(name, name+"_bucket", string(metric.AppendBound(nil, b)), b, float64(c.next(100)))
		}
	case metric.Summary:
		add(name, name+"_sum", "", 0, positive)
		add(name, name+"_count", "", 0, float64(c.next(100)))
	}
}

// rubyKey spells a key as prometheus-client-mmap does.
func rubyKey(family, sample string, labels []metric.Label) []byte {
	text := func(dst []byte, s string) []byte { return appendJSONString(dst, s) }
	key := text([]byte("["), family)
	key = text(append(key, ','), sample)
	for _, part := range []func(metric.Label) string{
		func(l metric.Label) string { return l.Name },
		func(l metric.Label) string { return l.Value },
	} {
		key = append(key, ",["...)
		for i, l := range labels {
			if i > 0 {
				key = append(key, ',')
			}
			key = text(key, part(l))
		}
		key = append(key, ']')
	}
	return append(key, ']')
}

func (w wrote) node() string { return sampleKey(w.family, w.labels) }

// plainSample is a sample as it should be served, its names as they were given.
type plainSample struct {
	name   string
	labels []metric.Label
	bound  *metric.Label
	value  float64
	// spelled are the ways in which the format may spell it.
	spelled []string
}

// group is what merges: a family of one type and mode, and who wrote to it last.
type group struct {
	family string
	typ    metric.Type
	mode   metric.Mode
}

// served is what should be served, by the plainest reading of the rules: a name that two want
// belongs to the newest file, and what is of one series is added, or chosen by the gauge's mode.
func (c *clients) served() (all []plainSample) {
	newest, claims := map[group]int{}, map[group]map[string]bool{}
	for i, f := range c.files {
		for _, w := range f.series {
			g := group{w.family, f.typ, f.mode}
			if newest[g] = i; claims[g] == nil {
				claims[g] = map[string]bool{}
			}
			switch f.typ {
			case metric.Histogram:
				for _, end := range []string{"", "_bucket", "_sum", "_count"} {
					claims[g][w.family+end] = true
				}
			case metric.Summary:
				for _, end := range []string{"", "_sum", "_count"} {
					claims[g][w.family+end] = true
				}
			default:
				claims[g][w.sample] = true
			}
		}
	}
	order := slices.SortedFunc(maps.Keys(newest), func(a, b group) int {
		if newest[a] != newest[b] {
			return newest[b] - newest[a]
		}
		return strings.Compare(a.family, b.family)
	})
	taken, wins := map[string]bool{}, map[group]bool{}
	for _, g := range order {
		wins[g] = true
		for name := range claims[g] {
			wins[g] = wins[g] && !taken[name]
		}
		if wins[g] {
			maps.Copy(taken, claims[g])
		}
	}

	sums := map[string]*plainSample{}
	buckets := map[string]map[float64]float64{}
	nodes := map[string]wrote{}
	for _, f := range c.files {
		for _, w := range f.series {
			if !wins[group{w.family, f.typ, f.mode}] {
				continue
			}
			labels := w.labels
			if f.mode.Base() == metric.All {
				labels = withPID(labels, f.id)
			}
			if f.typ == metric.Histogram && strings.HasSuffix(w.sample, "_bucket") {
				if buckets[w.node()] == nil {
					buckets[w.node()] = map[float64]float64{math.Inf(1): 0}
				}
				buckets[w.node()][w.bound] += w.value
				nodes[w.node()] = w
				continue
			}
			key := sampleKey(w.sample, labels)
			switch s := sums[key]; {
			case s == nil:
				sums[key] = &plainSample{name: w.sample, labels: labels, value: w.value}
			case f.mode.Base() == metric.Max:
				s.value = max(s.value, w.value)
			case f.mode.Base() == metric.Min:
				s.value = min(s.value, w.value)
			default:
				s.value += w.value
			}
		}
	}
	for _, s := range sums {
		all = append(all, *s)
	}
	for node, counts := range buckets {
		w := nodes[node]
		total := 0.0
		for _, b := range slices.Sorted(maps.Keys(counts)) {
			total += counts[b]
			le := metric.Label{Name: "le", Value: string(metric.AppendBound(nil, b))}
			all = append(all, plainSample{name: w.family + "_bucket", labels: w.labels, bound: &le, value: total})
		}
		all = append(all, plainSample{name: w.family + "_count", labels: w.labels, value: total})
	}
	return all
}

// withPID is the labels of a gauge that has a series for each process.
func withPID(labels []metric.Label, id string) []metric.Label {
	has := func(name string) bool {
		return slices.ContainsFunc(labels, func(l metric.Label) bool { return l.Name == name })
	}
	free := "exported_pid"
	for has(free) {
		free = "exported_" + free
	}
	out := slices.Clone(labels)
	for i := range out {
		if out[i].Name == "pid" {
			out[i].Name = free
		}
	}
	out = append(out, metric.Label{Name: "pid", Value: id})
	metric.SortLabels(out)
	return out
}

// spellings are the ways in which a format may spell a name: a name that needs no escaping has
// one, another one that of the scheme, or that of scheme values where the other is not free.
func spellings(name string, e Escaping, label bool) []string {
	if model.LegacyValidation.IsValidLabelName(name) || (!label && model.LegacyValidation.IsValidMetricName(name)) {
		return []string{name}
	}
	odd := strings.NewReplacer(":", "\ue000") // a colon is legal in a metric's name only
	if !label {
		odd = strings.NewReplacer()
	}
	spelled := []string{strings.ReplaceAll(model.EscapeName(odd.Replace(name), model.ValueEncodingEscaping), "_e000_", "_3a_")}
	if s := model.EscapeName(odd.Replace(name), schemes[e].model); !strings.HasPrefix(s, "__") {
		spelled = append(spelled, s)
	}
	return spelled
}

// keys are the ways in which a format may spell a sample.
func (s plainSample) keys(e Escaping) (keys []string) {
	name, suffix := s.name, ""
	if s.bound != nil {
		suffix = "_bucket"
		name = strings.TrimSuffix(name, suffix)
	}
	plain := func(l metric.Label) bool { return model.LegacyValidation.IsValidLabelName(l.Name) }
	if e == AllowUTF8 || (plain(metric.Label{Name: s.name}) &&
		!slices.ContainsFunc(s.labels, func(l metric.Label) bool { return !plain(l) })) {
		ls := s.labels
		if s.bound != nil {
			ls = append(slices.Clone(ls), *s.bound)
		}
		return []string{sampleKey(s.name, ls)}
	}
	lists := [][]metric.Label{nil}
	if s.bound != nil {
		lists[0] = append(lists[0], *s.bound)
	}
	for _, l := range s.labels {
		var longer [][]metric.Label
		for _, list := range lists {
			for _, spelled := range spellings(l.Name, e, true) {
				longer = append(longer, append(slices.Clone(list), metric.Label{Name: spelled, Value: l.Value}))
			}
		}
		lists = longer
	}
	names := spellings(name, e, false)
	for i := range names {
		names[i] += suffix
	}
	for _, end := range []string{"_sum", "_count"} { // of a histogram or summary, or just its name
		if base, ok := strings.CutSuffix(s.name, end); ok {
			for _, spelled := range spellings(base, e, false) {
				names = append(names, spelled+end)
			}
		}
	}
	for _, n := range names {
		if strings.HasPrefix(n, "__") && !strings.HasPrefix(s.name, "__") {
			continue // reserved
		}
		for _, list := range lists {
			keys = append(keys, sampleKey(n, list))
		}
	}
	return keys
}

// FuzzReaders has random clients write random metrics, and reads what is served of them in a
// format, or as a scraper asks for it: it is what they wrote, each sample once, under its own name
// or one that its scheme has for it, and nothing else. No name becomes a reserved one.
func FuzzReaders(f *testing.F) {
	for i := range byte(len(allFormats) + len(clientAccepts)) {
		f.Add([]byte{i, 2, 0, 0, 2, 0, 0, 1, 1, 3, 0, 9, 1, 4, 5, 1, 1, 7, 1, 0, 2, 2, 2, 2, 1, 9})
		f.Add([]byte{i, 1, 2, 0, 1, 0, 0, 4, 1, 3, 2, 1, 0, 1, 0, 2, 0, 1, 1, 2, 3, 5, 6})
		f.Add([]byte{i, 0, 0, 0, 2, 1, 0, 3, 2, 2, 3, 3, 2, 5, 2, 1, 4, 5, 6, 8})
		f.Add([]byte{i, 2, 3, 0, 2, 2, 0, 9, 3, 1, 0, 1, 5, 6, 9, 0, 1, 1, 1, 2, 6, 6, 7, 7, 1})
	}
	e := &Encoder{}
	f.Fuzz(func(t *testing.T, input []byte) {
		c := &clients{input: input}
		var accept Accept
		if i := c.next(len(allFormats) + len(clientAccepts)); i < len(allFormats) {
			accept = AcceptOnly(allFormats[i])
		} else {
			accept = ParseAccept(clientAccepts[i-len(allFormats)])
		}
		c.run()
		index := merge.NewIndex(merge.Options{})
		defer index.Close()
		for i, file := range c.files {
			s := index.Add(merge.SourceSpec{
				Name: fmt.Sprint("file", i), Type: file.typ, Mode: file.mode, ID: file.id, Created: int64(i), ParseKey: store.ParseKey,
			})
			for slot, raw := range file.raw {
				if err := index.Learn(s, []byte(raw), uint32(slot)); err != nil {
					t.Fatalf("%s: %v", raw, err)
				}
				s.Values()[slot] = file.values[slot]
			}
		}
		snap := index.Snapshot()
		defer snap.Release()
		out, format := e.Encode(nil, nil, accept, Filter{}, snap)
		got := parse(t, format, string(out))
		escaping := format.normal().Escaping
		served := c.served()
		for i := range served {
			served[i].spelled = served[i].keys(escaping)
		}
		// What can be spelled in one way first: the others have what is left.
		slices.SortFunc(served, func(a, b plainSample) int { return len(a.spelled) - len(b.spelled) })
		for _, s := range served {
			keys := s.spelled
			i := slices.IndexFunc(keys, func(key string) bool {
				v, ok := got[key]
				return ok && v == bits(s.value)
			})
			if i < 0 {
				t.Errorf("%s of %v is missing", keys[0], s.value)
				continue
			}
			delete(got, keys[i])
		}
		for key, v := range got {
			t.Errorf("%s of %v is too much", key, math.Float64frombits(v))
		}
		if t.Failed() {
			for _, file := range c.files {
				t.Logf("%v %v: %q %v", file.typ, file.mode, file.raw, file.values)
			}
			t.Logf("%v, %v:\n%s", format, format.Escaping, out)
		}
	})
}
