// Package top shows how a pool is doing, as text for a terminal: what the daemon says in
// its API, and how fast the counts rise between two looks.
//
// Its one invariant: what workers have written can move neither the cursor nor anything
// else. Whatever is not printable is shown as a question mark.
package top

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// pageSize is how many families or workers are asked for at once, the most that the API gives
// out. Of more, those with the first names are shown; the frame says so.
const pageSize = 5000

// maxAnswer bounds an answer of the daemon, in bytes.
const maxAnswer = 64 << 20

// Client asks a daemon.
type Client struct {
	// URL is where the daemon is, without a path.
	URL string
	// HTTP may be nil.
	HTTP *http.Client
}

// A Look is what the daemon said at one moment.
type Look struct {
	At       time.Time
	Status   status
	Families page[family]
	Workers  page[worker]
}

type status struct {
	Build    struct{ Version string }
	Started  float64
	Ready    bool
	Problems []struct{ Severity, Text, Pool string }
	Pools    []struct {
		Name, Dir string
		Up        bool
		Error     string
		Liveness  struct{ Method string }
		Workers   struct{ Alive, Dead int }
		Files     struct{ Alive, Dead, Staged, Removed, Failed, Foreign int }
		Entries   int
		Space     *struct {
			Total uint64 `json:"total_bytes"`
			Free  uint64 `json:"free_bytes"`
		} `json:"file_system"`
		Archive struct {
			State, Error string
			FoldedFiles  int `json:"folded_files"`
			Awaiting     int
		}
	}
	Merge struct {
		Families, Samples int
		Passes            int
		LastSeconds       float64 `json:"last_seconds"`
	}
}

type family struct {
	Name, Type string
	Series     int
	Total      *count
	Own        bool
}

// count is a number that the API gives as a string, because JSON has no NaN.
type count float64

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *count) UnmarshalText(text []byte) error {
	v, err := strconv.ParseFloat(string(text), 64)
	*c = count(v)
	return err
}

type worker struct {
	Pool, ID string
	Alive    bool
	Files    int
	Entries  int
	Size     int64   `json:"size_bytes"`
	Changed  float64 `json:"changed"`
}

type page[T any] struct {
	Matching int
	Items    []T
}

// Look asks for everything that a frame shows.
func (c *Client) Look(ctx context.Context) (*Look, error) {
	l := &Look{At: time.Now()}
	for _, q := range []struct {
		path string
		into any
	}{
		{"status", &l.Status},
		{fmt.Sprintf("families?limit=%d", pageSize), &l.Families},
		{fmt.Sprintf("workers?limit=%d", pageSize), &l.Workers},
	} {
		if err := c.get(ctx, q.path, q.into); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// get asks one question.
func (c *Client) get(ctx context.Context, path string, into any) (err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.URL, "/")+"/api/v1/"+path, nil)
	if err != nil {
		return err
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the daemon: %w", err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&answer); err != nil || answer.Status == "" {
		return fmt.Errorf("ask the daemon: %s answers %s, and that is not its API; give its address by --url", c.URL, resp.Status)
	}
	if answer.Status != "success" {
		return fmt.Errorf("ask the daemon: %s", answer.Error)
	}
	if err := json.Unmarshal(answer.Data, into); err != nil {
		return fmt.Errorf("read the answer about %s: %w", path, err)
	}
	return nil
}

// rate is a family and how fast it rises.
type rate struct {
	family
	perSecond float64
}

// rates returns the workers' families that count something, the fastest first. A total that
// has fallen began anew, so its rate is that of what it has now.
func rates(old, now *Look) []rate {
	before := map[string]float64{}
	if old != nil {
		for _, f := range old.Families.Items {
			if f.Total != nil {
				before[f.Name] = float64(*f.Total)
			}
		}
	}
	var all []rate
	for _, f := range now.Families.Items {
		if f.Own || f.Total == nil {
			continue
		}
		r := rate{family: f}
		if b, ok := before[f.Name]; ok || old != nil {
			gain := float64(*f.Total) - b
			if gain < 0 {
				gain = float64(*f.Total)
			}
			r.perSecond = gain / now.At.Sub(old.At).Seconds()
		}
		all = append(all, r)
	}
	slices.SortStableFunc(all, func(a, b rate) int {
		if a.perSecond != b.perSecond {
			if a.perSecond > b.perSecond {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all
}

// Frame renders a look, with the rates since an old one, nil for none, in lines of at most
// width columns. It has at most height lines; 0 is no bound for either.
func Frame(url string, old, now *Look, width, height int) []string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	s := now.Status
	ready := "ready"
	if !s.Ready {
		ready = "not ready"
	}
	up := now.At.Sub(time.UnixMilli(int64(s.Started * 1000))).Truncate(time.Second)
	add("aggregatord %s at %s, %s, up %v, %s", s.Build.Version, url, ready, max(up, 0), now.At.Format(time.TimeOnly))
	add("%d samples of %d families, read in %.1f ms", s.Merge.Samples, s.Merge.Families, s.Merge.LastSeconds*1e3)
	for _, p := range s.Pools {
		name := p.Name
		if name == "" {
			name = p.Dir
		}
		text := fmt.Sprintf("%s: %d workers alive, %d dead; %d files, %d failed; known by %s; archive %s, %d files folded, %d waiting",
			name, p.Workers.Alive, p.Workers.Dead, p.Files.Alive+p.Files.Dead+p.Files.Staged+p.Files.Removed, p.Files.Failed,
			p.Liveness.Method, p.Archive.State, p.Archive.FoldedFiles, p.Archive.Awaiting)
		if p.Space != nil {
			text += fmt.Sprintf("; %s of %s free", size(int64(p.Space.Free)), size(int64(p.Space.Total))) //nolint:gosec // no disk is that large
		}
		add("%s", text)
	}
	for _, p := range s.Problems {
		add("%s: %s", p.Severity, p.Text)
	}
	fams := rates(old, now)
	slices.SortStableFunc(now.Workers.Items, func(a, b worker) int {
		if a.Changed != b.Changed {
			if a.Changed > b.Changed {
				return -1
			}
			return 1
		}
		return 0
	})
	workers := now.Workers.Items
	if height > 0 {
		// Families and workers share what is left; each has a heading and an empty line before.
		left := max(height-len(lines)-4, 2)
		most := max(left/2, left-len(workers))
		fams = fams[:min(len(fams), most)]
		workers = workers[:min(len(workers), left-len(fams))]
	}
	add("")
	note := ""
	if now.Families.Matching > len(now.Families.Items) {
		note = fmt.Sprintf("   (of the first %d)", len(now.Families.Items))
	}
	add("%12s %14s %8s  %-10s %s", "PER SECOND", "TOTAL", "SERIES", "TYPE", "FAMILY"+note)
	for _, f := range fams {
		perSecond := "-"
		if old != nil {
			perSecond = fmt.Sprintf("%.1f", f.perSecond)
		}
		add("%12s %14.6g %8d  %-10s %s", perSecond, float64(*f.Total), f.Series, f.Type, f.Name)
	}
	add("")
	note = ""
	if now.Workers.Matching > len(now.Workers.Items) {
		note = fmt.Sprintf("   (of the first %d)", len(now.Workers.Items))
	}
	add("%8s %8s %10s %12s  %-6s %s", "FILES", "VALUES", "SIZE", "CHANGED", "STATE", "WORKER"+note)
	for _, w := range workers {
		state, id := "dead", w.ID
		if w.Alive {
			state = "alive"
		}
		if w.Pool != "" {
			id = w.Pool + "/" + w.ID
		}
		add("%8d %8d %10s %12s  %-6s %s", w.Files, w.Entries, size(w.Size), ago(now.At, w.Changed), state, id)
	}
	if height > 0 && len(lines) > height {
		lines = lines[:height]
	}
	for i, line := range lines {
		lines[i] = Clean(line, width)
	}
	return lines
}

// Clean makes a text fit for a terminal, in at most width columns; 0 is no bound.
func Clean(s string, width int) string {
	var b strings.Builder
	columns := 0
	for _, r := range s {
		if width > 0 && columns == width {
			break
		}
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			r = '?'
		}
		b.WriteRune(r)
		columns++
	}
	return b.String()
}

// size spells a number of bytes.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

// ago spells how long ago a time in Unix seconds was.
func ago(now time.Time, unix float64) string {
	if unix == 0 {
		return "-"
	}
	d := now.Sub(time.UnixMilli(int64(unix * 1000)))
	return max(d, 0).Truncate(time.Second).String() + " ago"
}
