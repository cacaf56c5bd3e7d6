//go:build race

package pool

// raceEnabled: everything takes ten times as long.
const raceEnabled = true
