package integration

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// makeRelease builds a release for this machine, with packages if nfpm is there.
func makeRelease(t *testing.T) string {
	t.Helper()
	extras, out := t.TempDir(), t.TempDir()
	for _, args := range [][]string{{"man", extras + "/man"}, {"completion", "bash"}, {"completion", "zsh"}, {"completion", "fish"}} {
		text, err := exec.Command(builtDaemon(t), args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if args[0] == "completion" {
			name := map[string]string{"bash": "aggregatord.bash", "zsh": "_aggregatord", "fish": "aggregatord.fish"}[args[1]]
			if err := os.MkdirAll(extras+"/completions", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(extras, "completions", name), text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	args := []string{
		"run", "./deploy/release", "-version", "v9.8.7", "-package-version", "9.8.7", "-extras", extras, "-out", out, "-only",
		"linux/" + runtime.GOARCH,
	}
	tools, err := filepath.Glob(filepath.Join(moduleRoot, "bin", "nfpm-*"))
	if err == nil && len(tools) > 0 {
		nfpm, err := filepath.Abs(tools[0])
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, "-nfpm", nfpm)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = moduleRoot
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return out
}

// TestRelease: two releases are the same bytes, the checksums are right, and the program of the
// package runs in a root where there is nothing else.
func TestRelease(t *testing.T) {
	t.Parallel()
	first, second := makeRelease(t), makeRelease(t)
	sums, err := os.ReadFile(filepath.Join(first, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(filepath.Join(second, "SHA256SUMS"))
	if err != nil || !bytes.Equal(sums, again) {
		t.Errorf("two releases differ: %v\n%s\n%s", err, sums, again)
	}
	for lines := bufio.NewScanner(bytes.NewReader(sums)); lines.Scan(); {
		sum, name, _ := strings.Cut(lines.Text(), "  ")
		data, err := os.ReadFile(filepath.Join(first, name))
		if err != nil || fmt.Sprintf("%x", sha256.Sum256(data)) != sum {
			t.Errorf("%s: %v, or another checksum", name, err)
		}
	}
	image, err := os.Open(filepath.Join(first, "aggregatord-9.8.7-oci.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	names := map[string]bool{}
	for r := tar.NewReader(image); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = true
		if digest, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok && digest != "" {
			sum := sha256.New()
			if _, err := io.Copy(sum, r); err != nil || fmt.Sprintf("%x", sum.Sum(nil)) != digest {
				t.Errorf("%s has another digest: %v", h.Name, err)
			}
		}
	}
	if !names["oci-layout"] || !names["index.json"] || len(names) < 7 {
		t.Errorf("the image has %v", names)
	}
	t.Run("deb", func(t *testing.T) { runPackage(t, filepath.Join(first, "aggregatord_9.8.7_"+runtime.GOARCH+".deb")) })
}

// runPackage installs a package into an empty root and serves from there, as a user who is not
// root.
func runPackage(t *testing.T, deb string) {
	needRoot(t)
	dpkg := peer(t, "dpkg", "apt-get install dpkg")
	if _, err := os.Stat(deb); err != nil {
		missing(t, "nfpm", "make release installs it into bin")
	}
	root, err := os.MkdirTemp(scratch, "root-")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log", "multiproc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"var/lib/dpkg/status", "var/lib/dpkg/available"} {
		if err := os.WriteFile(filepath.Join(root, file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(dpkg, "--root="+root, "--force-not-root", "--force-architecture", "--install",
		deb).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const nobody = 65534
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(root, "multiproc"), nobody, nobody); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{
		"usr/share/man/man1/aggregatord.1", "usr/share/bash-completion/completions/aggregatord",
		"etc/aggregatord/aggregatord.yml", "usr/lib/systemd/system/aggregatord.service",
	} {
		if _, err := os.Stat(filepath.Join(root, file)); err != nil {
			t.Error(err)
		}
	}
	in := func(args ...string) *exec.Cmd {
		cmd := exec.Command("/usr/bin/aggregatord", args...)
		cmd.Dir, cmd.Env = "/", []string{}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		return cmd
	}
	if out, err := in("--version").CombinedOutput(); err != nil || !strings.Contains(string(out), "aggregatord v9.8.7 ") {
		t.Errorf("%v: %s", err, out)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	start(t, in("serve", "--dir", "/multiproc", "--config.file", "/etc/aggregatord/aggregatord.yml", "--web.listen-address", address))
	eventually(t, patience, func() error {
		resp, err := http.Get("http://" + address + "/-/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", resp.Status)
		}
		return nil
	})
}
