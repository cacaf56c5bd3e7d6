package pool

import (
	"aggregatord/internal/merge"
	"aggregatord/internal/view"
)

// An Origin is what a contribution comes from.
type Origin struct {
	// File is the source file, nil for what is archived.
	File *File
	// Gains says that the file's earlier values are archived, and the contribution is what it has
	// gained since.
	Gains bool
	// Worker is the ID of the worker that left it, if it is known, and Path where it lies.
	Worker, Path string
}

// A Contribution is what one origin has for a point: see merge.Contribution.
type Contribution struct {
	merge.Contribution
	Origin
}

// An Account says what made the value of a point: see merge.Account, whose contributions it
// has with their origins.
type Account struct {
	merge.Account
	Contributions []Contribution
}

// Peek returns a view of the values that were loaded last, without reading any file. The error is
// ErrClosed or ErrSilent.
func (p *Pool) Peek() (*view.Snapshot, error) {
	if !p.mu.lockWithin(p.patience) {
		return nil, ErrSilent
	}
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	return p.index.Snapshot(), nil
}

// Explain takes a view of the values that were loaded last, without reading any file, calls
// choose with it, and accounts for the points that choose returns. The time it takes grows with
// all entries, not with the number of points. The snapshot is valid during the call of choose. The error
// is ErrClosed or ErrSilent.
func (p *Pool) Explain(choose func(*view.Snapshot) []view.PointRef) ([]Account, error) {
	if !p.mu.lockWithin(p.patience) {
		return nil, ErrSilent
	}
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	snap := p.index.Snapshot()
	defer snap.Release()
	refs := choose(snap)
	if len(refs) == 0 {
		return nil, nil
	}
	origins := p.originsLocked()
	var accounts []Account
	for _, a := range p.index.Explain(refs) {
		out := Account{Account: a}
		for _, c := range a.Contributions {
			out.Contributions = append(out.Contributions, Contribution{c, origins[c.Source]})
		}
		accounts = append(accounts, out)
	}
	return accounts, nil
}

// originsLocked tells what the sources of the index stand for.
func (p *Pool) originsLocked() map[*merge.Source]Origin {
	origins := map[*merge.Source]Origin{}
	for t := range p.allLocked() {
		if t.source != nil {
			f := t.tellLocked()
			origins[t.source] = Origin{File: &f, Gains: t.baseline != nil, Worker: t.name.ID, Path: t.path}
		}
	}
	path := p.folder.State().Path
	for s, f := range p.shown {
		origins[f.source] = Origin{Worker: s.Worker, Path: path}
	}
	return origins
}
