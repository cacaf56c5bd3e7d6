package pool

import "aggregatord/internal/store"

// An OpenFile is a source file that some process may still write to.
type OpenFile struct {
	store.Identity
	// Name is its name, and Worker the worker ID in it.
	Name, Worker string
}

// OpenFiles lists the source files that some process may still write to, as far as that is
// known.
func (p *Pool) OpenFiles() []OpenFile {
	p.mu.Lock()
	defer p.mu.Unlock()
	files := make([]OpenFile, 0, len(p.files))
	for t := range p.allLocked() {
		if t.file != nil && t.isAlive() && !t.name.Archive {
			files = append(files, OpenFile{t.file.Identity(), t.name.Base, t.name.ID})
		}
	}
	return files
}
