package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"aggregatord/internal/buildinfo"
)

func newVersionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print which build this is",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return printVersion(cmd) },
	}
}

func printVersion(cmd *cobra.Command) error {
	i := buildinfo.Get()
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "aggregatord %s (revision %s, %s, %s)\n", i.Version, i.Revision, i.GoVersion, i.Platform)
	return err
}
