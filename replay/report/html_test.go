package report

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/enginery/enginery/internal/browsertest"
	"github.com/enginery/enginery/internal/swingsettest"
	"github.com/enginery/enginery/recipes"
	"github.com/enginery/enginery/replay"
)

func htmlOf(t testing.TB, r *replay.Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := WriteHTML(&b, r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// The page needs nothing else and runs nothing, whatever vats are called and do.
func TestHTML(t *testing.T) {
	t.Parallel()
	all := reports(t)
	foreign := regexp.MustCompile(`(?i)<script|<link|<img|<iframe|<object|@import|url\(|\b(src|srcset|on[a-z]+)\s*=|href="[^#]`)
	all.each(t, func(t *testing.T, r *replay.Report) {
		page := htmlOf(t, r)
		if found := foreign.FindString(strings.ReplaceAll(page, "document.title =", "")); found != "" {
			t.Errorf("the page has %q", found)
		}
		for _, v := range r.Vats {
			if strings.Count(page, `id="`+v.ID+`"`) != 1 || !strings.Contains(page, `<a href="#`+v.ID+`">`) {
				t.Errorf("there is no section on %s, or no way to it", v.ID)
			}
		}
	})
	contains(t, htmlOf(t, all.planted), "Different.", "&lt;/title&gt;&lt;script&gt;", `<mark>7</mark>`, "wrong syscall", "item 7, syscall 11", "message open to o&#43;0",
		"enginery replay reproduce "+all.reproducers+"/v5-7-wrong-syscall", "is damaged", "pruned", `class="mark"`)
	contains(t, htmlOf(t, all.compared), "From agoric-upgrade-22 to agoric-upgrade-16", "agoric-upgrade-16 from bundles", "rowspan=\"3\"")
}

// Reports on nothing, and on what could not be replayed, are pages too.
func TestHTMLOfLittle(t *testing.T) {
	for name, r := range map[string]*replay.Report{
		"nothing":  {},
		"no vats":  {Runs: []replay.Column{{Version: "v"}}},
		"no spans": {Runs: []replay.Column{{Version: "v"}}, Vats: []replay.Vat{{ID: "v1", Runs: []replay.VatRun{{}}}}},
		"one point": {Runs: []replay.Column{{Version: "v"}}, Vats: []replay.Vat{{ID: "v1", Runs: []replay.VatRun{{Series: replay.Series{
			Position: []int64{7}, Deliveries: []int64{1}, Expected: []int64{0}, Got: []int64{0}, HeapCount: []int64{0}, Allocated: []int64{0}}}}}}},
		"unavailable": {Runs: []replay.Column{{Version: "v"}}, Vats: []replay.Vat{{ID: "v1", Runs: []replay.VatRun{{Totals: replay.Totals{Count: map[replay.Outcome]int{replay.Unavailable: 1}},
			Spans: []replay.Span{{Outcome: replay.Unavailable, Reason: "gone"}}}}}}},
	} {
		page := htmlOf(t, r)
		contains(t, page, "Nothing replayed", "</html>")
		if strings.Contains(page, "NaN") || strings.Contains(page, "Inf") {
			t.Errorf("%s: the page has a number that is none", name)
		}
		var b bytes.Buffer
		if err := WriteText(&b, r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// However many jobs replay, the report is the same, but for times.
func TestSameReport(t *testing.T) {
	t.Parallel()
	store := swingsettest.Store(t)
	e := engine(t, swingsettest.Version, recipes.Release)
	var pages, texts [2]string
	for i, jobs := range []int{1, 3} {
		r, err := replay.Run(t.Context(), open(t, store), e, replay.Options{Vats: []string{"v6", "v9"}, Jobs: jobs})
		if err != nil {
			t.Fatal(err)
		}
		r = r.WithoutTimes()
		pages[i] = htmlOf(t, r)
		var b bytes.Buffer
		if err := WriteJSON(&b, r); err != nil {
			t.Fatal(err)
		}
		texts[i] = b.String()
	}
	if pages[0] != pages[1] || texts[0] != texts[1] {
		t.Error("with more jobs the report is another")
	}
}

// The page is right in a browser: light and dark, on a phone, without JavaScript, and printed with all that can be folded away.
func TestBrowser(t *testing.T) {
	t.Parallel()
	all := reports(t)
	dir := t.TempDir()
	if keep := os.Getenv("ENGINERY_SCREENSHOTS"); keep != "" {
		dir = keep
	}
	all.each(t, func(t *testing.T, r *replay.Report) {
		name := strings.ReplaceAll(t.Name(), "/", "-")
		file := filepath.Join(dir, name+".html")
		if err := os.WriteFile(file, []byte(htmlOf(t, r)), 0o644); err != nil {
			t.Fatal(err)
		}
		background := make(map[string]bool)
		for view, v := range map[string]browsertest.View{
			"light": {}, "dark": {Dark: true}, "phone": {Width: browsertest.Phone, Height: 740, NoScript: true}, "print": {Dark: true, Print: true, NoScript: true},
		} {
			p := browsertest.Open(t, "file://"+file, v)
			if n := p.Overflow(); n > 0 {
				t.Errorf("%s: the page is %d pixels too wide", view, n)
			}
			if title := browsertest.Eval[string](p, "document.title"); !strings.HasPrefix(title, VerdictOf(r).Word) {
				t.Errorf("%s: the title is %q", view, title)
			}
			if n := browsertest.Eval[int](p, "document.querySelectorAll('svg').length"); n < 3 {
				t.Errorf("%s: %d plots", view, n)
			}
			// What is folded away is on paper.
			height := browsertest.Eval[float64](p, "document.querySelector('details table').getBoundingClientRect().height")
			if visible := browsertest.Eval[bool](p, "document.querySelector('details table').checkVisibility({contentVisibilityAuto: true})"); visible != v.Print {
				t.Errorf("%s: the table of spans, %v pixels high, is visible: %v", view, height, visible)
			}
			background[browsertest.Eval[string](p, "getComputedStyle(document.body).backgroundColor")] = true
			p.Screenshot(filepath.Join(dir, name+"-"+view+".png"))
		}
		if len(background) != 2 {
			t.Errorf("backgrounds in light, dark and print: %v", background)
		}
	})
}
