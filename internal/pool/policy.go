package pool

import (
	"cmp"
	"errors"
	"math"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/archive"
	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
	"aggregatord/internal/store"
)

// SetPolicy puts another policy in force, nil for none: every Gather that begins after it has
// returned is by the new one, every answer wholly by one of both. No total is lost: what the
// files and the archive hold is merged anew. It may be called from any goroutine, and waits
// for a fold that is under way.
func (c *Collector) SetPolicy(p *policy.Policy) error {
	c.foldMu.Lock()
	defer c.foldMu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	start := time.Now()
	old, before := c.index, c.policy
	c.adoptPolicyLocked(p)
	// Where limits keep series out, those that are in come first, and stay.
	var seats []*merge.Source
	if old.Refused() || p.Limits() != before.Limits() {
		for _, s := range old.Sources() {
			seats = append(seats, c.index.Seat(old, s))
		}
	}
	for _, d := range c.dirs {
		d.limits = d.limitsBy(p)
		d.folded = map[archive.Space]*foldedSource{}
		d.showAll()
		for t := range d.all() {
			if t.source != nil {
				d.relearn(t, old)
			}
		}
	}
	for _, s := range seats {
		c.index.Remove(s)
	}
	c.index.Remember(old)
	c.logger.Info("policy is in force", zap.Int("entries", c.index.Entries()), zap.Duration("duration", time.Since(start)))
	return nil
}

// adoptPolicyLocked makes an empty index for a policy.
func (c *Collector) adoptPolicyLocked(p *policy.Policy) {
	c.policy = p
	opts, limits := c.mergeOptions, p.Limits()
	opts.MaxSeries = cmp.Or(limits.SeriesPerPool, opts.MaxSeries)
	opts.MaxFamilySeries = cmp.Or(limits.SeriesPerFamily, opts.MaxFamilySeries)
	opts.MaxFamilies = cmp.Or(limits.FamiliesPerPool, opts.MaxFamilies)
	opts.MaxLabels = cmp.Or(limits.Labels, opts.MaxLabels)
	opts.MaxLabelName = cmp.Or(limits.LabelNameLength, opts.MaxLabelName)
	opts.MaxLabelValue = cmp.Or(limits.LabelValueLength, opts.MaxLabelValue)
	if p != nil {
		opts.Rules = func(pool, family string, typ metric.Type) *merge.Ruling { return &p.For(pool, family, typ).Ruling }
	}
	c.index = merge.NewIndex(opts)
	c.index.SetTime(unixSeconds(c.now()))
	if info := p.Info(); len(info) > 0 {
		s := c.index.Add(merge.SourceSpec{
			Type: metric.Gauge, Mode: metric.Max, Created: math.MaxInt64, ParseKey: store.ParseKey, Fixed: true,
		})
		for i, in := range info {
			key := metric.Key{Family: in.Name, Series: metric.Series{Sample: in.Name, Labels: in.Labels}, Help: cmp.Or(in.Help, "From the configuration.")}
			if err := c.index.Learn(s, store.AppendKey(nil, key), uint32(i)); err != nil {
				c.logger.Error("info series left out", zap.String("name", in.Name), zap.Error(err))
				continue
			}
			s.Values()[s.Entries()-1] = 1
		}
	}
	c.relabel = newRelabeling(p)
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// limitsBy returns the limits of source files under a policy.
func (d *dir) limitsBy(p *policy.Policy) store.Limits {
	l, limits := d.c.fileLimits, p.Limits()
	l.FileBytes = cmp.Or(limits.FileSize, l.FileBytes)
	l.KeyBytes = cmp.Or(limits.KeyLength, l.KeyBytes)
	return l
}

// relearn gives a file a source in the present index in place of one in an earlier. Its keys
// are read once more; where they cannot be, it is told what the earlier index knows of them.
func (d *dir) relearn(t *tracked, old *merge.Index) {
	was := t.source
	slots := was.Slots().Numbers()
	base := make(map[uint32]float64, len(t.base))
	for i, b := range t.base {
		base[slots[i]] = b
	}
	values := make(map[uint32]int, len(slots))
	for i, slot := range slots {
		values[slot] = i
	}
	begin := func() {
		t.source = d.c.index.Add(was.Spec())
		t.base = nil
	}
	// entry is which one of the file it is, or below 0.
	learned := func(raw []byte, slot uint32, entry int) {
		if d.c.index.Learn(t.source, raw, slot) != nil {
			return // told when it was met first
		}
		k := t.source.Entries() - 1
		if t.baseline != nil {
			// keepGains knows more of a counter than what was folded; of a gauge it depends on the
			// mode.
			b, known := base[slot]
			if entry >= 0 && (!known || t.name.Type == metric.Gauge) {
				b = d.baselineOf(t, raw, entry)
			}
			t.base = append(t.base, b)
		}
		// Values that cannot be loaded any more count on.
		if i, ok := values[slot]; ok {
			t.source.Values()[k] = was.Values()[i]
			if stamps := t.source.Stamps(); stamps != nil && was.Stamps() != nil {
				stamps[k] = was.Stamps()[i]
			}
		}
	}
	begin()
	entry := 0
	_ = t.file.Walk(func(e store.Entry) {
		if entry < t.entries { // the rest is for learn
			learned(e.Key, e.Slot, entry)
		}
		entry++
	})
	if entry < t.entries {
		d.c.index.Remove(t.source)
		begin()
		i := 0
		old.Each(was, func(raw string, _, _ float64) {
			learned([]byte(raw), slots[i], -1)
			i++
		})
	}
	t.source.Compact()
	t.source.RememberSource(was)
	d.c.index.SetAlive(t.source, t.alive)
}

// spaceOf returns under which key the value of an entry is archived and in which space, and
// whether it is kept at all, by the policy in force.
func (d *dir) spaceOf(t *tracked, raw []byte) (key []byte, s archive.Space, keep bool) {
	s, keep = archive.SpaceOf(t.name.Type, t.name.Mode, t.name.ID)
	if !d.c.policy.Says(d.spec.Pool) {
		return raw, s, keep
	}
	parsed, err := t.name.ParseKey(raw)
	if err != nil {
		return raw, s, keep
	}
	r := d.c.policy.For(d.spec.Pool, merge.FamilyOf(parsed, t.name.Type), t.name.Type)
	mode := t.name.Mode
	if t.name.Type == metric.Gauge {
		mode = cmp.Or(r.Mode, mode)
		s, keep = archive.SpaceOf(t.name.Type, mode, t.name.ID)
		if r.Retention > 0 {
			s.Worker = t.name.ID // apart from others, so that it can go
		}
	}
	// Series of one process that become equal have no rule of their own to be one by.
	if r.Key != nil && mode.Base() != metric.All {
		raw = r.Key(nil, parsed)
	}
	return raw, s, keep
}

// added is a space in which values of the file's type are added.
func (t *tracked) added() archive.Space {
	if t.name.Type == metric.Gauge {
		return archive.Space{Type: metric.Gauge, Mode: metric.Sum}
	}
	return archive.Space{Type: t.name.Type}
}

// baselineOf returns what of an entry's value is archived already and is to be taken off.
func (d *dir) baselineOf(t *tracked, raw []byte, entry int) float64 {
	base, _ := archive.BaselineAt(t.space(), t.baseline, entry)
	if _, s, _ := d.spaceOf(t, raw); merge.Zero(s.Type, s.Mode) != 0 {
		return 0 // to count it twice changes nothing
	}
	return base
}

// retentionOf is how long what a dead worker left is served under a key of a table; 0 is for
// ever.
func (d *dir) retentionOf(s archive.Space, raw string) time.Duration {
	general := time.Duration(0)
	if d.opts != nil {
		general = max(0, d.opts.GaugeRetention)
	}
	if !d.c.policy.Says(d.spec.Pool) {
		return general
	}
	key, err := store.ParseKey([]byte(raw))
	if err != nil {
		return general
	}
	return cmp.Or(d.c.policy.For(d.spec.Pool, merge.FamilyOf(key, s.Type), s.Type).Retention, general)
}

// maxRefusedFamilies is how many families of a pool are counted and logged by name when a limit
// refuses entries of theirs.
const maxRefusedFamilies = 100

// otherFamilies is the label family for all others.
const otherFamilies = "__other__"

// refusal is a family and why entries of it are refused.
type refusal struct {
	family string
	reason store.Reason
}

// limitReached counts an entry that a limit has kept out, and names its family once.
func (d *dir) limitReached(path string, err *merge.LimitError) {
	r := refusal{err.Family, reasonOf(err)}
	if !d.refusals[r] && len(d.refusals) >= maxRefusedFamilies {
		r.family = otherFamilies
	}
	d.c.metrics.refused.With(d.spec.Pool, r.family, string(r.reason)).Inc()
	if d.refusals[r] {
		return
	}
	d.refusals[r] = true
	d.logger.Warn("new series are refused, because a limit is reached; those known go on",
		zap.String("family", r.family), zap.String("reason", string(r.reason)), zap.String("path", path), zap.Error(err))
}

// asLimit returns the LimitError in err, or nil.
func asLimit(err error) *merge.LimitError {
	limit, _ := errors.AsType[*merge.LimitError](err)
	return limit
}
