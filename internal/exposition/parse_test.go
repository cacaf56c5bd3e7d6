package exposition

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// samples is a set of samples: name and labels to the value's bits, any NaN being one.
type samples map[string]uint64

func sampleKey(name string, ls []metric.Label) string {
	byName := func(a, b metric.Label) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(ls, byName) {
		ls = slices.SortedStableFunc(slices.Values(ls), byName)
	}
	var room [256]byte
	key := strconv.AppendQuote(room[:0], name)
	for _, l := range ls {
		key = strconv.AppendQuote(append(key, ','), l.Name)
		key = strconv.AppendQuote(append(key, '='), l.Value)
	}
	return string(key)
}

func bits(f float64) uint64 {
	if math.IsNaN(f) {
		return math.Float64bits(math.NaN())
	}
	return math.Float64bits(f)
}

func (s samples) add(t testing.TB, name string, ls []metric.Label, v float64) {
	t.Helper()
	key := sampleKey(name, ls)
	if _, ok := s[key]; ok {
		t.Errorf("duplicate sample %s", key)
	}
	s[key] = bits(v)
}

func (s samples) withoutNegativeZero() samples {
	out := samples{}
	for key, v := range s {
		if v == math.Float64bits(math.Copysign(0, -1)) {
			v = 0
		}
		out[key] = v
	}
	return out
}

// addFamilies adds the samples of parsed families, spelled as in the text formats.
func (s samples) addFamilies(t testing.TB, families []*dto.MetricFamily) {
	t.Helper()
	for _, mf := range families {
		name := mf.GetName()
		for _, m := range mf.Metric {
			var ls []metric.Label
			for _, l := range m.Label {
				ls = append(ls, metric.Label{Name: l.GetName(), Value: l.GetValue()})
			}
			with := func(name string, bound float64) []metric.Label {
				return append(slices.Clone(ls), metric.Label{Name: name, Value: string(metric.AppendBound(nil, bound))})
			}
			switch mf.GetType() {
			case dto.MetricType_COUNTER:
				s.add(t, name, ls, m.GetCounter().GetValue())
			case dto.MetricType_GAUGE:
				s.add(t, name, ls, m.GetGauge().GetValue())
			case dto.MetricType_UNTYPED:
				s.add(t, name, ls, m.GetUntyped().GetValue())
			case dto.MetricType_SUMMARY:
				for _, q := range m.Summary.Quantile {
					s.add(t, name, with("quantile", q.GetQuantile()), q.GetValue())
				}
				s.add(t, name+"_sum", ls, m.Summary.GetSampleSum())
				s.add(t, name+"_count", ls, float64(m.Summary.GetSampleCount()))
			case dto.MetricType_HISTOGRAM:
				h := m.Histogram
				count := float64(h.GetSampleCount())
				if h.SampleCountFloat != nil {
					count = h.GetSampleCountFloat()
				}
				inf := false
				for _, b := range h.Bucket {
					n := float64(b.GetCumulativeCount())
					if b.CumulativeCountFloat != nil {
						n = b.GetCumulativeCountFloat()
					}
					s.add(t, name+"_bucket", with("le", b.GetUpperBound()), n)
					inf = inf || math.IsInf(b.GetUpperBound(), 1)
				}
				if !inf {
					s.add(t, name+"_bucket", with("le", math.Inf(1)), count)
				}
				s.add(t, name+"_sum", ls, h.GetSampleSum())
				s.add(t, name+"_count", ls, count)
			}
		}
	}
}

// parseText reads an exposition with Prometheus' own text parser, which must know the
// names as the format spells them.
func parseText(t testing.TB, f Format, text string) samples {
	t.Helper()
	scheme := model.LegacyValidation
	if f.normal().Escaping == AllowUTF8 {
		scheme = model.UTF8Validation
	}
	parser := expfmt.NewTextParser(scheme)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("expfmt does not read %v: %v\n%s", f, err, text)
	}
	s := samples{}
	for _, mf := range families {
		s.addFamilies(t, []*dto.MetricFamily{mf})
	}
	return s
}

// decodeProtobuf reads delimited messages with expfmt's decoder.
func decodeProtobuf(t testing.TB, f Format, data string) []*dto.MetricFamily {
	t.Helper()
	decoder := expfmt.NewDecoder(strings.NewReader(data), expfmt.Format(f.ContentType()))
	var families []*dto.MetricFamily
	for {
		mf := new(dto.MetricFamily)
		if err := decoder.Decode(mf); errors.Is(err, io.EOF) {
			return families
		} else if err != nil {
			t.Fatalf("expfmt does not decode the protobuf: %v", err)
		}
		families = append(families, mf)
	}
}

// expected returns the samples that an exposition of the snapshots should have if nothing
// had to be left out, by the plainest possible reading of the rules.
func expected(t testing.TB, f Format, snaps ...*view.Snapshot) samples {
	t.Helper()
	f = f.normal()
	replaced := func(s string) string {
		var out string
		for _, r := range s {
			out += string(r)
		}
		return out
	}
	escape := func(name string, e Escaping) string {
		if name = replaced(name); model.LegacyValidation.IsValidMetricName(name) {
			return name
		}
		return model.EscapeName(name, schemes[e].model)
	}
	// In a label a colon is as odd as a letter of the private use area.
	escapeLabel := func(name string, e Escaping) string {
		if e == AllowUTF8 {
			return replaced(name)
		}
		return strings.ReplaceAll(escape(strings.ReplaceAll(name, ":", "\ue000"), e), "_e000_", "_3a_")
	}
	s := samples{}
	for _, snap := range snaps {
		i := -1
		for _, fam := range snap.Layout.Families {
			for _, m := range fam.Metrics {
				var ls []metric.Label
				for _, l := range m.Labels {
					ls = append(ls, metric.Label{Name: escapeLabel(l.Name, f.Escaping), Value: replaced(l.Value)})
				}
				for _, p := range m.Points {
					i++
					if view.IsAbsent(snap.Values[i]) {
						continue
					}
					name := escape(fam.Name, f.Escaping) + p.Kind.Suffix()
					if p.Kind == view.Total {
						name = escape(fam.Name+"_total", f.Escaping)
					}
					ls := slices.Clone(ls)
					switch p.Kind {
					case view.Bucket:
						ls = append(ls, metric.Label{Name: "le", Value: string(metric.AppendBound(nil, p.Bound))})
					case view.Quantile:
						ls = append(ls, metric.Label{Name: "quantile", Value: string(metric.AppendBound(nil, p.Bound))})
					}
					s[sampleKey(name, ls)] = bits(snap.Values[i])
				}
			}
		}
	}
	return s
}

// compare checks that the samples got are those wanted.
func compare(t testing.TB, what string, got, want samples) {
	t.Helper()
	for key, w := range want {
		if g, ok := got[key]; !ok {
			t.Errorf("%s: %s is missing", what, key)
		} else if g != w {
			t.Errorf("%s: %s is %v, want %v", what, key, math.Float64frombits(g), math.Float64frombits(w))
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("%s: unexpected %s", what, key)
		}
	}
}

var allFormats = func() (formats []Format) {
	for kind := Text004; kind <= Protobuf; kind++ {
		for escaping := Underscores; escaping <= AllowUTF8; escaping++ {
			formats = append(formats, Format{kind, escaping})
		}
	}
	return formats
}()

// parse reads an exposition with the parsers of Prometheus. There is none for
// OpenMetrics in prometheus/common; its text parser reads it too, taking a counter's
// samples for untyped ones.
func parse(t testing.TB, f Format, out string) samples {
	t.Helper()
	switch {
	case f.Kind == Protobuf:
		s := samples{}
		s.addFamilies(t, decodeProtobuf(t, f, out))
		return s
	case f.openMetrics():
		body, ok := strings.CutSuffix(out, "# EOF\n")
		if !ok {
			t.Errorf("%v does not end in # EOF", f)
		}
		return parseText(t, f, strings.ReplaceAll(body, " unknown\n", " untyped\n"))
	}
	return parseText(t, f, out)
}

func TestEveryFormatParsesBack(t *testing.T) {
	snap := everything()
	for _, f := range allFormats {
		out, omissions := encode(f, snap)
		if left := leftOut(omissions); len(left) > 0 {
			t.Errorf("%+v left out %v", f, left)
		}
		compare(t, fmt.Sprintf("%+v", f), parse(t, f, out), expected(t, f, snap))
	}
}

// The protobuf must be what client_golang would send for the same metrics.
func TestProtobufMessages(t *testing.T) {
	snap := snapshot(
		fam{name: "jobs", typ: metric.Counter, help: "Jobs.", metrics: []met{total(3, "q", "ä")}},
		fam{name: "lat", typ: metric.Histogram, metrics: []met{
			buckets(1, 2, 300, 7.5, "p", "/"), buckets(0.5, 1.5, 2.5, -1, "p", "x"),
			buckets(-1, 0, 3, 0, "p", "y"), buckets(0, 0, 1e20, 0, "p", "z"),
		}},
		fam{name: "old", typ: metric.Counter, metrics: []met{value(5)}},
		fam{
			name: "size", typ: metric.Summary,
			metrics: []met{{nil, []pt{{view.Quantile, 0.5, math.NaN()}, {view.Sum, 0, 2}, {view.Count, 0, 200}}}},
		},
		fam{name: "sizes", typ: metric.Summary, metrics: []met{
			summary(1, -1, "a", "1"), summary(1, math.NaN(), "a", "2"), summary(1, math.Inf(1), "a", "3"), summary(1, 2.9, "a", "4"),
			summary(1, 3, "a", "5"),
		}},
		fam{name: "temp", typ: metric.Gauge, sparse: true, metrics: []met{value(view.Absent, "r", "1"), value(math.Inf(-1), "r", "2")}},
		fam{name: "unset", typ: metric.Gauge, sparse: true, metrics: []met{value(view.Absent)}},
		fam{name: "what", typ: metric.Unknown, metrics: []met{value(0)}},
	)
	out, left := encode(Format{Kind: Protobuf}, snap)
	if want := []Omission{
		{Family: "lat", Reason: BadValue, Metrics: 1, Example: `p="y"`},
		{Family: "sizes", Reason: BadValue, Metrics: 4, Example: `a="1"`},
	}; !slices.Equal(left, want) {
		t.Errorf("left out %v, want %v", left, want)
	}
	want := []string{
		`name:"jobs_total" help:"Jobs." type:COUNTER metric:{label:{name:"q" value:"ä"} counter:{value:3}}`,
		`name:"lat" help:"Help of lat." type:HISTOGRAM metric:{label:{name:"p" value:"/"} histogram:{sample_count:300 sample_sum:7.5 bucket:{cumulative_count:1 upper_bound:1} bucket:{cumulative_count:2 upper_bound:2.5}}} metric:{label:{name:"p" value:"x"} histogram:{sample_count_float:2.5 sample_sum:-1 bucket:{cumulative_count_float:0.5 upper_bound:1} bucket:{cumulative_count_float:1.5 upper_bound:2.5}}} metric:{label:{name:"p" value:"z"} histogram:{sample_count_float:1e+20 sample_sum:0 bucket:{cumulative_count_float:0 upper_bound:1} bucket:{cumulative_count_float:0 upper_bound:2.5}}}`,
		`name:"old" help:"Help of old." type:COUNTER metric:{counter:{value:5}}`,
		`name:"size" help:"Help of size." type:SUMMARY metric:{summary:{sample_count:200 sample_sum:2 quantile:{quantile:0.5 value:nan}}}`,
		`name:"sizes" help:"Help of sizes." type:SUMMARY metric:{label:{name:"a" value:"5"} summary:{sample_count:3 sample_sum:1}}`,
		`name:"temp" help:"Help of temp." type:GAUGE metric:{label:{name:"r" value:"2"} gauge:{value:-inf}}`,
		`name:"what" help:"Help of what." type:UNTYPED metric:{untyped:{value:0}}`,
	}
	var got []string
	for _, mf := range decodeProtobuf(t, Format{Kind: Protobuf}, out) {
		// The text form has random spaces, so that nobody compares it as it is.
		got = append(got, strings.Join(strings.Fields(mf.String()), " "))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestJSONIsValid(t *testing.T) {
	out, _ := encode(Format{Kind: JSON}, everything())
	var families []struct {
		Name, Help, Type string
		Metrics          []struct {
			Labels, Buckets, Quantiles map[string]string
			Value, Count, Sum          string
		}
	}
	decoder := json.NewDecoder(strings.NewReader(out))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&families); err != nil {
		t.Fatal(err)
	}
	want := everything()
	for i, f := range families {
		fam := want.Layout.Families[i]
		if f.Help != fam.Help || len(f.Metrics) != len(fam.Metrics) || !strings.HasPrefix(f.Name, fam.Name) {
			t.Errorf("family %d is %+v, want %+v", i, f, fam)
			continue
		}
		for j, m := range fam.Metrics {
			for _, l := range m.Labels {
				if got := f.Metrics[j].Labels[l.Name]; got != l.Value {
					t.Errorf("label %s of %s is %q, want %q", l.Name, f.Name, got, l.Value)
				}
			}
		}
	}
}

func TestJSONStringsAgreeWithEncodingJSON(t *testing.T) {
	for _, s := range []string{"", "plain", "\x01\x1f\x7f\t\r\n\b\f", `"\/`, "ä€😀", "\u2028\u2029", "<&>"} {
		got := appendJSONString(nil, s)
		var back string
		if err := json.Unmarshal(got, &back); err != nil || back != s {
			t.Errorf("%q is spelled %s and read as %q (%v)", s, got, back, err)
		}
		if bytes.ContainsAny(got, "\u2028\u2029\n\r\t") {
			t.Errorf("%q is spelled %s, with a character that some readers refuse", s, got)
		}
	}
}

// peer returns the path of a program that tests need beside Go. A missing one skips the
// test, but fails it where everything must be there.
func peer(t testing.TB, path, install string) string {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing: %s", path, install)
		}
		t.Skipf("%s is missing: %s", path, install)
	}
	return path
}

// A pythonDocument is an exposition for the Python client's parsers: "openmetrics", the
// strict one, or "text".
type pythonDocument struct {
	parser, text string
	want         samples
}

// checkPython lets the Python client's parsers read all documents, in one process.
func checkPython(t *testing.T, documents []pythonDocument) {
	t.Helper()
	python := peer(t, "/usr/bin/python3", "apt-get install python3")
	peer(t, "/usr/lib/python3/dist-packages/prometheus_client", "apt-get install python3-prometheus-client")
	var in [][2]string
	for _, d := range documents {
		in = append(in, [2]string{d.parser, d.text})
	}
	input, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, "testdata/parse.py")
	cmd.Stdin = bytes.NewReader(input)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("run the Python parsers: %v", err)
	}
	var results []struct {
		Error   string
		Samples [][3]any
	}
	if err := json.Unmarshal(output, &results); err != nil {
		t.Fatal(err)
	}
	if len(results) != len(documents) {
		t.Fatalf("%d results for %d documents", len(results), len(documents))
	}
	for i, r := range results {
		d := documents[i]
		what := fmt.Sprintf("document %d, %s parser of the Python client", i, d.parser)
		if r.Error != "" {
			t.Errorf("%s: %s\n%s", what, r.Error, d.text)
			continue
		}
		got := samples{}
		for _, s := range r.Samples {
			var ls []metric.Label
			for name, value := range s[1].(map[string]any) {
				ls = append(ls, metric.Label{Name: name, Value: value.(string)})
			}
			v, err := strconv.ParseFloat(s[2].(string), 64) // Python's hexadecimal form
			if err != nil {
				t.Fatal(err)
			}
			got.add(t, s[0].(string), ls, v)
		}
		// The strict parser reads -0 as an integer.
		compare(t, what, got.withoutNegativeZero(), d.want.withoutNegativeZero())
	}
}

func TestPythonClientReadsIt(t *testing.T) {
	snap := everything()
	var documents []pythonDocument
	for _, f := range []Format{{}, {Text100, Values}, {Kind: OpenMetrics001}, {Kind: OpenMetrics100}} {
		out, _ := encode(f, snap)
		documents = append(documents, pythonDocument{pythonParser(f), out, pythonView(f, expected(t, f, snap), "old_jobs")})
	}
	checkPython(t, documents)
}

func pythonParser(f Format) string {
	if f.openMetrics() {
		return "openmetrics"
	}
	return "text"
}

// pythonView returns samples as the Python client's parsers tell them: its text parser
// gives the samples of a counter without _total that suffix.
func pythonView(f Format, s samples, oldCounters ...string) samples {
	if f.openMetrics() {
		return s
	}
	out := samples{}
	for key, v := range s {
		for _, name := range oldCounters {
			if rest, ok := strings.CutPrefix(key, strconv.Quote(name)); ok {
				key = strconv.Quote(name+"_total") + rest
			}
		}
		out[key] = v
	}
	return out
}

func TestPromtoolReadsIt(t *testing.T) {
	promtool := peer(t, "/usr/bin/promtool", "apt-get install prometheus")
	for _, f := range []Format{{}, {Text100, Dots}} {
		out, _ := encode(f, everything())
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(out)
		report, err := cmd.CombinedOutput()
		// It exits with 3 for what its linter says about names that workers chose.
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3 || bytes.Contains(report, []byte("error while linting"))) {
			t.Errorf("promtool check metrics: %v\n%s", err, report)
		}
	}
}

// seed returns the seed of a property test and prints it.
func seed(t *testing.T) uint64 {
	s := uint64(time.Now().UnixNano())
	if v := os.Getenv("AGGREGATORD_SEED"); v != "" {
		var err error
		if s, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("AGGREGATORD_SEED: %v", err)
		}
	}
	t.Logf("to repeat: AGGREGATORD_SEED=%d", s)
	return s
}

// A generator makes random snapshots that keep what package merge promises and are as
// odd as that allows.
type generator struct {
	*rand.Rand
	// strict keeps values to what the strict OpenMetrics parser allows: no negative or
	// NaN counts and sums, quantiles of 0 and more.
	strict bool
	// plain leaves out what must be left out of an exposition or changes in it, so that
	// samples can be compared one by one.
	plain bool
}

var (
	oddNames = []string{
		"a", "a_b", "a.b", "a:b", "a-b", "A", "ab", "a_total", "a.b_total", "a_sum", "a_b_count", "a_bucket", "a_created",
		"le", "quantile", "_", "__", "1st", "U__a", "ä", "x y", "quo\"te", "back\\slash", "line\nfeed", "tab\t", "a{b}", "a=b,c",
		"\u00a0", "日本", "a#b", "# EOF", "\x01", "\x7f", "nul\x00", "bad\xff",
	}
	oddValues = append([]string{
		"", " ", "a", "b", "\"", "\\", "\\n", "\n", "}", "{", ",", "=", "a=\"b\",", "} 5", " # ", "#", "\r", "\t", "ä", "\u2028",
		"\U0001f600", "\ufeff", "1.0", "+Inf",
	}, oddNames...)
	plainNames = []string{"a", "bb", "c_d", "e:f", "_g", "H9", "i_j_k", "l", "m_seconds", "n", "o_p", "q"}
)

func (g *generator) name() string {
	if g.plain {
		return plainNames[g.IntN(len(plainNames))]
	}
	return oddNames[g.IntN(len(oddNames))]
}

func (g *generator) labelName() string {
	for {
		if name := g.name(); !g.plain || !strings.Contains(name, ":") {
			return name
		}
	}
}

func (g *generator) labelValue() string {
	for {
		value := oddValues[g.IntN(len(oddValues))]
		if !g.plain || clean(value) == value {
			return value
		}
	}
}

func (g *generator) float() float64 {
	special := []float64{
		0, math.Copysign(0, -1), 1, -1, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64,
		math.SmallestNonzeroFloat64, 1e15, 1e-5, 1 << 53, 1e21,
	}
	if g.IntN(2) == 0 {
		return special[g.IntN(len(special))]
	}
	return math.Float64frombits(g.Uint64())
}

// positive returns a value that a counter or a sum can have.
func (g *generator) positive() float64 {
	v := math.Abs(g.float())
	if math.IsNaN(v) {
		return 0
	}
	return v
}

func (g *generator) counterValue() float64 {
	if g.strict {
		return g.positive()
	}
	return g.float()
}

// metricLabels returns labels with distinct names, sorted.
func (g *generator) metricLabels(typ metric.Type) []metric.Label {
	var ls []metric.Label
	for range g.IntN(4) {
		name := g.labelName()
		reserved := (typ == metric.Histogram && name == "le") || (typ == metric.Summary && name == "quantile")
		if !reserved && !slices.ContainsFunc(ls, func(l metric.Label) bool { return l.Name == name }) {
			ls = append(ls, metric.Label{Name: name, Value: g.labelValue()})
		}
	}
	metric.SortLabels(ls)
	return ls
}

func (g *generator) points(typ metric.Type, old bool) []pt {
	switch typ {
	case metric.Counter:
		if old {
			return []pt{{view.Value, 0, g.counterValue()}}
		}
		return []pt{{view.Total, 0, g.counterValue()}}
	case metric.Histogram:
		var bounds []float64
		for range g.IntN(5) {
			if b := g.positive(); b != 0 && !slices.Contains(bounds, b) && !math.IsInf(b, 1) {
				bounds = append(bounds, b)
			}
		}
		slices.Sort(bounds)
		var points []pt
		count := 0.0
		for _, b := range append(bounds, math.Inf(1)) {
			count += float64(g.Uint64N(1 << g.Uint64N(50)))
			points = append(points, pt{view.Bucket, b, count})
		}
		return append(points, pt{view.Sum, 0, g.counterValue()}, pt{view.Count, 0, count})
	case metric.Summary:
		var points []pt
		for q := 0.25; q <= 1; q += 0.25 {
			if g.IntN(2) == 0 {
				points = append(points, pt{view.Quantile, q, g.counterValue()})
			}
		}
		return append(points, pt{view.Sum, 0, g.counterValue()}, pt{view.Count, 0, float64(g.Uint64N(1 << 53))})
	}
	return []pt{{view.Value, 0, g.float()}}
}

func (g *generator) snapshot() *view.Snapshot {
	names := map[string]bool{}
	for range g.IntN(12) {
		names[g.name()] = true
	}
	var fams []fam
	for _, name := range slices.Sorted(maps.Keys(names)) {
		f := fam{name: name, help: g.labelValue(), typ: metric.Type(g.IntN(int(metric.Summary) + 1))}
		old := g.IntN(4) == 0
		f.sparse = f.typ == metric.Gauge && g.IntN(2) == 0
		seen := map[string]bool{}
		for range 1 + g.IntN(5) {
			m := met{g.metricLabels(f.typ), g.points(f.typ, old)}
			if f.sparse && g.IntN(2) == 0 {
				m.points[0].value = view.Absent
			}
			if key := sampleKey("", m.labels); !seen[key] {
				seen[key] = true
				f.metrics = append(f.metrics, m)
			}
		}
		fams = append(fams, f)
	}
	return snapshot(fams...)
}

// oldCounters names the families that Python's text parser renames.
func oldCounters(f Format, snaps ...*view.Snapshot) (names []string) {
	for _, s := range snaps {
		for _, fam := range s.Layout.Families {
			if fam.Type == metric.Counter && fam.Metrics[0].Points[0].Kind == view.Value {
				names = append(names, escapeMetricName(fam.Name, f.Escaping))
			}
		}
	}
	return names
}

// Whatever the values, plain names come back exactly, from every parser and format.
func TestRandomValuesComeBack(t *testing.T) {
	s := seed(t)
	var documents []pythonDocument
	for round := range uint64(60) {
		g := &generator{Rand: rand.New(rand.NewPCG(s, round)), strict: true, plain: true}
		snap := g.snapshot()
		for _, f := range allFormats {
			out, omissions := encode(f, snap)
			if len(leftOut(omissions)) > 0 {
				continue // a plain name that ends like a sample of another
			}
			want := expected(t, f, snap)
			compare(t, fmt.Sprintf("round %d, %+v", round, f), parse(t, f, out), want)
			if f.Kind != Protobuf && f.Escaping == Underscores {
				documents = append(documents, pythonDocument{pythonParser(f), out, pythonView(f, want, oldCounters(f, snap)...)})
			}
		}
		if t.Failed() {
			t.Fatalf("failed in round %d", round)
		}
	}
	if len(documents) < 100 {
		t.Errorf("only %d expositions were compared", len(documents))
	}
	checkPython(t, documents)
}

// Whatever the names, labels and values, every parser accepts the output of several
// snapshots, and what it reads are samples of theirs with their values; what is missing
// was reported.
func TestRandomNamesStayValid(t *testing.T) {
	s := seed(t)
	var documents []pythonDocument
	missing := 0
	for round := range uint64(60) {
		g := &generator{Rand: rand.New(rand.NewPCG(s, round)), strict: true}
		snaps := []*view.Snapshot{g.snapshot(), g.snapshot()}
		for _, f := range allFormats {
			out, omissions := encode(f, snaps...)
			got := parse(t, f, out)
			omissions = leftOut(omissions)
			missing += len(omissions)
			checkValues(t, fmt.Sprintf("round %d, %+v", round, f), f, got, omissions, snaps)
			if f.Kind != Protobuf && f.Escaping != AllowUTF8 && round%2 == 0 {
				if old := oldCounters(f, snaps...); f.openMetrics() || len(old) == 0 {
					documents = append(documents, pythonDocument{pythonParser(f), out, got})
				}
			}
		}
		if t.Failed() {
			t.Fatalf("failed in round %d", round)
		}
	}
	if missing == 0 {
		t.Error("no name collided: the generator is too tame")
	}
	checkPython(t, documents)
}

// checkValues checks parsed samples against the values of the snapshots: as many as there
// are, without those that were reported left out, and each with a value that one of them has.
func checkValues(t *testing.T, what string, _ Format, got samples, omissions []Omission, snaps []*view.Snapshot) {
	t.Helper()
	values := map[uint64]int{}
	total, absent := 0, 0
	for _, s := range snaps {
		for _, v := range s.Values {
			if view.IsAbsent(v) {
				absent++
				continue
			}
			total++
			values[bits(v)]++
		}
	}
	for key, v := range got {
		if values[v] == 0 {
			t.Errorf("%s: %s has value %v, which no snapshot has (left)", what, key, math.Float64frombits(v))
		}
		values[v]--
	}
	if len(omissions) == 0 && len(got) != total {
		t.Errorf("%s: %d samples, want %d, and nothing is reported left out", what, len(got), total)
	}
	if len(omissions) > 0 && absent == 0 && len(got) >= total {
		t.Errorf("%s: nothing is missing, but left out was %v", what, omissions)
	}
}

// Counters that fall, sums of NaN and the like are the workers' own: they are served as
// they are, in a form that Prometheus' parsers read.
func TestOddValuesAreServedAsTheyAre(t *testing.T) {
	s := seed(t)
	for round := range uint64(60) {
		g := &generator{Rand: rand.New(rand.NewPCG(s, round)), plain: true}
		snap := g.snapshot()
		for _, f := range allFormats {
			out, omissions := encode(f, snap)
			if len(leftOut(omissions)) > 0 {
				continue
			}
			compare(t, fmt.Sprintf("round %d, %+v", round, f), parse(t, f, out), expected(t, f, snap))
		}
		if t.Failed() {
			t.Fatalf("failed in round %d", round)
		}
	}
}
