//go:build race

package store

// In a build with the race detector, the functions of sync/atomic are calls into C on
// another stack, and a fault there ends the program ("traceback did not unwind
// completely"). The detector does not watch mapped memory anyway. So these are plain
// loads and stores, which the machines that have a race detector do whole if they are
// aligned; noinline keeps the compiler from doing them twice or leaving them out.

//go:noinline
func loadWord(p *uint64) uint64 { return *p }

//go:noinline
func loadInt32(p *int32) int32 { return *p }

//go:noinline
func storeWord(p *uint64, v uint64) { *p = v }
