package discover

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"aggregatord/internal/pool"
)

// A Kubelet finds the emptyDir volumes of a node's pods, from paths alone:
//
//	ROOT/pods/UID/volumes/kubernetes.io~empty-dir/VOLUME   the volume
//	LOGS/NAMESPACE_POD_UID                                 whose it is
type Kubelet struct {
	// Root is the kubelet's directory. Logs is that of the pods' logs; without it pools have no
	// labels namespace and pod.
	Root, Logs string
	// Volume is the name of the volumes. Default: those that have source files.
	Volume string
}

// kubeletSource is a Kubelet that is looked at.
type kubeletSource struct {
	Kubelet
	known map[string]bool // volumes that had source files once, by path
}

// NewKubelet returns the source.
func NewKubelet(k Kubelet) Source { return &kubeletSource{Kubelet: k, known: map[string]bool{}} }

// Close implements Source.
func (s *kubeletSource) Close() error { return nil }

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
	var found []Found
	known := map[string]bool{}
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
			if s.Volume == "" && !s.known[path] && !hasSources(path) {
				continue
			}
			known[path] = true
			info, err := os.Lstat(path)
			if err != nil {
				continue // just gone
			}
			o := owners[uid]
			parts := slices.DeleteFunc([]string{o.namespace, o.pod, v.Name(), short(uid)}, func(p string) bool { return p == "" })
			found = append(found, Found{
				Spec: pool.Spec{
					Name: strings.Join(parts, "_"), Path: path,
					Labels: labelsOf(map[string]string{"namespace": o.namespace, "pod": o.pod, "uid": uid, "volume": v.Name()}),
				},
				ID: path, Node: nodeOf(info),
			})
		}
	}
	s.known = known
	return found, errs
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
