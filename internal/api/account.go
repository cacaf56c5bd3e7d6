package api

import (
	"context"

	"aggregatord/internal/fleet"
	"aggregatord/internal/metric"
	"aggregatord/internal/pool"
	"aggregatord/internal/selector"
	"aggregatord/internal/status"
	"aggregatord/internal/view"
)

// Explain says of the series that a selector selects, at most limit of them, what made their
// values: those of the last view, with no other read in between.
func Explain(ctx context.Context, f *fleet.Fleet, sel selector.Selector, limit int) (status.Explanations, error) {
	out := status.Explanations{Items: []status.Explanation{}}
	var refs []view.PointRef
	e, err := f.Explain(ctx, func(snap *view.Snapshot) (values []int) {
		out.Matching, refs = 0, nil
		EachSample(snap, sel, func(ref view.PointRef, value int) {
			if out.Matching++; len(values) < limit {
				values, refs = append(values, value), append(refs, ref)
			}
		})
		return values
	})
	if err != nil {
		return out, err
	}
	defer e.View.Release()
	for _, p := range f.Pools() {
		out.Time = max(out.Time, moment(p.State().LastPass))
	}
	for i := range e.Items {
		told := explanationOf(e, &e.Items[i], refs[i])
		if p := f.Pool(e.Items[i].Pool); p != nil {
			for k := range told.Contributions {
				told.Contributions[k].Path = shownPath(p.Spec(), told.Contributions[k].Path)
			}
		}
		out.Items = append(out.Items, told)
	}
	return out, nil
}

func explanationOf(e *fleet.Explanation, item *fleet.Explained, ref view.PointRef) status.Explanation {
	fam := &e.View.Layout.Families[ref.Family]
	out := status.Explanation{
		Sample: SampleAt(e.View, ref, item.Value), Family: fam.Name, Type: fam.Type.String(), Help: fam.Help,
		Contributions: []status.Contribution{},
	}
	if view.IsAbsent(e.View.Values[item.Value]) {
		out.Value, out.Absent = 0, "it was never set, or has not changed for longer than a rule allows"
	}
	if was := seriesAt(e.Joined, item.Before); was != out.Series && e.Joined != e.View.Layout {
		out.RelabeledFrom = was
	}
	if item.Configured {
		out.Operation = metric.Max.String()
		out.Contributions = append(out.Contributions, status.Contribution{Kind: "configuration", Value: out.Value, Counts: true})
		return out
	}
	out.Operation, out.Cumulative, out.Rule, out.Mode = item.Operation.String(), item.Cumulative, item.Rule, item.Mode.String()
	out.ModeSource = modeSource(item.Mode, item.ModeByRule)
	for i := range item.Contributions {
		c := &item.Contributions[i]
		told := contributionOf(item.Pool, c)
		if item.Operation == metric.MostRecent {
			told.Set = max(c.Stamp, 0)
		}
		out.Contributions = append(out.Contributions, told)
	}
	return out
}

// modeSource says where the mode in force comes from.
func modeSource(mode metric.Mode, byRule bool) string {
	switch {
	case mode == metric.NoMode:
		return ""
	case byRule:
		return "rule"
	}
	return "file name"
}

func contributionOf(name string, c *pool.Contribution) status.Contribution {
	out := status.Contribution{
		Kind: "archive", Pool: name, Worker: c.Worker, Path: c.Path, Gains: c.Gains, Value: status.Number(c.Value), Counts: c.Counts,
		Why: c.Why,
	}
	if c.File != nil {
		out.Kind, out.State, out.KnownBy = "file", string(c.File.State), c.File.KnownBy.String()
	}
	return out
}
