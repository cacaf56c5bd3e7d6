package starts

import (
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
// that falls was reset after the view before.
//
// A series that goes and comes back with no less than it had goes on: it may have been hidden
// meanwhile. So series that are gone are remembered, as many as there are present ones and
// some more.
type Starts struct {
	// mu guards what follows.
	mu     sync.Mutex
	series map[uint64]*started // by identity
	// changed says that State would return something that another daemon must know.
	changed bool
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
	start int64   // Unix milliseconds, 0: unknown
	value float64 // NaN: it was not seen by this daemon yet
	born  uint64  // the round in which it was seen first
	round uint64  // and last
}

// countedMetric is a metric of a layout that counts.
type countedMetric struct {
	*started
	first, points int // values of the layout
	at            int // the value that tells a reset
}

// remembered is how many series that are gone are remembered at least.
const remembered = 10_000

// New returns a Starts that has seen nothing.
func New() *Starts { return &Starts{series: map[uint64]*started{}} }

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
	if now < s.last && s.last-now <= setBack {
		each(snap.Layout, func(c countedMetric, id uint64) {
			if known := s.series[id]; known != nil {
				c.fill(starts, known.start)
			}
		})
		return dst
	}
	s.round++
	s.last = min(s.last, now)
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
			c.start, s.changed = s.last, true
		}
		c.value, c.round = value, s.round
		c.start = min(c.start, now-1) // a sample is never older than its start
		c.fill(starts, c.start)
	}
	s.last = now
	return dst
}

// setBack is how much older than the newest a view may be, in milliseconds. One that is older by
// more is a new one by a clock that was set back.
const setBack = 60_000

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
	s.unsure, s.changed = at.UnixMilli(), true
	for _, c := range s.metrics {
		if c.born == s.round {
			c.start = 0
		}
	}
}

// learnLocked makes the list of the layout's metrics, with what is known of each.
func (s *Starts) learnLocked(snap *view.Snapshot) {
	s.layout, s.metrics = snap.Layout, s.metrics[:0]
	each(snap.Layout, func(c countedMetric, id uint64) {
		c.started = s.series[id]
		if c.started == nil {
			c.started = &started{start: s.last, born: s.round}
			if s.unsure != 0 {
				c.start = 0
			}
			s.series[id], s.changed = c.started, true
		}
		c.round = s.round
		s.metrics = append(s.metrics, c)
	})
	s.forgetLocked()
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

// each yields the metrics of a layout that count, with their identities.
func each(l *view.Layout, yield func(c countedMetric, id uint64)) {
	var labels []metric.Label
	for i := range l.Families {
		f := &l.Families[i]
		if !f.Type.Counts() {
			continue
		}
		at := f.First
		for j := range f.Metrics {
			m := &f.Metrics[j]
			labels = m.AppendLabels(labels[:0])
			c := countedMetric{first: at, points: len(m.Points), at: at + len(m.Points) - 1}
			for k, p := range m.Points {
				if p.Kind == view.Count || p.Kind == view.Total || p.Kind == view.Value {
					c.at = at + k
				}
			}
			yield(c, identity(f, labels))
			at += len(m.Points)
		}
	}
}

// identity is a number for a metric that is the same in every daemon: FNV-1a of its name, type
// and labels, with bytes between them that no UTF-8 has. Two metrics of one number, which is as
// good as impossible, would share a start.
func identity(f *view.Family, labels []metric.Label) uint64 {
	h := hash(14695981039346656037).text(f.Name).mark(byte(f.Type))
	for _, l := range labels {
		h = h.mark(0xff).text(l.Name).mark(0xfe).text(l.Value)
	}
	return uint64(h)
}

type hash uint64

func (h hash) mark(b byte) hash { return (h ^ hash(b)) * 1099511628211 }

func (h hash) text(s string) hash {
	for i := range len(s) {
		h = h.mark(s[i])
	}
	return h
}
