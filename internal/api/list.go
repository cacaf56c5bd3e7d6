package api

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"aggregatord/internal/status"
)

// listing says how a list can be asked for.
type listing[T any] struct {
	// keep may be nil.
	keep func(*T) bool
	// text returns what search looks in.
	text  func(*T) []string
	sorts map[string]func(a, b *T) int
}

// list picks, sorts and cuts what was asked for. What compares equal stays in its order.
func list[T any](q params, all []T, otherwise int, how listing[T]) (status.Page[T], error) {
	page := status.Page[T]{Total: len(all), Items: []T{}}
	offset, limit, err := q.page(otherwise)
	if err != nil {
		return page, err
	}
	key, falling := strings.CutPrefix(q.Get("sort"), "-")
	compare := how.sorts[key]
	if key != "" && compare == nil {
		return page, badData("parameter sort=%q: use one of %s, with a - in front to begin with the greatest", key,
			strings.Join(slices.Sorted(maps.Keys(how.sorts)), ", "))
	}
	search, err := q.search()
	if err != nil {
		return page, err
	}
	matching := make([]*T, 0, len(all))
	for i := range all {
		item := &all[i]
		if how.keep != nil && !how.keep(item) {
			continue
		}
		if search != "" && !slices.ContainsFunc(how.text(item),
			func(s string) bool { return strings.Contains(strings.ToLower(s), search) }) {
			continue
		}
		matching = append(matching, item)
	}
	if compare != nil {
		slices.SortStableFunc(matching, func(a, b *T) int {
			if falling {
				return compare(b, a)
			}
			return compare(a, b)
		})
	}
	page.Matching, page.Offset = len(matching), offset
	for _, item := range matching[min(offset, len(matching)):min(offset+limit, len(matching))] {
		page.Items = append(page.Items, *item)
	}
	return page, nil
}

// compareIDs puts numbers in the order of numbers, before names.
func compareIDs(a, b string) int {
	na, nb := isNumber(a), isNumber(b)
	if na && nb {
		return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
	}
	return cmp.Or(compareBools(nb, na), strings.Compare(a, b))
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// compareBools puts false first.
func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
