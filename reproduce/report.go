package reproduce

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"html/template"
	"io"
	"strconv"
	"strings"

	"github.com/enginery/enginery/artifact"
	"github.com/enginery/enginery/release"
)

// Report says, version by version and platform by platform, whether two builds gave the same digests.
type Report struct {
	Schema int         `json:"schema"` // 1
	First  Environment `json:"first"`
	Second Environment `json:"second"`
	Rows   []Row       `json:"rows"`

	unlike []*release.DifferentError // the versions that are not as recorded
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
	return enc.Encode(struct {
		Identical bool `json:"identical"`
		*Report
	}{r.Identical(), r})
}

//go:embed report.html
var page string

// fact is something about the two environments.
type fact struct{ Name, First, Second string }

func facts(first, second Environment) []fact {
	return []fact{
		{"path", first.Path, second.Path},
		{"file system", first.FileSystem, second.FileSystem},
		{"order of files", first.FileOrder, second.FileOrder},
		{"user", strconv.Itoa(first.User), strconv.Itoa(second.User)},
		{"umask", first.Umask, second.Umask},
		{"host name", first.Host, second.Host},
		{"network", first.Network, second.Network},
		{"locale", first.Locale, second.Locale},
		{"time zone", first.TimeZone, second.TimeZone},
		{"home", first.Home, second.Home},
		{"jobs", strconv.Itoa(first.Jobs), strconv.Itoa(second.Jobs)},
		{"variables", first.Variables, second.Variables},
		{"kernel", first.Kernel, second.Kernel},
	}
}

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"short": func(digest string) string {
		if len(digest) > 19 {
			return digest[:19] + "…"
		}
		return digest
	},
	"same":   func(c Compared) bool { return c.First == c.Second },
	"anchor": func(r Row) string { return r.Version + "-" + strings.ReplaceAll(r.Platform, "/", "-") },
	"absent": func(digest string) string { return cmp.Or(digest, "none") },
	"workers": func(r Row) []*Compared {
		both := []*Compared{nil, nil}
		for i, c := range r.Digests {
			switch c.Name {
			case artifact.Worker:
				both[0] = &r.Digests[i]
			case artifact.DebugWorker:
				both[1] = &r.Digests[i]
			}
		}
		return both
	},
	"facts": facts,
}).Parse(page))

// WriteHTML writes the report for people: one page that needs nothing else.
func (r *Report) WriteHTML(w io.Writer) error {
	return pageTemplate.Execute(w, r)
}
