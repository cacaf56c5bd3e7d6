package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"aggregatord/internal/archive"
	"aggregatord/internal/fold"
	"aggregatord/internal/terminal"
)

type archiveDropOptions struct {
	archiveTarget
	client clientOptions
	pool   string
	yes    bool
}

func newArchiveDropCmd() *cobra.Command {
	var o archiveDropOptions
	cmd := &cobra.Command{
		Use:   "drop NAME [SELECTOR] --yes",
		Short: "Remove a metric, or some of its series, from the archive",
		Long: `Remove a metric, one of its samples, or the series that a selector of labels matches from
the archive, for good: the totals lose what dead workers had counted of it. Everything
else stays, also what living workers have counted.

Without --yes it only prints what would be removed. With --url the running daemon does it,
which must have been started with --web.enable-lifecycle. Otherwise stop the daemon of
the directory first.`,
		Example: `  aggregatord archive drop request_seconds_sum --dir /dev/shm/myapp --yes
  aggregatord archive drop request_seconds '{path="/old"}' --dir /dev/shm/myapp --yes
  aggregatord archive drop jobs_total --url http://localhost:9500 --yes`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usagef("name a metric, and optionally a selector of labels in braces")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name, labels := args[0], ""
			if len(args) > 1 {
				labels = args[1]
			}
			match, err := archive.ParseMatch(name, labels)
			if err != nil {
				return usageError{err}
			}
			if cmd.Flags().Changed(urlFlag) {
				return o.ask(cmd, name, labels)
			}
			return o.drop(cmd, match)
		},
	}
	o.addFlags(cmd.Flags())
	o.client.addFlags(cmd.Flags())
	cmd.Flags().StringVar(&o.pool, "pool", "", "with --url: the `NAME` of the directory, where the daemon has several")
	cmd.Flags().BoolVar(&o.yes, "yes", false, "confirm")
	return cmd
}

// ask has a daemon do it.
func (o *archiveDropOptions) ask(cmd *cobra.Command, name, labels string) error {
	if !o.yes {
		return usagef("this removes %s from the totals of dead workers; confirm with --yes", terminal.Printable(name+labels))
	}
	c, err := o.client.client()
	if err != nil {
		return err
	}
	defer c.http.CloseIdleConnections()
	form := url.Values{"name": {name}}
	if labels != "" {
		form.Set("selector", labels)
	}
	if o.pool != "" {
		form.Set("pool", o.pool)
	}
	answer, err := postFor[archive.Dropped](cmd.Context(), c, "archive/drop", form)
	if err != nil {
		return err
	}
	return o.say(cmd, answer.Dropped)
}

// postFor is askFor for a question that changes something.
func postFor[T any](ctx context.Context, c *client, question string, form url.Values) (answer T, err error) {
	return answerTo[T](c, question, func() ([]byte, error) { return c.post(ctx, question, form) })
}

// drop does it without a daemon.
func (o *archiveDropOptions) drop(cmd *cobra.Command, match archive.Match) (err error) {
	spec, at, v, err := o.read((*archive.Place).Read)
	if err != nil {
		return err
	}
	var found []string
	n := 0
	for space, table := range v.Totals().Spaces() {
		for i := range table.Len() {
			if match.Matches(space, table.Key(i)) {
				if n++; n <= 10 {
					found = append(found, archivedLine(table, i, keyOf(table.Key(i))))
				}
			}
		}
	}
	if n == 0 {
		return fmt.Errorf("no series of the archive matches %q; aggregatord archive list prints all", match.Name)
	}
	if !o.yes {
		for _, line := range found {
			cmd.PrintErrf("  %s\n", terminal.Printable(line))
		}
		return usagef("this removes %d series from the totals of dead workers, the first of them are printed above; confirm with --yes", n)
	}
	watched := fold.NewPlace(spec.Path)
	defer watched.Close() //nolint:errcheck // nothing was written through it
	if err = watched.Take(); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	a := archive.New()
	if err == nil {
		var place *archive.Place
		if place, err = at.open(); err == nil {
			defer place.Close()                                  //nolint:errcheck // what was written is durable
			if _, err = place.TakeOver(time.Now()); err == nil { // an archive of an earlier version
				err = a.AttachTo(place, nil)
			}
		}
	}
	if errors.Is(err, archive.ErrLocked) {
		return fmt.Errorf("%w; stop it first, or give its address by --%s", err, urlFlag)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Detach()) }()
	dropped := a.DropSeries(match.Matches, nil)
	if err := a.Commit(archive.NewBatch(time.Now()), nil); err != nil {
		return fmt.Errorf("nothing was dropped: %w", err)
	}
	return o.say(cmd, dropped)
}

func (o *archiveDropOptions) say(cmd *cobra.Command, dropped int) error {
	if dropped == 0 {
		return errors.New("no series of the archive matches; aggregatord archive list prints all")
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%d series removed from the archive\n", dropped)
	return err
}
