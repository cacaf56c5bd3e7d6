package integration

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// races are what a user does with the hidden files in a directory of theirs, again and again, while a
// daemon that runs as root works there. Each gets the path of a file that is there or may be soon, a
// free path beside it, and what is root's. An error means that the daemon was quicker.
var races = map[string]func(path, beside, precious, secret string){
	"links":      func(path, _, precious, _ string) { replace(path, func() error { return os.Symlink(precious, path) }) },
	"dir_links":  func(path, _, _, secret string) { replace(path, func() error { return os.Symlink(secret, path) }) },
	"devices":    func(path, _, _, _ string) { replace(path, func() error { return os.Symlink("/dev/zero", path) }) },
	"pipes":      func(path, _, _, _ string) { replace(path, func() error { return unix.Mkfifo(path, 0o666) }) },
	"dirs":       func(path, _, _, _ string) { replace(path, func() error { return os.Mkdir(path, 0o777) }) },
	"hard_links": func(path, beside, _, _ string) { _ = errors.Join(os.Link(path, beside), os.Remove(beside)) },
	"moves":      func(path, beside, _, _ string) { _ = errors.Join(os.Rename(path, beside), os.Rename(beside, path)) },
	"exchanges": func(path, beside, precious, _ string) {
		if os.Symlink(precious, beside) == nil {
			for range 2 {
				_ = unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, beside, unix.RENAME_EXCHANGE)
			}
			os.RemoveAll(beside)
		}
	},
	"garbage": func(path, beside, _, _ string) {
		if os.WriteFile(beside, []byte(strings.Repeat("garbage ", 4096)), 0o666) == nil {
			_ = os.Rename(beside, path)
		}
	},
}

// replace has another thing in the place of a file for a moment.
func replace(path string, by func() error) {
	os.RemoveAll(path)
	if by() == nil {
		time.Sleep(time.Duration(time.Now().UnixNano()%1000) * time.Microsecond)
		os.RemoveAll(path)
	}
}

// raceOrder is the process of the user: it races until its standard input ends, a third of the time
// each for the ballast, which is made when there is nothing else to do, for the files that are being
// archived, and for everything. It leaves files of dead workers, so that there is something to archive.
func raceOrder(kind, dir, root, during string) {
	done := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is all that matters
		close(done)
	}()
	fmt.Println("racing")
	worker := sourceFile(1<<16, entry{`["hits", "hits_total", {}, "Hits."]`, 1})
	third, err := time.ParseDuration(during)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	third /= 3
	begun, left := time.Now(), time.Time{}
	for i := 0; ; i++ {
		select {
		case <-done:
			return
		default:
		}
		phase := time.Since(begun) / third
		if phase > 0 && time.Since(left) > 100*time.Millisecond {
			left = time.Now()
			os.WriteFile(filepath.Join(dir, fmt.Sprintf("counter_%d.db", i)), worker, 0o666) //nolint:errcheck // as well as it can
		}
		names := []string{".aggregatord.ballast"}
		if phase > 0 {
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), ".aggregatord.staged.") || phase > 1 && strings.HasPrefix(e.Name(), ".aggregatord.") {
					names = append(names, e.Name())
				}
			}
		}
		if phase > 1 {
			names = append(names, ".aggregatord.archive", ".aggregatord.owner", ".aggregatord.owner.new")
		}
		races[kind](filepath.Join(dir, names[i%len(names)]), filepath.Join(dir, ".beside"), filepath.Join(root, "precious"),
			filepath.Join(root, "secret"))
	}
}

// TestRacers: whatever a user does with our files in a directory of theirs, a daemon that runs as root
// changes nothing that is root's, does not hang, and serves another pool. AGGREGATORD_SOAK makes it a
// minute for each kind of race.
func TestRacers(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for kind := range races {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			root := publicDir(t)
			good, dir, secret := filepath.Join(root, "good"), filepath.Join(root, "user"), filepath.Join(root, "secret")
			for path, mode := range map[string]fs.FileMode{good: 0o755, dir: 0o755, secret: 0o700} {
				if err := errors.Join(os.Mkdir(path, mode)); err != nil {
					t.Fatal(err)
				}
			}
			const user = 1000
			if err := os.Chown(dir, user, user); err != nil {
				t.Fatal(err)
			}
			// As large as a ballast, so that what is written over it shows.
			content := strings.Repeat("precious ", 1<<18)
			for _, path := range []string{filepath.Join(root, "precious"), filepath.Join(secret, "file")} {
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			writeFile(t, filepath.Join(good, "counter_1.db"), string(sourceFile(1<<16, entry{`["good", "good_total", {}, "Good."]`, 7})))
			d := serve(t, "--dir", "good="+good, "--dir", "user="+dir)
			binary := copyRacer(t, root)
			during := min(soak(t, 2*time.Second), time.Minute)
			stop := startRacer(t, exec.Command(binary), kind, dir, root, during)
			slowest, scrapes := time.Duration(0), 0
			for end := time.Now().Add(during); time.Now().Before(end); scrapes++ {
				begin := time.Now()
				body, _, err := d.get("/pools/good/metrics", acceptText)
				if err != nil || !strings.Contains(string(body), "good_total 7\n") {
					t.Fatalf("the other pool: %.200q, %v", body, err)
				}
				slowest = max(slowest, time.Since(begin))
				if _, _, err := d.get("/metrics", acceptText); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Millisecond)
			}
			stop()
			d.stop()
			t.Logf("the slowest of %d scrapes of the other pool took %v", scrapes, slowest)
			for _, path := range []string{filepath.Join(root, "precious"), filepath.Join(secret, "file")} {
				data, err := os.ReadFile(path)
				if err != nil || string(data) != content {
					t.Errorf("%s is not what it was: %d bytes, %v", path, len(data), err)
				}
				if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != 0 ||
					info.Sys().(*syscall.Stat_t).Nlink != 1 {
					t.Errorf("%s is not what it was: %v, %v", path, info, err)
				}
			}
			if entries, err := os.ReadDir(secret); err != nil || len(entries) != 1 {
				t.Errorf("root's directory has %v, %v", entries, err)
			}
		})
	}
}

// copyRacer copies the test's own program into a directory that other users can enter. Another program does
// it: what we have open for writing is in the children, too, that other tests start meanwhile, until
// they execute, and cannot be executed as long.
func copyRacer(t *testing.T, dir string) (program string) {
	t.Helper()
	program = filepath.Join(dir, "racer")
	if out, err := exec.Command("cp", os.Args[0], program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

// startRacer starts a program that copyRacer has made, as the user that the directory is of, and returns what
// ends it.
func startRacer(t *testing.T, cmd *exec.Cmd, kind, dir, root string, during time.Duration) (stop func()) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=race %s %s %s %v", attackEnv, kind, dir, root, during))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: st.Uid, Gid: st.Gid}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	racer := start(t, cmd)
	racer.await("the race", func(line string) bool { return line == "racing" })
	return func() {
		in.Close()
		if err := racer.wait(); err != nil {
			t.Error(err)
		}
	}
}
