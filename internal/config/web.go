package config

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// webKeys are the keys of the sections of a web configuration, that of Prometheus' exporters;
// nil: any key, as the users in basic_auth_users.
var webKeys = map[string][]string{
	"tls_server_config": {
		"cert", "key", "client_ca", "cert_file", "key_file", "client_auth_type", "client_ca_file", "cipher_suites", "curve_preferences",
		"min_version", "max_version", "prefer_server_cipher_suites", "client_allowed_sans",
	},
	"http_server_config": {"http2", "headers"},
	"rate_limit":         {"burst", "interval"},
	"basic_auth_users":   nil,
}

// bcryptHash is what htpasswd -B makes of a password.
var bcryptHash = regexp.MustCompile(`^\$2[abxy]?\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}$`)

// ExplainWeb says in our words, with line and key, why a web configuration cannot be used. The
// cause is what the library says that reads it; it is returned as it is if it is about nothing
// that is looked for here.
func ExplainWeb(path string, cause error) error {
	data, err := Read(path)
	if err != nil {
		return cause // it says that, too
	}
	d := &decoder{file: path, pos: map[string]Pos{}}
	root, _ := d.parse(data)
	if root != nil {
		d.webSections(root)
	}
	if len(d.errs) > 0 {
		lines := strings.Split(d.result().Error(), "\n")
		return errors.New(strings.Join(lines, "; "))
	}
	return cause
}

// webSections looks at all keys, and at the passwords.
func (d *decoder) webSections(root *yaml.Node) {
	if root.Kind != yaml.MappingNode {
		d.fail(posOf(root), "", "has no keys; write tls_server_config:, basic_auth_users: or rate_limit: first")
		return
	}
	var sections []string
	for name := range webKeys {
		sections = append(sections, name)
	}
	slices.Sort(sections)
	for i := 0; i+1 < len(root.Content); i += 2 {
		name, section := root.Content[i], root.Content[i+1]
		keys, known := webKeys[name.Value]
		switch {
		case !known:
			d.fail(posOf(name), name.Value, "is not a key%s", didYouMean(name.Value, sections))
			continue
		case section.Kind == yaml.ScalarNode && section.Value == "":
			continue // nothing is below it yet
		case section.Kind != yaml.MappingNode:
			d.fail(posOf(section), name.Value, "has no keys below it; write one of them to a line, each with its value")
			continue
		}
		for j := 0; j+1 < len(section.Content); j += 2 {
			key, value := section.Content[j], section.Content[j+1]
			full := name.Value + "." + key.Value
			switch {
			case keys == nil && !bcryptHash.MatchString(value.Value):
				d.fail(posOf(value), full, "is not a bcrypt hash of a password; write what htpasswd -nBC 10 %s prints after the colon",
					key.Value)
			case keys != nil && !slices.Contains(keys, key.Value):
				d.fail(posOf(key), full, "is not a key%s", didYouMean(key.Value, keys))
			}
		}
	}
}
