package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
)

// Duration is written as Prometheus writes it (1d, 1h30m) or as Go does (1.5s).
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	if p, err := model.ParseDuration(s); err == nil {
		*d = Duration(p)
		return nil
	}
	g, err := time.ParseDuration(s)
	switch _, number := strconv.ParseFloat(s, 64); {
	case number == nil:
		return fmt.Errorf("%q has no unit; write %ss for seconds, %sm for minutes, …", s, s, s)
	case err != nil:
		return fmt.Errorf("%q is not a duration; write it as in 30s, 5m, 1h30m or 7d", s)
	case g < 0:
		return fmt.Errorf("%q is negative; use 0 or more", s)
	}
	*d = Duration(g)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String is the duration in Go's spelling.
func (d Duration) String() string { return time.Duration(d).String() }

// Size is a number of bytes, written alone or with KiB, MiB or GiB.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}, {"", 1}}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error {
	for _, u := range sizeUnits {
		number, ok := strings.CutSuffix(string(text), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err == nil && n >= 0 && n <= math.MaxInt64/u.bytes {
			*s = Size(n * u.bytes)
			return nil
		}
		break
	}
	return fmt.Errorf("%q is not a size; write bytes as in 65536, 64KiB or 1GiB", text)
}

// MarshalText writes what UnmarshalText reads.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String is the size with the largest unit that leaves a whole number.
func (s Size) String() string {
	for _, u := range sizeUnits[:3] {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
