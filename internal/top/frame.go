package top

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"aggregatord/internal/status"
	"aggregatord/internal/terminal"
)

// column is a column of a table. The numbers stand on the right. Where there is little room
// the columns go whose spare is the greatest; those of 0 stay.
type column struct {
	title  string
	number bool
	spare  int
}

// roomy is how many columns of the terminal the first column keeps while others can go.
const roomy = 28

// fit takes columns away until the rest is not too wide.
func fit(columns []column, rows [][]string, width int) ([]column, [][]string) {
	for {
		needed, spare := 0, -1
		for c := range columns {
			widest := terminal.Columns(columns[c].title)
			for _, row := range rows {
				widest = max(widest, terminal.Columns(terminal.Printable(row[c])))
			}
			switch {
			case c == 0:
				widest = min(widest, roomy)
			case c == len(columns)-1:
				widest = min(widest, roomy/2) // it can be cut
			}
			needed += widest + 2
			if columns[c].spare > 0 && (spare < 0 || columns[c].spare > columns[spare].spare) {
				spare = c
			}
		}
		if needed-2 <= width || spare < 0 {
			return columns, rows
		}
		columns = slices.Delete(slices.Clone(columns), spare, spare+1)
		for r := range rows {
			rows[r] = slices.Delete(slices.Clone(rows[r]), spare, spare+1)
		}
	}
}

// table lays rows out in columns, in at most so many columns of the terminal. What is too wide
// after fit is taken from the last column, which may go altogether, then from the first. The
// rows are made printable in their place.
func table(columns []column, rows [][]string, width int) []terminal.Line {
	if width > 0 {
		columns, rows = fit(columns, rows, width)
	}
	widths := make([]int, len(columns))
	for c := range columns {
		widths[c] = terminal.Columns(columns[c].title)
		for _, row := range rows {
			row[c] = terminal.Printable(row[c])
			widths[c] = max(widths[c], terminal.Columns(row[c]))
		}
	}
	const gap, least, leastOfLast = 2, 12, 8
	if width > 0 {
		over := gap*(len(widths)-1) - width
		for _, w := range widths {
			over += w
		}
		last := len(widths) - 1
		by := max(min(over, widths[last]), 0)
		widths[last], over = widths[last]-by, over-by
		if by > 0 && widths[last] < leastOfLast {
			over -= gap + widths[last]
			columns, widths = columns[:last], widths[:last]
		}
		widths[0] -= max(min(over, widths[0]-least), 0)
	}
	line := func(cell func(c int) string) string {
		var b strings.Builder
		for c := range columns {
			if c > 0 {
				b.WriteString("  ")
			}
			text := terminal.Cut(cell(c), widths[c])
			pad := strings.Repeat(" ", widths[c]-terminal.Columns(text))
			if columns[c].number {
				text, pad = pad, text
			}
			b.WriteString(text)
			b.WriteString(pad)
		}
		return b.String()
	}
	titles := line(func(c int) string { return columns[c].title })
	lines := []terminal.Line{{Text: strings.TrimRight(titles, " "), Style: terminal.Heading}}
	for _, row := range rows {
		lines = append(lines, terminal.Line{Text: strings.TrimRight(line(func(c int) string { return row[c] }), " ")})
	}
	return lines
}

// Frame returns what to show now in a terminal of this size. A width of 0 is any, and so is a
// height; then there is neither help nor a line that tells the keys.
func (v *View) Frame(width, height int, now time.Time) []terminal.Line {
	var f []terminal.Line
	if v.now != nil {
		f = v.body(width, height, now)
	} else {
		f = []terminal.Line{{Text: "aggregatord at " + v.Source, Style: terminal.Title}}
	}
	f = append(f[:1:1], append(v.notes(now), f[1:]...)...)
	if height > 0 {
		keys := v.keys(width)
		f = f[:min(len(f), max(height-1, 1))]
		for len(f) < height-1 {
			f = append(f, terminal.Line{})
		}
		if height > 1 {
			f = append(f, terminal.Line{Text: keys, Style: terminal.Faint})
		}
	}
	for i := range f {
		f[i].Text = terminal.Printable(f[i].Text)
		if width > 0 {
			f[i].Text = terminal.Cut(f[i].Text, width)
		}
		if f[i].Style == terminal.Heading {
			f[i].Text += strings.Repeat(" ", max(width-terminal.Columns(f[i].Text), 0)) // a bar
		}
	}
	return f
}

// keys is the line that tells the keys, as much of it as there is room for.
func (v *View) keys(width int) string {
	if v.Typing {
		return "Filter: " + v.Filter + "▏  Enter keep  Esc clear"
	}
	all := []string{
		"q quit", "s families by " + FamilyOrders[v.FamilyOrder], "w workers by " + WorkerOrders[v.WorkerOrder],
		"h help", "/ filter", "↑↓ scroll", "Tab table", "space pause", "o own " + map[bool]string{true: "on", false: "off"}[v.Own],
	}
	line := all[0]
	for _, key := range all[1:] {
		if width > 0 && terminal.Columns(line)+2+terminal.Columns(key) > width {
			break
		}
		line += "  " + key
	}
	return line
}

// notes are the lines that stand above everything, if there are any.
func (v *View) notes(now time.Time) []terminal.Line {
	var f []terminal.Line
	if v.lost != nil {
		f = append(f, terminal.Line{
			Text:  fmt.Sprintf("No answer for %s, trying again: %v", span(now.Sub(v.since)), v.lost),
			Style: terminal.Warning,
		})
	}
	if v.Paused {
		f = append(f, terminal.Line{Text: "Paused. Press space to go on.", Style: terminal.Warning})
	}
	if v.Filter != "" && !v.Typing {
		f = append(f, terminal.Line{
			Text:  fmt.Sprintf("Only what has %q in its name. Press / and Esc to show all.", v.Filter),
			Style: terminal.Warning,
		})
	}
	return f
}

var help = []string{
	"",
	"q, Ctrl-C     quit",
	"/             show only families, workers and pools with a text in their name",
	"↑ ↓ j k       scroll; PgUp, PgDn, Home and End, too",
	"Tab           scroll the other table: families or workers",
	"s             order the families by rate, series or name",
	"w             order the workers by change, entries, size, age or ID",
	"o             show or hide the families of the daemon itself",
	"space, p      pause and go on",
	"r             read now",
	"h, ?          this help, and back",
	"Ctrl-L        draw everything again",
	"Ctrl-Z        stop, as a job of the shell",
	"",
	"RATE/S is how much all counters of a family grew in a second, or how many",
	"observations there were; - is unknown. CHANGED is how long ago a value of a",
	"worker changed. Scrapes do not include the questions of this view, but each",
	"of its readings reads all files once, as a scrape does.",
}

// body is all but the notes.
func (v *View) body(width, height int, now time.Time) []terminal.Line {
	clock := v.clock(now)
	o := &v.now.Overview
	f := []terminal.Line{{
		Text:  fmt.Sprintf("aggregatord %s at %s, up %s, read every %v", o.Build.Version, v.Source, age(o.Started, clock), v.Every),
		Style: terminal.Title,
	}}
	if v.Help && height > 0 {
		for _, line := range help {
			f = append(f, terminal.Line{Text: line})
		}
		return f
	}
	for _, line := range []string{v.scrapes(), v.cost()} {
		if height < 20 {
			f = append(f, terminal.Line{Text: line})
			continue
		}
		const indent = "         " // that of their heads
		for i, part := range terminal.Wrap(terminal.Printable(line), max(width-len(indent), 0)) {
			if i > 0 {
				part = indent + part
			}
			f = append(f, terminal.Line{Text: part})
		}
	}
	// Small screens tell less of each.
	most := len(o.Problems)
	if height > 0 {
		most = max(height/8, 1)
	}
	for i, p := range o.Problems {
		if i == most-1 && len(o.Problems) > most {
			f = append(f, terminal.Line{Text: fmt.Sprintf("! and %d more problems", len(o.Problems)-i), Style: terminal.Warning})
			break
		}
		line := terminal.Line{Text: "! " + p.Text, Style: terminal.Warning}
		if p.Pool != "" {
			line.Text = "! " + p.Pool + ": " + p.Text
		}
		if p.Severity == "error" {
			line.Style = terminal.Alarm
		}
		f = append(f, line)
	}
	shown := v.pools()
	most = len(shown)
	if height > 0 {
		most = max(height/6, 1)
	}
	f = append(f, limited(poolTable(shown, clock, width), most, len(shown), "pools")...)
	if all := v.now.Outputs; len(all) > 0 {
		most = len(all)
		if height > 0 {
			most = max(height/8, 1)
		}
		f = append(f, limited(outputs(all, clock, width), most, len(all), "outputs")...)
	}

	families, total := v.families()
	workers, workersTotal := v.workers()
	rowsOfFamilies, rowsOfWorkers := v.Rows, v.Rows
	if height > 0 {
		// What is left, less two headings, the line of keys and that of a pause.
		left := max(height-len(f)-len(v.notes(now))-3, 2)
		share := left * 2 / 5
		if v.OnWorkers {
			share = left * 3 / 5
		}
		rowsOfWorkers = min(share, len(workers))
		rowsOfFamilies = min(left-rowsOfWorkers, len(families))
		rowsOfWorkers = left - rowsOfFamilies
	}
	if height == 0 {
		v.familyTop, v.workerTop = 0, 0
		if v.Rows == 0 {
			rowsOfFamilies, rowsOfWorkers = len(families), len(workers)
		}
	}
	v.familyTop = max(min(v.familyTop, len(families)-rowsOfFamilies), 0)
	v.workerTop = max(min(v.workerTop, len(workers)-rowsOfWorkers), 0)
	v.page = rowsOfFamilies
	if v.OnWorkers {
		v.page = rowsOfWorkers
	}
	families = families[v.familyTop:min(v.familyTop+rowsOfFamilies, len(families))]
	workers = workers[v.workerTop:min(v.workerTop+rowsOfWorkers, len(workers))]
	f = append(f, v.familyTable(families, v.title("FAMILY", height > 0 && !v.OnWorkers, v.familyTop, len(families), total), width)...)
	f = append(f, v.workerTable(workers, v.title("WORKER", height > 0 && v.OnWorkers, v.workerTop, len(workers), workersTotal), clock,
		width)...)
	return f
}

// title is the head of the first column of a table, which tells what part of it is shown, and
// whether it is the one that scrolls.
func (v *View) title(what string, scrolls bool, top, shown, total int) string {
	if scrolls {
		what = "▸ " + what
	}
	switch {
	case v.Filter != "" && total == 0:
		return what + " (none matches)"
	case shown >= total:
		return what
	case top > 0:
		return fmt.Sprintf("%s (%d–%d of %d)", what, top+1, top+shown, total)
	}
	return fmt.Sprintf("%s (%d of %d)", what, shown, total)
}

// limited is a table cut to a heading and so many rows.
func limited(lines []terminal.Line, most, all int, what string) []terminal.Line {
	if len(lines) <= most+1 {
		return lines
	}
	lines = lines[:most]
	return append(lines, terminal.Line{Text: fmt.Sprintf("… %d more %s", all-(most-1), what), Style: terminal.Faint})
}

// scrapes says what scrapes cost.
func (v *View) scrapes() string {
	count, in, ok := v.increase(scrapeCount)
	took, _, okTook := v.increase(scrapeSeconds)
	own := v.now.Own
	var parts []string
	switch {
	case !ok || !okTook:
	case count == 0:
		parts = append(parts, fmt.Sprintf("none in the last %s", span(in)))
	default:
		parts = append(parts, fmt.Sprintf("%.0f in the last %s, %s each", count, span(in), seconds(took/count)))
	}
	if n := own[scrapeCount]; n > 0 {
		parts = append(parts, fmt.Sprintf("%s in all, %s each", short(n), seconds(own[scrapeSeconds]/n)))
	} else {
		parts = append(parts, "none yet")
	}
	if plain := own[SizeSample+"{plain}"]; plain > 0 {
		sizes := []string{size(plain)}
		for _, encoding := range []string{"gzip", "zstd"} {
			if sent := own[SizeSample+"{"+encoding+"}"]; sent > 0 {
				sizes = append(sizes, size(sent)+" by "+encoding)
			}
		}
		parts = append(parts, strings.Join(sizes, ", "))
	}
	return "Scrapes  " + strings.Join(parts, "; ")
}

// cost says what the rest costs.
func (v *View) cost() string {
	o, own := &v.now.Overview, v.now.Own
	parts := []string{fmt.Sprintf("%d families, %d samples of %d values, read in %s",
		o.Merge.Families, o.Merge.Samples, o.Merge.Entries, seconds(o.Merge.LastSeconds))}
	if used, in, ok := v.increase(cpuSeconds); ok {
		parts = append(parts, fmt.Sprintf("CPU %.1f%%", 100*used/in.Seconds()))
	}
	if bytes := own[residentBytes]; bytes > 0 {
		parts = append(parts, size(bytes)+" of memory")
	}
	return "View     " + strings.Join(parts, "; ")
}

// pools are those to be shown: the ones with problems come first.
func (v *View) pools() []*status.Pool {
	var shown []*status.Pool
	for i := range v.now.Overview.Pools {
		p := &v.now.Overview.Pools[i]
		if v.matches(append(slices.Collect(maps.Values(p.Labels)), p.Name, p.Dir)...) {
			shown = append(shown, p)
		}
	}
	rank := func(p *status.Pool) int { return slices.Index([]string{"", "warning", "error"}, p.Trouble) }
	slices.SortStableFunc(shown, func(a, b *status.Pool) int { return cmp.Compare(rank(b), rank(a)) })
	return shown
}

func poolTable(all []*status.Pool, clock float64, width int) []terminal.Line {
	var rows [][]string
	for _, p := range all {
		archive := p.Archive.State
		if p.Archive.Bytes > 0 {
			archive += " " + size(float64(p.Archive.Bytes))
		}
		if n := p.Archive.Awaiting; n > 0 {
			archive += fmt.Sprintf(", %d to fold", n)
		}
		free := "-"
		if s := p.FileSystem; s != nil && s.TotalBytes > 0 {
			free = fmt.Sprintf("%.0f%%", 100*float64(s.FreeBytes)/float64(s.TotalBytes))
		}
		dir := p.Dir
		switch {
		case p.Vanished > 0:
			dir += " (gone; removed in " + span(time.Duration(max(p.Until-clock, 0)*float64(time.Second))) + ")"
		case !p.Up:
			dir += " (cannot be read)"
		}
		rows = append(rows, []string{
			cmp.Or(p.Name, "-"), strconv.Itoa(p.Workers.Alive), strconv.Itoa(p.Workers.Dead),
			strconv.Itoa(p.Files.Alive + p.Files.Dead + p.Files.Staged + p.Files.Removed + p.Files.Failed),
			size(float64(p.SizeBytes)), free, p.Liveness.Method, p.Source, archive, dir,
		})
	}
	columns := []column{
		{"POOL", false, 0},
		{"ALIVE", true, 0},
		{"DEAD", true, 0},
		{"FILES", true, 3},
		{"SIZE", true, 4},
		{"FREE", true, 0},
		{"BY", false, 2},
		{"FROM", false, 5},
		{"ARCHIVE", false, 0},
		{"DIRECTORY", false, 0},
	}
	if !slices.ContainsFunc(all, func(p *status.Pool) bool { return p.Source != "" && p.Source != "configuration" }) {
		// Where none was found there is nothing to tell apart, and the directory needs the room.
		const from = 7
		columns = slices.Delete(columns, from, from+1)
		for i := range rows {
			rows[i] = slices.Delete(rows[i], from, from+1)
		}
	}
	return table(columns, rows, width)
}

// outputs is the table of outputs; those that fail come first.
func outputs(all []status.Output, clock float64, width int) []terminal.Line {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b status.Output) int { return cmp.Compare(min(b.Failures, 1), min(a.Failures, 1)) })
	var rows [][]string
	for i := range all {
		o := &all[i]
		state, next := "ok", "-"
		switch {
		case o.Failures > 0:
			state = fmt.Sprintf("failed %d times", o.Failures)
		case o.LastTry == 0:
			state = "not yet"
		}
		if o.Next > 0 {
			next = age(clock, o.Next)
		}
		rows = append(rows, []string{
			o.Name, o.Type, state, age(o.LastSuccess, clock), next, strconv.Itoa(o.Samples),
			size(float64(o.Bytes)), o.Target,
		})
	}
	return table([]column{
		{"OUTPUT", false, 0},
		{"TYPE", false, 3},
		{"STATE", false, 0},
		{"SUCCESS", true, 0},
		{"NEXT", true, 0},
		{"SAMPLES", true, 2},
		{"SENT", true, 4},
		{"RECEIVER", false, 1},
	}, rows, width)
}

// families are those to be shown, in order, and how many there are.
func (v *View) families() (shown []*status.Family, total int) {
	for i := range v.now.Families {
		if f := &v.now.Families[i]; (v.Own || !f.Own) && v.matches(f.Name) {
			shown = append(shown, f)
		}
	}
	known := func(f *status.Family) float64 {
		if r, ok := v.rates[f.Name]; ok {
			return r
		}
		return -1
	}
	slices.SortStableFunc(shown, func(a, b *status.Family) int {
		switch FamilyOrders[v.FamilyOrder] {
		case "rate":
			// What has no rate, such as a gauge, comes last, by its size.
			return cmp.Or(cmp.Compare(known(b), known(a)), cmp.Compare(b.Series, a.Series))
		case "series":
			return cmp.Compare(b.Series, a.Series)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return shown, len(shown)
}

// workers are those to be shown, and how many there are.
func (v *View) workers() (shown []status.Worker, total int) {
	for _, w := range v.now.Workers.Items {
		if v.matches(w.ID, w.Pool) {
			shown = append(shown, w)
		}
	}
	if v.Filter == "" {
		return shown, max(v.now.Workers.Total, len(shown))
	}
	return shown, len(shown)
}

func (v *View) familyTable(families []*status.Family, title string, width int) []terminal.Line {
	var rows [][]string
	for _, f := range families {
		growth := ""
		if r, ok := v.rates[f.Name]; ok {
			growth = rate(r)
		} else if f.Total != nil {
			growth = "-"
		}
		rows = append(rows, []string{
			f.Name, growth, strconv.Itoa(f.Series), strconv.Itoa(f.Samples), strings.TrimSpace(f.Type + " " + f.Mode), f.Help,
		})
	}
	return table([]column{
		{title, false, 0},
		{"RATE/S", true, 0},
		{"SERIES", true, 0},
		{"SAMPLES", true, 3},
		{"TYPE", false, 1},
		{"HELP", false, 2},
	}, rows, width)
}

func (v *View) workerTable(workers []status.Worker, title string, clock float64, width int) []terminal.Line {
	var rows [][]string
	for i := range workers {
		w := &workers[i]
		state := "alive"
		if !w.Alive {
			state = "dead"
		}
		remark := w.Pool
		if w.Failed > 0 {
			remark = strings.TrimSpace(fmt.Sprintf("%s %d unreadable", remark, w.Failed))
		}
		pid, cpu, memory := "-", "-", "-"
		if p := w.Process; p != nil {
			pid, memory = strconv.Itoa(p.Pid), size(float64(p.ResidentBytes))
			if cpu = seconds(p.CPUSeconds); p.CPUSeconds >= 60 {
				cpu = span(time.Duration(p.CPUSeconds * float64(time.Second)))
			}
		}
		rows = append(rows, []string{
			w.ID, state, age(w.Changed, clock), age(w.Created, clock), cpu, memory, strconv.Itoa(w.Files), strconv.Itoa(w.Entries),
			size(float64(w.UsedBytes)), size(float64(w.SizeBytes)), w.KnownBy, pid, remark,
		})
	}
	return table([]column{
		{title, false, 0},
		{"STATE", false, 0},
		{"CHANGED", true, 0},
		{"AGE", true, 0},
		{"CPU", true, 1},
		{"MEMORY", true, 1},
		{"FILES", true, 4},
		{"ENTRIES", true, 2},
		{"USED", true, 3},
		{"SIZE", true, 6},
		{"BY", false, 5},
		{"PID", true, 7},
		{"POOL", false, 1},
	}, rows, width)
}
