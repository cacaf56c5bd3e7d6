package process

import (
	"os"
	"strings"
	"testing"

	"aggregatord/internal/metric"
)

// TestDocs: the page about processes names each family.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/processes.md")
	if err != nil {
		t.Fatal(err)
	}
	clients := []family{famCPU, famMaxFDs, famOpenFDs, famResident, famStart, famVirtual}
	for i := range clients {
		clients[i].name = "process_" + clients[i].name
	}
	for _, f := range append(clients,
		famWorkers, famStarts, famExits, famOldest, famYoungest, famLargest, famPSS, famThreads, famFaults, famRead, famWritten,
		famSwitches,
		famThrottled, famOOMKills, famBacklog, famBacklogMost, famPython, famRuby,
		famGunicornWorkers, famGunicornTarget, famGunicornSpawned, famGunicornKilled, famGunicornReloads, famGunicornHeartbeat,
		famUWSGIWorkers, famUWSGIRequests, famUWSGIExceptions, famUWSGIHarakiri, famUWSGIRespawns, famUWSGIQueue, famUWSGIQueueErrors) {
		name := f.name
		if f.typ == metric.Counter {
			name += "_total"
		}
		if !strings.Contains(string(page), "`"+name) {
			t.Errorf("docs/processes.md does not name %s", name)
		}
	}
}
