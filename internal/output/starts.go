package output

import (
	"hash/maphash"
	"sync"
	"time"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// A Starts knows since when series count: when each began at zero, or was reset. It is safe
// for several goroutines.
//
// A series that is in the first view was there before anybody looked, so its start is
// unknown. One that appears later began after the view before, whose time is its start. One
// that falls was reset after the view before. Earlier may know better.
//
// A series that goes and comes back with no less than it had goes on: it may have been hidden
// meanwhile. So series that are gone are remembered, as many as there are present ones and
// some more.
type Starts struct {
	// Earlier, if set before first use, is asked once about each series that appears: an
	// archive may know since when it counts, and that a pool which is found later is no new
	// one. The zero time is an unknown start; not ok leaves it to the rules above. It must not
	// keep the labels.
	Earlier func(family string, labels []metric.Label) (start time.Time, ok bool)

	seed maphash.Seed

	// mu guards what follows.
	mu     sync.Mutex
	series map[uint64]*started
	// last is the time of the newest view seen, round how many there were.
	last  int64
	round uint64
	// layout is that of the newest view, metrics its metrics that count.
	layout  *view.Layout
	metrics []countedMetric
	// unsure, if it is not 0, says that what appears in a view of that time (Unix milliseconds)
	// or of an earlier one, or in the first one after it, may have been there before under
	// another name.
	unsure int64
}

// started is what is known about one metric with one set of labels.
type started struct {
	start int64 // Unix milliseconds, 0: unknown
	value float64
	born  uint64 // the round in which it was seen first
	round uint64 // and last
}

// countedMetric is a metric of a layout that counts.
type countedMetric struct {
	*started
	first, points int // values of the layout
	at            int // the value that tells a reset
}

// remembered is how many series that are gone are remembered at least.
const remembered = 10_000

// NewStarts returns a Starts that has seen nothing.
func NewStarts() *Starts {
	return &Starts{seed: maphash.MakeSeed(), series: map[uint64]*started{}}
}

// Append looks at a view of a time and appends the start of each of its values to dst, in Unix
// milliseconds; 0 where it is unknown or where the value does not count. Views may come in
// any order; an older one than the newest changes nothing.
func (s *Starts) Append(dst []int64, snap *view.Snapshot, at time.Time) []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := len(dst)
	for range snap.Layout.Points {
		dst = append(dst, 0)
	}
	starts, now := dst[from:], at.UnixMilli()
	if now < s.last {
		s.eachLocked(snap.Layout, func(c countedMetric, id uint64, _ string, _ []metric.Label) {
			if known := s.series[id]; known != nil {
				c.fill(starts, known.start)
			}
		})
		return dst
	}
	s.round++
	if snap.Layout != s.layout {
		s.learnLocked(snap)
	}
	if now > s.unsure {
		s.unsure = 0
	}
	for _, c := range s.metrics {
		value := snap.Values[c.at]
		if view.IsAbsent(value) {
			continue
		}
		if value < c.value {
			c.start = s.last
		}
		c.value, c.round = value, s.round
		// A sample is never older than its start.
		c.fill(starts, min(c.start, now-1))
	}
	s.last = now
	return dst
}

func (c countedMetric) fill(starts []int64, start int64) {
	for i := c.first; i < c.first+c.points; i++ {
		starts[i] = start
	}
}

// Unsure is told when the rules have changed by which series get their names, or when there are
// pools that were not there before: what appears in the first view after that time, or has just
// appeared, is not new because of its name.
func (s *Starts) Unsure(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.round == 0 {
		return // nothing was seen under any name
	}
	s.unsure = at.UnixMilli()
	for _, c := range s.metrics {
		if c.born == s.round {
			c.start = 0
		}
	}
}

// learnLocked makes the list of the layout's metrics, with what is known of each.
func (s *Starts) learnLocked(snap *view.Snapshot) {
	s.layout, s.metrics = snap.Layout, s.metrics[:0]
	s.eachLocked(snap.Layout, func(c countedMetric, id uint64, family string, labels []metric.Label) {
		c.started = s.series[id]
		if c.started == nil {
			c.started = &started{start: s.last, born: s.round}
			if s.unsure != 0 {
				c.start = 0
			}
			if s.Earlier != nil {
				if start, ok := s.Earlier(family, labels); ok {
					c.start = unixMilli(start)
				}
			}
			s.series[id] = c.started
		}
		c.round = s.round
		s.metrics = append(s.metrics, c)
	})
	s.forgetLocked()
}

func unixMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// forgetLocked forgets series that are gone, those that have been gone for longest first.
func (s *Starts) forgetLocked() {
	for horizon := s.round - 1; len(s.series) > 2*len(s.metrics)+remembered; {
		oldest := horizon
		for _, known := range s.series {
			oldest = min(oldest, known.round)
		}
		middle := oldest + (horizon-oldest)/2
		for id, known := range s.series {
			if known.round <= middle {
				delete(s.series, id)
			}
		}
	}
}

func counts(t metric.Type) bool {
	return t == metric.Counter || t == metric.Histogram || t == metric.Summary
}

// eachLocked yields the metrics of a layout that count, with their identities.
func (s *Starts) eachLocked(l *view.Layout, yield func(c countedMetric, id uint64, family string, labels []metric.Label)) {
	var h maphash.Hash
	h.SetSeed(s.seed)
	var labels []metric.Label
	for i := range l.Families {
		f := &l.Families[i]
		if !counts(f.Type) {
			continue
		}
		at := f.First
		for j := range f.Metrics {
			m := &f.Metrics[j]
			h.Reset()
			h.WriteString(f.Name)
			h.WriteByte(byte(f.Type))
			labels = m.AppendLabels(labels[:0])
			for _, l := range labels {
				h.WriteByte(0xff)
				h.WriteString(l.Name)
				h.WriteByte(0xfe)
				h.WriteString(l.Value)
			}
			c := countedMetric{first: at, points: len(m.Points), at: at + len(m.Points) - 1}
			for k, p := range m.Points {
				if p.Kind == view.Count || p.Kind == view.Total || p.Kind == view.Value {
					c.at = at + k
				}
			}
			yield(c, h.Sum64(), f.Name, labels)
			at += len(m.Points)
		}
	}
}
