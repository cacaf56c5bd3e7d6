package pool

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/relabel"

	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
	"aggregatord/internal/view"
)

func compile(t testing.TB, spec policy.Spec) *policy.Policy {
	t.Helper()
	p, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// rules is a policy of rules alone.
func rules(t testing.TB, rules ...policy.Rule) *policy.Policy {
	t.Helper()
	return compile(t, policy.Spec{Rules: rules})
}

// force puts a policy in force.
func (h *harness) force(p *policy.Policy) {
	h.t.Helper()
	if err := h.SetPolicy(p); err != nil {
		h.t.Fatal(err)
	}
}

var allModes = []metric.Mode{
	metric.All, metric.LiveAll, metric.Sum, metric.LiveSum, metric.Max, metric.LiveMax,
	metric.Min, metric.LiveMin, metric.MostRecent, metric.LiveMostRecent,
}

// TestLiveByRuleLater: an entry that a rule makes a live one, and that comes into a file that had none
// before, is gone with its worker at the next scrape.
func TestLiveByRuleLater(t *testing.T) {
	dir := tmpfs(t)
	w := write(t, dir, "gauge_max_1.db").set("other", 1)
	h := collect(t, Spec{Path: dir})
	h.force(rules(t, policy.Rule{Match: "busy", GaugeMode: metric.LiveSum}))
	h.want("other 1")
	w.set("busy", 3)
	h.want("busy 3", "other 1")
	w.die()
	h.want("other 1")
}

// TestEveryModeByEveryMode has a gauge of every mode under every other: two workers alive,
// one of them dead, and archived while the rule is in force.
func TestEveryModeByEveryMode(t *testing.T) {
	for _, file := range allModes {
		for _, force := range allModes {
			t.Run(file.String()+" as "+force.String(), func(t *testing.T) {
				dir := tmpfs(t)
				first := write(t, dir, "gauge_"+file.String()+"_1.db").set("g", 5)
				h := collect(t, Spec{Path: dir})
				h.force(rules(t, policy.Rule{Match: "g", GaugeMode: force}))
				h.Tend(true)
				h.view()
				advance(h.Pool)
				write(t, dir, "gauge_"+file.String()+"_2.db").set("g", 2)
				both := map[metric.Mode][]string{
					metric.All: {"g pid=1 5", "g pid=2 2"}, metric.Sum: {"g 7"}, metric.Max: {"g 5"}, metric.Min: {"g 2"},
					metric.MostRecent: {"g 2"}, // the worker that began last
				}[force.Base()]
				one := map[metric.Mode][]string{metric.All: {"g pid=2 2"}}[force.Base()]
				if one == nil {
					one = []string{"g 2"}
				}
				if file.Base() == metric.MostRecent && force.Base() == metric.MostRecent {
					both = []string{"g NaN"} // Absent: the workers have never set it
					one = both
				}
				left := both
				if force.Live() {
					left = one
				}
				h.Tend(true)
				h.want(both...)
				first.die()
				h.Tend(true)
				h.want(left...)
				foldOf(h, 1)
				h.want(left...)
				if got := len(h.files); got != 1 {
					t.Errorf("%d files are left, want that of the living", got)
				}
				if err := h.Close(); err != nil {
					t.Fatal(err)
				}
				h = collect(t, Spec{Path: dir})
				h.force(rules(t, policy.Rule{Match: "g", GaugeMode: force}))
				h.Tend(true)
				h.want(left...)
			})
		}
	}
}

// foldOf folds until the worker's files are archived and removed.
func foldOf(h *harness, worker int) {
	h.t.Helper()
	id := strconv.Itoa(worker)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		h.Tend(true)
		h.Fold()
		advance(h.Pool)
		h.Fold()
		busy := len(h.staged)+h.folder.RemovingFiles() > 0
		for _, t := range h.files {
			busy = busy || t.name.ID == id
		}
		if !busy {
			return
		}
	}
	h.t.Errorf("files of worker %d are not archived", worker)
}

// TestPolicyChanges puts rules in force and takes them away again, before and after the
// files are folded: no total is lost.
func TestPolicyChanges(t *testing.T) {
	dir := tmpfs(t)
	web := write(t, dir, "counter_1.db").set("hits_total", 3, "path", "/", "user", "a").set("hits_total", 4, "path", "/", "user",
		"b").set("noise_total", 9)
	h := collect(t, Spec{Path: dir})
	plain := []string{"hits_total path=/ user=a 3", "hits_total path=/ user=b 4", "noise_total 9"}
	h.want(plain...)
	ruled := rules(t, policy.Rule{Match: "hits_total", DropLabels: []string{"user"}}, policy.Rule{Match: "noise", Drop: true})
	h.force(ruled)
	h.want("hits_total path=/ 7")
	if got := h.State().Dropped; got != 1 {
		t.Errorf("%v series dropped, want 1", got)
	}
	h.force(nil)
	h.want(plain...)
	h.force(rules(t, policy.Rule{MatchRE: "hi.*", RenameLabels: map[string]string{"path": "route"}, KeepLabels: []string{"path"}}))
	h.want("hits_total route=/ 7", "noise_total 9")
	h.force(ruled)
	web.die()
	foldOf(h, 1)
	h.want("hits_total path=/ 7")
	write(t, dir, "counter_2.db").set("hits_total", 1, "path", "/", "user", "c").set("noise_total", 1)
	h.Tend(true)
	h.want("hits_total path=/ 8")
	h.force(nil)
	// What was dropped is back; labels that were left out at the fold are not, but all is counted.
	h.want("hits_total path=/ 7", "hits_total path=/ user=c 1", "noise_total 10")
	h.force(ruled)
	h.want("hits_total path=/ 8")
}

// TestPolicyFoldedBefore has rules for what was folded without them.
func TestPolicyFoldedBefore(t *testing.T) {
	dir := tmpfs(t)
	leftBehind(t, dir)
	h := collect(t, Spec{Path: dir})
	h.fold()
	h.force(rules(t, policy.Rule{Match: "temp", GaugeMode: metric.Max}, policy.Rule{Match: "peak", GaugeMode: metric.LiveMax},
		policy.Rule{Match: "hits", DropLabels: []string{"path"}}, policy.Rule{MatchRE: "size|balance|rate", Drop: true}))
	h.want("hits_total 6.6", "temp 3")
	h.force(rules(t, policy.Rule{Match: "temp", GaugeMode: metric.MostRecent},
		policy.Rule{MatchRE: "size|balance|rate|hits|peak", Drop: true}))
	h.want("temp 3")
}

// TestPolicyOnGains changes the policy while files count with their gains only.
func TestPolicyOnGains(t *testing.T) {
	dir := tmpfs(t)
	w := write(t, dir, "counter_1.db").set("hits_total", 3, "user", "a")
	h := collect(t, Spec{Path: dir})
	if err := os.Remove(filepath.Join(dir, "counter_1.db")); err != nil {
		t.Fatal(err)
	}
	h.Tend(true)
	h.Fold() // archives what it has, and goes on reading
	w.set("hits_total", 5, "user", "a").set("hits_total", 1, "user", "b")
	ruled := rules(t, policy.Rule{Match: "hits", DropLabels: []string{"user"}})
	h.want("hits_total user=a 5", "hits_total user=b 1")
	for range 3 {
		h.force(ruled)
		h.want("hits_total 6")
		h.force(nil)
		h.want("hits_total user=a 5", "hits_total user=b 1")
	}
	h.force(ruled)
	w.set("hits_total", 7, "user", "a")
	h.Fold()
	w.set("hits_total", 8, "user", "a")
	h.want("hits_total 9")
	w.die()
	h.Tend(true)
	h.Fold()
	h.want("hits_total 9")
}

// TestPolicyUnreadable changes the policy while a file cannot be read: what was read of it
// counts on.
func TestPolicyUnreadable(t *testing.T) {
	dir := tmpfs(t)
	write(t, dir, "counter_1.db").set("hits_total", 3, "user", "a").set("hits_total", 4, "user", "b")
	h := collect(t, Spec{Path: dir})
	h.want("hits_total user=a 3", "hits_total user=b 4")
	if err := os.Truncate(filepath.Join(dir, "counter_1.db"), 4); err != nil {
		t.Fatal(err)
	}
	h.want("hits_total user=a 3", "hits_total user=b 4")
	h.force(rules(t, policy.Rule{Match: "hits", DropLabels: []string{"user"}}))
	h.want("hits_total 7")
}

func TestRetentionByRule(t *testing.T) {
	dir := tmpfs(t)
	h := collect(t, Spec{Path: dir})
	at := time.Now()
	h.now = func() time.Time { return at }
	h.force(rules(t, policy.Rule{Match: "short", Retention: time.Minute}, policy.Rule{Match: "top", Retention: time.Hour},
		policy.Rule{Match: "level", GaugeMode: metric.Sum, Retention: 2 * time.Minute}))
	for i := 1; i <= 2; i++ {
		write(t, dir, fmt.Sprintf("gauge_all_%d.db", i)).set("short", 1).set("long", 1).set("level", float64(i)).die()
		write(t, dir, fmt.Sprintf("gauge_max_%d.db", i)).set("top", float64(i)).set("ever", float64(i)).die()
	}
	for len(waiting(t, dir)) > 0 {
		h.Tend(true)
		h.Fold()
		at = at.Add(time.Second)
	}
	h.want("ever 2", "level 3", "long pid=1 1", "long pid=2 1", "short pid=1 1", "short pid=2 1", "top 2")
	at = at.Add(time.Minute)
	h.Fold()
	h.want("ever 2", "level 3", "long pid=1 1", "long pid=2 1", "top 2")
	if err := h.Close(); err != nil { // and a daemon that comes later knows it, too
		t.Fatal(err)
	}
	p := h.policy
	h = collect(t, Spec{Path: dir})
	h.now = func() time.Time { return at }
	h.force(p)
	h.want("ever 2", "level 3", "long pid=1 1", "long pid=2 1", "top 2")
	at = at.Add(time.Minute)
	h.Fold()
	h.want("ever 2", "long pid=1 1", "long pid=2 1", "top 2")
	// Another worker of the ID leaves the same again.
	write(t, dir, "gauge_all_1.db").set("short", 5).die()
	h.Tend(true)
	h.Fold()
	h.want("ever 2", "long pid=1 1", "long pid=2 1", "short pid=1 5", "top 2")
	at = at.Add(2 * time.Hour)
	h.Fold()
	h.want("ever 2", "long pid=1 1", "long pid=2 1")
	at = at.Add(h.archiving.GaugeRetention)
	h.Fold()
	h.want("ever 2")
}

func TestExpireByRule(t *testing.T) {
	dir := tmpfs(t)
	w := write(t, dir, "counter_1.db").set("hits_total", 3, "l", "a").set("hits_total", 4, "l", "b")
	h := collect(t, Spec{Path: dir})
	at := time.Now()
	h.now = func() time.Time { return at }
	h.force(rules(t, policy.Rule{Match: "hits", ExpireAfter: time.Minute}))
	h.want("hits_total l=a 3", "hits_total l=b 4")
	at = at.Add(time.Minute + time.Second)
	w.set("hits_total", 5, "l", "b")
	h.want("hits_total l=a NaN", "hits_total l=b 5")
	if got := h.State().Expired; got != 1 {
		t.Errorf("%v expired, want 1", got)
	}
	h.force(rules(t, policy.Rule{Match: "hits", ExpireAfter: time.Minute}, policy.Rule{Match: "x"}))
	h.want("hits_total l=a NaN", "hits_total l=b 5")
	w.set("hits_total", 4, "l", "a")
	h.want("hits_total l=a 4", "hits_total l=b 5")
	if got := h.State().Samples; got != 2 {
		t.Errorf("%v series, want 2", got)
	}
}

// TestPolicyUnderScrapes changes the policy while scrapes, deaths and folds go on: each answer
// is wholly by one policy, and no total falls.
func TestPolicyUnderScrapes(t *testing.T) {
	dir := tmpfs(t)
	const workers = 4
	for i := range workers {
		write(t, dir, fmt.Sprintf("counter_%d.db", i)).set("hits_total", 1, "user", strconv.Itoa(i)).set("other_total", 1)
		write(t, dir, fmt.Sprintf("gauge_all_%d.db", i)).set("level", 2)
	}
	h := collect(t, Spec{Path: dir})
	policies := []*policy.Policy{
		nil,
		rules(t, policy.Rule{Match: "hits", DropLabels: []string{"user"}}, policy.Rule{Match: "level", GaugeMode: metric.Sum},
			policy.Rule{Match: "other", Help: "2"}),
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var folded sync.Mutex
	deaths := 0
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				snap, err := h.Gather()
				if err != nil {
					t.Error(err)
					return
				}
				var ruled [3]bool
				sum, i := 0.0, 0
				for _, f := range snap.Layout.Families {
					for _, m := range f.Metrics {
						user := slices.ContainsFunc(m.AllLabels(), func(l metric.Label) bool { return l.Name == "user" || l.Name == "pid" })
						switch f.Name {
						case "hits":
							ruled[0] = !user || ruled[0]
							sum += snap.Values[i]
						case "level":
							ruled[1] = !user
						}
						i += len(m.Points)
					}
					if f.Name == "other" {
						ruled[2] = f.Help == "2"
					}
				}
				if ruled[1] != ruled[2] || ruled[1] && !ruled[0] {
					t.Errorf("by both policies: %v", ruled)
				}
				folded.Lock()
				least := float64(workers + deaths)
				folded.Unlock()
				if sum < float64(workers) || sum > least+1 {
					t.Errorf("total is %v, want %v or one less", sum, least)
				}
				snap.Release()
			}
		})
	}
	for i := range 40 {
		if i%4 == 0 {
			folded.Lock()
			deaths++
			write(t, dir, fmt.Sprintf("counter_9%d.db", i)).set("hits_total", 1, "user", "0").die()
			folded.Unlock()
		}
		h.Tend(true)
		h.Fold()
		h.force(policies[i%2])
	}
	close(stop)
	wg.Wait()
	h.force(policies[1])
	h.Tend(true)
	if view := h.view(); !strings.Contains(view, fmt.Sprintf("hits_total %d\n", workers+deaths)) {
		t.Errorf("in the end:\n%s", view)
	}
}

// TestRandomPolicies runs workers, deaths, folds, restarts and changes of policy in random
// order. Whatever was in force, without a policy all counters are what the workers added, and
// under each policy what a slow and obvious model makes of the same values.
func TestRandomPolicies(t *testing.T) {
	for round := range 6 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("round=%d/seed=%d", round, seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 4))
			dir := tmpfs(t)
			type running struct {
				*process
				id     int
				counts map[string]float64 // by path
			}
			var alive []*running
			totals := map[string]float64{}
			gauges := map[int]float64{}
			h := collect(t, Spec{Path: dir})
			next := 0
			for range 60 {
				switch op := r.IntN(10); {
				case op < 3 || len(alive) == 0:
					next++
					w := &running{write(t, dir, fmt.Sprintf("counter_%d.db", next)), next, map[string]float64{}}
					gauges[next] = float64(r.IntN(9) + 1)
					write(t, dir, fmt.Sprintf("gauge_liveall_%d.db", next)).set("level", gauges[next]).die()
					alive = append(alive, w)
				case op < 6:
					w := alive[r.IntN(len(alive))]
					path := strconv.Itoa(r.IntN(4))
					by := float64(r.IntN(5))
					w.counts[path] += by
					totals[path] += by
					w.set("hits_total", w.counts[path], "path", path)
				case op < 7:
					i := r.IntN(len(alive))
					alive[i].die()
					alive = slices.Delete(alive, i, i+1)
					h.Tend(true)
					h.Fold()
					if r.IntN(2) == 0 {
						advance(h.Pool)
						h.Fold()
					}
				case op < 8:
					if err := h.Close(); err != nil {
						t.Fatal(err)
					}
					p := h.policy
					h = collect(t, Spec{Path: dir})
					h.force(p)
				default:
					rule := policy.Rule{Match: "hits"}
					switch r.IntN(5) {
					case 0:
						rule.Drop = true
					case 1:
						rule.DropLabels = []string{"path"}
					case 2:
						rule.RenameLabels = map[string]string{"path": "route"}
					case 3:
						rule.Match = "nothing"
					case 4:
						rule.ExpireAfter = time.Hour
					}
					h.force(rules(t, rule, policy.Rule{Match: "level", GaugeMode: metric.LiveSum}))
				}
				h.Tend(true)
				sum, want := 0.0, 0.0
				for _, v := range totals {
					want += v
				}
				dropped := true
				for line := range strings.SplitSeq(h.view(), "\n") {
					if rest, ok := strings.CutPrefix(line, "hits_total"); ok {
						dropped = false
						v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
						if err != nil {
							t.Fatal(err)
						}
						sum += v
					}
				}
				if sum != want && !dropped {
					t.Fatalf("total is %v, want %v:\n%s", sum, want, h.view())
				}
			}
			h.force(nil)
			for _, w := range alive {
				w.die()
			}
			h.fold()
			sum, want := 0.0, 0.0
			for _, v := range totals {
				want += v
			}
			for line := range strings.SplitSeq(h.view(), "\n") {
				if rest, ok := strings.CutPrefix(line, "hits_total"); ok {
					v, _ := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
					sum += v
				}
			}
			if sum != want {
				t.Errorf("in the end the total is %v, want %v:\n%s", sum, want, h.view())
			}
		})
	}
}

// TestHostileLabels has a worker that makes a million label values, and then others like it:
// memory and archive stay as small as the limits, and what the others count is right.
func TestHostileLabels(t *testing.T) {
	values := 1_000_000
	if testing.Short() || raceEnabled {
		values = 50_000
	}
	dir := tmpfs(t)
	good := write(t, dir, "counter_1.db").set("good_total", 1)
	h := collect(t, Spec{Path: dir})
	h.force(compile(t, policy.Spec{Limits: policy.Limits{SeriesPerFamily: 1000, SeriesPerPool: 3000}}))
	hostile := func(id, n int) {
		w := write(t, dir, fmt.Sprintf("counter_%d.db", id))
		for i := range n {
			w.set("evil_total", 1, "id", strconv.Itoa(i))
		}
		w.set("also_good_total", 1)
		w.die()
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	hostile(2, values)
	h.Tend(true)
	check := func(workers int) {
		t.Helper()
		for h.learning() {
			h.Tend(true)
		}
		good.set("good_total", float64(workers))
		view := h.view()
		if !strings.Contains(view, fmt.Sprintf("\ngood_total %d\n", workers)) ||
			!strings.HasPrefix(view, fmt.Sprintf("also_good_total %d\n", workers)) {
			t.Errorf("others' totals are wrong: %.200s", view)
		}
		if got := strings.Count(view, "evil_total"); got != 1000 {
			t.Errorf("%d series of the family, want as many as the limit", got)
		}
		if got := strings.Count(view, fmt.Sprintf(" %d\n", workers)); got != 1002 {
			t.Errorf("%d series have been counted %d times, want all", got, workers)
		}
	}
	check(1)
	h.fold()
	check(1)
	for id := 3; id <= 5; id++ {
		hostile(id, 20_000)
		h.fold()
		check(id - 1)
	}
	if grown := int64(heap()) - int64(before); grown > 4<<20 {
		t.Errorf("%d KiB more memory is in use", grown>>10)
	}
	if got := h.folder.Archive().Totals().Series(); got != 1001 {
		t.Errorf("%d keys in the archive, want those that are served", got)
	}
	if got := h.own("aggregatord_refused_entries_total", "family", "evil", "reason", "family_limit"); got != float64(values-1000+3*19_000) {
		t.Errorf("%v refused, want %d", got, values-1000+3*19_000)
	}
	if got := h.logged("new series are refused", ""); got != 1 {
		t.Errorf("logged %d times, want once", got)
	}
	// A limit that is lowered keeps those out that are new, and only them.
	h.force(compile(t, policy.Spec{Limits: policy.Limits{SeriesPerFamily: 10, SeriesPerPool: 20}}))
	check(4)
	hostile(6, 2000)
	h.fold()
	check(5)
}

// TestHostileBytes has a worker that makes long labels: keys and labels are kept as far as the limit
// goes, the rest is counted and named with the limit's key; a reload with another limit lets them
// in, and one with a lower limit lets those that are known go on.
func TestHostileBytes(t *testing.T) {
	dir := tmpfs(t)
	good := write(t, dir, "counter_1.db").set("good_total", 1)
	h := collect(t, Spec{Path: dir})
	long := strings.Repeat("x", 10_000)
	limit := func(bytes int64) {
		t.Helper()
		h.force(compile(t, policy.Spec{Limits: policy.Limits{BytesPerPool: bytes}}))
	}
	limit(105_000)
	w := write(t, dir, "counter_2.db")
	for i := range 20 {
		w.set("evil_total", 1, "id", strconv.Itoa(i)+long)
	}
	h.Tend(true)
	check := func(evil int) {
		t.Helper()
		good.set("good_total", float64(evil))
		if view := h.view(); strings.Count(view, "evil_total") != evil || !strings.Contains(view, fmt.Sprintf("good_total %d\n", evil)) {
			t.Errorf("%d series, want %d", strings.Count(view, "evil_total"), evil)
		}
	}
	check(5)
	if got := h.own("aggregatord_refused_entries_total", "family", "evil", "reason", "bytes_limit"); got != 15 {
		t.Errorf("%v refused", got)
	}
	if got := h.logs.FilterMessageSnippet("new series are refused").All(); len(got) != 1 ||
		got[0].ContextMap()["limit"] != "limits.bytes_per_pool" {
		t.Errorf("logged %v, want once, with the limit's key", got)
	}
	limit(1 << 20)
	check(20)
	if got := h.State().IndexLimits.MaxBytes; got != 1<<20 {
		t.Errorf("the limit is told as %d", got)
	}
	limit(50_000)
	w.set("evil_total", 1, "id", "more")
	h.Tend(true)
	check(20)
	w.die()
	h.fold()
	check(20)
}

// TestRefusedFamilies has more families refused than are named.
func TestRefusedFamilies(t *testing.T) {
	dir := tmpfs(t)
	w := write(t, dir, "counter_1.db")
	for i := range maxRefusedFamilies + 20 {
		w.set(fmt.Sprintf("f%03d_total", i), 1, "l", "too long")
	}
	h := collect(t, Spec{Path: dir})
	h.force(compile(t, policy.Spec{Limits: policy.Limits{LabelValueLength: 4}}))
	w.set("more_total", 1, "l", "too long")
	h.Tend(true)
	if got := strings.Count(h.view(), "\n"); got != maxRefusedFamilies+20 {
		t.Errorf("%d series go on", got)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = collect(t, Spec{Path: dir})
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	c := New(Spec{Path: dir}, Options{Policy: compile(t, policy.Spec{Limits: policy.Limits{LabelValueLength: 4}})})
	defer c.Close()
	c.Tend(true)
	if n := len(c.refusals); n != maxRefusedFamilies+1 {
		t.Errorf("%d families are counted by name", n)
	}
}

// TestSteadyUnderPolicy keeps scrapes from making garbage under rules and relabelling.
func TestSteadyUnderPolicy(t *testing.T) {
	dir := tmpfs(t)
	for i := range 8 {
		c := write(t, dir, fmt.Sprintf("counter_%d.db", i))
		g := write(t, dir, fmt.Sprintf("gauge_all_%d.db", i))
		for k := range 200 {
			c.set("hits_total", 1, "k", strconv.Itoa(k), "user", strconv.Itoa(k%7))
			g.set("level", 1, "k", strconv.Itoa(k))
		}
	}
	c := New(Spec{Path: dir}, Options{Policy: compile(t, policy.Spec{
		Rules: []policy.Rule{
			{Match: "hits", DropLabels: []string{"user"}, ExpireAfter: time.Hour},
			{Match: "level", GaugeMode: metric.MostRecent},
		},
		MetricRelabelConfigs: []*relabel.Config{{
			Action: relabel.Replace, TargetLabel: "new", Replacement: "x", Regex: relabel.MustNewRegexp(".*"), Separator: ";",
		}},
	})})
	defer c.Close()
	c.Tend(true)
	gather := func() *view.Snapshot {
		snap, err := c.Gather()
		if err != nil {
			t.Fatal(err)
		}
		return snap
	}
	first := gather()
	layout := first.Layout
	if layout.Points != 400 {
		t.Fatalf("%d points, want 400", layout.Points)
	}
	first.Release()
	if got := testing.AllocsPerRun(50, func() {
		snap := gather()
		if snap.Layout != layout {
			t.Fatal("the layout has changed")
		}
		snap.Release()
	}); got > 20 {
		t.Errorf("%v allocations per scrape of 3,200 entries", got)
	}
}

// BenchmarkSetPolicy is a reload: all that the files hold is merged anew.
func BenchmarkSetPolicy(b *testing.B) {
	for name, rule := range map[string]policy.Rule{
		"help": {MatchRE: ".*", Help: "x"}, "drop_labels": {MatchRE: "http_.*", DropLabels: []string{"handler"}},
	} {
		b.Run(name, func(b *testing.B) {
			const files, series = 64, 5000
			dir, release := benchPool(b, files, series)
			defer release()
			c := New(Spec{Path: dir}, Options{})
			defer c.Close()
			c.Tend(true)
			p := rules(b, rule)
			b.ReportAllocs()
			for b.Loop() {
				if err := c.SetPolicy(p); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(files*series), "ns/entry")
		})
	}
}

// BenchmarkGatherByPolicy is BenchmarkGather under rules and relabelling.
func BenchmarkGatherByPolicy(b *testing.B) {
	drop := policy.Spec{Rules: []policy.Rule{{MatchRE: "http_.*", DropLabels: []string{"handler"}}}}
	expire := policy.Spec{Rules: []policy.Rule{{MatchRE: "http_.*", ExpireAfter: time.Hour}}}
	relabels := policy.Spec{MetricRelabelConfigs: []*relabel.Config{
		{Action: relabel.Replace, TargetLabel: "new", Replacement: "x", Regex: relabel.MustNewRegexp(".*"), Separator: ";"},
	}}
	for name, spec := range map[string]policy.Spec{"none": {}, "drop_labels": drop, "expire_after": expire, "relabel": relabels} {
		b.Run(name, func(b *testing.B) {
			const files, series = 16, 5000
			dir, release := benchPool(b, files, series)
			defer release()
			c := New(Spec{Path: dir}, Options{Policy: compile(b, spec)})
			defer c.Close()
			c.Tend(true)
			b.ReportAllocs()
			for b.Loop() {
				snap, err := c.Gather()
				if err != nil {
					b.Fatal(err)
				}
				snap.Release()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(files*series), "ns/entry")
		})
	}
}

// TestHostileNames has a worker that makes a hundred thousand metrics.
func TestHostileNames(t *testing.T) {
	dir := tmpfs(t)
	good := write(t, dir, "counter_1.db").set("good_total", 1)
	defer good.die()
	h := collect(t, Spec{Path: dir})
	h.force(compile(t, policy.Spec{Limits: policy.Limits{FamiliesPerPool: 100}}))
	w := write(t, dir, "counter_2.db")
	for i := range 100_000 {
		w.set(fmt.Sprintf("evil%d_total", i), 1)
	}
	w.set("good_total", 1).die()
	// A busy machine needs many rounds to learn so much.
	for begin := time.Now(); h.folder.Archive().Totals().Empty() && time.Since(begin) < time.Minute; {
		h.fold()
	}
	view := h.view()
	if got := strings.Count(view, "\n"); got != 100 || !strings.HasSuffix(view, "\ngood_total 2\n") {
		t.Errorf("%d series, want 100, and good_total 2", got)
	}
	if got := h.own("aggregatord_refused_entries_total", "family", otherFamilies, "reason",
		"families_limit"); got != 99_901-maxRefusedFamilies {
		t.Errorf("%v refused of other families", got)
	}
	if got := h.folder.Archive().Totals().Series(); got != 100 {
		t.Errorf("%d keys in the archive", got)
	}
}

// TestFoldEqualsMergeByPolicy archives random workers in random order under random rules: what
// is served is always what there was while all lived, and nothing was archived. (That this is
// right the tests of merge check against a model.)
func TestFoldEqualsMergeByPolicy(t *testing.T) {
	t.Parallel()
	for range 12 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 6))
			kinds := []string{"counter", "summary"}
			for _, m := range allModes {
				kinds = append(kinds, "gauge_"+m.String())
			}
			// Modes in which the dead count, so that all is always served.
			lasting := []metric.Mode{metric.All, metric.Sum, metric.Max, metric.Min, metric.MostRecent}
			var rs []policy.Rule
			for _, name := range append(slices.Clone(kinds), "shared") {
				rule := policy.Rule{Match: name}
				if mode, gauge := strings.CutPrefix(name, "gauge_"); name == "shared" ||
					gauge && (strings.HasPrefix(mode, "live") || strings.HasSuffix(mode, "recent") || r.IntN(3) > 0) {
					rule.GaugeMode = lasting[r.IntN(len(lasting))]
					if strings.HasSuffix(mode, "mostrecent") {
						rule.GaugeMode = lasting[r.IntN(4)] // the workers have set no times
					}
				}
				switch r.IntN(5) {
				case 0:
					rule.DropLabels = []string{"i"}
				case 1:
					rule.KeepLabels = []string{"k"}
				case 2:
					rule.RenameLabels = map[string]string{"i": "k"}
				}
				if r.IntN(3) == 0 {
					rule.Retention = 1000 * time.Hour
				}
				rs = append(rs, rule)
			}
			p := rules(t, rs...)
			dir := tmpfs(t)
			var alive [][]*process // the files of each
			for id := range 8 {
				alive = append(alive, nil)
				for _, kind := range kinds {
					sample := map[string]string{"counter": "counter_total", "summary": "summary_sum"}[kind]
					if sample == "" {
						sample = kind
					}
					w := write(t, dir, fmt.Sprintf("%s_%d.db", kind, id))
					for i := range r.IntN(5) {
						w.set(sample, float64(r.IntN(1000)-100), "i", strconv.Itoa(i), "k", strconv.Itoa(i%2))
						if kind == "gauge_all" || kind == "gauge_livesum" {
							w.set("shared", float64(r.IntN(1000)), "i", kind+strconv.Itoa(i))
						}
					}
					alive[id] = append(alive[id], w)
				}
			}
			h := collect(t, Spec{Path: dir})
			h.force(p)
			want := h.view()
			if n := h.own("aggregatord_conflicts"); n != 0 {
				t.Errorf("%v conflicts: the rules decide", n)
			}
			r.Shuffle(len(alive), func(i, j int) { alive[i], alive[j] = alive[j], alive[i] })
			for len(alive) > 0 {
				n := 1 + r.IntN(len(alive))
				for _, w := range slices.Concat(alive[:n]...) {
					w.die()
				}
				alive = alive[n:]
				h.fold()
				if got := h.view(); got != want {
					t.Fatalf("after a fold: got\n%s\nwant\n%s", got, want)
				}
				if r.IntN(2) == 0 {
					h.force(rules(t)) // and back
					h.force(p)
				}
				if r.IntN(2) == 0 {
					if err := h.Close(); err != nil {
						t.Fatal(err)
					}
					h = collect(t, Spec{Path: dir})
					h.force(p)
				}
				if got := h.view(); got != want {
					t.Fatalf("after a change or a restart: got\n%s\nwant\n%s", got, want)
				}
			}
			h.wantFolded(dir)
		})
	}
}

// TestOwnSettings: what an application says of its pool comes before the policy, whichever is in force,
// and its limits only make those lower.
func TestOwnSettings(t *testing.T) {
	dir := tmpfs(t)
	w := write(t, dir, "gauge_sum_1.db").set("a", 1).set("b", 1).set("c", 1)
	defer w.die()
	write(t, dir, "gauge_sum_2.db").set("a", 2).set("b", 2).set("c", 2)
	own := compile(t, policy.Spec{
		Rules:  []policy.Rule{{Match: "a", GaugeMode: metric.Max}, {Match: "c", Drop: true}},
		Limits: policy.Limits{SeriesPerPool: 100, BytesPerPool: 1 << 40, KeyLength: 1000},
	})
	h := collect(t, Spec{Path: dir, Own: own})
	h.Tend(true)
	h.want("a 2", "b 3")
	limits := func(series int, bytes int64, key int) {
		t.Helper()
		got := h.State()
		if l := got.IndexLimits; l.MaxSeries != series || l.MaxBytes != bytes || h.limits.KeyBytes != key {
			t.Errorf("limits %+v, keys of %d bytes; want %d, %d and %d", l, h.limits.KeyBytes, series, bytes, key)
		}
	}
	limits(100, merge.DefaultMaxBytes, 1000)
	h.force(compile(t, policy.Spec{
		Rules:  []policy.Rule{{Match: "a", GaugeMode: metric.Min}, {Match: "b", GaugeMode: metric.Min}},
		Limits: policy.Limits{SeriesPerPool: 50, BytesPerPool: 1 << 20, KeyLength: 2000},
	}))
	h.want("a 2", "b 1")
	limits(50, 1<<20, 1000)
	h.force(nil)
	h.want("a 2", "b 3")
	limits(100, merge.DefaultMaxBytes, 1000)
}
