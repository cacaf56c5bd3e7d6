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

// SetPolicy puts another policy in force, nil for none: every view that is taken after it has
// returned is by the new one. No total is lost: what the files and the archive hold is merged
// anew. It may be called from any goroutine, and waits for a fold that is under way.
func (p *Pool) SetPolicy(to *policy.Policy) error {
	p.Hold()
	defer p.Release()
	return p.SetPolicyHeld(to)
}

// Hold keeps the pool from being tended, folded and closed until Release is called. It waits for
// whoever is at that, which a slow file system may make long. Views are taken meanwhile.
func (p *Pool) Hold() {
	p.turn.Lock()
	p.mu.Lock()   // a view that takes long is waited for here, not by SetPolicyHeld
	p.mu.Unlock() //nolint:staticcheck // that was all
}

// Release ends what Hold has begun.
func (p *Pool) Release() { p.turn.Unlock() }

// SetPolicyHeld is SetPolicy for who holds the pool.
func (p *Pool) SetPolicyHeld(to *policy.Policy) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.setPolicyLocked(to)
}

// SetSettingsHeld puts into force what the pool's application says now: see Spec.Labels and Spec.Own. The
// policy is the one that SetPolicy was given last. It is for who holds the pool; no total is lost,
// and every view is wholly by the old or the new.
func (p *Pool) SetSettingsHeld(in *policy.Policy, labels []metric.Label, own *policy.Policy) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settings.Store(&settings{labels, own})
	return p.setPolicyLocked(in)
}

func (p *Pool) setPolicyLocked(to *policy.Policy) error {
	if p.closed {
		return ErrClosed
	}
	p.stirLocked()
	old, before := p.index, p.policy
	p.adoptPolicyLocked(to)
	// Where limits keep series out, those that are in come first, and stay.
	var seats []*merge.Source
	if old.Refused() || to.Limits() != before.Limits() {
		for _, s := range old.Sources() {
			seats = append(seats, p.index.Seat(old, s))
		}
	}
	p.shown = map[archive.Space]*shown{}
	p.showAllLocked()
	for t := range p.allLocked() {
		switch {
		case t.source == nil:
		case t.file.SetLimits(p.limits):
			p.learnAnewLocked(t)
		default:
			p.relearnLocked(t, old)
		}
	}
	for _, s := range seats {
		p.index.Remove(s)
	}
	p.index.Remember(old)
	old.Close()
	return nil
}

// adoptPolicyLocked makes an empty index for a policy.
func (p *Pool) adoptPolicyLocked(to *policy.Policy) {
	said := p.settings.Load().own
	to = to.With(p.spec.RuledBy(), said)
	p.policy = to
	opts, limits, own := p.mergeOptions, to.Limits(), said.Limits()
	opts.Share = p.share
	opts.MaxSeries = cmp.Or(limits.SeriesPerPool, opts.MaxSeries)
	opts.MaxFamilySeries = cmp.Or(limits.SeriesPerFamily, opts.MaxFamilySeries)
	opts.MaxFamilies = cmp.Or(limits.FamiliesPerPool, opts.MaxFamilies)
	opts.MaxBytes = cmp.Or(limits.BytesPerPool, opts.MaxBytes)
	opts.MaxLabels = cmp.Or(limits.Labels, opts.MaxLabels)
	opts.MaxLabelName = cmp.Or(limits.LabelNameLength, opts.MaxLabelName)
	opts.MaxLabelValue = cmp.Or(limits.LabelValueLength, opts.MaxLabelValue)
	lower(&opts.MaxSeries, own.SeriesPerPool, merge.DefaultMaxSeries)
	lower(&opts.MaxFamilySeries, own.SeriesPerFamily, merge.DefaultMaxFamilySeries)
	lower(&opts.MaxFamilies, own.FamiliesPerPool, merge.DefaultMaxFamilies)
	lower(&opts.MaxBytes, own.BytesPerPool, merge.DefaultMaxBytes)
	lower(&opts.MaxLabels, own.Labels, merge.DefaultMaxLabels)
	lower(&opts.MaxLabelName, own.LabelNameLength, math.MaxInt)
	lower(&opts.MaxLabelValue, own.LabelValueLength, math.MaxInt)
	if to != nil {
		opts.Rules = func(family string, typ metric.Type) *merge.Ruling {
			return &to.For(p.spec.RuledBy(), family, typ).Ruling
		}
	}
	p.index = merge.NewIndex(opts)
	p.opened.live = nil
	p.index.SetTime(unixSeconds(p.now()))
	p.limits = p.limitsBy(to)
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// lower brings a limit, which is standard if it is 0, down to what the application says, if it says
// anything.
func lower[T int | int64](limit *T, own, standard T) {
	if own > 0 {
		*limit = min(own, cmp.Or(*limit, standard))
	}
}

// limitsBy returns the limits of source files under a policy.
func (p *Pool) limitsBy(to *policy.Policy) store.Limits {
	l, limits, own := p.fileLimits, to.Limits(), p.settings.Load().own.Limits()
	l.FileBytes = cmp.Or(limits.FileSize, l.FileBytes)
	l.KeyBytes = cmp.Or(limits.KeyLength, l.KeyBytes)
	standard := l.InForce()
	lower(&l.FileBytes, own.FileSize, standard.FileBytes)
	lower(&l.KeyBytes, own.KeyLength, standard.KeyBytes)
	return l
}

// learnAnewLocked learns all entries of a file, of which some were beyond a limit that is no more.
func (p *Pool) learnAnewLocked(t *file) {
	spec, lives := t.source.Spec(), t.isAlive()
	t.source = p.index.Add(spec)
	p.index.SetAlive(t.source, lives)
	t.entries, t.base, t.seen, t.loaded = 0, nil, nil, false
	t.learned = 0
	p.learnLocked(t, 0) // all: a total that is read in part would fall
	p.noteLocked(t, cmp.Or(t.learnErr, t.load()))
}

// relearnLocked gives a file a source in the present index in place of one in an earlier. Its keys
// are read once more; where they cannot be, it is told what the earlier index knows of them.
func (p *Pool) relearnLocked(t *file, old *merge.Index) {
	was, lives := t.source, t.isAlive()
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
		t.source = p.index.Add(was.Spec())
		t.base = nil
	}
	// entry is which one of the file it is, or below 0.
	learned := func(raw []byte, slot uint32, entry int) {
		if p.index.Learn(t.source, raw, slot) != nil {
			return // told when it was met first
		}
		k := t.source.Entries() - 1
		if t.baseline != nil {
			// rebase knows more of a counter than what was folded; of a gauge it depends on the
			// mode.
			b, known := base[slot]
			if entry >= 0 && (!known || t.name.Type == metric.Gauge) {
				b = p.baselineAtLocked(t, raw, entry)
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
		p.index.Remove(t.source)
		begin()
		i := 0
		old.Each(was, func(raw string, _, _ float64) {
			learned([]byte(raw), slots[i], -1)
			i++
		})
	}
	t.source.Compact()
	t.source.RememberSource(was)
	p.index.SetAlive(t.source, lives)
}

// spaceOf returns under which key the value of an entry is archived and in which space, and
// whether it is kept at all, by the policy in force. The fold calls it without the lock: the
// policy does not change during a fold.
func (p *Pool) spaceOf(t *file, raw []byte) (key []byte, s archive.Space, keep bool) {
	s, keep = archive.SpaceOf(t.name.Type, t.name.Mode, t.name.ID)
	if !p.policy.Says(p.spec.RuledBy()) {
		return raw, s, keep
	}
	parsed, err := store.ParseKey(raw)
	if err != nil {
		return raw, s, keep
	}
	r := p.policy.For(p.spec.RuledBy(), merge.FamilyOf(parsed, t.name.Type), t.name.Type)
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
func (t *file) added() archive.Space {
	if t.name.Type == metric.Gauge {
		return archive.Space{Type: metric.Gauge, Mode: metric.Sum}
	}
	return archive.Space{Type: t.name.Type}
}

// baselineAtLocked returns what of an entry's value is archived already and is to be taken off.
func (p *Pool) baselineAtLocked(t *file, raw []byte, entry int) float64 {
	base, _ := archive.BaselineAt(t.space(), t.baseline, entry)
	if _, s, _ := p.spaceOf(t, raw); merge.Zero(s.Type, s.Mode) != 0 {
		return 0 // to count it twice changes nothing
	}
	return base
}

// retentionLocked is how long what a dead worker left is served under a key of a table; 0 is for
// ever.
func (p *Pool) retentionLocked(s archive.Space, raw []byte) time.Duration {
	general := max(0, p.archiving.GaugeRetention)
	if p.folder.ReadOnly() {
		general = 0
	}
	if !p.policy.Says(p.spec.RuledBy()) {
		return general
	}
	key, err := store.ParseKey(raw)
	if err != nil {
		return general
	}
	return cmp.Or(p.policy.For(p.spec.RuledBy(), merge.FamilyOf(key, s.Type), s.Type).Retention, general)
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

// limitReachedLocked counts an entry that a limit has kept out, and names its family once.
func (p *Pool) limitReachedLocked(path string, err *merge.LimitError) {
	r := refusal{err.Family, reasonOf(err)}
	if !p.refusals[r] && len(p.refusals) >= maxRefusedFamilies {
		r.family = otherFamilies
	}
	p.metrics.refused.With(p.spec.Name, r.family, string(r.reason)).Inc()
	if p.refusals[r] {
		return
	}
	p.refusals[r] = true
	p.logger.Warn("new series are refused, because a limit is reached; those known go on", zap.String("family", r.family),
		zap.String("reason", string(r.reason)), zap.String("limit", limitKeys[r.reason]), zap.String("path", path), zap.Error(err))
}

// asLimit returns the LimitError in err, or nil.
func asLimit(err error) *merge.LimitError {
	limit, _ := errors.AsType[*merge.LimitError](err)
	return limit
}
