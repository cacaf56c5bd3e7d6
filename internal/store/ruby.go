package store

import (
	"cmp"
	"hash/maphash"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"

	"aggregatord/internal/deltas"
	"aggregatord/internal/metric"
)

// Files of prometheus-client-mmap, for Ruby, differ from Python's in two things beside the
// spelling of their keys (see RubyKey), which [File] hides:
//
//   - The bucket of a histogram counts all observations up to its bound, not only those above
//     the bound before, and the count has an entry of its own (its histogram.rb).
//   - The ID in a file's name is followed by a number, by which a process finds a file that
//     nobody has locked: counter_123-0.db (its helper/mmaped_file.rb). It is not part of the
//     ID (helper/entry_parser.rb).

// cumulative knows the buckets of a histogram file of the Ruby client. There may be many
// such files, so it is a few bytes for each entry.
type cumulative struct {
	// slots are those of the entries that are yielded, in file order.
	slots deltas.List
	// buckets says of each of them which series it is a bucket of, and of which bound.
	buckets []rubyBucket
	// series are the numbers of the series, by a hash of family and labels. bounds are all
	// that there are, and boundAt says where.
	series  map[uint64]uint32
	bounds  []float64
	boundAt map[float64]uint32
	// chains are the entries that are buckets, by series and bound. The first of each series
	// is complemented.
	chains []int32
	hash   maphash.Hash
}

// rubyBucket has the number of a series, from 1 on, 0 for what is no bucket, and that of a
// bound.
type rubyBucket struct{ series, bound uint32 }

func newCumulative() *cumulative {
	return &cumulative{series: map[uint64]uint32{}, boundAt: map[float64]uint32{}}
}

// add takes note of the next entry. False leaves it out: the count is the highest bucket, too.
func (c *cumulative) add(e Entry) bool {
	var key metric.Key
	ruby := RubyKey(e.Key)
	if ruby {
		var err error
		key, err = ParseKey(e.Key)
		ruby = err == nil
	}
	if ruby && key.Series.Sample == key.Family+"_count" {
		return false
	}
	c.slots.Append(e.Slot)
	c.buckets = append(c.buckets, rubyBucket{})
	if !ruby || key.Series.Sample != key.Family+"_bucket" {
		return true // whoever learns it refuses what is wrong
	}
	at := slices.IndexFunc(key.Series.Labels, func(l metric.Label) bool { return l.Name == "le" })
	if at < 0 {
		return true
	}
	bound, err := strconv.ParseFloat(key.Series.Labels[at].Value, 64)
	if err != nil || math.IsNaN(bound) {
		return true
	}
	c.hash.Reset()
	write := func(s string) {
		maphash.WriteComparable(&c.hash, len(s))
		c.hash.WriteString(s)
	}
	write(key.Family)
	for _, l := range slices.Delete(key.Series.Labels, at, at+1) { // the client sorts them
		write(l.Name)
		write(l.Value)
	}
	series, ok := c.series[c.hash.Sum64()]
	if !ok {
		series = uint32(len(c.series) + 1)
		c.series[c.hash.Sum64()] = series
	}
	i, ok := c.boundAt[bound]
	if !ok {
		i = uint32(len(c.bounds))
		c.bounds, c.boundAt[bound] = append(c.bounds, bound), i
	}
	c.buckets[len(c.buckets)-1] = rubyBucket{series, i}
	c.chains = c.chains[:0]
	return true
}

// order makes the chains.
func (c *cumulative) order() {
	for i, b := range c.buckets {
		if b.series != 0 {
			c.chains = append(c.chains, int32(i))
		}
	}
	slices.SortFunc(c.chains, func(i, j int32) int {
		a, b := c.buckets[i], c.buckets[j]
		return cmp.Or(cmp.Compare(a.series, b.series), cmp.Compare(c.bounds[a.bound], c.bounds[b.bound]), cmp.Compare(i, j))
	})
	before := uint32(0)
	for i, entry := range c.chains {
		if series := c.buckets[entry].series; series != before {
			c.chains[i], before = ^entry, series
		}
	}
}

// separate turns the values of all entries into those of a Python client: what a bucket has
// that the one below it has not.
//
// An observation is counted in the bucket +Inf first and then from the lowest bound on. So
// a bucket that holds less than the one below is one that a process was about to count in,
// now or when it was killed, and is taken to hold as much.
func (c *cumulative) separate(values []float64) {
	if len(c.chains) == 0 {
		c.order()
	}
	below := 0.0
	for _, entry := range c.chains {
		if entry < 0 {
			entry, below = ^entry, 0
		}
		v := max(values[entry], below)
		values[entry], below = v-below, v
	}
}

// scratch has room for the values of one file at a time.
var scratch = sync.Pool{New: func() any { return new([]float64) }}

// load is File.load: all reads entries as they are in the file.
func (c *cumulative) load(slots *deltas.List, values []float64, all func(slots *deltas.List, values []float64) error) error {
	// What is read is no use before all of it is.
	own := scratch.Get().(*[]float64)
	defer scratch.Put(own)
	*own = slices.Grow((*own)[:0], c.slots.Len())[:c.slots.Len()]
	if err := all(&c.slots, *own); err != nil {
		return err
	}
	c.separate(*own)
	if slots.Len() == c.slots.Len() {
		copy(values, *own)
		return nil
	}
	// Some were refused by who learned them, or came before the first of this client's.
	some := make([]float64, slots.Len())
	if err := all(slots, some); err != nil {
		return err
	}
	numbers := c.slots.Numbers()
	for i, slot := range slots.All() {
		if k, ok := slices.BinarySearch(numbers, slot); ok {
			some[i] = (*own)[k]
		}
	}
	copy(values, some)
	return nil
}

// meets returns what is to be done with each entry of a file that Learn meets.
func (f *File) meets(yield func(Entry)) func(Entry) {
	if f.name.Type != metric.Histogram {
		return yield
	}
	return func(e Entry) {
		if e.Err == nil && f.cumulative == nil && RubyKey(e.Key) {
			f.cumulative = newCumulative()
		}
		if f.cumulative == nil || f.cumulative.add(e) {
			yield(e)
		}
	}
}

// walkHistogram is window.walk from the first entry on, with the values that buckets of
// the Ruby client have after separate.
func (w *window) walkHistogram(how walk, yield func(Entry)) damage {
	var ruby *cumulative
	var values []float64
	c := cursor{next: headerBytes}
	d := w.walk(&c, how, func(e Entry) {
		if ruby == nil && RubyKey(e.Key) {
			ruby = newCumulative()
		}
		switch {
		case ruby == nil:
			yield(e)
		case ruby.add(e):
			values = append(values, e.Value)
		}
	})
	if ruby == nil {
		return d
	}
	// What came meanwhile is for the next time.
	w.end = c.next
	ruby.separate(values)
	slots, i := ruby.slots.Numbers(), 0
	c = cursor{next: headerBytes}
	again := w.walk(&c, how, func(e Entry) {
		if i < len(slots) && slots[i] == e.Slot {
			e.Value = values[i]
			i++
			yield(e)
		}
	})
	if again.reason != "" {
		return again
	}
	return d
}

// WorkerID returns the ID of the process whose file it is, of which the file's first key is
// given: that of the name, but without the number behind it if the file is one of
// prometheus-client-mmap.
func (n SourceName) WorkerID(key []byte) string {
	i := strings.LastIndexByte(n.ID, '-')
	if i > 0 && i+1 < len(n.ID) && strings.Trim(n.ID[i+1:], "0123456789") == "" && RubyKey(key) {
		return n.ID[:i]
	}
	return n.ID
}
