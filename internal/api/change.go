package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"aggregatord/internal/archive"
	"aggregatord/internal/fleet"
)

// changes are what Change can be asked for. No question changes anything.
var changes = map[string]question{
	"archive/drop": {params: []string{"name", "selector", "pool"}, answer: (*API).dropArchived},
}

// Change does what is asked for at a path below /api/v1/ that changes something, and returns the
// HTTP status and the JSON as Answer does. Who may ask is the caller's to say.
func (a *API) Change(ctx context.Context, path string, form url.Values) (code int, body []byte) {
	return a.reply(ctx, path, func() (any, error) { return a.answerOne(ctx, changes, path, form) })
}

// dropArchived removes series from the archive of a pool.
func (a *API) dropArchived(ctx context.Context, q params) (any, error) {
	match, err := archive.ParseMatch(q.Get("name"), q.Get("selector"))
	if err != nil {
		return nil, badData("%v", err)
	}
	dropped, err := a.opts.Fleet.DropArchived(ctx, q.Get("pool"), match)
	switch {
	case errors.Is(err, fleet.ErrName):
		return nil, badData("%v", err)
	case errors.Is(err, fleet.ErrNoPool):
		return nil, failure{http.StatusNotFound, "not_found", err.Error()}
	case errors.Is(err, archive.ErrDetached):
		return nil, failure{http.StatusServiceUnavailable, "unavailable", err.Error() + "; the log says why"}
	case err != nil:
		return nil, fmt.Errorf("dropped in memory, but not written yet; it is tried again: %w", err)
	}
	return archive.Dropped{Dropped: dropped}, nil
}

func namesOf(all map[string]question) []string {
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
