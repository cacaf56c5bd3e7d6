package serve

import (
	"bytes"
	"embed"
	"fmt"
	"html"
	"net/http"
	"path"
	"strings"
)

// The status page is plain files: what is in page/ is what a browser gets, but for the path
// of the metrics. It asks the API for everything it shows. page.js is where it begins.
//
//go:embed page/index.html page/*.css page/*.js page/*.svg
var pageFiles embed.FS

// pageTypes are the types of the assets.
var pageTypes = map[string]string{
	".css": "text/css; charset=utf-8",
	".js":  "text/javascript; charset=utf-8",
	".svg": "image/svg+xml",
}

func pageFile(name string) []byte {
	data, err := pageFiles.ReadFile("page/" + name)
	if err != nil {
		panic(fmt.Sprintf("BUG: %v", err))
	}
	return data
}

// homePage is the status page.
func homePage(telemetryPath string) []byte {
	// Addresses in the page are relative, so that it works below any path of a proxy.
	href := html.EscapeString("./" + strings.TrimPrefix(telemetryPath, "/"))
	page := bytes.ReplaceAll(pageFile("index.html"), []byte("TELEMETRY_HREF"), []byte(href))
	page = bytes.ReplaceAll(page, []byte("TELEMETRY_PATH"), []byte(html.EscapeString(telemetryPath)))
	return page
}

// home answers a browser's request for /.
func (s *Server) home(w http.ResponseWriter, r *http.Request) {
	setPageHeaders(w.Header())
	if allowed(w, r) {
		s.sendDocument(w, r, http.StatusOK, "text/html; charset=utf-8", s.page)
	}
}

// asset answers a request for a part of the page.
func (s *Server) asset(w http.ResponseWriter, r *http.Request) {
	setPageHeaders(w.Header())
	if !allowed(w, r) {
		return
	}
	name := strings.TrimPrefix(r.URL.Path, assetsPrefix)
	data, err := pageFiles.ReadFile("page/" + name)
	contentType, ok := pageTypes[path.Ext(name)]
	if err != nil || !ok {
		sendLine(w, http.StatusNotFound, "not found")
		return
	}
	s.sendDocument(w, r, http.StatusOK, contentType, data)
}
