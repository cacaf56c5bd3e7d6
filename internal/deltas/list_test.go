package deltas

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func numbers(l *List) (all []uint32) {
	for i, n := range l.All() {
		if i != len(all) {
			panic("the count is wrong")
		}
		all = append(all, n)
	}
	return all
}

func TestList(t *testing.T) {
	for name, want := range map[string][]uint32{
		"empty":          nil,
		"zero":           {0},
		"zero and one":   {0, 1},
		"close":          {2, 24, 50, 51},
		"far at first":   {255},
		"around the far": {254, 508, 763, 1018, 1274, 1275},
		"largest":        {0, math.MaxUint32 - 1, math.MaxUint32},
	} {
		t.Run(name, func(t *testing.T) {
			l := Of(want...)
			if got := numbers(l); !slices.Equal(got, want) || l.Len() != len(want) {
				t.Errorf("got %d, %v, want %v", l.Len(), got, want)
			}
			l.Compact()
			if got := numbers(l); !slices.Equal(got, want) {
				t.Errorf("after Compact: got %v, want %v", got, want)
			}
		})
	}
}

func TestListRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	l, want, at := &List{}, []uint32(nil), uint32(0)
	for i := range 100_000 {
		step := rng.Uint32N(256)
		if i%1000 == 0 {
			step = rng.Uint32N(1 << 20)
		}
		at += max(step, 1)
		l.Append(at)
		want = append(want, at)
	}
	if got := numbers(l); !slices.Equal(got, want) {
		t.Error("the numbers are others")
	}
	if n := cap(l.steps); n > 2*len(want) {
		t.Errorf("%d numbers take %d bytes", len(want), n)
	}
}

func TestNotRising(t *testing.T) {
	for _, numbers := range [][]uint32{{0, 0}, {5, 5}, {5, 4}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v is accepted", numbers)
				}
			}()
			Of(numbers...)
		}()
	}
}
