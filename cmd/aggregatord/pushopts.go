package main

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"aggregatord/internal/output"
)

// pushOptions send a job's metrics to a Pushgateway.
type pushOptions struct {
	pushgateway secretURL
	job         string
	grouping    map[string]string
	method      string
	interval    time.Duration
	timeout     time.Duration
	// exit are of all outputs.
	exit     exitPushOptions
	exitCode int
}

// secretURL is an address whose password is not shown by those who list flags.
type secretURL string

// String hides the password.
func (u *secretURL) String() string {
	parsed, err := url.Parse(string(*u))
	if err != nil {
		return "a URL that cannot be read"
	}
	return parsed.Redacted()
}

// Set implements pflag.Value.
func (u *secretURL) Set(text string) error {
	*u = secretURL(text)
	return nil
}

// Type is a word for help.
func (u *secretURL) Type() string { return "URL" }

// exitPushOptions say how outputs end.
type exitPushOptions struct{ timeout time.Duration }

func (o *exitPushOptions) addFlags(f *pflag.FlagSet, otherwise time.Duration) {
	f.DurationVar(&o.timeout, "push.exit-timeout", otherwise,
		"how long the last push of each output may take when told to stop, with its retries")
}

func (o *exitPushOptions) validate() error {
	if o.timeout <= 0 {
		return usagef("--push.exit-timeout %v: use a time above 0; on_exit: false leaves the last push of an output out", o.timeout)
	}
	return nil
}

func (o *pushOptions) addFlags(f *pflag.FlagSet) {
	f.Var(&o.pushgateway, "push.pushgateway", "`URL` of a Pushgateway to push to while the command runs and when it has ended")
	f.StringVar(&o.job, "push.job", "", "`NAME` of the job there")
	f.StringToStringVar(&o.grouping, "push.grouping-key", nil, "`NAME=VALUE` of the grouping key beside the job; repeat it for several")
	f.Lookup("push.grouping-key").DefValue = "" // not []
	f.StringVar(&o.method, "push.method", http.MethodPut, "PUT replaces what the group has, POST only metrics of the same name")
	f.DurationVar(&o.interval, "push.interval", output.DefaultInterval, "how often to push")
	f.DurationVar(&o.timeout, "push.timeout", output.DefaultTimeout, "how long one push may take")
	o.exit.addFlags(f, 30*time.Second)
	f.IntVar(&o.exitCode, "push.exit-code", 0, "exit `CODE` if a last push failed and the command ended with 0; 0 changes nothing")
}

func (o *pushOptions) validate() error {
	if o.exitCode < 0 || o.exitCode > 255 {
		return usagef("--push.exit-code %d: use a number from 0 to 255", o.exitCode)
	}
	if err := o.exit.validate(); err != nil {
		return err
	}
	if o.pushgateway == "" {
		if o.job != "" || len(o.grouping) > 0 {
			return usagef("--push.job and --push.grouping-key: where to? Give --push.pushgateway URL")
		}
		return nil
	}
	for _, s := range o.specs() {
		if err := s.Check(); err != nil {
			return usagef("--push.pushgateway: %w", err)
		}
	}
	return nil
}

// specs are the outputs that the flags ask for.
func (o *pushOptions) specs() []output.Spec {
	if o.pushgateway == "" {
		return nil
	}
	return []output.Spec{{
		Name: "push.pushgateway", Interval: o.interval, Timeout: o.timeout,
		Pushgateway: &output.PushgatewaySpec{
			URL: string(o.pushgateway), Job: o.job, Grouping: maps.Clone(o.grouping), Method: strings.ToUpper(o.method),
		},
	}}
}

// pushKinds are what --as takes.
func pushKinds() []string { return slices.Concat([]string{"auto"}, output.Kinds()) }
