package top

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"aggregatord/internal/status"
	"aggregatord/internal/terminal"
)

// column is a column of a table. The numbers stand on the right.
type column struct {
	title  string
	number bool
}

// table lays rows out in columns, in at most so many columns of the terminal. What is too
// wide is taken from the last column, which may go altogether, then from the first. The rows
// are made printable in their place.
func table(columns []column, rows [][]string, width int) []terminal.Line {
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
		keys := fmt.Sprintf("q quit  s families by %s  w workers by %s  o own %s  space pause  h help",
			FamilyOrders[v.FamilyOrder], WorkerOrders[v.WorkerOrder], map[bool]string{true: "on", false: "off"}[v.Own])
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

// notes are the lines that stand above everything, if there are any.
func (v *View) notes(now time.Time) []terminal.Line {
	var f []terminal.Line
	if v.lost != nil {
		f = append(f, terminal.Line{Text: fmt.Sprintf("no answer for %s, trying again: %v", span(now.Sub(v.since)), v.lost), Style: terminal.Warning})
	}
	if v.Paused {
		f = append(f, terminal.Line{Text: "paused; space goes on", Style: terminal.Warning})
	}
	return f
}

var help = []string{
	"",
	"q, Ctrl-C     quit",
	"s             another order of the families: by rate, series or name",
	"w             another order of the workers: by change, entries, size, age or ID",
	"o             show the daemon's own families, too, or no more",
	"space, p      pause, and go on",
	"r             read now",
	"h, ?          this help, and back",
	"Ctrl-L        draw everything again        Ctrl-Z   stop, as a shell's job",
	"",
	"RATE/S is by how much all counters of a family have grown in a second, or how many",
	"observations there were, from one reading to the next; - is not known yet. CHANGED is",
	"how long ago one of a worker's values was seen to be another one: a worker at rest",
	"changes nothing. Scrapes are those that were answered, the questions of this view are",
	"not among them; but each of its readings has all files read once, as a scrape has.",
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
	f = append(f, terminal.Line{Text: v.scrapes()}, terminal.Line{Text: v.cost()})
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
	most = len(o.Pools)
	if height > 0 {
		most = max(height/6, 1)
	}
	f = append(f, limited(pools(o.Pools, width), most, len(o.Pools), "pools")...)

	families, total := v.families()
	rowsOfFamilies, rowsOfWorkers := v.Rows, v.Rows
	if height > 0 {
		// What is left, less two headings, the line of keys and that of a pause.
		left := max(height-len(f)-len(v.notes(now))-3, 2)
		rowsOfWorkers = min(left*2/5, len(v.now.Workers.Items))
		rowsOfFamilies = min(left-rowsOfWorkers, len(families))
		rowsOfWorkers = left - rowsOfFamilies
	}
	cut := func(n, rows int) int {
		if rows == 0 && height == 0 {
			return n
		}
		return min(n, rows)
	}
	f = append(f, v.familyTable(families[:cut(len(families), rowsOfFamilies)], total, width)...)
	workers := v.now.Workers.Items
	f = append(f, v.workerTable(workers[:cut(len(workers), rowsOfWorkers)], clock, width)...)
	return f
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

func pools(all []status.Pool, width int) []terminal.Line {
	var rows [][]string
	for i := range all {
		p := &all[i]
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
		if !p.Up {
			dir += " (cannot be listed)"
		}
		rows = append(rows, []string{
			cmp.Or(p.Name, "-"), strconv.Itoa(p.Workers.Alive), strconv.Itoa(p.Workers.Dead),
			strconv.Itoa(p.Files.Alive + p.Files.Dead + p.Files.Staged + p.Files.Removed + p.Files.Failed),
			size(float64(p.SizeBytes)), free, p.Liveness.Method, archive, dir,
		})
	}
	return table([]column{
		{"POOL", false},
		{"ALIVE", true},
		{"DEAD", true},
		{"FILES", true},
		{"SIZE", true},
		{"FREE", true},
		{"BY", false},
		{"ARCHIVE", false},
		{"DIRECTORY", false},
	}, rows, width)
}

// families are those to be shown, in order, and how many there are.
func (v *View) families() (shown []*status.Family, total int) {
	for i := range v.now.Families {
		if f := &v.now.Families[i]; v.Own || !f.Own {
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

func (v *View) familyTable(families []*status.Family, total, width int) []terminal.Line {
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
	title := "FAMILY"
	if len(families) < total {
		title = fmt.Sprintf("FAMILY (%d of %d)", len(families), total)
	}
	return table([]column{{title, false}, {"RATE/S", true}, {"SERIES", true}, {"SAMPLES", true}, {"TYPE", false}, {"HELP", false}}, rows, width)
}

func (v *View) workerTable(workers []status.Worker, clock float64, width int) []terminal.Line {
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
		rows = append(rows, []string{
			w.ID, state, age(w.Changed, clock), age(w.Created, clock), strconv.Itoa(w.Files), strconv.Itoa(w.Entries),
			size(float64(w.UsedBytes)), size(float64(w.SizeBytes)), w.KnownBy, remark,
		})
	}
	title := "WORKER"
	if total := v.now.Workers.Total; len(workers) < total {
		title = fmt.Sprintf("WORKER (%d of %d)", len(workers), total)
	}
	return table([]column{
		{title, false},
		{"STATE", false},
		{"CHANGED", true},
		{"AGE", true},
		{"FILES", true},
		{"ENTRIES", true},
		{"USED", true},
		{"SIZE", true},
		{"BY", false},
		{"POOL", false},
	}, rows, width)
}
