package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// healthOptions says which daemon to ask, and for what.
type healthOptions struct {
	client  clientOptions
	ready   bool
	timeout time.Duration
}

func (o *healthOptions) addFlags(f *pflag.FlagSet) {
	o.client.addFlags(f)
	f.BoolVar(&o.ready, "ready", false, "ask whether a scrape would be complete, not only whether the daemon serves")
	durationVar(f, &o.timeout, "timeout", 5*time.Second, "how long the answer may take")
}

func newHealthCmd() *cobra.Command {
	var o healthOptions
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask a running daemon whether it is well, for probes",
		Long: `Ask a running daemon whether it is well, print its answer in one line, and exit with 0 if it
is and with 1 if it is not, or does not answer. It is for Docker, Compose, Kubernetes and the
like, where the image has no other program, or where a password or a certificate is needed.`,
		Example: `  aggregatord health
  aggregatord health --ready --url https://localhost:9500 --http.config.file probe.yml
  aggregatord health --url unix:/run/metrics.sock`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	cmd.Flags().SortFlags = false
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *healthOptions) run(cmd *cobra.Command) error {
	if o.timeout <= 0 {
		return usagef("--timeout %v: use a time above 0", o.timeout)
	}
	c, err := o.client.client()
	if err != nil {
		return err
	}
	defer c.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
	defer cancel()
	line, err := c.health(ctx, o.ready)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s does not answer within %v", c.name, o.timeout)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), line)
	return err
}

// health returns what the daemon answers to a probe, if it is well.
func (c *client) health(ctx context.Context, ready bool) (string, error) {
	path := "/-/healthy"
	if ready {
		path = "/-/ready"
	}
	u := c.base.JoinPath(path)
	if strings.HasSuffix(c.base.Path, path) {
		u = c.base // somebody gave the whole address
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	response, err := c.http.Do(request)
	if err != nil {
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err
		}
		return "", fmt.Errorf("ask %s: %w", c.name, err)
	}
	defer response.Body.Close() //nolint:errcheck // what matters is read
	const most = 1024
	body, err := io.ReadAll(io.LimitReader(response.Body, most))
	if err != nil {
		return "", fmt.Errorf("read the answer of %s: %w", c.name, err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %s", c.name, response.Status, line)
	}
	return line, nil
}
