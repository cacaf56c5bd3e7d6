package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// A report is what is printed in the end.
type report struct {
	rows    []row
	targets []target
	notes   []string
}

// A row is one line of the table of measurements.
type row struct {
	shape, what string
	// value is the median or the number, spread the 10th and 90th percentile.
	value, spread string
	// ratio is to the floor, or to whatever versus names; calm is that of the 10th
	// percentiles, which a busy machine disturbs less.
	ratio, calm, versus string
}

// A target is one line of the table of targets.
type target struct {
	shape, what, want, measured string
	verdict                     verdict
}

type verdict string

const (
	met        verdict = "met"
	missed     verdict = "MISSED"
	unmeasured verdict = "not measured"
)

// note adds a remark, printed below the tables.
func (r *report) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// time adds a row with seconds, beside those of a reference if there is one.
func (r *report) time(shape, what string, samples []float64, versus string, reference []float64) {
	rw := row{shape: shape, what: what, value: duration(median(samples))}
	if len(samples) > 2 {
		rw.spread = duration(quantile(samples, .1)) + " – " + duration(quantile(samples, .9))
	}
	if reference != nil {
		rw.ratio, rw.versus = times(median(samples)/median(reference)), versus
		if rw.spread != "" {
			rw.calm = times(quantile(samples, .1) / quantile(reference, .1))
		}
	}
	r.rows = append(r.rows, rw)
}

// number adds a row with any value.
func (r *report) number(shape, what, value, remark string) {
	r.rows = append(r.rows, row{shape: shape, what: what, value: value, versus: remark})
}

// atMost adds a target for a number that must not be greater than limit.
func (r *report) atMost(shape, what, want string, measured float64, spell func(float64) string, limit float64) {
	r.judge(shape, what, want, spell(measured), known(measured), measured <= limit)
}

// judge adds a target.
func (r *report) judge(shape, what, want, measured string, known, ok bool) {
	t := target{shape: shape, what: what, want: want, measured: measured, verdict: missed}
	switch {
	case !known:
		t.measured, t.verdict = "", unmeasured
	case ok:
		t.verdict = met
	}
	r.targets = append(r.targets, t)
}

// print writes the tables as plain text or as Markdown.
func (r *report) print(w io.Writer, heading []string, markdown bool) error {
	p := printer{w: w, markdown: markdown}
	for _, h := range heading {
		p.line(h)
	}
	rows := [][]string{{"shape", "what", "median", "10–90 %", "ratio", "at 10 %", "to"}}
	for _, rw := range r.rows {
		rows = append(rows, []string{rw.shape, rw.what, rw.value, rw.spread, rw.ratio, rw.calm, rw.versus})
	}
	p.table(rows, "llrrrrl")
	rows = [][]string{{"shape", "target", "wanted", "measured", ""}}
	for _, t := range r.targets {
		rows = append(rows, []string{t.shape, t.what, t.want, t.measured, string(t.verdict)})
	}
	p.table(rows, "lllrl")
	for _, n := range r.notes {
		p.line(n)
	}
	return p.err
}

// A printer keeps its first error.
type printer struct {
	w        io.Writer
	markdown bool
	err      error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *printer) line(s string) {
	if p.markdown {
		s = "- " + s
	}
	p.printf("%s\n", s)
}

// table writes rows, the first of which is the head, with a column aligned left or right
// for each letter. Cells equal to the one above are left empty in the first column.
func (p *printer) table(rows [][]string, align string) {
	widths := make([]int, len(align))
	above := ""
	for i, cells := range rows {
		if i > 0 && cells[0] == above {
			cells[0] = ""
		} else {
			above = cells[0]
		}
		for c, cell := range cells {
			widths[c] = max(widths[c], utf8.RuneCountInString(cell))
		}
	}
	p.printf("\n")
	for i, cells := range rows {
		var line strings.Builder
		for c, cell := range cells {
			gap := strings.Repeat(" ", widths[c]-utf8.RuneCountInString(cell))
			if align[c] == 'r' {
				cell = gap + cell
			} else {
				cell += gap
			}
			if p.markdown {
				cell = "| " + cell + " "
			} else {
				cell += "  "
			}
			line.WriteString(cell)
		}
		if p.markdown {
			line.WriteString("|")
		}
		p.printf("%s\n", strings.TrimRight(line.String(), " "))
		if i == 0 {
			p.rule(widths, align)
		}
	}
	p.printf("\n")
}

// rule writes what stands between the head and the rest.
func (p *printer) rule(widths []int, align string) {
	var line strings.Builder
	for c, w := range widths {
		switch {
		case !p.markdown:
			line.WriteString(strings.Repeat("─", w) + "  ")
		case align[c] == 'r':
			line.WriteString("|" + strings.Repeat("-", w+1) + ":")
		default:
			line.WriteString("|" + strings.Repeat("-", w+2))
		}
	}
	if p.markdown {
		line.WriteString("|")
	}
	p.printf("%s\n", strings.TrimRight(line.String(), " "))
}
