// Command aggregatord merges what the processes of a prefork worker pool write for
// Prometheus, and serves it as one target.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"aggregatord/internal/hangup"
	"aggregatord/internal/terminal"
)

// Exit codes: a wrong call can be told from a call that went wrong.
const (
	exitFailure = 1
	exitUsage   = 2
)

// usageError is an error in how the program was called.
type usageError struct{ error }

// Unwrap returns what is wrong.
func (e usageError) Unwrap() error { return e.error }

// exitError is the end of a program that was run for the caller: its exit code is ours, and
// there is nothing to say about it.
type exitError int

// Error implements error.
func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// codeError is an error with an exit code of its own.
type codeError struct {
	code int
	error
}

// Unwrap returns what went wrong.
func (e codeError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	// What SIGHUP means is for the command to say; until then, it ends nothing.
	ctx := context.WithValue(context.Background(), hangups{}, hangup.Early())
	// The first signal asks for a tidy stop; a second one ends the process at once.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one call and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCmd()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	adoptCobraCommands(root)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[exitError](err); ok {
		return int(e)
	}
	// One line each: several errors may be joined by newlines.
	fmt.Fprintf(stderr, "aggregatord: %s\n", terminal.Printable(strings.ReplaceAll(err.Error(), "\n", "; "))) //nolint:errcheck // there is nowhere else to say it
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if e, ok := errors.AsType[codeError](err); ok {
		return e.code
	}
	return exitFailure
}

func newRootCmd() *cobra.Command {
	var version bool
	root := &cobra.Command{
		Use:   "aggregatord",
		Short: "Metrics of prefork worker pools, merged beside the application",
		Long: `aggregatord reads the files that Prometheus clients in multiprocess mode write, one
set for each worker process, merges them and serves them as one scrape target.
Nothing in the application changes: start it beside the pool, on the same directory.`,
		Example: `  aggregatord serve --dir /dev/shm/myapp       serve the merged metrics on :9500
  aggregatord run -- gunicorn app:app          start both, with a directory for them
  aggregatord dump --dir /dev/shm/myapp        print them once
  aggregatord demo                             try it on a built-in pool of workers`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return nil
		},
		// With a Run of its own the root takes Args above instead of cobra's wording.
		RunE: func(cmd *cobra.Command, _ []string) error {
			if version {
				return printVersion(cmd)
			}
			return cmd.Help()
		},
		PersistentPreRun: func(cmd *cobra.Command, _ []string) { settleHangups(cmd) },
	}
	root.Flags().BoolVar(&version, "version", false, "print which build this is")
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(newServeCmd(), newRunCmd(), newDumpCmd(), newPushCmd(), newExplainCmd(), newTopCmd(), newCheckConfigCmd(),
		newInspectCmd(), newDoctorCmd(), newHealthCmd(), newArchiveCmd(), newDemoCmd(), newVersionCmd(), newManCmd())
	return root
}

// adoptCobraCommands makes the commands that cobra brings along, help and completion,
// refuse what they do not understand as ours do. By themselves they print some help and
// exit with 0, or with 1. Completion keeps the standard output that root has now.
func adoptCobraCommands(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Args = func(_ *cobra.Command, args []string) error {
				if _, rest, err := root.Find(args); err != nil || len(rest) > 0 {
					return unknownCommand(root, strings.Join(args, " "))
				}
				return nil
			}
		case "completion":
			cmd.Args = func(_ *cobra.Command, args []string) error {
				if len(args) > 0 {
					return usagef("unknown shell %q; use bash, zsh, fish or powershell", args[0])
				}
				return nil
			}
			// Only a command that can run has its arguments looked at.
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			for _, shell := range cmd.Commands() {
				shell.Args = noArgs
			}
		}
	}
}

// noArgs refuses arguments, with an error that says where flags are listed.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no arguments, got %q; see %s --help", cmd.CommandPath(), args[0], cmd.CommandPath())
	}
	return nil
}
