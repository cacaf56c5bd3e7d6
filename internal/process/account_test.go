package process

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestAccounts lets simulated processes run, end and be waited for, and compares what is
// counted with what they have used: exactly where the master waits, and never falling
// anywhere.
func TestAccounts(t *testing.T) {
	for name, tc := range map[string]struct {
		// waits is the chance that the master waits for a child; those it does not wait for
		// are lost to it.
		waits float64
		exact bool
	}{"waits": {1, true}, "ignores": {0, true}, "mixed": {0.5, false}} {
		t.Run(name, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			type simulated struct{ own, waited uint64 }
			master := &simulated{own: 5, waited: 1000} // it has waited for others before we came
			kids := map[*simulated]*account{}
			account0 := &account{}
			account0.read(&stat{utime: master.own, cutime: master.waited})
			account0.First = account0.Waited
			var b base
			used := master.own + master.waited
			last := uint64(0)
			for range 500 {
				// Some work is done, and some children end that were seen to have used all they did.
				for range rnd.IntN(3) {
					kids[&simulated{}] = nil
				}
				for kid := range kids {
					n := rnd.Uint64N(100)
					kid.own += n
					used += n
				}
				// A sample.
				for kid, a := range kids {
					if a == nil {
						a = &account{}
						kids[kid] = a
					}
					a.read(&stat{utime: kid.own})
				}
				for kid, a := range kids {
					if rnd.IntN(4) > 0 {
						continue
					}
					delete(kids, kid)
					if rnd.Float64() < tc.waits {
						master.waited += kid.own
					}
					b.retire(a, account0)
				}
				account0.read(&stat{utime: master.own, cutime: master.waited})
				total := b.Waited[cpuTicks] + account0.total(cpuTicks)
				for _, a := range kids {
					total += a.total(cpuTicks)
				}
				if total < last {
					t.Fatalf("the total fell from %d to %d", last, total)
				}
				if last = total; tc.exact && total != used || total > used {
					t.Fatalf("the total is %d, used were %d", total, used)
				}
			}
			// The master ends, and its parent is none of ours.
			b.retire(account0, nil)
			total := b.Waited[cpuTicks]
			for _, a := range kids {
				total += a.total(cpuTicks)
			}
			if total != last {
				t.Errorf("the total is %d when the master has ended, and was %d", total, last)
			}
		})
	}
}
