package pool

import (
	"errors"
	"io/fs"

	"aggregatord/internal/archive"
)

// Kept returns what Keep kept beside the archive under a name, by this daemon or an earlier
// one; nil if there is nothing, or no archive. What is longer than most bytes is an error.
func (p *Pool) Kept(name string, most int64) (data []byte, err error) {
	place, err := p.besideArchive()
	if place == nil || err != nil {
		return nil, err
	}
	data, err = place.ReadBeside(name, most)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, place.Close()
	}
	return data, errors.Join(err, place.Close())
}

// Keep keeps data beside the archive under a name, for the next daemon. Where nothing is
// archived, nothing is kept.
func (p *Pool) Keep(name string, data []byte) error {
	place, err := p.besideArchive()
	if place == nil || err != nil {
		return err
	}
	return errors.Join(place.KeepBeside(name, data), place.Close())
}

// besideArchive opens the directory of the archive; nil if there is none. It takes no lock.
func (p *Pool) besideArchive() (*archive.Place, error) {
	if p.folder.ReadOnly() {
		return nil, nil
	}
	open, dir := archive.OpenHiddenPlace, p.spec.Path
	if p.archiveDir != "" {
		open, dir = archive.OpenPlace, p.archiveDir
	}
	place, err := open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it is made with the archive
	}
	return place, err
}
