// Package top is what aggregatord top shows: readings of a daemon's API in, lines of text
// out. It asks nobody and knows no terminal, only how wide one is.
//
// Its one invariant: a rate is shown only if two readings of the same run of the daemon say
// so. What a daemon started anew, a counter that has fallen or a first reading leave open is
// shown as unknown, never as a negative or an invented rate.
package top

import (
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"aggregatord/internal/status"
	"aggregatord/internal/terminal"
)

// A Reading is what a daemon has answered.
type Reading struct {
	Overview status.Overview
	// Workers are the first in the order asked for.
	Workers status.Page[status.Worker]
	// Outputs are all there are.
	Outputs []status.Output
	// Families are all there are, of the time FamiliesAt in Unix seconds by the daemon's
	// clock; that is 0 if it was not ready to tell.
	Families   []status.Family
	FamiliesAt float64
	// Own are samples of the daemon's own metrics, by the names of Samples.
	Own map[string]float64
	// At is when the reading was there, by the clock of Frame.
	At time.Time
}

// Samples are the daemon's own that a Reading has: the values of one name are added.
var Samples = []string{scrapeSeconds, scrapeCount, cpuSeconds, residentBytes}

const (
	scrapeSeconds = "aggregatord_scrape_duration_seconds_sum"
	scrapeCount   = "aggregatord_scrape_duration_seconds_count"
	cpuSeconds    = "aggregatord_cpu_seconds_total"
	residentBytes = "aggregatord_resident_anonymous_bytes"
	// SizeSample is one more: its values by the label encoding are Own's as SizeSample{plain}.
	SizeSample = "aggregatord_scrape_size_bytes"
)

// window is over how long the cost of scrapes is told: one comes every few seconds at best.
const window = time.Minute

// FamilyOrders and WorkerOrders are the orders there are, the first being that at the start.
var (
	FamilyOrders = []string{"rate", "series", "name"}
	WorkerOrders = []string{"change", "entries", "size", "age", "ID"}
)

// workerSorts are the orders as the API spells them.
var workerSorts = []string{"-changed", "-entries", "-size_bytes", "created", "id"}

// A View is what has been read so far and how it is to be shown. It is for one goroutine.
type View struct {
	// Source is the daemon's address, Every how often it is read.
	Source string
	Every  time.Duration
	// FamilyOrder and WorkerOrder are positions in FamilyOrders and WorkerOrders.
	FamilyOrder, WorkerOrder int
	// Own has the daemon's own families shown, too.
	Own    bool
	Paused bool
	Help   bool
	// Filter has only the families and workers shown whose name has this in it. Typing says that
	// the user is writing it.
	Filter string
	Typing bool
	// OnWorkers has Scroll move the workers, not the families.
	OnWorkers bool
	// familyTop and workerTop are how many rows are above those shown.
	familyTop, workerTop int
	// page is how many rows of the table that Scroll moves were shown the last time.
	page int
	// Rows bounds the rows of each table where the height does not; 0: no bound.
	Rows int

	now   *Reading
	rates map[string]float64 // by family; one that is not known is not there
	past  []*Reading         // the newest last, of the same run of the daemon and not much more than window
	lost  error
	since time.Time
}

// WorkersQuery returns what to ask the API for to have the workers to be shown.
func (v *View) WorkersQuery() url.Values {
	query := url.Values{"sort": {workerSorts[v.WorkerOrder]}, "limit": {"500"}}
	if v.Filter != "" {
		query.Set("search", v.Filter)
	}
	return query
}

// Scroll moves the table that has the focus by so many rows, or by pages of what was shown
// last. What is beyond its ends is cut when it is shown.
func (v *View) Scroll(rows, pages int) {
	top := &v.familyTop
	if v.OnWorkers {
		top = &v.workerTop
	}
	*top = max(*top+rows+pages*max(v.page, 1), 0)
}

// ScrollTo moves to the beginning, or to the end, of the table that has the focus.
func (v *View) ScrollTo(end bool) {
	const beyond = 1 << 30
	if end {
		v.Scroll(beyond, 0)
	} else {
		v.Scroll(-beyond, 0)
	}
}

// Type takes a key of somebody who writes a filter.
func (v *View) Type(key rune) {
	switch {
	case key == terminal.KeyEscape:
		v.Filter, v.Typing = "", false
	case key == terminal.KeyEnter || key == '\n':
		v.Typing = false
	case key == terminal.KeyBackspace || key == '\b':
		if letters := []rune(v.Filter); len(letters) > 0 {
			v.Filter = string(letters[:len(letters)-1])
		}
	case unicode.IsPrint(key):
		v.Filter += string(key)
	}
	v.familyTop, v.workerTop = 0, 0
}

// matches reports whether the filter lets something with these names through.
func (v *View) matches(names ...string) bool {
	return v.Filter == "" || slices.ContainsFunc(names, func(n string) bool {
		return strings.Contains(strings.ToLower(n), strings.ToLower(v.Filter))
	})
}

// Add takes a reading. The View keeps it.
func (v *View) Add(r *Reading) {
	v.lost = nil
	before := v.now
	v.now = r
	if before == nil || before.Overview.Started != r.Overview.Started {
		v.rates, v.past = nil, []*Reading{r}
		return
	}
	v.past = append(v.past, r)
	for len(v.past) > 2 && r.At.Sub(v.past[1].At) >= window {
		v.past = v.past[1:]
	}
	if r.FamiliesAt == 0 || before.FamiliesAt == 0 {
		v.rates = nil
		return
	}
	elapsed := r.FamiliesAt - before.FamiliesAt
	if elapsed == 0 {
		return // the same values once more; the rates hold
	}
	totals := make(map[string]float64, len(before.Families))
	for i := range before.Families {
		if f := &before.Families[i]; f.Total != nil {
			totals[f.Name] = float64(*f.Total)
		}
	}
	v.rates = make(map[string]float64, len(r.Families))
	for i := range r.Families {
		f := &r.Families[i]
		was, ok := totals[f.Name]
		if f.Total == nil || !ok {
			continue
		}
		if rate := (float64(*f.Total) - was) / elapsed; rate >= 0 && !math.IsInf(rate, 0) { // NaN is not
			v.rates[f.Name] = rate
		}
	}
}

// Lost tells that the daemon did not answer. What was read before is still shown.
func (v *View) Lost(err error, at time.Time) {
	if v.lost == nil {
		v.since = at
	}
	v.lost = err
}

// increase returns by how much a sample of the daemon's own has grown over the window, and
// in what time, or false if that is not known.
func (v *View) increase(name string) (by float64, in time.Duration, ok bool) {
	if len(v.past) < 2 {
		return 0, 0, false
	}
	first, last := v.past[0], v.past[len(v.past)-1]
	a, okA := first.Own[name]
	b, okB := last.Own[name]
	in = last.At.Sub(first.At)
	return b - a, in, okA && okB && b >= a && in > 0
}

// clock is the daemon's time in Unix seconds, from which ages are counted.
func (v *View) clock(now time.Time) float64 {
	if v.now.FamiliesAt > 0 {
		return v.now.FamiliesAt + now.Sub(v.now.At).Seconds()
	}
	return float64(now.UnixMilli()) / 1000
}

// rate spells a rate with about three digits.
func rate(r float64) string {
	switch {
	case r == 0:
		return "0"
	case r < 0.01:
		return "<0.01"
	case r < 10:
		return strconv.FormatFloat(r, 'f', 2, 64)
	case r < 100:
		return strconv.FormatFloat(r, 'f', 1, 64)
	}
	return short(r)
}

// short spells a number in at most six columns.
func short(n float64) string {
	for _, unit := range []string{"", "k", "M", "G", "T"} {
		switch {
		case n < 10 && unit != "":
			return strconv.FormatFloat(n, 'f', 2, 64) + unit
		case n < 1000 || (unit == "" && n < 99999.5):
			return strconv.FormatFloat(n, 'f', 0, 64) + unit
		}
		n /= 1000
	}
	return strconv.FormatFloat(n, 'g', 3, 64) + "P"
}

// size spells a number of bytes.
func size(bytes float64) string {
	if bytes < 1024 {
		return strconv.FormatFloat(bytes, 'f', 0, 64) + "B"
	}
	unit := ""
	for _, unit = range []string{"K", "M", "G", "T", "P"} {
		if bytes /= 1024; bytes < 999.5 {
			break
		}
	}
	if bytes < 9.95 {
		return strconv.FormatFloat(bytes, 'f', 1, 64) + unit
	}
	return strconv.FormatFloat(bytes, 'f', 0, 64) + unit
}

// age spells how long ago a moment is, in Unix seconds, "-" for never.
func age(at, clock float64) string {
	if at == 0 {
		return "-"
	}
	return span(time.Duration(max(clock-at, 0) * float64(time.Second)))
}

// span spells a time in at most two units.
func span(d time.Duration) string {
	n := func(unit time.Duration) string { return strconv.Itoa(int(d / unit)) }
	rest := func(unit, of time.Duration, name string) string {
		if r := d % of / unit; r > 0 {
			return strconv.Itoa(int(r)) + name
		}
		return ""
	}
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return n(time.Second) + "s"
	case d < time.Hour:
		return n(time.Minute) + "m" + rest(time.Second, time.Minute, "s")
	case d < day:
		return n(time.Hour) + "h" + rest(time.Minute, time.Hour, "m")
	}
	return n(day) + "d" + rest(time.Hour, day, "h")
}

// seconds spells a short time.
func seconds(s float64) string {
	switch {
	case s < 0.0995:
		return strconv.FormatFloat(s*1000, 'g', 2, 64) + "ms"
	case s < 1:
		return strconv.FormatFloat(s*1000, 'f', 0, 64) + "ms"
	}
	return strconv.FormatFloat(s, 'g', 3, 64) + "s"
}
