package pool

import (
	"errors"
	"fmt"
	"slices"

	"aggregatord/internal/merge"
	"aggregatord/internal/store"
)

// errTooMany says that there are more files than may be open at once. Those of dead
// workers make room when they are archived.
var errTooMany = errors.New("too many open files")

func errTooManyAt(path string) error { return fmt.Errorf("source file %q: %w", path, errTooMany) }

// errDuplicate says that a file has a second name in the directory.
var errDuplicate = errors.New("the same file as another one")

func duplicateError(path, other string) error {
	return fmt.Errorf("source file %q: %w: %q", path, errDuplicate, other)
}

// Reasons beside those of store.
const (
	reasonDuplicate store.Reason = "duplicate"
	reasonTooMany   store.Reason = "too_many_open_files"
	reasonSample    store.Reason = "bad_sample"
	reasonSeries    store.Reason = "series_limit"
	reasonFamily    store.Reason = "family_limit"
	reasonFamilies  store.Reason = "families_limit"
	reasonBytes     store.Reason = "bytes_limit"
	reasonLabels    store.Reason = "label_limit"
	reasonLength    store.Reason = "label_length"
)

// limitKeys are the keys of the configuration for the limits that keep entries out. Two have one reason.
var limitKeys = map[store.Reason]string{
	reasonSeries: "limits.series_per_pool", reasonFamily: "limits.series_per_family", reasonFamilies: "limits.families_per_pool",
	reasonBytes: "limits.bytes_per_pool", reasonLabels: "limits.labels_per_series",
	reasonLength: "limits.label_name_length, limits.label_value_length",
}

// fileReasons are why a file cannot be read, entryReasons why an entry is left out.
func fileReasons() []store.Reason {
	return append(slices.DeleteFunc(store.Reasons(), func(r store.Reason) bool {
		return r == store.BadKey || r == store.KeyTooLong || r == store.Foreign || r == store.Gone
	}), reasonDuplicate, reasonTooMany)
}

func entryReasons() []store.Reason {
	return []store.Reason{
		store.BadKey, store.KeyTooLong, reasonSample, reasonSeries, reasonFamily, reasonFamilies, reasonBytes,
		reasonLabels, reasonLength,
	}
}

// reasonOf extends store.ReasonOf. Somebody may make millions of entries that cannot be read, so
// their errors are known by type first.
func reasonOf(err error) store.Reason {
	switch err.(type) { //nolint:errorlint // one that wraps another is found below
	case *store.KeyError:
		return store.BadKey
	case *store.KeyTooLongError:
		return store.KeyTooLong
	}
	for _, r := range []struct {
		err    error
		reason store.Reason
	}{
		{merge.ErrSample, reasonSample},
		{merge.ErrSeriesLimit, reasonSeries},
		{merge.ErrFamilyLimit, reasonFamily},
		{merge.ErrFamiliesLimit, reasonFamilies},
		{merge.ErrBytesLimit, reasonBytes},
		{merge.ErrLabelLimit, reasonLabels},
		{merge.ErrLabelLength, reasonLength},
		{errDuplicate, reasonDuplicate},
		{errTooMany, reasonTooMany},
	} {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return store.ReasonOf(err)
}
