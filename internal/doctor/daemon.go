package doctor

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"aggregatord/internal/status"
)

// answered is what a daemon has told about itself.
type answered struct {
	status.Overview
	// pool is the one with the directory that is examined, nil if it has none such.
	pool *status.Pool
	// user is whom it runs as, nil if that is not known.
	user *uint32
}

// errStatus is an answer that is no success.
type errStatus struct {
	code int
	text string
}

func (e *errStatus) Error() string { return e.text }

// question asks one question of the daemon's API.
func question[T any](ctx context.Context, d *Daemon, path string, query url.Values) (answer T, err error) {
	u := d.URL.JoinPath("api/v1", path)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return answer, err
	}
	resp, err := d.Client.Do(req)
	if err != nil {
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err
		}
		return answer, err
	}
	defer resp.Body.Close() //nolint:errcheck // it is read to its end
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return answer, err
	}
	var r status.Response[T]
	if json.Unmarshal(body, &r) != nil || r.Status != "success" {
		return answer, &errStatus{resp.StatusCode, resp.Status}
	}
	return r.Data, nil
}

// ask asks the daemon what it is. Whatever keeps it from answering is a finding.
func (e *examination) ask(ctx context.Context) *answered {
	ctx, stop := context.WithTimeout(ctx, e.opts.Timeout)
	defer stop()
	d := e.opts.Daemon
	overview, err := question[status.Overview](ctx, d, "status", nil)
	if err != nil {
		e.noAnswer(err)
		return nil
	}
	a := &answered{Overview: overview, user: e.userOfDaemon()}
	if e.opts.Dir == "" && e.opts.PID == 0 && len(a.Pools) == 1 && a.Pools[0].Source != "processes" {
		// The daemon may run on another machine, and a process sees its directory at a path of its own.
		if _, err := os.Stat(a.Pools[0].Dir); err == nil {
			e.opts.Dir = a.Pools[0].Dir
		}
	}
	for i := range a.Pools {
		if e.opts.Dir != "" && sameDir(a.Pools[i].Dir, e.opts.Dir) {
			a.pool = &a.Pools[i]
		}
	}
	e.compare(a)
	e.discovery(a)
	if up, err := question[status.Samples](ctx, d, "series", url.Values{"match": {"aggregatord_watch_up"}}); err == nil {
		if slices.ContainsFunc(up.Items,
			func(s status.Sample) bool { return s.Value == 0 && (a.pool == nil || s.Labels["pool"] == a.pool.Name) }) {
			e.add(Warning, "events", "The daemon gets no file system events, so it lists the directory every second.",
				"Raise the limits: sysctl fs.inotify.max_user_instances and fs.inotify.max_user_watches; ulimit -n does not count here.")
		}
	}
	if outputs, err := question[[]status.Output](ctx, d, "outputs", nil); err == nil {
		e.outputs(outputs)
	}
	return a
}

// outputs looks at what the daemon sends to others.
func (e *examination) outputs(all []status.Output) {
	fine := 0
	for i := range all {
		o := &all[i]
		switch {
		case o.Failures > 0:
			e.add(Warning, "outputs", fmt.Sprintf("The last %s of the output %s to %s failed: %s",
				map[bool]string{true: "push", false: fmt.Sprintf("%d pushes", o.Failures)}[o.Failures == 1], o.Name, o.Target,
				sentence(o.Error)),
				"The log has each reason once; docs/outputs.md says what is tried again, and when.")
		case o.LastSuccess == 0:
			e.ok("outputs", "The output %s has not sent anything to %s yet.", o.Name, o.Target)
		default:
			fine++
		}
	}
	if fine > 0 {
		e.ok("outputs", "%s: the receiver has taken the last push.", plural(fine, "output"))
	}
}

// sentence ends a text as a sentence ends.
func sentence(text string) string {
	if strings.HasSuffix(text, ".") || strings.HasSuffix(text, "?") {
		return text
	}
	return text + "."
}

// noAnswer says why the daemon has not told what it is.
func (e *examination) noAnswer(err error) {
	name := e.opts.Daemon.Name
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	refused, isStatus := errors.AsType[*errStatus](err)
	switch {
	case errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &invalid):
		e.add(Problem, "endpoint", fmt.Sprintf("A daemon answers at %s, but its certificate is not trusted: %v.", name, err),
			"Name the authority (tls_config: {ca_file: FILE}) in a file for --http.config.file.")
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		e.add(Problem, "endpoint", name+" serves no TLS.", "Use http:// in --url.")
	case isStatus && refused.code == http.StatusUnauthorized:
		e.add(Warning, "endpoint", name+" asks for a password, so nothing more is known of it.",
			"Put the password into a file and give that by --http.config.file.")
	case isStatus && refused.code == http.StatusServiceUnavailable:
		e.add(Problem, "endpoint", name+" is busy or not ready.", "Its log says what it does. Ask again.")
	case isStatus && refused.code == http.StatusBadRequest && e.opts.Daemon.URL.Scheme == "http":
		e.add(Problem, "endpoint", name+" does not answer plain HTTP.", "If it serves TLS, use https:// in --url.")
	case isStatus:
		e.add(Problem, "endpoint", fmt.Sprintf("%s answers %s: this is not aggregatord.", name, refused.text),
			"Give the address of the daemon by --url.")
	case errors.Is(err, context.DeadlineExceeded):
		e.add(Problem, "endpoint", fmt.Sprintf("%s does not answer within %v.", name, e.opts.Timeout),
			"See its log; if the machine is busy, ask again.")
	default:
		level := Warning
		if e.opts.Daemon.Given {
			level = Problem
		}
		e.add(level, "endpoint", fmt.Sprintf("Nobody answers at %s: %v.", name, err),
			"Start the daemon, or give its address (--web.listen-address) by --url.")
	}
}

// compare says what the daemon has of what is examined.
func (e *examination) compare(a *answered) {
	name := e.opts.Daemon.Name
	if ours := e.opts.Version; ours != "" && a.Build.Version != ours {
		e.add(Warning, "version", fmt.Sprintf("The daemon is version %s, and this command is %s.", a.Build.Version, ours),
			"Restart the daemon after an update.")
	}
	var dirs []string
	for i := range a.Pools {
		dirs = append(dirs, a.Pools[i].Dir)
	}
	switch {
	case a.pool == nil && e.opts.Dir != "":
		e.add(Problem, "endpoint", fmt.Sprintf("The daemon at %s serves %s, not %s.", name, enumerate(dirs), e.opts.Dir),
			"Give the same directory to both, or the address of the right daemon by --url. In another container the same directory may have another path.")
		return
	case a.pool == nil:
		e.ok("endpoint", "The daemon at %s serves %s.", name, enumerate(dirs))
		return
	case !a.pool.Up && (a.Ready || a.pool.Error != ""): // otherwise it has not looked yet
		advice := "Make the directory, or compare --dir of the daemon with the directory of the application."
		if strings.Contains(a.pool.Error, "permission denied") {
			advice = "Run the daemon as the user of the workers" + e.ownerOf() + "."
		}
		e.add(Problem, "endpoint", fmt.Sprintf("The daemon cannot read %s: %s.", a.pool.Dir, a.pool.Error), advice)
		return
	case !a.Ready:
		// The first seconds of a daemon are no problem.
		level, since := Warning, time.Since(time.UnixMilli(int64(a.Started*1000)))
		if since > time.Minute {
			level = Problem
		}
		e.add(level, "endpoint", fmt.Sprintf("%s is not ready: it started %v ago and has not read all files yet.", name,
			since.Round(time.Second)), "Wait, and see its log if that lasts.")
		return
	}
	e.ok("endpoint", "%s is ready, serves this directory, and has %s of %s.", name, plural(a.pool.Series, "series"),
		plural(a.pool.Workers.Alive, "live worker"))
	if n := a.pool.Files.Failed; n > 0 {
		e.add(Warning, "endpoint", fmt.Sprintf("The daemon cannot read %s.", plural(n, "file")),
			"The section Problems of its page, and its log, name them.")
	}
	switch a.pool.Archive.State {
	case "open":
	case "read-only":
		e.ok("archive", "The daemon only reads (--archive.disable): the files of dead workers stay, and count.")
	default:
		advice := "See the log of the daemon."
		if strings.Contains(a.pool.Archive.Error, "permission denied") {
			advice = "Run the daemon as the user of the workers" + e.ownerOf() + ", who may write to the directory."
		}
		e.add(Problem, "archive", fmt.Sprintf("The daemon cannot archive, so the files of dead workers stay: %s.", a.pool.Archive.Error),
			advice)
	}
	if m := a.pool.Archive.Mirror; m != nil {
		switch {
		case !m.Open:
			e.add(Warning, "mirror",
				"The daemon cannot keep the mirror: those who read the directory with the client's own collector see totals fall.",
				"See the log of the daemon.")
		case m.ForcedFiles > 0:
			e.add(Warning, "mirror",
				fmt.Sprintf("Others read the directory without a pause, so %s had to be archived while they did; they may have seen values twice or not at all.", plural(int(m.ForcedFiles), "file")),
				"Read the metrics from the daemon, read the directory less often, or raise --archive.mirror-wait.")
		case m.Reads > 0:
			e.ok("mirror",
				"Others read this directory with the client's own collector: %s, the longest took %.3f s. The daemon keeps their totals right.", plural(int(m.Reads), "time"), m.LongestReadSeconds)
		default:
			e.ok("mirror", "Nobody but the daemon has read this directory since it was started.")
		}
	}
	if owner, ok := e.owner(); ok && a.user != nil && *a.user != 0 && *a.user != owner {
		e.add(Warning, "user", fmt.Sprintf("The daemon runs as user %d, and the files belong to user %d.", *a.user, owner),
			fmt.Sprintf("Run the daemon as user %d: only the owner of a file learns whether its worker is dead.", owner))
	}
}

// discovery says what the daemon could not use of what it found, and what it did not find.
func (e *examination) discovery(a *answered) {
	search := a.Discovery
	if search == nil {
		return
	}
	if search.LeftOut > 0 {
		e.add(Problem, "discovery", fmt.Sprintf("The daemon has found %s more than it may serve (%d).", plural(search.LeftOut, "pool"),
			search.Limit),
			"Raise limits.pools, or narrow the patterns and filters.")
	}
	for _, problem := range search.Problems {
		e.add(Warning, "discovery", "The daemon says: "+problem+".", "")
	}
	for _, hint := range search.Hints {
		e.add(Warning, "discovery", hint, "Compare that with the paths, the filters and the user of the daemon.")
	}
	if search.LeftOut == 0 && len(search.Problems)+len(search.Hints) == 0 {
		e.ok("discovery", "The daemon serves every pool that it finds.")
	}
}

// mostPools is of how many pools problems are listed.
const mostPools = 10

// allPools tells of all pools of a daemon that looks for them, where no directory is given.
func (e *examination) allPools(a *answered) {
	wrong, vanished := 0, 0
	for i := range a.Pools {
		if a.Pools[i].Problems > 0 {
			wrong++
		}
		if a.Pools[i].Vanished > 0 {
			vanished++
		}
	}
	e.ok("pools", "The daemon serves %s, of which %d have problems and %d wait for the end of their retention.",
		plural(len(a.Pools), "pool"), wrong, vanished)
	told := 0
	for _, p := range a.Problems {
		if p.Pool == "" {
			continue
		}
		if told++; told > mostPools {
			e.add(Warning, "pools", "There are more problems of pools.", "The section Problems of its page lists them all.")
			return
		}
		level := Warning
		if p.Severity == "error" {
			level = Problem
		}
		e.add(level, "pool", p.Pool+": "+p.Text, p.Action)
	}
}

// owner is the user to whom the source files belong.
func (e *examination) owner() (uint32, bool) {
	names, err := filepath.Glob(filepath.Join(e.opts.Dir, "*.db"))
	if err != nil || len(names) == 0 {
		return 0, false
	}
	info, err := os.Lstat(names[0])
	if err != nil {
		return 0, false
	}
	return ownerOf(info)
}

// ownerOf is the owner as a part of a sentence.
func (e *examination) ownerOf() string {
	if owner, ok := e.owner(); ok {
		return " (" + strconv.FormatUint(uint64(owner), 10) + ")"
	}
	return ""
}

// userOfDaemon is whom the process that listens at the daemon's address runs as.
func (e *examination) userOfDaemon() *uint32 {
	host, port, err := net.SplitHostPort(e.opts.Daemon.URL.Host)
	ip := net.ParseIP(host)
	if err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil
	}
	if p, ok := listenerIn(e.opts.procRoot, n, e.processes); ok {
		return &p.uid
	}
	return nil
}

// sameDir reports whether two paths name one directory.
func sameDir(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}
