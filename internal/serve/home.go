package serve

import (
	"fmt"
	"html"
	"net/http"
)

// homePage is a page with links to what is served, for browsers.
func homePage(telemetryPath string) http.Handler {
	path := html.EscapeString(telemetryPath)
	page := []byte(fmt.Sprintf(`<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>aggregatord</title></head>
<body>
<h1>aggregatord</h1>
<p>One scrape for all worker processes.</p>
<ul>
<li><a href="%s">%s</a> the merged metrics</li>
<li><a href="/-/ready">/-/ready</a> whether they are complete</li>
<li><a href="/-/healthy">/-/healthy</a> whether the daemon runs</li>
</ul>
</body>
</html>
`, path, path))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !allowed(w, r) {
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		send(w, http.StatusOK, page) //nolint:errcheck // the client is gone, and nobody else waits
	})
}
