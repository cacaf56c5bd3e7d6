package pool

import (
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// An OpenFile is a source file that some process may still write to.
type OpenFile struct {
	store.Identity
	// Name is its name, and Worker the worker ID in it.
	Name, Worker string
}

// OpenFiles lists the source files that some process may still write to, as far as that is
// known. Of a pool that does not answer they are those of the last call. Nobody changes the result.
func (p *Pool) OpenFiles() []OpenFile {
	if !p.mu.lockWithin(p.patience) {
		if last := p.listedOpen.Load(); last != nil {
			return *last
		}
		return nil
	}
	defer p.mu.Unlock()
	files := make([]OpenFile, 0, len(p.files))
	for t := range p.allLocked() {
		if t.file != nil && t.isAlive() && !t.name.Archive {
			files = append(files, OpenFile{t.file.Identity(), t.name.Base, t.name.ID})
		}
	}
	p.listedOpen.Store(&files)
	return files
}

// Writing reports whether a process is known to write to the pool, other than that in doubt a file
// counts as alive. It waits for nobody: while the pool is busy, the answer is yes.
func (p *Pool) Writing() bool {
	if !p.mu.TryLock() {
		return true
	}
	defer p.mu.Unlock()
	for t := range p.allLocked() {
		if t.file != nil && t.isAlive() && t.answered() && t.method != watch.MethodNone {
			return true
		}
	}
	return false
}
