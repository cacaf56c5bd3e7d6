package pool

import "testing"

// TestBudget: what is reserved stays free, unless nothing would be left.
func TestBudget(t *testing.T) {
	for name, tt := range map[string]struct{ limit, reserve, want int }{
		"default":          {1024, DefaultReserve, 896},
		"many_connections": {1024, 576, 448},
		"large":            {1 << 20, 576, 1<<20 - 576},
		"more_than_all":    {256, 5064, 64},
	} {
		t.Run(name, func(t *testing.T) {
			if got := budget(tt.limit, tt.reserve); got != tt.want {
				t.Errorf("budget(%d, %d) = %d, want %d", tt.limit, tt.reserve, got, tt.want)
			}
		})
	}
}
