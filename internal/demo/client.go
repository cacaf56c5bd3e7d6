package demo

import (
	"errors"
	"math"
	"path/filepath"
	"slices"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// client writes the source files of one process as prometheus_client 0.18 and later does
// (values.py and metrics.py there): one file for each type and gauge mode, made when the
// first metric of its kind is declared. It is not safe for several goroutines at once.
//
// Only making a file or an entry can fail. The first error stays in err, and what could
// not be made takes values and forgets them, so that callers check once.
type client struct {
	dir, id string
	files   map[string]*store.Writer // by what stands before the ID in the name
	key     []byte
	err     error
}

func newClient(dir, id string) *client {
	return &client{dir: dir, id: id, files: map[string]*store.Writer{}}
}

// Close gives up the files, which stay.
func (c *client) Close() error {
	var errs []error
	for _, w := range c.files {
		errs = append(errs, w.Close())
	}
	clear(c.files)
	return errors.Join(errs...)
}

// value is one entry of a file.
type value struct {
	file *store.Writer // nil if it could not be made
	slot int
}

// value returns the entry of a series, made with value 0 if there is none.
func (c *client) value(prefix, family, sample, help string, labels ...metric.Label) value {
	if c.err != nil {
		return value{}
	}
	file := c.files[prefix]
	if file == nil {
		path := filepath.Join(c.dir, prefix+"_"+c.id+store.Extension)
		if file, c.err = store.OpenWriter(path, store.WriterOptions{}); c.err != nil {
			return value{}
		}
		c.files[prefix] = file
	}
	metric.SortLabels(labels)
	k := metric.Key{Family: family, Series: metric.Series{Sample: sample, Labels: labels}, Help: help}
	c.key = store.AppendKey(c.key[:0], k)
	var slot int
	if slot, c.err = file.Slot(c.key); c.err != nil {
		return value{}
	}
	return value{file: file, slot: slot}
}

func (v value) get() float64 {
	if v.file == nil {
		return 0
	}
	return v.file.Value(v.slot)
}

func (v value) add(delta float64) { v.set(v.get() + delta) }

// set stores a value without a timestamp, as clients do but for the most recent modes.
func (v value) set(x float64) { v.setAt(x, 0) }

// setAt stores a value and when it was set, in Unix seconds.
func (v value) setAt(x, stamp float64) {
	if v.file != nil {
		v.file.Set(v.slot, x, stamp)
	}
}

// counter declares a counter by its family's name, which does not end in _total.
func (c *client) counter(family, help string, labels ...metric.Label) value {
	return c.value(metric.Counter.String(), family, family+"_total", help, labels...)
}

// gauge declares a gauge.
func (c *client) gauge(mode metric.Mode, name, help string) value {
	return c.value(metric.Gauge.String()+"_"+mode.String(), name, name, help)
}

// summary counts and adds. The client knows no quantiles.
type summary struct{ count, sum value }

func (c *client) summary(name, help string, labels ...metric.Label) summary {
	of := func(suffix string) value {
		return c.value(metric.Summary.String(), name, name+suffix, help, labels...)
	}
	return summary{count: of("_count"), sum: of("_sum")}
}

func (s summary) observe(x float64) {
	s.count.add(1)
	s.sum.add(x)
}

// defaultBounds are the client's default buckets.
var defaultBounds = []float64{.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, math.Inf(1)}

// histogram holds one entry for each bucket, with what fell into this bucket alone, and
// the sum. The files hold no count: it is the sum of the buckets.
type histogram struct {
	sum     value
	bounds  []float64
	buckets []value
}

func (c *client) histogram(name, help string, labels ...metric.Label) *histogram {
	h := &histogram{
		sum:    c.value(metric.Histogram.String(), name, name+"_sum", help, labels...),
		bounds: defaultBounds,
	}
	for _, bound := range h.bounds {
		le := metric.Label{Name: "le", Value: string(metric.AppendBound(nil, bound))}
		h.buckets = append(h.buckets, c.value(metric.Histogram.String(), name, name+"_bucket", help, append(slices.Clip(labels), le)...))
	}
	return h
}

func (h *histogram) observe(x float64) {
	h.sum.add(x)
	for i, bound := range h.bounds {
		if x <= bound {
			h.buckets[i].add(1)
			return
		}
	}
}
