package merge

import (
	"math"

	"aggregatord/internal/metric"
)

// The rules of combining. What a class does with values is one function of these, from what is
// known of a series so far and one value more to what is then known. Each half has a meaning of
// its own: for sums the second is the rounding error carried along, in the most recent modes a
// timestamp, in mode All when the worker began. All who combine use these: the loops of a
// snapshot, the archive by Combine, rulings, and accounts of who counts.
//
// The functions are small enough for the compiler to put them into the loops.

// sumStep is Knuth's exact sum of two floats: the sum and what rounding took from it.
func sumStep(hi, lo, v, vlo float64) (float64, float64) {
	sum := hi + v
	vv := sum - hi
	return sum, lo + vlo + ((hi - (sum - vv)) + (v - vv))
}

func maxStep(hi, lo, v, _ float64) (float64, float64) {
	if greater(v, hi) {
		return v, lo
	}
	return hi, lo
}

func minStep(hi, lo, v, _ float64) (float64, float64) {
	if less(v, hi) {
		return v, lo
	}
	return hi, lo
}

// recentStep takes the value that was set last; of two set at once the greater.
func recentStep(hi, stamp, v, vstamp float64) (float64, float64) {
	if vstamp > stamp || (vstamp == stamp && vstamp > 0 && greater(v, hi)) {
		return v, vstamp
	}
	return hi, stamp
}

// allStep takes the value of the worker that began last; the later one in the order of addition
// if both began at once.
func allStep(hi, began, v, vbegan float64) (float64, float64) {
	if vbegan >= began {
		return v, vbegan
	}
	return hi, began
}

// operation is how a class combines: from zero, by step.
type operation struct {
	zero float64
	step func(hi, second, v, vsecond float64) (float64, float64)
	// lost says, for people, why a value does not count where another one does.
	lost string
}

// operations are all there are, by base mode. Those of sums are of all types but gauges, too.
var operations = [...]operation{
	metric.Sum:        {0, sumStep, ""},
	metric.Max:        {math.NaN(), maxStep, "another one is greater"},
	metric.Min:        {math.NaN(), minStep, "another one is less"},
	metric.MostRecent: {math.NaN(), recentStep, "another one was set later"},
	metric.All:        {math.NaN(), allStep, "a later process has the same ID"},
}

// rule is the base mode that a class is combined by.
func rule(c class) metric.Mode {
	if c.typ == metric.Gauge {
		return c.mode.Base()
	}
	return metric.Sum
}

// Combine does for one value what a snapshot does for all: it returns what (hi, second)
// becomes when another value is added to it, for keeping what processes leave behind. For
// sums second is the rounding error carried along, in the most recent modes the timestamp
// in Unix seconds, and in mode All it may be when the worker began, so that of several with
// one ID the last one's value stays. Start from what Zero returns.
//
// NaN is not added to a sum, which would be NaN for ever after; a sum that an earlier version
// has made NaN begins anew.
func Combine(typ metric.Type, mode metric.Mode, hi, second, v, vsecond float64) (float64, float64) {
	base := rule(class{typ, mode})
	op := &operations[base]
	if base == metric.Sum {
		if v != v {
			return hi, second
		}
		if hi != hi {
			hi, second = 0, 0
		}
	}
	return op.step(hi, second, v, vsecond)
}

// Zero is what Combine starts from: the value of no process at all.
func Zero(typ metric.Type, mode metric.Mode) float64 { return operations[rule(class{typ, mode})].zero }

// accumulate adds a source's values to the cells. These are the loops that every entry of
// every live process passes at every scrape: nothing in them may allocate, call through a
// pointer or branch on the class.
func (x *Index) accumulate(s *Source) {
	hi, lo := x.hi, x.lo
	cells := s.cells
	values := s.values[:len(cells)]
	switch rule(s.space.id.class) {
	case metric.Sum:
		if x.careful {
			x.sumCarefully(s)
			return
		}
		if s.folded {
			second := s.second[:len(cells)]
			for i, c := range cells {
				hi[c], lo[c] = sumStep(hi[c], lo[c], values[i], second[i])
			}
			return
		}
		for i, c := range cells {
			hi[c], lo[c] = sumStep(hi[c], lo[c], values[i], 0)
		}
	case metric.Max:
		for i, c := range cells {
			if v := values[i]; greater(v, hi[c]) {
				hi[c] = v
			}
		}
	case metric.Min:
		for i, c := range cells {
			if v := values[i]; less(v, hi[c]) {
				hi[c] = v
			}
		}
	case metric.MostRecent:
		stamps := s.second[:len(cells)]
		for i, c := range cells {
			t := stamps[i]
			if t > x.now {
				t = x.clamp(s, uint32(i), t)
			}
			hi[c], lo[c] = recentStep(hi[c], lo[c], values[i], t)
		}
	case metric.All:
		for i, c := range cells {
			hi[c], _ = allStep(hi[c], 0, values[i], 0)
		}
	}
}

// sumCarefully adds a source's values without those that are NaN.
func (x *Index) sumCarefully(s *Source) {
	for i, c := range s.cells {
		if c != sink {
			x.addCarefully(s, uint32(i), c)
		}
	}
}

// addCarefully adds one value of a source to a sum, unless it is NaN.
func (x *Index) addCarefully(s *Source, entry, c uint32) {
	v, second := s.values[entry], 0.0
	if v != v {
		x.leaveOut(c)
		return
	}
	if s.folded && rule(s.space.id.class) == metric.Sum {
		second = s.second[entry]
	}
	x.hi[c], x.lo[c] = sumStep(x.hi[c], x.lo[c], v, second)
}

// leaveOut takes note of a NaN that is not added to a sum.
func (x *Index) leaveOut(c uint32) {
	d := &x.desc[c]
	if x.nans == nil {
		x.nans = map[uint32]int32{}
	}
	x.nans[c]++
	x.nanCount++
	if name := d.node.group.family.name + d.point.Kind.Suffix(); x.nanName == "" || name < x.nanName {
		x.nanName = name
	}
}

// NaNs is the number of values of the last Snapshot that are NaN and were left out of a sum, and
// the name of one sample that they are of, the first in the order of names.
func (x *Index) NaNs() (n int, sample string) { return x.nanCount, x.nanName }

// clamp returns the time of a value that says it was set in the future: the moment at which it
// was seen first.
func (x *Index) clamp(s *Source, entry uint32, stamp float64) float64 {
	if x.now == 0 {
		return stamp
	}
	if a, ok := s.ahead[entry]; ok && a.stamp == stamp {
		return a.seen
	}
	if s.ahead == nil {
		s.ahead = map[uint32]ahead{}
	}
	s.ahead[entry] = ahead{stamp, x.now}
	return x.now
}

// ahead is a timestamp of the future and when it was seen first.
type ahead struct{ stamp, seen float64 }

// greater orders values so that the greatest of any set is the same in whatever order one
// looks: any number is greater than NaN, and 0 greater than -0.
func greater(a, b float64) bool {
	return a > b || (b != b && a == a) || (a == 0 && b == 0 && math.Signbit(b) && !math.Signbit(a))
}

// less is greater for the least of a set: any number is less than NaN.
func less(a, b float64) bool {
	return a < b || (b != b && a == a) || (a == 0 && b == 0 && math.Signbit(a) && !math.Signbit(b))
}

// total applies the carried rounding error. Where a sum has left the finite numbers the
// error is NaN and means nothing.
func total(hi, lo float64) float64 {
	if sum := hi + lo; sum-sum == 0 {
		return sum
	}
	return hi
}
