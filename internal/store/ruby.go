package store

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"aggregatord/internal/metric"
	"aggregatord/internal/rising"
)

// Files of prometheus-client-mmap, for Ruby, differ from Python's in two things beside the
// spelling of their keys (see RubyKey), which [File] hides:
//
//   - The bucket of a histogram counts all observations up to its bound, not only those above
//     the bound before, and the count has an entry of its own (its histogram.rb).
//   - The ID in a file's name is followed by a number, by which a process finds a file that
//     nobody has locked: counter_123-0.db (its helper/mmaped_file.rb). It is not part of the
//     ID (helper/entry_parser.rb).

// cumulative knows the buckets of a histogram file of the Ruby client.
type cumulative struct {
	// slots are those of the entries that are yielded, in file order, and values what they
	// hold.
	slots  rising.List
	values []float64
	// series are the buckets of each histogram, by its labels.
	series map[string][]rubyBucket
	// chains are the entries of the buckets of one histogram after the other, each from the
	// lowest bound to the highest. The first of each histogram is complemented.
	chains []int
	parts  []string // a buffer
}

// rubyBucket is a bucket's upper bound and which of the entries it is.
type rubyBucket struct {
	bound float64
	entry int
}

// add takes note of the next entry. False leaves it out: the count is the highest bucket, too.
func (c *cumulative) add(e Entry) bool {
	key, err := ParseKey(e.Key)
	if err == nil && key.Series.Sample == key.Family+"_count" {
		return false
	}
	entry := c.slots.Len()
	c.slots.Append(e.Slot)
	if err != nil || key.Series.Sample != key.Family+"_bucket" {
		return true // whoever learns it refuses what is wrong
	}
	bound, at := 0.0, -1
	c.parts = append(c.parts[:0], key.Family)
	for i, l := range key.Series.Labels {
		if l.Name == "le" {
			at = i
			bound, err = strconv.ParseFloat(l.Value, 64)
			continue
		}
		c.parts = append(c.parts, strconv.Quote(l.Name), strconv.Quote(l.Value))
	}
	if at < 0 || err != nil {
		return true
	}
	if c.series == nil {
		c.series = map[string][]rubyBucket{}
	}
	slices.Sort(c.parts[1:])
	id := strings.Join(c.parts, ",")
	c.series[id] = append(c.series[id], rubyBucket{bound, entry})
	c.chains = nil
	return true
}

// separate turns the values of all entries into those of a Python client: what a bucket has
// that the one below it has not.
//
// An observation is counted in the bucket +Inf first and then from the lowest bound on. So
// a bucket that holds less than the one below is one that a process was about to count in,
// now or when it was killed, and is taken to hold as much.
func (c *cumulative) separate(values []float64) {
	if c.chains == nil {
		for _, buckets := range c.series {
			slices.SortFunc(buckets, func(a, b rubyBucket) int {
				return cmp.Or(cmp.Compare(a.bound, b.bound), cmp.Compare(a.entry, b.entry))
			})
			for i, b := range buckets {
				if i == 0 {
					b.entry = ^b.entry
				}
				c.chains = append(c.chains, b.entry)
			}
		}
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

// load is File.load: all reads entries as they are in the file.
func (c *cumulative) load(slots *rising.List, values []float64, all func(slots *rising.List, values []float64) error) error {
	c.values = slices.Grow(c.values[:0], c.slots.Len())[:c.slots.Len()]
	if err := all(&c.slots, c.values); err != nil {
		return err
	}
	c.separate(c.values)
	if slots.Len() == c.slots.Len() {
		copy(values, c.values)
		return nil
	}
	// Some were refused by who learned them, or are spelled as nothing of this client's is.
	if err := all(slots, values); err != nil {
		return err
	}
	own := c.slots.Numbers()
	for i, slot := range slots.All() {
		if k, ok := slices.BinarySearch(own, slot); ok {
			values[i] = c.values[k]
		}
	}
	return nil
}

// meets returns what is to be done with each entry of a file that Learn meets.
func (f *File) meets(yield func(Entry)) func(Entry) {
	if f.name.Type != metric.Histogram {
		return yield
	}
	return func(e Entry) {
		if f.cumulative == nil && RubyKey(e.Key) {
			f.cumulative = &cumulative{}
		}
		if f.cumulative == nil || f.cumulative.add(e) {
			yield(e)
		}
	}
}

// walkHistogram is window.walk from the first entry on, with the values that buckets of
// the Ruby client have after separate.
func (w *window) walkHistogram(keyLimit int, yield func(Entry)) damage {
	var ruby *cumulative
	c := cursor{next: headerBytes}
	d := w.walk(&c, keyLimit, func(e Entry) {
		if ruby == nil && RubyKey(e.Key) {
			ruby = &cumulative{}
		}
		switch {
		case ruby == nil:
			yield(e)
		case ruby.add(e):
			ruby.values = append(ruby.values, e.Value)
		}
	})
	if ruby == nil {
		return d
	}
	// What came meanwhile is for the next time.
	w.end = c.next
	ruby.separate(ruby.values)
	slots, i := ruby.slots.Numbers(), 0
	c = cursor{next: headerBytes}
	again := w.walk(&c, keyLimit, func(e Entry) {
		if i < len(slots) && slots[i] == e.Slot {
			e.Value = ruby.values[i]
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
