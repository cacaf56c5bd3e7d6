package merge

import (
	"math"

	"aggregatord/internal/metric"
)

// accumulate adds a source's values to the cells. These are the loops that every entry of
// every live process passes at every scrape: nothing in them may allocate, call through a
// pointer or branch on the class.
func (x *Index) accumulate(s *Source) {
	hi, lo := x.hi, x.lo
	cells := s.cells
	values := s.values[:len(cells)]
	switch rule(s.space.id.class) {
	case metric.Sum:
		if s.folded {
			second := s.second[:len(cells)]
			for i, c := range cells {
				lo[c] += second[i]
			}
		}
		for i, c := range cells {
			// Knuth's exact sum of two floats: sum and what rounding took from it.
			h, v := hi[c], values[i]
			sum := h + v
			vv := sum - h
			lo[c] += (h - (sum - vv)) + (v - vv)
			hi[c] = sum
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
			if t, v := stamps[i], values[i]; t > lo[c] || (t == lo[c] && t > 0 && greater(v, hi[c])) {
				hi[c], lo[c] = v, t
			}
		}
	case metric.All:
		for i, c := range cells {
			hi[c] = values[i]
		}
	}
}

// Combine does for one value what a snapshot does for all: it returns what (hi, second)
// becomes when another value is added to it, for keeping what processes leave behind. For
// sums second is the rounding error carried along, in the most recent modes the timestamp
// in Unix seconds, and in mode All it may be when the worker began, so that of several with
// one ID the last one's value stays. Start from what Zero returns.
func Combine(typ metric.Type, mode metric.Mode, hi, second, v, vsecond float64) (float64, float64) {
	switch rule(class{typ: typ, mode: mode}) {
	case metric.Sum:
		sum := hi + v
		vv := sum - hi
		return sum, second + vsecond + (hi - (sum - vv)) + (v - vv)
	case metric.Max:
		if greater(v, hi) {
			return v, 0
		}
	case metric.Min:
		if less(v, hi) {
			return v, 0
		}
	case metric.MostRecent:
		if vsecond > second || (vsecond == second && vsecond > 0 && greater(v, hi)) {
			return v, vsecond
		}
	case metric.All:
		if vsecond >= second {
			return v, vsecond
		}
	}
	return hi, second
}

// Zero is what Combine starts from: the value of no process at all.
func Zero(typ metric.Type, mode metric.Mode) float64 {
	if rule(class{typ: typ, mode: mode}) == metric.Sum {
		return 0
	}
	return math.NaN()
}

// rule is the base mode that a class is combined by.
func rule(c class) metric.Mode {
	if c.typ == metric.Gauge {
		return c.mode.Base()
	}
	return metric.Sum
}

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
