package status

// A Process is one process of a pool, or another one that is watched.
type Process struct {
	Pool string `json:"pool,omitempty"`
	Pid  int    `json:"pid"`
	// Parent is the pid of its parent.
	Parent int `json:"parent"`
	// Role is master, worker, or other for one that the configuration names.
	Role string `json:"role"`
	// Namespace is that of one that the configuration names.
	Namespace string `json:"namespace,omitempty"`
	// Slot is the number by which a worker's metrics are served if they are served by worker.
	Slot *int `json:"slot,omitempty"`
	// Workers are the worker IDs in the names of the source files it holds, and Files how many
	// source files of these IDs there are.
	Workers []string `json:"workers,omitempty"`
	Files   int      `json:"files"`
	// Command is what it calls itself, up to the first option.
	Command string `json:"command"`
	// Started is when it started.
	Started    float64 `json:"started"`
	CPUSeconds float64 `json:"cpu_seconds"`
	// ProportionalBytes is its part of the memory that it shares with others, and all of its
	// own; null if it may not be read.
	ResidentBytes     int64  `json:"resident_bytes"`
	ProportionalBytes *int64 `json:"proportional_bytes"`
	VirtualBytes      int64  `json:"virtual_bytes"`
	Threads           int    `json:"threads"`
	// OpenFDs is how many file descriptors it has open, -1 if that may not be read.
	OpenFDs int `json:"open_fds"`
}
