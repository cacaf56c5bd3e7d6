package process

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// helperVariable makes the test binary play a part in a test: its value is the name of one
// of the helpers.
const helperVariable = "PROCESS_TEST_HELPER"

// helpers are the parts, by name. Where there is no procfs there are none.
var helpers = map[string]func(args []string) error{}

func TestMain(m *testing.M) {
	if name := os.Getenv(helperVariable); name != "" {
		if err := helpers[name](os.Args[1:]); err != nil {
			println(name+":", err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
