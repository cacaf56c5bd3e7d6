package integration

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// anonymousBytes is how much memory of its own a process has in use.
func anonymousBytes(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no RssAnon", pid)
}

// attack starts clients that do what they should not, in a process of the lowest priority: those of
// other machines would take no CPU time from the daemon. stop ends them.
func attack(t *testing.T, address, how string) (stop func()) {
	t.Helper()
	cmd := exec.Command(peer(t, "nice", "apt-get install coreutils"), "-n", "19", os.Args[0])
	cmd.Env = append(os.Environ(), attackEnv+"="+how+" "+address)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, cmd)
	p.await("the attack", func(line string) bool { return line == "attacking" })
	return func() {
		in.Close()
		if err := p.wait(); err != nil {
			t.Error(err)
		}
	}
}

func init() { obey = attackOrder }

// hostileConnections is how many connections "hostile" has at once.
const hostileConnections = 500

// attackOrder is the process that attack, or a test of a good client beside it, starts.
func attackOrder(order string) {
	args := strings.Fields(order)
	how, address := args[0], args[1]
	if how == "race" {
		raceOrder(args[1], args[2], args[3], args[4])
		return
	}
	if how == "scrape" {
		if err := scrapeOrder(address, args[2], args[3]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	request := func(path, header string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + header + "\r\n"
	}
	done := make(chan struct{})
	var clients sync.WaitGroup
	// hold has n clients connect, send a text and hold the connection for a while, again and again.
	hold := func(n int, text func(i int) string, hold time.Duration) {
		for range n {
			clients.Go(func() { // until done is closed
				for i := 0; ; i++ {
					if c, err := net.Dial("tcp", address); err == nil {
						c.Write([]byte(text(i))) //nolint:errcheck // it may be thrown out
						select {
						case <-done:
						case <-time.After(hold):
						}
						c.Close()
					}
					select {
					case <-done:
						return
					case <-time.After(20 * time.Millisecond):
					}
				}
			})
		}
	}
	always := func(text string) func(int) string { return func(int) string { return text } }
	switch how {
	case "hostile": // hostileConnections in all
		hold(150, always(""), time.Hour)                                          // idle
		hold(100, always(strings.Repeat(request("/metrics", ""), 50)), time.Hour) // asks, and never reads
		hold(100, always(request("/metrics", "")),
			0) // asks, and leaves at once
		hold(50, always("GET /metrics HTTP/1.1\r\nHost: lo"), time.Hour)                                            // never ends its header
		hold(50, always(request("/api/v1/series?match="+url.QueryEscape(`{path=~"(a?){400}z"}`), "")), time.Second) // an expensive question
		hold(50, always(strings.Repeat("x\r\n", 1000)), 10*time.Millisecond)                                        // nonsense
	case "guessing":
		guess := func(i int) string {
			word := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "prometheus:%d-%d", os.Getpid(), i+rand.IntN(1<<40)))
			return request("/metrics", "Authorization: Basic "+word+"\r\n")
		}
		hold(200, guess, 100*time.Millisecond)
	}
	fmt.Println("attacking")
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is all that matters
	close(done)
	clients.Wait()
}

// cpuTime is the CPU time that a process has used.
func cpuTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	user, err := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err, err2)
}

// TestGuessedPasswords: a client with the right password is served at once beside 200 that guess, also
// if it was never served before.
func TestGuessedPasswords(t *testing.T) {
	plain, err := buildPlain()
	if err != nil {
		t.Fatal(err)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte("sesame"), 10) // as htpasswd -nBC 10
	if err != nil {
		t.Fatal(err)
	}
	web := writeFile(t, filepath.Join(t.TempDir(), "web.yml"), fmt.Sprintf("basic_auth_users: {prometheus: '%s'}\n", hash))
	d, addresses := startServing(t, exec.Command(plain, "serve", "--log.format", "json", "--dir", sourceDir(t), "--web.listen-address",
		"127.0.0.1:0", "--web.config.file", web))
	stop := attack(t, addresses[0], "guessing")
	defer stop()
	time.Sleep(time.Second) // until the guessers are all there, and wait
	var all []time.Duration
	for end := time.Now().Add(min(soak(t, 4*time.Second), time.Minute)); time.Now().Before(end); {
		// From another address than the guessers, as in life.
		client := &http.Client{Timeout: patience, Transport: &http.Transport{
			DisableKeepAlives: true, DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).DialContext,
		}}
		req, err := http.NewRequest(http.MethodGet, "http://"+addresses[0]+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("prometheus", "sesame")
		begin := time.Now()
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("status %s, %v", resp.Status, err)
		}
		all = append(all, time.Since(begin))
		time.Sleep(10 * time.Millisecond)
	}
	first := all[0]
	slices.Sort(all)
	t.Logf("beside 200 clients that guess the first scrape took %v, the slowest of %d %v, the median %v", first, len(all), all[len(all)-1],
		all[len(all)/2])
	if all[len(all)-1] > 5*time.Second {
		t.Error("that is too long")
	}
	if d.stopped {
		t.Error("it ended")
	}
}

// TestHostileClients has 500 connections of clients that do what they should not, beside one that
// scrapes: all its scrapes are right, and the memory is given back, within a minute. The daemon and the
// good client come before whatever else the machine does, if that may be asked for; then the 99th percentile
// of its scrapes is below five times that without the others. AGGREGATORD_SOAK makes it a minute, after
// which the hostile clients come once more: they leave no more behind than the first time.
func TestHostileClients(t *testing.T) {
	const series = 3000
	dir := loadDir(t, series)
	plain, err := buildPlain()
	if err != nil {
		t.Fatal(err)
	}
	first := firstCome()
	// The shell becomes the plain daemon in place of the one that it is given.
	d := startDaemonBy(t, []string{"/bin/sh", "-c", "shift; exec " + strings.Join(first, " ") + ` "$0" "$@"`, plain}, nil, "serve", "--dir",
		dir, "--web.max-connections", "600")
	address := strings.TrimPrefix(d.URL, "http://")
	scrapes := func(during time.Duration) (n int, p99 time.Duration) {
		t.Helper()
		command := append(slices.Clone(first), os.Args[0])
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=scrape %s %v %d", attackEnv, address, during, series))
		p := start(t, cmd)
		done := p.awaitWithin(during+patience, "the scrapes", func(line string) bool { return strings.HasPrefix(line, "scraped ") })
		if _, err := fmt.Sscanf(done, "scraped %d %d", &n, &p99); err != nil {
			t.Fatal(done, err)
		}
		return n, p99
	}
	quietly, quiet := scrapes(3 * time.Second)
	memory := func() int {
		bytes, err := anonymousBytes(d.cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return bytes
	}
	before := memory()
	// returns waits until the daemon has given back what it has taken beyond before, but a tenth of it and kept.
	returns := func(before, kept int) (after int) {
		t.Helper()
		eventually(t, time.Minute, func() error {
			if after = memory(); after > before+before/10+kept {
				return fmt.Errorf("RssAnon is %d KiB, was %d", after>>10, before>>10)
			}
			return nil
		})
		scrapes(100 * time.Millisecond)
		return after
	}

	cpu := func() time.Duration {
		used, err := cpuTime(d.cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return used
	}
	stop := attack(t, address, "hostile")
	began, used := time.Now(), cpu()
	busily, busy := scrapes(min(soak(t, 5*time.Second), time.Minute))
	for range 2 { // what comes before others is not alone on a busy machine
		if len(first) > 0 && busy > 5*quiet {
			busily, busy = scrapes(5 * time.Second)
		}
	}
	used, took := cpu()-used, time.Since(began)
	most := memory()
	stop()
	// Go keeps for good what it has needed once for each goroutine and each connection: stacks, descriptors to poll.
	after := returns(before, hostileConnections*4<<10)
	t.Logf("p99 of %d quiet scrapes %v, of %d beside hostile clients %v, for whom the daemon used %v of CPU in %v; RssAnon %d KiB, then %d, then %d",
		quietly, quiet, busily, busy, used, took.Round(time.Millisecond), before>>10, most>>10, after>>10)
	if len(first) > 0 && busy > 5*quiet {
		t.Errorf("hostile clients make a scrape take %v, %v without them", busy, quiet)
	}
	if soak(t, 0) == 0 {
		return
	}
	stop = attack(t, address, "hostile")
	scrapes(time.Minute)
	most = memory()
	stop()
	t.Logf("when they had come again: RssAnon %d KiB, then %d", most>>10, returns(after, 0)>>10)
}

// firstCome is a command that runs another one before all others of the machine, empty if that may not
// be asked for.
func firstCome() []string {
	by := []string{"chrt", "-r", "10"}
	if exec.Command(by[0], append(by[1:], "true")...).Run() != nil {
		return nil
	}
	return by
}

// scrapeOrder is a client that scrapes for a while, each time by a new connection, and tells how often
// and the 99th percentile of how long it took.
func scrapeOrder(address, during, want string) error {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
	var all []time.Duration
	d, err := time.ParseDuration(during)
	if err != nil {
		return err
	}
	for end := time.Now().Add(d); len(all) < 3 || time.Now().Before(end); {
		begin := time.Now()
		resp, err := client.Get("http://" + address + "/metrics")
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		if resp.Body.Close(); err != nil {
			return err
		}
		all = append(all, time.Since(begin))
		if n := strings.Count(string(body), "load_total{"); fmt.Sprint(n) != want ||
			!strings.Contains(string(body), `load_total{path="/order/2999"} 3`) {
			return fmt.Errorf("%s: %d series, want %s", resp.Status, n, want)
		}
		time.Sleep(20 * time.Millisecond)
	}
	slices.Sort(all)
	fmt.Println("scraped", len(all), int64(all[len(all)*99/100]))
	return nil
}
