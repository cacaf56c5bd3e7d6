package daemon

import (
	"testing"

	"aggregatord/internal/serve"
)

// TestDescriptorsBeside: source files leave room for all connections that there may be, and for the
// daemon's own files.
func TestDescriptorsBeside(t *testing.T) {
	for name, tt := range map[string]struct{ connections, want int }{
		"default":    {0, serve.DefaultMaxConnections() + ownDescriptors},
		"configured": {2000, 2064},
	} {
		t.Run(name, func(t *testing.T) {
			if got := descriptorsBeside(serve.Options{MaxConnections: tt.connections}); got != tt.want {
				t.Errorf("descriptorsBeside = %d, want %d", got, tt.want)
			}
		})
	}
}
