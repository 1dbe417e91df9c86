package reproduce

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
)

// Report says, version by version and platform by platform, whether two builds gave the same digests.
type Report struct {
	Schema int         `json:"schema"` // 1
	First  Environment `json:"first"`
	Second Environment `json:"second"`
	Rows   []Row       `json:"rows"`
}

// Row is one version on one platform.
type Row struct {
	Version   string     `json:"version"`
	Platform  string     `json:"platform"`
	Identical bool       `json:"identical"`
	Recorded  string     `json:"recorded"` // "same", "different" or "none": the first build against the committed manifest
	Digests   []Compared `json:"digests"`
}

// Compared is one thing that both builds made.
type Compared struct {
	Name        string  `json:"name"` // e.g. "xsnap-worker", "manifest", "index"
	First       string  `json:"first"`
	Second      string  `json:"second"`
	Causes      []Cause `json:"causes,omitempty"`      // where they differ, the first causes first
	Diffoscope  string  `json:"diffoscope,omitempty"`  // what diffoscope says, if it is installed
	Consequence bool    `json:"consequence,omitempty"` // differs only because something that it names does
}

// Identical reports whether both builds gave the same digests everywhere, and whether there was anything to compare.
func (r *Report) Identical() bool {
	for _, row := range r.Rows {
		if !row.Identical {
			return false
		}
	}
	return len(r.Rows) > 0
}

// WriteJSON writes the report for machines.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

//go:embed report.html
var page string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"short": func(digest string) string {
		if len(digest) > 19 {
			return digest[:19] + "…"
		}
		return digest
	},
	"same": func(c Compared) bool { return c.First == c.Second },
	"facts": func(first, second Environment) [][3]string {
		return [][3]string{
			{"path", first.Path, second.Path},
			{"file system", first.FileSystem, second.FileSystem},
			{"user", fmt.Sprint(first.User), fmt.Sprint(second.User)},
			{"umask", first.Umask, second.Umask},
			{"host name", first.Host, second.Host},
			{"locale", first.Locale, second.Locale},
			{"time zone", first.TimeZone, second.TimeZone},
			{"home", first.Home, second.Home},
			{"jobs", fmt.Sprint(first.Jobs), fmt.Sprint(second.Jobs)},
			{"kernel", first.Kernel, second.Kernel},
		}
	},
}).Parse(page))

// WriteHTML writes the report for people: one page that needs nothing else.
func (r *Report) WriteHTML(w io.Writer) error {
	return pageTemplate.Execute(w, r)
}
