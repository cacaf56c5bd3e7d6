package exposition

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// A heading is how a section is named: all that depends on which other families there are.
type heading struct {
	family int // index into the layout's families
	typ    metric.Type
	shape  view.Shape // Plain where the format has no word for it
	// kinds are the kinds of points shown here.
	kinds kindSet
	// base is the exposed name to which the suffixes of sample names are appended, and head
	// the name in the TYPE line.
	base, head string
	// split says that the samples are served as families of unknown type, one for each sample
	// name, because the names or points are not what the type asks for.
	split bool
}

// A candidate is a section before it is known which names it gets.
type candidate struct {
	heading
	snapshot int
	fam      *view.Family
	// raw is the name that is spelled, and clear says that it needs no escaping.
	raw   string
	clear bool
	// untyped says why the section is not served under its type, if it is not.
	untyped Omission
	// lost names the family that has the section's names, if isLost.
	lost   string
	isLost bool
}

// candidates returns the sections of a family, and the number of points that are in none of
// them.
func candidates(fam *view.Family, f Format) (list []candidate, strange int) {
	has, odd, nan := look(fam, f)
	add := func(typ metric.Type, suffix string, kinds kindSet) {
		if kinds &= has; kinds == 0 {
			return
		}
		c := candidate{heading: heading{typ: typ, kinds: kinds}, fam: fam, raw: fam.Name + suffix}
		c.clear = spelledAsIs(c.raw, f.Escaping)
		c.name(escapeMetricName(c.raw, f.Escaping), f)
		list = append(list, c)
	}
	switch fam.Type {
	case metric.Counter:
		// Counters are escaped with their suffix, as client_golang does it, which is also the
		// only spelling from which Prometheus can get the name back.
		add(metric.Counter, view.Total.Suffix(), setOf(view.Total))
		add(metric.Counter, "", setOf(view.Value))
	case metric.Histogram:
		add(metric.Histogram, "", setOf(view.Bucket, view.Sum, view.Count))
	case metric.Summary:
		add(metric.Summary, "", setOf(view.Quantile, view.Sum, view.Count))
	default:
		add(fam.Type, "", setOf(view.Value))
	}
	var shown kindSet
	for i := range list {
		c := &list[i]
		shown |= c.kinds
		switch {
		case !f.openMetrics():
		case c.typ == metric.Counter && c.kinds.has(view.Value):
			c.demote(Omission{Reason: NoTotal})
		case odd:
			c.demote(Omission{Reason: BadShape})
		}
	}
	if nan || has&^shown != 0 {
		strange = countPoints(fam, shown)
	}
	return list, strange
}

// name gives the section its names, given the spelling of raw.
func (c *candidate) name(spelled string, f Format) {
	c.base, c.head, c.shape = spelled, spelled, view.Plain
	if c.kinds.has(view.Total) {
		c.base = strings.TrimSuffix(spelled, view.Total.Suffix())
	}
	if !f.openMetrics() {
		return
	}
	switch {
	case c.typ == metric.Counter:
		c.head = c.base
	case c.fam.Shape == view.Info && c.typ == metric.Gauge:
		if head, ok := strings.CutSuffix(spelled, "_info"); ok && head != "" {
			c.head, c.shape = head, view.Info
		}
	case c.fam.Shape == view.StateSet && c.typ == metric.Gauge && haveLabel(c.fam, spelled, f.Escaping):
		c.shape = view.StateSet
	}
}

// haveLabel reports whether all metrics of a family have a label of a name that stays as it
// is.
func haveLabel(fam *view.Family, name string, e Escaping) bool {
	if !labelStays(name, e) {
		return false
	}
	is := func(l metric.Label) bool { return l.Name == name }
	for i := range fam.Metrics {
		if !slices.ContainsFunc(fam.Metrics[i].Labels, is) && !slices.ContainsFunc(fam.Metrics[i].Extra, is) {
			return false
		}
	}
	return true
}

// demote makes the section one of unknown type, or of several.
func (c *candidate) demote(why Omission) {
	c.head = c.base + c.onlySuffix()
	if c.shape != view.Plain {
		c.shape = view.Plain // a gauge, which is what it is anywhere else
		return
	}
	if c.untyped.Reason == "" {
		c.untyped = why
		c.untyped.Family, c.untyped.Untyped = c.fam.Name, true
	}
	if c.typ == metric.Histogram || c.typ == metric.Summary {
		c.split = true
	} else {
		c.typ = metric.Unknown
	}
}

// onlySuffix is what all sample names have after the base, if they are all one name.
func (c *candidate) onlySuffix() string {
	if c.kinds.has(view.Total) {
		return view.Total.Suffix()
	}
	return ""
}

// look returns the kinds of points that a family has, whether the points of some metric are
// not what OpenMetrics wants of the type, and whether some bound is NaN.
func look(fam *view.Family, f Format) (has kindSet, odd, nan bool) {
	var seen []view.Point
	for i := range fam.Metrics {
		points := fam.Metrics[i].Points
		if sameSlice(points, seen) {
			continue
		}
		seen = points
		var own kindSet
		last, least := 0.0, 0.0
		for _, p := range points {
			if math.IsNaN(p.Bound) {
				nan = true
				continue
			}
			own |= setOf(p.Kind)
			switch p.Kind {
			case view.Bucket:
				last, least = p.Bound, min(least, p.Bound)
			case view.Quantile:
				odd = odd || !(p.Bound >= 0 && p.Bound <= 1)
			}
		}
		has |= own
		if fam.Type == metric.Histogram && f.openMetrics() {
			odd = odd || !math.IsInf(last, 1) || own.has(view.Sum) != own.has(view.Count) || (least < 0 && own.has(view.Sum))
		}
	}
	return has, odd, nan
}

// sampleNames appends the exposed names of the section's samples.
func (c *candidate) sampleNames(dst []string) []string {
	for k := view.Value; k <= view.Count; k++ {
		if name := c.base + k.Suffix(); c.kinds.has(k) && !slices.Contains(dst, name) {
			dst = append(dst, name)
		}
	}
	return dst
}

// claims appends the names that a section takes for itself: another family that used one of
// them would make the output invalid or ambiguous. In OpenMetrics a type claims all its
// suffixes, used or not, and the family name, as the strict parser of client_python checks;
// in the other texts a counter or gauge is one name, and histograms and summaries claim what
// parsers would take for their samples. Protobuf and JSON name the family alone.
func (c *candidate) claims(dst []string, f Format) []string {
	if c.split {
		return c.sampleNames(dst)
	}
	dst = append(dst, c.head)
	if f.perMetric() {
		return dst
	}
	suffixes := func(list ...string) {
		for _, s := range list {
			dst = append(dst, c.base+s)
		}
	}
	switch {
	case c.shape == view.Info:
		suffixes("")
	case c.typ == metric.Counter && f.openMetrics():
		suffixes("_total", "_created")
	case c.typ == metric.Histogram:
		suffixes("_bucket", "_sum", "_count")
	case c.typ == metric.Summary:
		suffixes("_sum", "_count")
	}
	if f.openMetrics() && (c.typ == metric.Histogram || c.typ == metric.Summary) {
		suffixes("_created")
	}
	return dst
}

// arrange decides which sections there are, how they are named and in which order they come.
//
// First, names are spelled. A name that needs no escaping has itself. One that does, and
// becomes one that is taken by then or that another becomes too, is spelled reversibly
// instead (U__…): so nothing that appears takes a name from another or changes what a name
// means. Then every sample name belongs to one section; who wants one that is taken, with a
// name that is its own, is left out.
//
// Then sections get their types. One whose type would claim a name of another is served
// without the type, in families of unknown type that claim no more than their sample names.
// So all samples are there, whatever the format wants to call their families.
func (p *plan) arrange() {
	var list []*candidate
	last := len(p.layouts) - 1
	for i, layout := range p.layouts {
		for j := range layout.Families {
			fam := &layout.Families[j]
			if fam.Name == "" {
				p.omissions = append(p.omissions, Omission{Family: fam.Name, Reason: BadName})
				p.loss.left += len(fam.Metrics)
				continue
			}
			sections, strange := candidates(fam, p.format)
			for k := range sections {
				c := &sections[k]
				c.snapshot, c.family = i, j
				list = append(list, c)
			}
			if strange > 0 {
				p.omissions = append(p.omissions, Omission{Family: fam.Name, Reason: BadPoint, Points: strange})
				p.loss.left += strange
			}
		}
	}
	if last > 0 { // one layout is sorted
		slices.SortStableFunc(list, func(a, b *candidate) int {
			return cmp.Or(strings.Compare(a.fam.Name, b.fam.Name), cmp.Compare(a.fam.Type, b.fam.Type))
		})
	}

	// Who comes first gets names that two want: the last snapshot, then the order of output.
	byRight := slices.Clone(list)
	slices.SortStableFunc(byRight, func(a, b *candidate) int {
		return cmp.Compare(b2i(a.snapshot != last), b2i(b.snapshot != last))
	})
	owners := make(map[string]*candidate, len(list))
	var names []string
	take := func(c *candidate) {
		names = c.sampleNames(names[:0])
		for _, name := range names {
			if o := owners[name]; o != nil {
				c.lost, c.isLost = o.fam.Name, true
				return
			}
		}
		for _, name := range names {
			owners[name] = c
		}
	}
	escaped := byRight[:0:0]
	for _, c := range byRight {
		if c.clear {
			take(c)
		} else {
			escaped = append(escaped, c)
		}
	}
	p.spell(escaped, byRight, owners)
	for _, c := range escaped {
		take(c)
	}

	// Counters last: they lose least.
	slices.SortStableFunc(byRight, func(a, b *candidate) int {
		return cmp.Compare(b2i(a.fam.Type == metric.Counter), b2i(b.fam.Type == metric.Counter))
	})
	claimed := make(map[string]*candidate, 2*len(list))
	for _, c := range byRight {
		if !c.isLost {
			p.claim(c, owners, claimed)
		}
	}

	p.headings = make([][]heading, len(p.layouts))
	for _, c := range list {
		switch {
		case c.isLost:
			o := Omission{Family: c.fam.Name, Reason: NameCollision, With: c.lost}
			if others := countPoints(c.fam, c.kinds); others > 0 {
				o.Points = c.fam.Points - others
			}
			p.omissions = append(p.omissions, o)
			p.loss.left += len(c.fam.Metrics)
			continue
		case c.untyped.Reason != "":
			p.untyped = append(p.untyped, c.untyped)
			p.loss.untyped++
		}
		p.parts = append(p.parts, part{snapshot: c.snapshot, section: len(p.headings[c.snapshot])})
		p.headings[c.snapshot] = append(p.headings[c.snapshot], c.heading)
	}
	slices.SortStableFunc(p.omissions, func(a, b Omission) int { return strings.Compare(a.Family, b.Family) })
}

// names appends the names of which a text has one: those of the samples, and that of the TYPE
// line, which is also what protobuf calls the family.
func (c *candidate) names(dst []string) []string {
	dst = c.sampleNames(dst)
	if c.typ == metric.Histogram || c.typ == metric.Summary {
		dst = append(dst, c.base)
	}
	return dst
}

// spell gives another spelling to those whose escaped names are reserved, taken, or wanted by
// another of them.
func (p *plan) spell(escaped, all []*candidate, owners map[string]*candidate) {
	if len(escaped) == 0 {
		return
	}
	families := make(map[string]bool) // histograms and summaries that have their own names
	for _, c := range all {
		if c.clear && !c.isLost && (c.typ == metric.Histogram || c.typ == metric.Summary) {
			families[c.base] = true
		}
	}
	wanted := make(map[string]string) // by name, the raw name that becomes it, or "" for several
	var names []string
	for _, c := range escaped {
		names = c.names(names[:0])
		for _, name := range names {
			if raw, ok := wanted[name]; ok && raw != c.raw {
				wanted[name] = ""
			} else {
				wanted[name] = c.raw
			}
		}
	}
	for _, c := range escaped {
		names = c.names(names[:0])
		if slices.ContainsFunc(names, func(name string) bool {
			return strings.HasPrefix(name, "__") || owners[name] != nil || families[name] || wanted[name] == ""
		}) {
			c.name(reversibleName(c.raw), p.format)
			if c.untyped.Reason != "" {
				c.demote(c.untyped)
			}
		}
	}
}

// claim gives a section its names under its type, or without it.
func (p *plan) claim(c *candidate, owners, claimed map[string]*candidate) {
	var other *candidate
	names := c.claims(nil, p.format)
	for _, name := range names {
		if o := owners[name]; o != nil && o != c && !p.format.perMetric() {
			other = o
			break
		}
		if o := claimed[name]; o != nil {
			other = o
			break
		}
	}
	switch {
	case other == nil:
	case p.format.perMetric():
		c.lost, c.isLost = other.fam.Name, true
		return
	default:
		c.demote(Omission{Reason: NameCollision, With: other.fam.Name})
		names = c.sampleNames(names[:0])
	}
	for _, name := range names {
		claimed[name] = c
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
