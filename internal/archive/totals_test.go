package archive

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"aggregatord/internal/metric"
)

func TestSpaceOf(t *testing.T) {
	for name, tc := range map[string]struct {
		typ  metric.Type
		mode metric.Mode
		want Space
		keep bool
	}{
		"counter":    {metric.Counter, metric.NoMode, Space{Type: metric.Counter}, true},
		"histogram":  {metric.Histogram, metric.NoMode, Space{Type: metric.Histogram}, true},
		"summary":    {metric.Summary, metric.NoMode, Space{Type: metric.Summary}, true},
		"sum":        {metric.Gauge, metric.Sum, Space{Type: metric.Gauge, Mode: metric.Sum}, true},
		"mostrecent": {metric.Gauge, metric.MostRecent, Space{Type: metric.Gauge, Mode: metric.MostRecent}, true},
		"all":        {metric.Gauge, metric.All, Space{Type: metric.Gauge, Mode: metric.All, Worker: "7"}, true},
		"liveall":    {metric.Gauge, metric.LiveAll, Space{}, false},
		"livesum":    {metric.Gauge, metric.LiveSum, Space{}, false},
		"livemax":    {metric.Gauge, metric.LiveMax, Space{}, false},
		"livemin":    {metric.Gauge, metric.LiveMin, Space{}, false},
		"liverecent": {metric.Gauge, metric.LiveMostRecent, Space{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, keep := SpaceOf(tc.typ, tc.mode, "7")
			if keep != tc.keep || (keep && got != tc.want) {
				t.Errorf("%+v, %v; want %+v, %v", got, keep, tc.want, tc.keep)
			}
		})
	}
}

// TestCombine is what becomes of several workers' values for one key.
func TestCombine(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for name, tc := range map[string]struct {
		space   Space
		entries []entry // of one key
		value   float64 // as it is served
		stamp   float64
	}{
		"counter":             {counters, []entry{{"", 1, 0}, {"", 2.5, 0}}, 3.5, 0},
		"counter_one":         {counters, []entry{{"", 0, 0}}, 0, 0},
		"counter_small_parts": {counters, []entry{{"", 1e16, 0}, {"", 1, 0}, {"", 1, 0}, {"", -1e16, 0}}, 2, 0},
		"counter_infinite":    {counters, []entry{{"", inf, 0}, {"", 1, 0}}, inf, 0},
		"gauge_sum":           {Space{Type: metric.Gauge, Mode: metric.Sum}, []entry{{"", -1, 0}, {"", -2, 0}}, -3, 0},
		"max":                 {peaks, []entry{{"", -3, 0}, {"", -2, 0}, {"", -5, 0}}, -2, 0},
		"max_of_nan":          {peaks, []entry{{"", nan, 0}, {"", -7, 0}}, -7, 0},
		"min":                 {Space{Type: metric.Gauge, Mode: metric.Min}, []entry{{"", 3, 0}, {"", 2, 0}, {"", 5, 0}}, 2, 0},
		"newest":              {newest, []entry{{"", 1, 10}, {"", 2, 30}, {"", 3, 20}}, 2, 30},
		"newest_tie":          {newest, []entry{{"", 2, 10}, {"", 3, 10}, {"", 1, 10}}, 3, 10},
		"newest_never_set":    {newest, []entry{{"", 0, 0}, {"", 0, 0}}, nan, 0},
		"all_the_last":        {worker("1"), []entry{{"", 5, 0}, {"", 4, 0}}, 4, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var totals, parts Totals
			for i, e := range tc.entries {
				totals.Add(tc.space, []byte("key"), e.value, e.second, at(int64(i)))
				// Combined one by one, or each part first: the same.
				var part Totals
				part.Add(tc.space, []byte("key"), e.value, e.second, at(int64(i)))
				parts.merge(&part)
			}
			for how, totals := range map[string]*Totals{"added": &totals, "merged": &parts} {
				table := totals.Table(tc.space)
				if table.Len() != 1 || table.Key(0) != "key" || totals.Series() != 1 || totals.Empty() {
					t.Fatalf("%s: %d keys", how, table.Len())
				}
				value, stamp := table.Value(0)
				if value != tc.value && (value == value || tc.value == tc.value) || stamp != tc.stamp {
					t.Errorf("%s: %v at %v, want %v at %v", how, value, stamp, tc.value, tc.stamp)
				}
				if want := at(int64(len(tc.entries) - 1)); !table.LastFold().Equal(want) {
					t.Errorf("%s: folded %v, want %v", how, table.LastFold(), want)
				}
			}
		})
	}
}

// TestSpacesAreApart: equal keys of different kinds of files are different values.
func TestSpacesAreApart(t *testing.T) {
	var totals Totals
	spaces := []Space{
		counters,
		{Type: metric.Gauge, Mode: metric.All, Worker: "1"},
		{Type: metric.Gauge, Mode: metric.All, Worker: "2"},
		{Type: metric.Gauge, Mode: metric.Sum},
		{Type: metric.Histogram},
	}
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(len(spaces)) {
		totals.Add(spaces[i], []byte("key"), float64(i), 0, at(0))
	}
	var order []Space
	for s, table := range totals.Spaces() {
		order = append(order, s)
		if i := slices.Index(spaces, s); table.Values()[0] != float64(i) {
			t.Errorf("%+v has %v", s, table.Values()[0])
		}
	}
	if !slices.Equal(order, spaces) { // they are listed in their order
		t.Errorf("order %+v", order)
	}
	for range totals.Spaces() {
		break // stops when told to
	}
}

// TestMergeInAnyOrder: whatever the batches and their order, sums of whole numbers and
// the gauges come out the same.
func TestMergeInAnyOrder(t *testing.T) {
	const seed = 5
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, seed))
	type value struct {
		space Space
		entry
	}
	var all []value
	for i := range 300 {
		s := []Space{counters, summaries, newest, peaks}[r.IntN(4)]
		all = append(all, value{s, entry{fmt.Sprint(r.IntN(20)), float64(r.IntN(1000)), float64(r.IntN(1000) + 1000*i)}})
	}
	build := func() map[string][2]float64 {
		var totals Totals
		for rest := all; len(rest) > 0; {
			n := 1 + r.IntN(len(rest))
			var batch Totals
			for _, v := range rest[:n] {
				second := 0.0
				if v.space == newest {
					second = v.second
				}
				batch.Add(v.space, []byte(v.key), v.value, second, at(0))
			}
			totals.merge(&batch)
			rest = rest[n:]
		}
		got := map[string][2]float64{}
		for s, table := range totals.Spaces() {
			for i := range table.Len() {
				got[fmt.Sprint(s, table.Key(i))] = [2]float64{table.Values()[i], table.Stamps()[i]}
			}
		}
		return got
	}
	want := build()
	for range 20 {
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		got := build()
		if len(got) != len(want) {
			t.Fatalf("%d values, want %d", len(got), len(want))
		}
		for k, v := range want {
			if got[k] != v {
				t.Fatalf("%s is %v, want %v", k, got[k], v)
			}
		}
	}
}

func TestGain(t *testing.T) {
	inf := math.Inf(1)
	for name, tc := range map[string]struct {
		space         Space
		value, folded float64
		want          float64
	}{
		"counter_as_it_was":   {counters, 5, 5, 0},
		"counter_gained":      {counters, 7, 5, 2},
		"counter_infinite":    {counters, inf, inf, 0},
		"max_is_idempotent":   {peaks, 7, 5, 7},
		"newest_as_it_is":     {newest, 7, 7, 7},
		"all_the_value":       {worker("1"), 3, 4, 3},
		"gauge_sum_may_fall":  {Space{Type: metric.Gauge, Mode: metric.Sum}, 3, 5, -2},
		"became_infinite":     {counters, inf, 5, inf},
		"histograms_as_sums":  {Space{Type: metric.Histogram}, 9, 4, 5},
		"nothing_was_nothing": {counters, 0, 0, 0},
	} {
		if got := Gain(tc.space, tc.value, tc.folded); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestCompare(t *testing.T) {
	nan := math.NaN()
	for name, tc := range map[string]struct {
		space    Space
		baseline []float64
		entries  []entry
		equal    bool
	}{
		"equal":            {counters, []float64{1, 2}, []entry{{"", 1, 0}, {"", 2, 0}}, true},
		"empty":            {counters, nil, nil, true},
		"other_value":      {counters, []float64{1, 2}, []entry{{"", 1, 0}, {"", 3, 0}}, false},
		"fewer":            {counters, []float64{1, 2}, []entry{{"", 1, 0}}, false},
		"more":             {counters, []float64{1}, []entry{{"", 1, 0}, {"", 2, 0}}, false},
		"nan":              {counters, []float64{nan}, []entry{{"", nan, 0}}, true},
		"sign_of_zero":     {counters, []float64{0}, []entry{{"", math.Copysign(0, -1), 0}}, false},
		"stamp_is_nothing": {counters, []float64{1}, []entry{{"", 1, 9}}, true},
		"stamped":          {newest, []float64{1, 9, 2, 8}, []entry{{"", 1, 9}, {"", 2, 8}}, true},
		"other_stamp":      {newest, []float64{1, 9}, []entry{{"", 1, 10}}, false},
	} {
		c := Compare(tc.space, tc.baseline)
		for _, e := range tc.entries {
			c.Add(e.value, e.second)
		}
		if c.Equal() != tc.equal {
			t.Errorf("%s: %v, want %v", name, c.Equal(), tc.equal)
		}
	}
}

func TestBaselineAt(t *testing.T) {
	values := []float64{10, 20, 30, 40}
	for entry, want := range []float64{10, 20, 30, 40} {
		if v, ok := BaselineAt(counters, values, entry); !ok || v != want {
			t.Errorf("counters: entry %d had %v, %v", entry, v, ok)
		}
	}
	for entry, want := range []float64{10, 30} {
		if v, ok := BaselineAt(newest, values, entry); !ok || v != want {
			t.Errorf("newest: entry %d had %v, %v", entry, v, ok)
		}
	}
	if _, ok := BaselineAt(counters, values, 4); ok {
		t.Error("an entry that was not there")
	}
	if _, ok := BaselineAt(newest, values, 2); ok {
		t.Error("an entry that was not there")
	}
}
