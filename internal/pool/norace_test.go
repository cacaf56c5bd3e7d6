//go:build !race

package pool

// raceEnabled: everything takes as long as it takes.
const raceEnabled = false
