package metric

import (
	"bytes"
	"math"
	"strconv"
	"strings"
)

// A BoundStyle is how the writer of a bound spells those that clients have not always spelled
// alike: integers from 1e10 up to, and without, 1e16.
type BoundStyle uint8

const (
	// TwoDigits is 1e+10: client_python after 0.25, and everything else.
	TwoDigits BoundStyle = iota
	// ThreeDigits is 1e+010: client_python to 0.25, which puts a 0 before every exponent.
	ThreeDigits
)

// HasStyle reports whether clients have spelled the bound in several ways.
func HasStyle(bound float64) bool { return bound >= 1e10 && bound < 1e16 }

// StyleOf returns the style of a spelled bound, which means nothing unless HasStyle.
func StyleOf(spelled string) BoundStyle {
	if i := strings.LastIndex(spelled, "e+0"); i >= 0 && len(spelled)-i == len("e+010") {
		return ThreeDigits
	}
	return TwoDigits
}

// Append appends a bound as AppendBound does, in this style.
func (s BoundStyle) Append(dst []byte, bound float64) []byte {
	dst = AppendBound(dst, bound)
	if s == ThreeDigits && HasStyle(bound) {
		n := len(dst) - len("10")
		dst = append(dst[:n], '0', dst[n], dst[n+1])
	}
	return dst
}

// AppendBound appends a float spelled as prometheus_client spells the values of the
// labels le and quantile (floatToGoString in its utils.py): the shortest digits that
// read back as the same number, "1.0" for an integer, an exponent from 1e+06 on and
// below 1e-04. The spelling is part of a bucket's identity, so it is the same in
// every format.
func AppendBound(dst []byte, f float64) []byte {
	switch {
	case math.IsInf(f, 1):
		return append(dst, "+Inf"...)
	case math.IsInf(f, -1):
		return append(dst, "-Inf"...)
	case math.IsNaN(f):
		return append(dst, "NaN"...)
	}
	// Python's repr turns to an exponent at 1e16; floatToGoString moves that down to
	// 1e6, for positive numbers only.
	abs := math.Abs(f)
	if abs != 0 && (abs < 1e-4 || abs >= 1e16 || f >= 1e6) {
		return strconv.AppendFloat(dst, f, 'e', -1, 64)
	}
	start := len(dst)
	dst = strconv.AppendFloat(dst, f, 'f', -1, 64)
	if bytes.IndexByte(dst[start:], '.') >= 0 {
		return dst
	}
	return append(dst, ".0"...)
}

// ParseBound reads the value of an le or quantile label as Python's float does, so
// that "1", "1.0" and "+Inf" from different clients name the same bucket.
func ParseBound(s string) (float64, bool) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil && !math.IsInf(f, 0) {
		return 0, false
	}
	return f, true
}

// AppendValue appends a sample value: an integer without a decimal point where it is
// one, otherwise the shortest digits that read back as the same number.
func AppendValue(dst []byte, f float64) []byte {
	// Most values of a real pool are small integers; strconv's integer path is several
	// times faster than its float path. The comparison fails for NaN, infinities and -0.
	if i := int64(f); float64(i) == f && i > -1e15 && i < 1e15 && (i != 0 || !math.Signbit(f)) {
		if uint64(i) < 10000 {
			return appendSmall(dst, uint(i))
		}
		return strconv.AppendInt(dst, i, 10)
	}
	switch {
	case math.IsInf(f, 1):
		return append(dst, "+Inf"...)
	case math.IsInf(f, -1):
		return append(dst, "-Inf"...)
	case math.IsNaN(f):
		return append(dst, "NaN"...)
	}
	return strconv.AppendFloat(dst, f, 'g', -1, 64)
}

// pairs holds the numbers below 100, of two digits each.
const pairs = "00010203040506070809" + "10111213141516171819" + "20212223242526272829" + "30313233343536373839" +
	"40414243444546474849" + "50515253545556575859" + "60616263646566676869" + "70717273747576777879" +
	"80818283848586878889" + "90919293949596979899"

// appendSmall appends a number below 10000. Most values are such, and strconv's general way,
// by way of a buffer, takes three times as long.
func appendSmall(dst []byte, n uint) []byte {
	high, low := n/100, n%100
	switch {
	case n < 10:
		return append(dst, byte('0'+n))
	case n < 100:
		return append(dst, pairs[2*n], pairs[2*n+1])
	case n < 1000:
		return append(dst, byte('0'+high), pairs[2*low], pairs[2*low+1])
	}
	return append(dst, pairs[2*high], pairs[2*high+1], pairs[2*low], pairs[2*low+1])
}
