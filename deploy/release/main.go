// Command release builds what a release consists of: static binaries in archives, packages, an
// image, a bill of materials and checksums. Everything depends on the commit alone: two runs
// give the same bytes. It needs the go and git commands and nfpm, and no daemon and no network.
package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// targets are the systems that there are binaries for.
var targets = []struct{ os, arch string }{
	{"linux", "amd64"},
	{"linux", "arm64"},
	{"darwin", "amd64"},
	{"darwin", "arm64"},
}

// user is whom the image runs as, as deploy/docker/Dockerfile has it.
const user = "65532:65532"

type release struct {
	version, packageVersion string
	// extras is where man pages and completions are, out where the release goes.
	extras, nfpm, out string
	// only bounds the targets to one, as OS/ARCH; empty: all.
	only string
	// date is that of the commit, which all files have.
	date time.Time
}

func main() {
	var r release
	flag.StringVar(&r.version, "version", "dev", "version of the binaries")
	flag.StringVar(&r.packageVersion, "package-version", "0.0.0", "version of the packages")
	flag.StringVar(&r.extras, "extras", "bin", "directory with man/ and completions/")
	flag.StringVar(&r.nfpm, "nfpm", "", "nfpm; empty: make no packages")
	flag.StringVar(&r.out, "out", "dist", "directory to write, which is made anew")
	flag.StringVar(&r.only, "only", "", "build for one system, as linux/amd64")
	flag.Parse()
	if err := r.run(); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func (r *release) run() error {
	if err := errors.Join(os.RemoveAll(r.out), os.MkdirAll(r.out, 0o755)); err != nil {
		return err
	}
	seconds, err := output("git", "log", "-1", "--format=%ct")
	if err != nil {
		return err
	}
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return fmt.Errorf("date of the commit: %w", err)
	}
	r.date = time.Unix(unix, 0).UTC()
	work, err := os.MkdirTemp("", "release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) //nolint:errcheck // it is in the directory for temporary files
	binaries := map[string]string{}
	for _, t := range targets {
		name := t.os + "/" + t.arch
		if r.only != "" && r.only != name {
			continue
		}
		binary := filepath.Join(work, t.os+"-"+t.arch, "aggregatord")
		if err := r.build(t.os, t.arch, binary); err != nil {
			return err
		}
		if err := r.archive(t.os, t.arch, binary); err != nil {
			return err
		}
		if t.os == "linux" {
			binaries[t.arch] = binary
			if err := r.packages(t.arch, binary, work); err != nil {
				return err
			}
		}
	}
	if len(binaries) > 0 {
		if err := r.image(binaries); err != nil {
			return err
		}
		for _, binary := range binaries {
			if err := r.bill(binary); err != nil { // the modules are the same everywhere
				return err
			}
			break
		}
	}
	return r.checksums()
}

// output runs a command and returns the line that it prints.
func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

func (r *release) build(goos, arch, binary string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -buildid= -X aggregatord/internal/buildinfo.Version="+r.version,
		"-o", binary, "./cmd/aggregatord")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+arch)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build for %s/%s: %w", goos, arch, err)
	}
	return nil
}

// entry is a file of an archive.
type entry struct {
	name string
	mode int64
	data []byte
}

// tarball is the entries, sorted by name, with the date of the release and no owner but root.
func (r *release) tarball(entries []entry) ([]byte, error) {
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Mode: e.mode, Size: int64(len(e.data)), ModTime: r.date, Typeflag: tar.TypeReg,
			Format: tar.FormatUSTAR,
		}
		if strings.HasSuffix(e.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

func compress(data []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	return out.Bytes(), errors.Join(w.Close())
}

// archive writes a binary with its man pages, completions, units and documents.
func (r *release) archive(goos, arch, binary string) error {
	base := fmt.Sprintf("aggregatord-%s-%s-%s", r.packageVersion, goos, arch)
	var entries []entry
	add := func(path, name string, mode int64) error {
		data, err := os.ReadFile(path)
		entries = append(entries, entry{base + "/" + name, mode, data})
		return err
	}
	err := errors.Join(add(binary, "aggregatord", 0o755), add("README.md", "README.md", 0o644), add("CHANGELOG.md", "CHANGELOG.md", 0o644),
		add("deploy/aggregatord.yml", "aggregatord.yml", 0o644))
	for _, dir := range []struct{ from, to string }{
		{r.extras + "/man", "man"},
		{r.extras + "/completions", "completions"},
		{"deploy/systemd", "systemd"},
	} {
		err = errors.Join(err, filepath.WalkDir(dir.from, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return add(p, path.Join(dir.to, d.Name()), 0o644)
		}))
	}
	if err != nil {
		return err
	}
	data, err := r.tarball(entries)
	if err != nil {
		return err
	}
	if data, err = compress(data); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.out, base+".tar.gz"), data, 0o644)
}

// packages has nfpm make a deb and an rpm.
func (r *release) packages(arch, binary, work string) error {
	if r.nfpm == "" {
		return nil
	}
	// nfpm takes over the dates of files, so all that it takes is copied and dated.
	stage := filepath.Join(work, "stage-"+arch)
	for from, to := range map[string]string{
		binary: "bin/aggregatord", r.extras + "/man": "bin/man", r.extras + "/completions": "bin/completions",
		"deploy/systemd": "deploy/systemd", "deploy/aggregatord.yml": "deploy/aggregatord.yml",
	} {
		if err := r.copy(from, filepath.Join(stage, to)); err != nil {
			return err
		}
	}
	config, err := os.ReadFile("deploy/packaging/nfpm.yaml")
	if err != nil {
		return err
	}
	file := filepath.Join(stage, "nfpm.yaml")
	if err := os.WriteFile(file, fmt.Appendf(config, "mtime: %s\n", r.date.Format(time.RFC3339)), 0o644); err != nil {
		return err
	}
	out, errOut := filepath.Abs(r.out)
	nfpm, errNfpm := filepath.Abs(r.nfpm)
	if err := errors.Join(errOut, errNfpm); err != nil {
		return err
	}
	for _, kind := range []string{"deb", "rpm"} {
		cmd := exec.Command(nfpm, "package", "--config", file, "--packager", kind, "--target", out)
		cmd.Dir = stage
		cmd.Env = append(os.Environ(), "VERSION="+r.packageVersion, "GOARCH="+arch,
			"SOURCE_DATE_EPOCH="+strconv.FormatInt(r.date.Unix(), 10))
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s for %s: %w", kind, arch, err)
		}
	}
	return nil
}

// copy copies a file or a directory; the copies have the date of the release.
func (r *release) copy(from, to string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rest, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rest)
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return errors.Join(os.MkdirAll(filepath.Dir(target), 0o755), os.WriteFile(target, data, 0o644), os.Chtimes(target, r.date, r.date))
	})
}

// descriptor is how OCI's image layout points to a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    map[string]string `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// image writes an OCI image layout, as a tar that podman, skopeo and docker load: one layer
// with the binary for each architecture, and what deploy/docker/Dockerfile says about it.
func (r *release) image(binaries map[string]string) error {
	const prefix = "application/vnd.oci.image."
	entries := []entry{
		{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"blobs/", 0o755, nil},
		{"blobs/sha256/", 0o755, nil},
	}
	blob := func(mediaType string, data []byte) descriptor {
		sum := sha256.Sum256(data)
		digest := hex.EncodeToString(sum[:])
		entries = append(entries, entry{"blobs/sha256/" + digest, 0o644, data})
		return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(data)}
	}
	document := func(mediaType string, v any) (descriptor, error) {
		data, err := json.Marshal(v)
		return blob(mediaType, data), err
	}
	var manifests []descriptor
	for _, arch := range []string{"amd64", "arm64"} {
		if binaries[arch] == "" {
			continue
		}
		data, err := os.ReadFile(binaries[arch])
		if err != nil {
			return err
		}
		layer, err := r.tarball([]entry{{"aggregatord", 0o755, data}, {"multiproc/", 0o777, nil}})
		if err != nil {
			return err
		}
		plain := sha256.Sum256(layer)
		if layer, err = compress(layer); err != nil {
			return err
		}
		config, err := document(prefix+"config.v1+json", map[string]any{
			"created": r.date.Format(time.RFC3339), "architecture": arch, "os": "linux",
			"config": map[string]any{
				"User": user, "Env": []string{"PROMETHEUS_MULTIPROC_DIR=/multiproc"},
				"ExposedPorts": map[string]any{"9500/tcp": struct{}{}},
				"Entrypoint":   []string{"/aggregatord"}, "Cmd": []string{"serve"},
				"Labels": map[string]string{"org.opencontainers.image.title": "aggregatord", "org.opencontainers.image.version": r.version},
			},
			"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(plain[:])}},
			"history": []any{map[string]any{"created": r.date.Format(time.RFC3339), "created_by": "deploy/release"}},
		})
		if err != nil {
			return err
		}
		manifest, err := document(prefix+"manifest.v1+json", map[string]any{
			"schemaVersion": 2, "mediaType": prefix + "manifest.v1+json", "config": config,
			"layers": []descriptor{blob(prefix+"layer.v1.tar+gzip", layer)},
		})
		if err != nil {
			return err
		}
		manifest.Platform = map[string]string{"os": "linux", "architecture": arch}
		manifests = append(manifests, manifest)
	}
	list, err := document(prefix+"index.v1+json",
		map[string]any{"schemaVersion": 2, "mediaType": prefix + "index.v1+json", "manifests": manifests})
	if err != nil {
		return err
	}
	list.Annotations = map[string]string{"org.opencontainers.image.ref.name": "aggregatord:" + r.packageVersion}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{list}})
	if err != nil {
		return err
	}
	data, err := r.tarball(append(entries, entry{"index.json", 0o644, index}))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.out, "aggregatord-"+r.packageVersion+"-oci.tar"), data, 0o644)
}

// bill writes which modules are in the binary, as CycloneDX.
func (r *release) bill(binary string) error {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return err
	}
	type component struct {
		Type    string `json:"type"`
		Name    string `json:"name"`
		Version string `json:"version"`
		URL     string `json:"purl,omitempty"`
		Ref     string `json:"bom-ref,omitempty"`
	}
	of := func(name, version string) component {
		url := "pkg:golang/" + name + "@" + version
		return component{"library", name, version, url, url}
	}
	components := []component{of("std", strings.TrimPrefix(info.GoVersion, "go"))}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		components = append(components, of(m.Path, m.Version))
	}
	data, err := json.MarshalIndent(map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
		"metadata": map[string]any{
			"timestamp": r.date.Format(time.RFC3339),
			"component": component{Type: "application", Name: "aggregatord", Version: r.version, Ref: "aggregatord"},
		},
		"components": components,
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.out, "aggregatord-"+r.packageVersion+"-sbom.cdx.json"), append(data, '\n'), 0o644)
}

// checksums writes those of all files in the form of sha256sum.
func (r *release) checksums() error {
	files, err := os.ReadDir(r.out)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(r.out, f.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%x  %s\n", sha256.Sum256(data), f.Name())
	}
	return os.WriteFile(filepath.Join(r.out, "SHA256SUMS"), out.Bytes(), 0o644)
}
