package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// TestMain lets the test binary be what Run executes, a worker, and a master to be killed.
func TestMain(m *testing.M) {
	args := os.Args[1:]
	switch {
	case slices.Equal(args, WorkerArgs()):
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		exit(Worker(ctx, os.Stdin))
	case len(args) == 2 && args[0] == "test-master":
		var opts Options
		if err := json.Unmarshal([]byte(args[1]), &opts); err != nil {
			exit(err)
		}
		exit(Run(context.Background(), opts))
	}
	// The race detector waits a second at the end of each process unless told otherwise.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")); err != nil {
		exit(err)
	}
	goleak.VerifyTestMain(m)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
