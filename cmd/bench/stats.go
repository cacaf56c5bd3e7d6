package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"time"
)

var nan = math.NaN()

// A measurement is one thing that is timed, once in each round.
type measurement struct {
	name string
	// prepare is what must be done before, and is not timed. It may be nil.
	prepare func() error
	// run does it once and returns how long it took, in seconds.
	run func() (float64, error)
	// rounds is how many rounds it takes part in; 0 is all.
	rounds int
	// samples has one number for each round.
	samples []float64
}

// timed makes a run of a function that cannot fail.
func timed(f func()) func() (float64, error) {
	return func() (float64, error) {
		start := time.Now()
		f()
		return time.Since(start).Seconds(), nil
	}
}

// inTurns runs all measurements one after the other, rounds times, so that whatever else
// the machine does meanwhile meets all of them.
func inTurns(ctx context.Context, rounds int, all ...*measurement) error {
	for r := range rounds {
		runtime.GC() // its own garbage must not be collected while it waits for others
		for _, m := range all {
			if err := ctx.Err(); err != nil {
				return err
			}
			if m.rounds > 0 && r >= m.rounds {
				continue
			}
			if m.prepare != nil {
				if err := m.prepare(); err != nil {
					return fmt.Errorf("%s: %w", m.name, err)
				}
			}
			v, err := m.run()
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			m.samples = append(m.samples, v)
		}
	}
	return nil
}

// sum returns what several measurements took together, round by round.
func sum(ms ...*measurement) (out []float64) {
	for r := range ms[0].samples {
		v := 0.0
		for _, m := range ms {
			v += m.samples[r]
		}
		out = append(out, v)
	}
	return out
}

// quantile returns the q-quantile of some numbers, NaN if there are none.
func quantile(of []float64, q float64) float64 {
	if len(of) == 0 {
		return nan
	}
	sorted := slices.Sorted(slices.Values(of))
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

func median(of []float64) float64 { return quantile(of, .5) }

func known(v float64) bool { return v == v }

// duration spells seconds with three digits.
func duration(seconds float64) string {
	switch {
	case !known(seconds):
		return "?"
	case seconds < 1e-3:
		return digits(seconds*1e6) + " µs"
	case seconds < 1:
		return digits(seconds*1e3) + " ms"
	}
	return digits(seconds) + " s"
}

// digits spells a number with three digits, or all that it has before the point.
func digits(v float64) string {
	prec := 0
	switch a := math.Abs(v); {
	case a < 10:
		prec = 2
	case a < 100:
		prec = 1
	}
	return strconv.FormatFloat(v, 'f', prec, 64)
}

func times(v float64) string {
	if !known(v) || math.IsInf(v, 0) {
		return "?"
	}
	return digits(v) + " ×"
}

// retry calls f until it succeeds or patience is at its end, and waits between two calls.
func retry(ctx context.Context, wait time.Duration, f func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return errors.Join(ctx.Err(), err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}
