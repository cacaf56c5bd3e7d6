//go:build !race

package store

import "sync/atomic"

// The loads and stores of memory shared with other processes. The functions of
// sync/atomic are single instructions on 64-bit machines, inlined, so that a fault in them
// is a fault in Go code, which mapping.catch catches.

func loadWord(p *uint64) uint64 { return atomic.LoadUint64(p) }

func loadInt32(p *int32) int32 { return atomic.LoadInt32(p) }

func storeWord(p *uint64, v uint64) { atomic.StoreUint64(p, v) }
