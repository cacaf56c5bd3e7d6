package store

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"aggregatord/internal/metric"
)

func TestParseName(t *testing.T) {
	for name, want := range map[string]SourceName{
		"counter_101.db":               {Type: metric.Counter, ID: "101"},
		"histogram_101.db":             {Type: metric.Histogram, ID: "101"},
		"summary_101.db":               {Type: metric.Summary, ID: "101"},
		"counter_worker-1.db":          {Type: metric.Counter, ID: "worker-1"},
		"counter_puma_0.db":            {Type: metric.Counter, ID: "puma_0"},
		"counter_a.b.db":               {Type: metric.Counter, ID: "a.b"},
		"counter_1.db.db":              {Type: metric.Counter, ID: "1.db"},
		"counter_101-0.db":             {Type: metric.Counter, ID: "101-0"},
		"counter_zażółć.db":            {Type: metric.Counter, ID: "zażółć"},
		"counter_.db":                  {Type: metric.Counter},
		"counter__.db":                 {Type: metric.Counter, ID: "_"},
		"gauge_all_101.db":             {Type: metric.Gauge, Mode: metric.All, ID: "101"},
		"gauge_liveall_101.db":         {Type: metric.Gauge, Mode: metric.LiveAll, ID: "101"},
		"gauge_sum_a_b.db":             {Type: metric.Gauge, Mode: metric.Sum, ID: "a_b"},
		"gauge_livesum_101.db":         {Type: metric.Gauge, Mode: metric.LiveSum, ID: "101"},
		"gauge_max_101.db":             {Type: metric.Gauge, Mode: metric.Max, ID: "101"},
		"gauge_livemax_101.db":         {Type: metric.Gauge, Mode: metric.LiveMax, ID: "101"},
		"gauge_min_101.db":             {Type: metric.Gauge, Mode: metric.Min, ID: "101"},
		"gauge_livemin_101.db":         {Type: metric.Gauge, Mode: metric.LiveMin, ID: "101"},
		"gauge_mostrecent_101.db":      {Type: metric.Gauge, Mode: metric.MostRecent, ID: "101"},
		"gauge_livemostrecent_101.db":  {Type: metric.Gauge, Mode: metric.LiveMostRecent, ID: "101"},
		"gauge_latest_101.db":          {Type: metric.Gauge, Mode: metric.MostRecent, ID: "101"},
		"gauge_livelatest_worker-1.db": {Type: metric.Gauge, Mode: metric.LiveMostRecent, ID: "worker-1"},
		"counter.db":                   {Type: metric.Counter, Archive: true},
		"histogram.db":                 {Type: metric.Histogram, Archive: true},
		"gauge_latest.db":              {Type: metric.Gauge, Mode: metric.MostRecent, Archive: true},
		"gauge_max.db":                 {Type: metric.Gauge, Mode: metric.Max, Archive: true},
		"gauge_min.db":                 {Type: metric.Gauge, Mode: metric.Min, Archive: true},
	} {
		want.Base = name
		got, err := ParseName(name)
		if err != nil {
			t.Errorf("ParseName(%q): %v", name, err)
		} else if got != want {
			t.Errorf("ParseName(%q) = %+v, want %+v", name, got, want)
		}
		if got.String() != name {
			t.Errorf("ParseName(%q).String() = %q", name, got)
		}
	}
}

func TestParseNameRefuses(t *testing.T) {
	for name, want := range map[string]error{
		"":                            ErrForeign,
		".db":                         ErrForeign,
		"_.db":                        ErrForeign,
		"counter":                     ErrForeign,
		"counter_101":                 ErrForeign,
		"counter_101.DB":              ErrForeign,
		"counter_101.db.tmp":          ErrForeign,
		".counter_101.db":             ErrForeign,
		"Counter_101.db":              ErrForeign,
		"unknown_101.db":              ErrForeign,
		"info_101.db":                 ErrForeign,
		"lockfile":                    ErrForeign,
		"gauge.db":                    ErrForeign,
		"gauge_101.db":                ErrForeign,
		"gauge_sum.db":                ErrForeign, // the postmates fork archives no such gauges
		"summary.db":                  ErrForeign, // nor summaries
		"metric_http_total___101.bin": ErrForeign,
		"dir/counter_101.db":          ErrForeign,
		"counter_\x00.db":             ErrForeign,
		"counter_\xff.db":             ErrForeign,
		"gauge_avg_101.db":            ErrUnknownMode,
		"gauge__101.db":               ErrUnknownMode,
		"gauge_All_101.db":            ErrUnknownMode,
	} {
		got, err := ParseName(name)
		if !errors.Is(err, want) {
			t.Errorf("ParseName(%q) = %+v, %v, want error %v", name, got, err, want)
		}
		if errors.Is(err, ErrUnknownMode) && !strings.Contains(err.Error(), name) {
			t.Errorf("ParseName(%q): the error does not name the file: %v", name, err)
		}
	}
}

func TestParseNameForeignAllocatesNothing(t *testing.T) {
	n := testing.AllocsPerRun(100, func() {
		for _, base := range []string{"lockfile", "sqlite.db", "data_1.db"} {
			if _, err := ParseName(base); err == nil {
				t.Fatal("not foreign: ", base)
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// FuzzParseName checks that a name is the sum of its parts: what parses can be put
// together again from type, mode and ID.
func FuzzParseName(f *testing.F) {
	for path := range corpusFiles(f) {
		f.Add(path.Base)
	}
	for _, s := range []string{"counter.db", "gauge_latest.db", "gauge_what_1.db", "counter_.db", "gauge_max_a_b.db", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, base string) {
		n, err := ParseName(base)
		if err != nil {
			if !errors.Is(err, ErrForeign) && !errors.Is(err, ErrUnknownMode) {
				t.Fatalf("ParseName(%q): unnamed error %v", base, err)
			}
			if n != (SourceName{}) {
				t.Fatalf("ParseName(%q) = %+v beside an error", base, n)
			}
			return
		}
		if n.Base != base || !utf8.ValidString(n.ID) || (n.Mode != metric.NoMode) != (n.Type == metric.Gauge) {
			t.Fatalf("ParseName(%q) = %+v", base, n)
		}
		stem := n.Type.String()
		if n.Type == metric.Gauge {
			stem += "_" + n.Mode.String()
		}
		if !n.Archive {
			stem += "_" + n.ID
		}
		alias := base
		for from, to := range map[string]string{"gauge_latest": "gauge_mostrecent", "gauge_livelatest": "gauge_livemostrecent"} {
			if rest, ok := strings.CutPrefix(base, from); ok {
				alias = to + rest
			}
		}
		if stem+Extension != base && stem+Extension != alias {
			t.Fatalf("ParseName(%q) = %+v, which is %q", base, n, stem+Extension)
		}
	})
}

func TestUnreadClient(t *testing.T) {
	const ruby = "client_ruby (DirectFileStore)"
	for base, want := range map[string]string{
		"metric_http_requests_total___123.bin": ruby,
		"metric_a____worker_1.bin":             ruby,
		"metric_a___.bin":                      "",
		"metric____1.bin":                      ruby, // a family named _
		"metric___1.bin":                       "",
		"metric_a_1.bin":                       "",
		"metric_a___1.db":                      "",
		"counter_1.db":                         "",
		"other___1.bin":                        "",
		"":                                     "",
	} {
		if got := UnreadClient(base); got != want {
			t.Errorf("%q is of %q, want %q", base, got, want)
		}
	}
}
