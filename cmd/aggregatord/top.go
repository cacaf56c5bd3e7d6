package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/status"
	"aggregatord/internal/terminal"
	"aggregatord/internal/top"
)

type topOptions struct {
	client     clientOptions
	interval   time.Duration
	iterations int
	rows       int
}

func (o *topOptions) addFlags(f *pflag.FlagSet) {
	o.client.addFlags(f)
	durationVar(f, &o.interval, "interval", 2*time.Second, "how often to read")
	f.IntVar(&o.iterations, "iterations", 1, "print so many `FRAMES` as plain text, and end; 0 prints without end")
	f.IntVar(&o.rows, "rows", 20, "how many `ROWS` of each table to print as plain text; 0 prints all")
}

// minInterval is how often the daemon reads values for its API.
const minInterval = 500 * time.Millisecond

func newTopCmd() *cobra.Command {
	var o topOptions
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch a running daemon: its busiest metrics, its workers, and what scrapes cost",
		Long: `Show what a running daemon sees: its pools and workers, the metrics that grow fastest, and
what its scrapes cost. Press / to filter, the arrows to scroll, h for all keys, q to quit.

Without a terminal, or with --iterations, it prints frames of plain text and ends. The
first one comes after an interval, because a rate needs two readings.`,
		Example: `  aggregatord top
  aggregatord top --url https://user:password@metrics.example:9500 --interval 5s
  aggregatord top --iterations 1`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	cmd.Flags().SortFlags = false
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *topOptions) run(cmd *cobra.Command) error {
	switch {
	case o.interval < minInterval:
		return usagef("--interval %v: use %v or more; the daemon reads values no more often", o.interval, minInterval)
	case o.iterations < 0:
		return usagef("--iterations %d: use 0 for no end, or a number above it", o.iterations)
	case o.rows < 0:
		return usagef("--rows %d: use 0 for all, or a number above it", o.rows)
	}
	c, err := o.client.client()
	if err != nil {
		return err
	}
	defer c.http.CloseIdleConnections()
	v := &top.View{Source: c.name, Every: o.interval}
	// Who calls with the wrong address is told so at once.
	first, err := readTop(cmd.Context(), c, v.WorkersQuery())
	if err != nil {
		return err
	}
	v.Add(first)
	stdout, ok := cmd.OutOrStdout().(*os.File)
	if !ok || cmd.Flags().Changed("iterations") || !terminal.Interactive(stdout) {
		v.Rows = o.rows
		return o.plain(cmd.Context(), cmd.OutOrStdout(), c, v)
	}
	return o.live(cmd.Context(), c, v)
}

// plain prints frames. The error is that of the last reading, if it failed.
func (o *topOptions) plain(ctx context.Context, w io.Writer, c *client, v *top.View) error {
	ticker := time.NewTicker(o.interval)
	defer ticker.Stop()
	var lost error
	for i := 0; o.iterations == 0 || i < o.iterations; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		r, err := readTop(ctx, c, v.WorkersQuery())
		if ctx.Err() != nil {
			return nil
		}
		if lost = err; err == nil {
			v.Add(r)
		} else {
			v.Lost(cause(err), time.Now())
		}
		var out bytes.Buffer
		if i > 0 {
			out.WriteByte('\n')
		}
		for _, line := range v.Frame(0, 0, time.Now()) {
			fmt.Fprintln(&out, line.Text)
		}
		if _, err := out.WriteTo(w); err != nil {
			return err
		}
	}
	return lost
}

// reading is how an attempt to read went.
type reading struct {
	*top.Reading
	err error
}

// live has the terminal until the user has enough.
func (o *topOptions) live(ctx context.Context, c *client, v *top.View) (err error) {
	// These would end the program with the terminal as it is now.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()
	screen, err := terminal.Open()
	if err != nil {
		return fmt.Errorf("%w; for plain text use --iterations", err)
	}
	defer func() {
		if closeErr := screen.Close(); err == nil && ctx.Err() == nil {
			err = closeErr
		}
	}()
	readings := make(chan reading)
	var reads sync.WaitGroup
	defer func() { stop(); reads.Wait() }()
	busy := false
	read := func() {
		if busy {
			return
		}
		busy = true
		query := v.WorkersQuery()
		// Ends with the answers, or when the context is done.
		reads.Go(func() {
			defer screen.Guard()
			r, err := readTop(ctx, c, query)
			select {
			case readings <- reading{r, err}:
			case <-ctx.Done():
			}
		})
	}
	next := time.NewTicker(o.interval)
	defer next.Stop()
	// Ages grow between readings.
	clock := time.NewTicker(time.Second)
	defer clock.Stop()
	for {
		if err := screen.Draw(frame(screen, v)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
			if !v.Paused {
				read()
			}
		case <-clock.C:
		case r := <-readings:
			busy = false
			if r.err == nil {
				v.Add(r.Reading)
			} else {
				v.Lost(cause(r.err), time.Now())
			}
		case what := <-screen.Changed():
			if err := screen.Adapt(what); err != nil {
				return err
			}
		case key, ok := <-screen.Keys():
			if !ok {
				return nil // the terminal is gone
			}
			if v.Typing {
				if v.Type(key); !v.Typing {
					read() // the daemon searches among all workers
				}
				continue
			}
			switch key {
			case '/':
				v.Typing = true
			case terminal.KeyTab:
				v.OnWorkers = !v.OnWorkers
			case terminal.KeyUp, 'k':
				v.Scroll(-1, 0)
			case terminal.KeyDown, 'j':
				v.Scroll(1, 0)
			case terminal.KeyPageUp:
				v.Scroll(0, -1)
			case terminal.KeyPageDown:
				v.Scroll(0, 1)
			case terminal.KeyHome, terminal.KeyEnd:
				v.ScrollTo(key == terminal.KeyEnd)
			case 'q', 'Q', terminal.KeyCtrlC:
				return nil
			case terminal.KeySuspend:
				if err := screen.Suspend(); err != nil {
					return err
				}
			case terminal.KeyCtrlL:
				screen.Forget()
			case 's':
				v.FamilyOrder = (v.FamilyOrder + 1) % len(top.FamilyOrders)
			case 'w':
				v.WorkerOrder = (v.WorkerOrder + 1) % len(top.WorkerOrders)
				read()
			case 'o':
				v.Own = !v.Own
			case ' ', 'p':
				v.Paused = !v.Paused
			case 'r':
				read()
			case 'h', '?':
				v.Help = !v.Help
			}
		}
	}
}

// cause is the innermost of an error: where and what was asked is known.
func cause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

func frame(screen *terminal.Screen, v *top.View) []terminal.Line {
	columns, lines := screen.Size()
	return v.Frame(columns, lines, time.Now())
}

// readTop asks the daemon for all that is shown.
func readTop(ctx context.Context, c *client, workers url.Values) (*top.Reading, error) {
	// A frame that comes late is better given up than waited for.
	ctx, stop := context.WithTimeout(ctx, patience/2)
	defer stop()
	r := &top.Reading{Own: map[string]float64{}}
	var err error
	if r.Overview, err = askFor[status.Overview](ctx, c, "status", nil); err != nil {
		return nil, err
	}
	if r.Workers, err = askFor[status.Page[status.Worker]](ctx, c, "workers", workers); err != nil {
		return nil, err
	}
	// A daemon of an earlier version has no outputs.
	if r.Outputs, err = askFor[[]status.Output](ctx, c, "outputs", nil); err != nil && ctx.Err() != nil {
		return nil, err
	}
	if r.Overview.Ready {
		for {
			const page = 5000 // the API gives no more at once
			f, err := askFor[status.Families](ctx, c, "families",
				url.Values{"limit": {strconv.Itoa(page)}, "offset": {strconv.Itoa(len(r.Families))}})
			if err != nil {
				return nil, err
			}
			r.Families, r.FamiliesAt = append(r.Families, f.Items...), f.Time
			if len(f.Items) == 0 || len(r.Families) >= f.Matching {
				break
			}
		}
		for _, name := range append([]string{top.SizeSample}, top.Samples...) {
			samples, err := askFor[status.Samples](ctx, c, "series", url.Values{"match": {name}})
			if err != nil {
				return nil, err
			}
			for _, s := range samples.Items {
				if name == top.SizeSample {
					r.Own[name+"{"+s.Labels["encoding"]+"}"] = float64(s.Value)
				} else {
					r.Own[name] += float64(s.Value)
				}
			}
		}
	}
	r.At = time.Now()
	return r, nil
}
