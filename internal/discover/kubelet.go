package discover

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"aggregatord/internal/pool"
)

// A Kubelet finds the emptyDir volumes of a node's pods, from paths alone:
//
//	ROOT/pods/UID/volumes/kubernetes.io~empty-dir/VOLUME   the volume
//	LOGS/NAMESPACE_POD_UID                                 whose it is
//
// A volume is a pool as long as it has source files. When the last process has gone and its files
// are archived, the pool goes after its retention, and whatever it had open with it: the kubelet
// cannot unmount a volume of a pod that has ended before that. The archive stays in the volume,
// so a container that starts again goes on with it.
type Kubelet struct {
	// Root is the kubelet's directory. Logs is that of the pods' logs; without it pools have no
	// labels namespace and pod.
	Root, Logs string
	// Volume is the name of the volumes. Default: any.
	Volume string
	// Settings is the name of a file in each volume in which the application may say something of
	// its pool, and ReadSettings reads its content. Default: no such file is read.
	Settings     string
	ReadSettings func(file string, data []byte) (Settings, error)
}

// kubeletSource is a Kubelet that is looked at.
type kubeletSource struct {
	Kubelet
	pods int // that were there when it was looked at last
	// settings are what the volumes' files said when they could be read last, by volume.
	settings map[string]*settingsFile
	rest     time.Duration // settingsRest
}

// NewKubelet returns the source.
func NewKubelet(k Kubelet) Source { return &kubeletSource{Kubelet: k, rest: settingsRest} }

// String implements Source.
func (s *kubeletSource) String() string { return "the volumes of pods below " + s.Root }

// Find implements Source.
func (s *kubeletSource) Find() ([]Found, []error) {
	var errs []error
	pods, err := os.ReadDir(filepath.Join(s.Root, "pods"))
	if err != nil {
		errs = append(errs, fmt.Errorf("look for pods: %w", err))
	}
	type owner struct{ namespace, pod string }
	owners := map[string]owner{}
	if s.Logs != "" && len(pods) > 0 {
		logs, err := os.ReadDir(s.Logs)
		if err != nil {
			errs = append(errs, fmt.Errorf("look for the names of pods: %w", err))
		}
		for _, l := range logs {
			// Neither part of a name has a _.
			if part := strings.Split(l.Name(), "_"); len(part) == 3 {
				owners[part[2]] = owner{part[0], part[1]}
			}
		}
	}
	s.pods = len(pods)
	var found []Found
	known := s.settings
	s.settings = map[string]*settingsFile{}
	for _, pod := range pods {
		uid := pod.Name()
		above := filepath.Join(s.Root, "pods", uid, "volumes", "kubernetes.io~empty-dir")
		volumes, err := os.ReadDir(above)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("look for the volumes of pod %s: %w", uid, err))
		}
		for _, v := range volumes {
			path := filepath.Join(above, v.Name())
			if !v.IsDir() || (s.Volume != "" && v.Name() != s.Volume) {
				continue // a link is no directory here
			}
			if !hasSources(path) {
				continue
			}
			info, err := os.Lstat(path)
			if err != nil {
				continue // just gone
			}
			o := owners[uid]
			parts := slices.DeleteFunc([]string{o.namespace, o.pod, v.Name(), short(uid)}, func(p string) bool { return p == "" })
			f := Found{
				Spec: pool.Spec{
					Name: strings.Join(parts, "_"), Path: path,
					Labels: labelsOf(map[string]string{"namespace": o.namespace, "pod": o.pod, "uid": uid, "volume": v.Name()}),
				},
				ID: path, Node: nodeOf(info), From: FromKubelet,
			}
			if s.Settings != "" {
				own := cmp.Or(known[path], &settingsFile{})
				s.settings[path] = own
				if own.look(path, s.Settings, s.ReadSettings, s.rest) {
					continue
				}
				if own.err != nil {
					errs = append(errs, own.err)
				}
				own.apply(&f)
			}
			found = append(found, f)
		}
	}
	return found, errs
}

// Hint implements Source.
func (s *kubeletSource) Hint() string {
	volumes := "emptyDir volume"
	if s.Volume != "" {
		volumes += fmt.Sprintf(" %q", s.Volume)
	}
	return fmt.Sprintf("No %s of the %d pods below %s has source files.", volumes, s.pods, s.Root)
}

// short is as much of a pod's UID as tells it from its namesakes.
func short(uid string) string { return uid[:min(len(uid), 8)] }

// hasSources reports whether a directory has source files. What other volumes have is not read
// to its end.
func hasSources(path string) bool {
	f, err := openDir(path)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // it was only read
	names, _ := f.Readdirnames(1000)
	return slices.ContainsFunc(names, isSource)
}
