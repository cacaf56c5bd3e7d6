package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"aggregatord/internal/top"
)

type topOptions struct {
	url      string
	interval time.Duration
}

func (o *topOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.url, "url", defaultURL, "`URL` of the daemon, without a path")
	f.DurationVar(&o.interval, "interval", 2*time.Second, "how long between two looks")
}

func newTopCmd() *cobra.Command {
	var o topOptions
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the pools and workers of a daemon, live",
		Long: `Show the workers that a daemon sees, the families that rise fastest and what reading them
costs, live, until q or Ctrl-C. Where the output is no terminal, two looks are taken, one
interval apart, and printed as plain text, once.`,
		Example: `  aggregatord top
  aggregatord top --url http://localhost:9500 --interval 5s`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	cmd.Flags().SortFlags = false
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *topOptions) run(cmd *cobra.Command) error {
	if u, err := url.Parse(o.url); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return usagef("--url %q: use a URL such as %s", o.url, defaultURL)
	}
	if o.interval < 100*time.Millisecond {
		return usagef("--interval %v: use 100ms or more", o.interval)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &top.Client{URL: o.url, HTTP: &http.Client{Transport: transport, Timeout: max(o.interval, 5*time.Second)}}
	out, isFile := cmd.OutOrStdout().(*os.File)
	if in := os.Stdin; isFile && term.IsTerminal(int(out.Fd())) && term.IsTerminal(int(in.Fd())) { //nolint:gosec // descriptors are small
		return o.live(cmd.Context(), client, in, out)
	}
	return o.once(cmd.Context(), client, cmd.OutOrStdout())
}

// once prints one frame.
func (o *topOptions) once(ctx context.Context, client *top.Client, w io.Writer) error {
	old, err := client.Look(ctx)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(o.interval):
	}
	now, err := client.Look(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, strings.Join(top.Frame(o.url, old, now, 0, 0), "\n"))
	return err
}

// What a terminal is told: the alternate screen has no history to spoil, and its cursor would
// only distract.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	homeScreen  = "\x1b[H"
	clearLine   = "\x1b[K\r\n"
	clearBelow  = "\x1b[J"
)

// live shows frame after frame until somebody presses q or Ctrl-C or ctx is done. The
// terminal is as it was when it returns.
func (o *topOptions) live(ctx context.Context, client *top.Client, in, out *os.File) (err error) {
	// A daemon that was never there is no reason to take the screen.
	now, err := client.Look(ctx)
	if err != nil {
		return err
	}
	state, err := term.MakeRaw(int(in.Fd())) //nolint:gosec // descriptors are small
	if err != nil {
		return fmt.Errorf("take the terminal: %w", err)
	}
	defer func() {
		_, writeErr := io.WriteString(out, leaveScreen)
		err = errors.Join(err, writeErr, term.Restore(int(in.Fd()), state)) //nolint:gosec // descriptors are small
	}()
	if _, err := io.WriteString(out, enterScreen); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// Ends with the process, or when the terminal hangs up: a read cannot be called off.
	go func() {
		defer stop()
		key := make([]byte, 1)
		for {
			if n, err := in.Read(key); err != nil || n == 0 || key[0] == 'q' || key[0] == 'Q' || key[0] == 3 {
				return
			}
		}
	}()
	var old *top.Look
	var trouble error
	ticker := time.NewTicker(o.interval)
	defer ticker.Stop()
	for {
		if err := o.show(out, old, now, trouble); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		var next *top.Look
		// What is shown stays when the daemon is gone; it may come back.
		if next, trouble = client.Look(ctx); trouble == nil {
			old, now = now, next
		}
	}
}

// show draws one frame in the size that the terminal has now.
func (o *topOptions) show(out *os.File, old, now *top.Look, trouble error) error {
	width, height, err := term.GetSize(int(out.Fd())) //nolint:gosec // descriptors are small
	if err != nil || width <= 0 || height <= 1 {
		width, height = 80, 24
	}
	foot := "q quits"
	if trouble != nil {
		foot = "as of " + now.At.Format(time.TimeOnly) + ": " + trouble.Error() + "; q quits"
	}
	var b strings.Builder
	b.WriteString(homeScreen)
	for _, line := range top.Frame(o.url, old, now, width, height-1) {
		b.WriteString(line)
		b.WriteString(clearLine)
	}
	b.WriteString(top.Clean(foot, width))
	b.WriteString("\x1b[K" + clearBelow)
	_, err = io.WriteString(out, b.String())
	return err
}
