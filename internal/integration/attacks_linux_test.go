package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// TestAttacksTogether has all attacks at once on a daemon that runs as root over a user's directory, with
// the memory that our manifests allow: hostile files, races for our own files, hostile clients and expensive
// questions, or clients that guess passwords. It is not killed, another pool's scrapes are all right, and what
// is root's stays as it was. Without AGGREGATORD_SOAK it does not run; with it, two minutes each at most.
func TestAttacksTogether(t *testing.T) {
	needRoot(t)
	if soak(t, 0) == 0 {
		t.Skip("for AGGREGATORD_SOAK alone: each attack has a test of its own")
	}
	for _, tc := range []struct {
		name, attack string
		guarded      bool
	}{{"open", "hostile", false}, {"guarded", "guessing", true}} {
		t.Run(tc.name, func(t *testing.T) { attackAll(t, tc.attack, tc.guarded, min(soak(t, 0), 2*time.Minute)) })
	}
}

func attackAll(t *testing.T, how string, guarded bool, during time.Duration) {
	const series, user = 3000, 1000
	plain, err := buildPlain()
	if err != nil {
		t.Fatal(err)
	}
	root, good := publicDir(t), loadDir(t, series)
	dir, precious, secret := filepath.Join(root, "user"), filepath.Join(root, "precious"), filepath.Join(root, "secret")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, user, user), os.Mkdir(secret, 0o700)); err != nil {
		t.Fatal(err)
	}
	content := strings.Repeat("precious ", 1<<18)
	for _, path := range []string{precious, filepath.Join(secret, "file")} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	limit := shippedMemory(t)
	group := newMemoryGroup(t, limit)
	flags := []string{
		"serve", "--log.format", "json", "--web.listen-address", "127.0.0.1:0", "--web.max-connections", "600", "--dir",
		"good=" + good, "--dir", "user=" + dir,
	}
	if guarded {
		hash, err := bcrypt.GenerateFromPassword([]byte("sesame"), 10)
		if err != nil {
			t.Fatal(err)
		}
		flags = append(flags, "--web.config.file",
			writeFile(t, filepath.Join(t.TempDir(), "web.yml"), fmt.Sprintf("basic_auth_users: {prometheus: '%s'}\n", hash)))
	}
	d, addresses := startServing(t, group.command(append([]string{plain}, flags...)...))
	pid := d.cmd.Process.Pid

	var stops []func()
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()
	stops = append(stops, attack(t, addresses[0], how), hostileFiles(t, dir))
	binary := copyRacer(t, root)
	for _, kind := range []string{"links", "exchanges", "garbage"} { // beside each other, pipes would stop the racers
		cmd := exec.Command(peer(t, "nice", "apt-get install coreutils"), "-n", "19", binary)
		stops = append(stops, startRacer(t, cmd, kind, dir, root, during))
	}

	var all []time.Duration
	most := 0
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		begin := time.Now()
		if err := scrapeFrom(addresses[0], "/pools/good/metrics", series); err != nil {
			t.Fatalf("scrape %d: %v; %s", len(all), err, group)
		}
		all = append(all, time.Since(begin))
		now, err := anonymousBytes(pid)
		if err != nil {
			t.Fatalf("after RssAnon of at most %d MiB: %v; %s", most>>20, err, group)
		}
		most = max(most, now)
		group.look()
	}
	if err := scrapeFrom(addresses[0], "/metrics?name[]=load_total", series); err != nil {
		t.Error(err)
	}
	slices.Sort(all)
	t.Logf("%d scrapes, p99 %v, the slowest %v; RssAnon at most %d MiB; %s", len(all), all[len(all)*99/100], all[len(all)-1], most>>20,
		group)
	if most > limit {
		t.Errorf("RssAnon was %d bytes, more than the %d that there may be", most, limit)
	}
	if err := group.killed(); err != nil {
		t.Error(err)
	}
	for _, path := range []string{precious, filepath.Join(secret, "file")} {
		data, err := os.ReadFile(path)
		if err != nil || string(data) != content {
			t.Errorf("%s is not what it was: %d bytes, %v", path, len(data), err)
		}
	}
	if entries, err := os.ReadDir(secret); err != nil || len(entries) != 1 {
		t.Errorf("root's directory has %v, %v", entries, err)
	}
}

// scrapeFrom scrapes from another address than those who attack, as in life, by a new connection.
func scrapeFrom(address, path string, series int) error {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).DialContext,
	}}
	req, err := http.NewRequest(http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return err
	}
	req.SetBasicAuth("prometheus", "sesame")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	n := 0
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "load_total{") && strings.HasSuffix(line, "} 3\n") {
			n++
		}
	}
	if n != series {
		return fmt.Errorf("%s: %d right series, want %d: %.200q", resp.Status, n, series, body)
	}
	return nil
}

// hostileFiles puts files into a directory, again and again, that cost as much as they can. stop ends it.
func hostileFiles(t *testing.T, dir string) (stop func()) {
	t.Helper()
	long := func(n, length int) []byte { // so many series with labels of that length
		entries := make([]entry, n)
		for i := range entries {
			entries[i] = entry{
				fmt.Sprintf(`["long", "long_total", {"path": "%d%s"}, "Help."]`, rand.Int64(), strings.Repeat("x", length)),
				1,
			}
		}
		return sourceFile(n*(length+100)+8, entries...)
	}
	unreadable := func() []byte {
		b := sourceFile(16 << 20)
		for i := 8; i+24 < len(b); i += 24 {
			binary.LittleEndian.PutUint32(b[i:], 8)
			copy(b[i+4:], "garbage!    ")
		}
		binary.LittleEndian.PutUint32(b, uint32(8+(len(b)-8-24)/24*24))
		return b
	}
	kinds := []func(name string) error{
		func(name string) error { return os.WriteFile(name, long(180, 100_000), 0o666) },
		func(name string) error { return os.WriteFile(name, long(5000, 3000), 0o666) },
		func(name string) error { return os.WriteFile(name, long(200_000, 10), 0o666) }, // a large exposition
		func(name string) error { return os.WriteFile(name, unreadable(), 0o666) },
		func(name string) error {
			return errors.Join(os.WriteFile(name, []byte{0xf8, 0xff, 0xff, 0x7f}, 0o666), os.Truncate(name, 1<<40))
		},
		func(name string) error {
			for i := range 2000 {
				if err := os.WriteFile(fmt.Sprintf("%s.%d.db", name, i), []byte("abc"), 0o666); err != nil {
					return err
				}
			}
			return nil
		},
		func(name string) error {
			return os.WriteFile(strings.Replace(name, "counter", "histogram", 1),
				sourceFile(1<<12, entry{`["h", "h_bucket", {"le": "1.0"}, "Help."]`, -5}), 0o666)
		},
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			err := kinds[i%len(kinds)](filepath.Join(dir, fmt.Sprintf("counter_%d.db", i)))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOSPC) {
				t.Error(err)
			}
			select {
			case <-done:
				return
			case <-time.After(500 * time.Millisecond):
			}
			if i%(2*len(kinds)) == 0 { // so that they do not fill the machine
				old, _ := filepath.Glob(filepath.Join(dir, "*.db"))
				for _, name := range old {
					os.Remove(name) //nolint:errcheck // the daemon may have been quicker
				}
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// shippedMemory is the limit of memory of our manifest for a sidecar, in bytes.
func shippedMemory(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "deploy", "kubernetes", "component", "sidecar.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`limits: \{memory: (\d+)Mi\}`).FindSubmatch(data)
	if m == nil {
		t.Fatal("the manifest for a sidecar has no limit of memory")
	}
	mib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return mib << 20
}

// A memoryGroup is a control group whose processes may have so much memory. Where none can be made, the daemon
// is told of the limit, and what it takes is only measured.
type memoryGroup struct {
	dir           string // empty: there is none
	limit         int
	events, usage string // files in it
	stat          string // what it had when it had most
	most          int
}

// look takes note of what the group has if it has more than ever.
func (g *memoryGroup) look() {
	if g.dir == "" {
		return
	}
	data, _ := os.ReadFile(filepath.Join(g.dir, "memory.stat"))
	total, parts := 0, []string{}
	for line := range strings.Lines(string(data)) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, _ := strconv.Atoi(text); slices.Contains([]string{
			"anon", "rss", "file", "cache", "shmem", "mapped_file", "file_mapped",
			"unevictable",
		}, name) {
			parts = append(parts, fmt.Sprintf("%s %d MiB", name, n>>20))
			if name == "anon" || name == "rss" || name == "file" || name == "cache" {
				total += n
			}
		}
	}
	if total > g.most {
		g.most, g.stat = total, strings.Join(parts, ", ")
	}
}

func newMemoryGroup(t *testing.T, limit int) *memoryGroup {
	t.Helper()
	name := fmt.Sprintf("aggregatord-test-%d-%d", os.Getpid(), rand.Uint32())
	for _, g := range []struct{ parent, limit, events, usage string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control", "memory.max_usage_in_bytes"},
		{"/sys/fs/cgroup", "memory.max", "memory.events", "memory.peak"},
	} {
		dir := filepath.Join(g.parent, name)
		if _, err := os.Stat(filepath.Join(g.parent, "cgroup.procs")); err != nil || os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			eventually(t, patience, func() error { return os.Remove(dir) }) // when its processes are gone
		})
		if os.WriteFile(filepath.Join(dir, g.limit), []byte(strconv.Itoa(limit)), 0o644) == nil {
			return &memoryGroup{dir: dir, limit: limit, events: g.events, usage: g.usage}
		}
	}
	t.Log("no control group can be made here; the daemon is told of the limit by GOMEMLIMIT")
	return &memoryGroup{limit: limit}
}

// command is a process of the group.
func (g *memoryGroup) command(args ...string) *exec.Cmd {
	if g.dir == "" {
		return exec.Command("/usr/bin/env", append([]string{fmt.Sprintf("GOMEMLIMIT=%d", g.limit/10*9)}, args...)...)
	}
	return exec.Command("/bin/sh", append([]string{"-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs")}, args...)...)
}

// killed returns an error if a process of the group was killed for want of memory.
func (g *memoryGroup) killed() error {
	if g.dir == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(g.dir, g.events))
	if err == nil && regexp.MustCompile(`(?m)^oom_kill [1-9]`).Match(data) {
		err = fmt.Errorf("killed for want of memory: %s", data)
	}
	return err
}

func (g *memoryGroup) String() string {
	if g.dir == "" {
		return fmt.Sprintf("limit %d MiB, without a control group", g.limit>>20)
	}
	data, _ := os.ReadFile(filepath.Join(g.dir, g.usage))
	used, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return fmt.Sprintf("the control group had at most %d MiB of %d, with the pages of files (%s)", used>>20, g.limit>>20, g.stat)
}
