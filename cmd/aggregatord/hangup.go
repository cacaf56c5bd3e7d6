package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// hangups is the context key of the chan os.Signal of hangup.Early.
type hangups struct{}

// keepsHangups is an annotation of commands to which SIGHUP means something.
const keepsHangups = "keeps-hangups"

// settleHangups gives SIGHUP its usual meaning back in all other commands, also one that has
// come already.
func settleHangups(cmd *cobra.Command) {
	c, ok := cmd.Context().Value(hangups{}).(chan os.Signal)
	if _, keeps := cmd.Annotations[keepsHangups]; !ok || keeps {
		return
	}
	signal.Stop(c)
	if early(c) {
		syscall.Kill(os.Getpid(), syscall.SIGHUP) //nolint:errcheck // a process may end itself
	}
}

// hangupsTo has SIGHUP sent to c from now on, and one that has come before.
func hangupsTo(ctx context.Context, c chan os.Signal, signals ...os.Signal) {
	signal.Notify(c, signals...)
	first, ok := ctx.Value(hangups{}).(chan os.Signal)
	if !ok {
		return
	}
	signal.Stop(first)
	if early(first) {
		select {
		case c <- syscall.SIGHUP:
		default: // another has come
		}
	}
}

// early reports whether a signal has come.
func early(c chan os.Signal) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
