package pool

// openFiles are the files of a pool that are open, in the order in which they were opened. Who looks
// at thousands of them at every scrape waits for memory most of the time, and least if what was made
// in one order is looked at in the same.
type openFiles struct {
	files []*file // nil where there is one no more
	gone  int
	// live are those that live gauges are in, nil if that must be found out.
	live []*file
}

func (o *openFiles) add(t *file) {
	t.at = len(o.files)
	o.files, o.live = append(o.files, t), nil
}

// remove leaves a loop over files as it is: it meets nil, or a file that is closed.
func (o *openFiles) remove(t *file) {
	o.files[t.at], o.live = nil, nil
	if o.gone++; o.gone <= len(o.files)/2 {
		return
	}
	files := make([]*file, 0, len(o.files)-o.gone)
	for _, t := range o.files {
		if t != nil {
			t.at = len(files)
			files = append(files, t)
		}
	}
	o.files, o.gone = files, 0
}

// ofLiveModes returns the files with an entry of a live mode; some may be closed since.
func (o *openFiles) ofLiveModes() []*file {
	if o.live == nil {
		o.live = []*file{}
		for _, t := range o.files {
			if t != nil && t.source.Live() {
				o.live = append(o.live, t)
			}
		}
	}
	return o.live
}
