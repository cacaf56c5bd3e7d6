package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/exporter-toolkit/web"
)

// TestExplainWeb: mistakes of a web configuration are told with line and key.
func TestExplainWeb(t *testing.T) {
	const hash = "$2y$10$4Vn0FQKzPdFBPVnLh0LLeOqbXg7bL1fYhM1bIuI3Zl1zHaGp8lb2S"
	cause := errors.New("what the library says")
	for name, tc := range map[string]struct {
		text string
		want []string // begin with ":LINE:COLUMN: "; none: the cause
	}{
		"sound": {"basic_auth_users:\n  prometheus: " + hash + "\n", nil},
		"plain_password": {
			"basic_auth_users:\n  prometheus: secret\n",
			[]string{":2:15: basic_auth_users.prometheus: is not a bcrypt hash of a password; write what htpasswd -nBC 10 prometheus prints after the colon"},
		},
		"cut_hash": {"basic_auth_users: {me: $2y$10$abc}\n", []string{":1:24: basic_auth_users.me: is not a bcrypt hash"}},
		"tab":      {"basic_auth_users:\n\tme: " + hash + "\n", []string{":2:1: has a tab; indent with spaces"}},
		"mistyped_key": {
			"tls_server_config:\n  cert_fil: a\n",
			[]string{":2:3: tls_server_config.cert_fil: is not a key; did you mean cert_file?"},
		},
		"mistyped_part": {"tls_config: {}\n", []string{":1:1: tls_config: is not a key"}},
		"two_mistakes": {
			"rate_limits: {}\nbasic_auth_users: {me: x}\n",
			[]string{":1:1: rate_limits: is not a key; did you mean rate_limit?", ":2:24: basic_auth_users.me: is not a bcrypt"},
		},
		"no_keys":       {"- a\n", []string{":1:1: has no keys"}},
		"no_keys_below": {"basic_auth_users: 7\n", []string{":1:19: basic_auth_users: has no keys below it"}},
		"nothing_below": {"basic_auth_users:\n", nil},
		"other":         {"tls_server_config: {cert_file: /none}\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "web.yml")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			err := ExplainWeb(path, cause)
			if tc.want == nil {
				if !errors.Is(err, cause) {
					t.Errorf("%v, want the cause", err)
				}
				return
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), path+want) {
					t.Errorf("%v\nwant %s", err, path+want)
				}
			}
			if strings.Contains(err.Error(), "\n") || strings.Count(err.Error(), path) != len(tc.want) {
				t.Errorf("%q, want %d mistakes in one line", err, len(tc.want))
			}
		})
	}
	if err := ExplainWeb(filepath.Join(t.TempDir(), "none"), cause); !errors.Is(err, cause) {
		t.Errorf("of a file that is not there: %v", err)
	}
}

// TestWebKeys: the keys are those of the library that reads the file.
func TestWebKeys(t *testing.T) {
	names := func(of reflect.Type) (all []string) {
		for f := range of.Fields() {
			if tag := f.Tag.Get("yaml"); tag != "" {
				name, _, _ := strings.Cut(tag, ",")
				all = append(all, name)
			}
		}
		slices.Sort(all)
		return all
	}
	sections := reflect.TypeFor[web.Config]()
	if n := len(names(sections)); n != len(webKeys) {
		t.Errorf("%d sections, want %v", len(webKeys), names(sections))
	}
	for f := range sections.Fields() {
		section, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		keys, ok := webKeys[section]
		if !ok {
			t.Errorf("no section %s", section)
		}
		if f.Type.Kind() != reflect.Struct {
			continue
		}
		if keys = slices.Sorted(slices.Values(keys)); !slices.Equal(keys, names(f.Type)) {
			t.Errorf("%s has %v, want %v", section, keys, names(f.Type))
		}
	}
}
